//! torchvision's random geometry, to the letter, as functions of the image's size and of the draws.

use super::decode::{Header, Rect};
use super::preprocess::{Workshop, round};
use super::resize::{Interpolation, mirror};
use crate::rng::{Purpose, Rng};

/// RandomResizedCrop's ranges: share of the area, and width over height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crop {
    pub scale: (f64, f64),
    pub ratio: (f64, f64),
}

impl Default for Crop {
    /// torchvision's defaults.
    fn default() -> Self {
        Self { scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0) }
    }
}

/// RandomResizedCrop(resolution), then a horizontal flip with probability `flip`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainTransform {
    pub resolution: usize,
    pub crop: Crop,
    pub flip: f64,
    pub interpolation: Interpolation,
}

impl TrainTransform {
    /// torchvision's reference preset: default ranges, flip with one half, bilinear.
    pub fn new(resolution: usize) -> Self {
        Self { resolution, crop: Crop::default(), flip: 0.5, interpolation: Interpolation::Bilinear }
    }
}

/// torchvision's `RandomResizedCrop.get_params`. `uniform` gives draws in [0, 1), used in this order: for each of ten
/// tries the area, `u * (scale.1 - scale.0) + scale.0` times the image's, then the aspect, the exponential of a
/// uniform draw between the logarithms of `ratio`; for the first try that fits, the top row, `floor(u * count)` of
/// the `count` that are possible, then the left column likewise. A try that does not fit takes two draws.
pub fn random_resized_crop(
    height: usize,
    width: usize,
    crop: &Crop,
    uniform: &mut dyn FnMut() -> f64,
) -> Rect {
    let (log_low, log_high) = (crop.ratio.0.ln(), crop.ratio.1.ln());
    for _ in 0..10 {
        let share = crop.scale.0 + (crop.scale.1 - crop.scale.0) * uniform();
        let aspect = (log_low + (log_high - log_low) * uniform()).exp();
        if let Some((h, w)) = crop_size(height, width, share, aspect) {
            let mut corner = |count: usize| ((uniform() * count as f64) as usize).min(count - 1);
            let top = corner(height - h + 1);
            let left = corner(width - w + 1);
            return Rect { top, left, height: h, width: w };
        }
    }
    central_fallback(height, width, crop.ratio)
}

/// (height, width) of one try, where it fits.
pub(crate) fn crop_size(height: usize, width: usize, share: f64, aspect: f64) -> Option<(usize, usize)> {
    let area = (height * width) as f64 * share;
    let (w, h) = (round((area * aspect).sqrt()), round((area / aspect).sqrt()));
    let fits = 0 < w && w <= width as i64 && 0 < h && h <= height as i64;
    fits.then_some((h as usize, w as usize))
}

fn central_fallback(height: usize, width: usize, ratio: (f64, f64)) -> Rect {
    let of_image = width as f64 / height as f64;
    let (mut h, mut w) = (height, width);
    if of_image < ratio.0 {
        h = (round(width as f64 / ratio.0) as usize).clamp(1, height);
    } else if of_image > ratio.1 {
        w = (round(height as f64 * ratio.1) as usize).clamp(1, width);
    }
    Rect { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

impl Workshop {
    /// The training image of (seed, epoch, sample), into `out` [resolution, resolution, 3].
    pub fn train(
        &mut self,
        bytes: &mut [u8],
        header: &Header,
        transform: &TrainTransform,
        key: (u64, u64, u64),
        out: &mut [u8],
    ) -> Result<(), String> {
        let (seed, epoch, sample) = key;
        let mut draws = Rng::new(seed, epoch, sample, Purpose::Crop);
        let rect = random_resized_crop(header.height, header.width, &transform.crop, &mut || draws.unit());
        let region = self.decoder.decode(bytes, header, rect)?;
        let r = transform.resolution;
        self.resizer.resize(region, transform.interpolation, r, r, out)?;
        // torchvision: `torch.rand(1) < p`.
        if Rng::new(seed, epoch, sample, Purpose::Flip).unit() < transform.flip {
            flip_rows(out, r);
        }
        Ok(())
    }
}

/// Mirrors each row of `pixels` [_, width, 3].
pub(crate) fn flip_rows(pixels: &mut [u8], width: usize) {
    mirror(pixels, width);
}
