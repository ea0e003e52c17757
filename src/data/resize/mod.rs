//! Antialiased resizing, equal to Pillow's `Image.resize` to the byte: its filters, its 22-bit weights, its order of the
//! passes (rows first, then columns, as up to Pillow 12; Pillow 13 changes the order for some tall pictures, and with it a
//! pixel here and there by one grey level).
//!
//! Every sum is one of integers and exact, so that each instruction set gives the same bytes. The buffers are kept: after
//! the largest picture nothing is allocated.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod weights;

use super::decode::Region;
use crate::cpu_time::thread_time;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use weights::{PRECISION, Weights};

/// Pillow's BILINEAR (triangle, support 1) or BICUBIC (Catmull-Rom, a = -0.5, support 2), widened by the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    Bilinear,
    Bicubic,
}

/// What the passes run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

/// What this machine has, weakest first.
fn available() -> &'static [Set] {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        return &[Set::Portable, Set::Avx2];
    }
    &[Set::Portable]
}

/// Resizing with its buffers: one per worker.
pub struct Resizer {
    set: Set,
    columns: Weights,
    rows: Weights,
    /// The picture at its new width and old height, [height, stride] bytes.
    narrowed: Vec<u8>,
    /// CPU time of all resizes.
    pub(super) spent: Duration,
}

impl Default for Resizer {
    fn default() -> Self {
        let (columns, rows) = (Weights::default(), Weights::default());
        let set = available().last().copied().unwrap_or(Set::Portable);
        Self { set, columns, rows, narrowed: Vec::new(), spent: Duration::ZERO }
    }
}

/// Bytes that a vector store may write, or a load read, beyond the last pixel of a row of the narrowed picture.
const SLACK: usize = 32;

/// One pass's picture: RGB u8, rows `stride` bytes apart.
#[derive(Clone, Copy)]
struct Source<'a> {
    pixels: &'a [u8],
    stride: usize,
    height: usize,
    /// In pixels.
    width: usize,
}

impl Resizer {
    /// The plain code path, so that a test can compare.
    #[cfg(test)]
    pub(crate) fn without_simd() -> Self {
        Self { set: Set::Portable, ..Self::default() }
    }

    /// One for each instruction set of this machine.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        available().iter().map(|&set| Self { set, ..Self::default() }).collect()
    }

    /// `region` -> `out` [height, width, 3] RGB u8.
    ///
    /// The region is cut out before it is resized, as torchvision's `resized_crop` does, so no pixel outside it counts.
    pub fn resize(
        &mut self,
        region: Region<'_>,
        interpolation: Interpolation,
        height: usize,
        width: usize,
        out: &mut [u8],
    ) -> Result<(), String> {
        let begin = thread_time();
        let done = self.run(region, interpolation, height, width, out);
        self.spent += thread_time() - begin;
        done
    }

    fn run(
        &mut self,
        region: Region<'_>,
        interpolation: Interpolation,
        height: usize,
        width: usize,
        out: &mut [u8],
    ) -> Result<(), String> {
        let rect = region.rect;
        let inside = rect.top + rect.height <= region.height && rect.left + rect.width <= region.width;
        let sizes = [rect.height, rect.width, height, width];
        if !inside || sizes.contains(&0) || out.len() != height * width * 3 {
            return Err(format!(
                "cannot resize {rect:?} of a picture of {} x {} pixels to {width} x {height}",
                region.width, region.height
            ));
        }
        let stride = region.width * 3;
        let source = Source {
            pixels: &region.pixels[(rect.top * region.width + rect.left) * 3..],
            stride,
            height: rect.height,
            width: rect.width,
        };
        self.columns.fill(rect.width, width, interpolation);
        self.rows.fill(rect.height, height, interpolation);
        // Four pixels are written at a time, and the last of them with four bytes more.
        let narrow_stride = (width.next_multiple_of(4) * 3 + 4).next_multiple_of(SLACK);
        let len = rect.height * narrow_stride + SLACK;
        if self.narrowed.len() < len {
            self.narrowed.resize(len, 0);
        }
        let narrowed = &mut self.narrowed[..len];
        if rect.width == width {
            // Pillow leaves a pass out that would change nothing.
            for (to, from) in
                narrowed.chunks_mut(narrow_stride).zip(source.pixels.chunks(stride)).take(rect.height)
            {
                to[..width * 3].copy_from_slice(&from[..width * 3]);
            }
        } else {
            narrow(self.set, source, &self.columns, narrowed, narrow_stride);
        }
        let source = Source { pixels: narrowed, stride: narrow_stride, height: rect.height, width };
        if rect.height == height {
            for (to, from) in out.chunks_exact_mut(width * 3).zip(source.pixels.chunks(narrow_stride)) {
                to.copy_from_slice(&from[..width * 3]);
            }
        } else {
            shorten(self.set, source, &self.rows, out);
        }
        Ok(())
    }
}

/// The pass along the rows: `source` -> `out` [source.height, out_stride] with `weights.len()` pixels a row.
fn narrow(set: Set, source: Source<'_>, weights: &Weights, out: &mut [u8], out_stride: usize) {
    let done = match set {
        Set::Portable => 0,
        // SAFETY: the set was detected.
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => unsafe { avx2::narrow(source, weights, out, out_stride) },
    };
    for y in done..source.height {
        let row = &source.pixels[y * source.stride..][..source.width * 3];
        let to = &mut out[y * out_stride..][..weights.len() * 3];
        for (x, to) in to.chunks_exact_mut(3).enumerate() {
            let (first, weights) = weights.of(x);
            let mut sums = [1 << (PRECISION - 1); 3];
            for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                for c in 0..3 {
                    sums[c] += i32::from(pixel[c]) * weight;
                }
            }
            to.copy_from_slice(&sums.map(clip));
        }
    }
}

/// The pass along the columns: `source` -> `out` [weights.len(), source.width, 3].
fn shorten(set: Set, source: Source<'_>, weights: &Weights, out: &mut [u8]) {
    for (y, to) in out.chunks_exact_mut(source.width * 3).enumerate() {
        let done = match set {
            Set::Portable => 0,
            // SAFETY: the set was detected.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2::shorten(source, weights, y, to) },
        };
        let (first, weights) = weights.of(y);
        const BLOCK: usize = 64;
        for (block, to) in to[done..].chunks_mut(BLOCK).enumerate() {
            let mut sums = [1 << (PRECISION - 1); BLOCK];
            for (k, weight) in weights.iter().enumerate() {
                let from = &source.pixels[(first + k) * source.stride + done + block * BLOCK..][..to.len()];
                for (sum, value) in sums.iter_mut().zip(from) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = clip(sum);
            }
        }
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}
