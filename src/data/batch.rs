//! What a training pass is given: pixels and labels, and what is still to be done to the pixels on the device.

use super::decode::Rect;

/// Images and labels of one pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// u8 [n, resolution, resolution, 3], n = `labels.len()`.
    pub images: Vec<u8>,
    pub labels: Vec<u32>,
    /// Index of each image in its split.
    pub samples: Vec<u32>,
    pub resolution: usize,
    /// How each image takes in another one; empty: no image does.
    pub mixes: Vec<Mix>,
    /// What of each image is painted over; empty: nothing.
    pub erased: Vec<Option<Erase>>,
    pub blend: Blend,
}

/// In which numbers images are mixed, and what happens before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Blend {
    /// Images are normalised, erased, then mixed in f32 (pytorch/vision, references/classification).
    #[default]
    Values,
    /// They are mixed as bytes, to the nearest (halves to the even one), then normalised, then erased
    /// (huggingface/pytorch-image-models, `FastCollateMixup` and `PrefetchLoader`).
    Bytes,
}

/// A byte of `own` mixed with one of `other`: both products and their sum are rounded to f32, as NumPy does.
pub fn mix_bytes(lambda: f32, own: u8, other: u8) -> u8 {
    (f32::from(own) * lambda + f32::from(other) * (1.0 - lambda)).round_ties_even() as u8
}

/// How an image, and its target, takes in another image of its batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// The other image.
    pub partner: u32,
    /// The share of the image's own label.
    pub lambda: f32,
    /// Cutmix (arXiv:1905.04899): where the other image's pixels stand. `None`: mixup (arXiv:1710.09412), every pixel is
    /// `lambda` of its own and the rest of the other's.
    pub region: Option<Rect>,
}

impl Mix {
    /// Image `index` left to itself.
    pub fn none(index: usize) -> Self {
        Self { partner: index as u32, lambda: 1.0, region: None }
    }
}

/// Random erasing (arXiv:1708.04896): a rectangle of the normalised image that is painted over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Erase {
    pub rect: Rect,
    pub fill: Fill,
}

/// What stands in an erased rectangle, in units of the normalised image: 0 is the data's mean, 1 a standard deviation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// One value for each channel.
    Colour([f32; 3]),
    /// Standard normal noise: element (row * resolution + column) * 3 + channel is made from that draw of the stream of
    /// this key ([`crate::rng::nth`]), see [`noise`].
    Noise(u64),
}

impl Fill {
    /// torchvision's default.
    pub const ZERO: Self = Self::Colour([0.0; 3]);
}

/// A standard normal number from 48 bits of a draw (Box-Muller), in f32 so that devices agree up to their functions' rounding.
pub fn noise(bits: u64) -> f32 {
    const UNIT: f32 = 1.0 / (1u32 << 24) as f32;
    let (u, v) = ((bits >> 40) as f32, (bits >> 16 & 0xff_ffff) as f32);
    (-2.0 * ((u + 1.0) * UNIT).ln()).sqrt() * (std::f32::consts::TAU * (v * UNIT)).cos()
}

impl Batch {
    fn stride(&self) -> usize {
        self.resolution * self.resolution * 3
    }

    /// The mix of image `index`.
    pub fn mix(&self, index: usize) -> Mix {
        self.mixes.get(index).copied().unwrap_or_else(|| Mix::none(index))
    }

    /// Each bad slot gets a copy of the next good one, cyclically. At least one slot is good.
    pub(super) fn fill(&mut self, bad: &[usize]) {
        let (n, stride) = (self.labels.len(), self.stride());
        for &slot in bad {
            let good = (1..n).map(|i| (slot + i) % n).find(|s| !bad.contains(s));
            if let Some(good) = good {
                self.images.copy_within(good * stride..(good + 1) * stride, slot * stride);
                self.labels[slot] = self.labels[good];
                self.samples[slot] = self.samples[good];
                if !self.erased.is_empty() {
                    self.erased[slot] = self.erased[good];
                }
            }
        }
    }

    /// Takes the bad slots out of an evaluation batch.
    pub(super) fn remove(&mut self, bad: &[usize]) {
        let stride = self.stride();
        for &slot in bad.iter().rev() {
            self.images.drain(slot * stride..(slot + 1) * stride);
            self.labels.remove(slot);
            self.samples.remove(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng, nth};

    /// Five standard errors of the moments of a standard normal.
    #[test]
    fn noise_is_standard_normal() {
        let (key, n) = (Rng::new(1, 2, 3, Purpose::Synth).key(), 100_000);
        let values: Vec<f64> = (0..n).map(|index| f64::from(noise(nth(key, index)))).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let square = values.iter().map(|value| value * value).sum::<f64>() / n as f64;
        let error = 5.0 / (n as f64).sqrt();
        assert!(mean.abs() < error, "mean {mean}");
        assert!((square - 1.0).abs() < 1.4143 * error, "variance {square}");
        assert!(noise(0).is_finite() && noise(u64::MAX).is_finite());
    }
}
