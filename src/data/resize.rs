//! Antialiased resizing with Pillow's filters, on the same pixels: bilinear is at most one grey level from
//! `Image.resize`; bicubic is as near on average, and farther beside hard edges, where its overshoot is clipped
//! between the two passes and the library takes the vertical one first.

use fast_image_resize as fir;
use fir::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fir::pixels::U8x3;

use super::decode::Region;
use serde::{Deserialize, Serialize};

/// Pillow's BILINEAR (triangle, support 1) or BICUBIC (Catmull-Rom, a = -0.5, support 2), widened by the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    Bilinear,
    Bicubic,
}

/// Resizing with its buffers: one per worker.
#[derive(Default)]
pub struct Resizer {
    inner: fir::Resizer,
}

impl Resizer {
    /// Integer weights and sums make the result the same on every instruction set; this lets a test compare.
    #[cfg(test)]
    pub(crate) fn without_simd() -> Self {
        let mut inner = fir::Resizer::new();
        // SAFETY: the plain code path runs on every CPU.
        unsafe { inner.set_cpu_extensions(fir::CpuExtensions::None) };
        Self { inner }
    }

    /// `region` -> `out` [height, width, 3] RGB u8.
    ///
    /// The region is cut out before it is resized, as torchvision's `resized_crop` does, so no pixel outside it
    /// counts. The library's own `crop` option reads outside.
    pub fn resize(
        &mut self,
        region: Region<'_>,
        interpolation: Interpolation,
        height: usize,
        width: usize,
        out: &mut [u8],
    ) -> Result<(), String> {
        let failed = |e: &dyn std::fmt::Display| format!("cannot resize to {width} x {height}: {e}");
        let (w, h) = (region.width as u32, region.height as u32);
        let source = TypedImageRef::<U8x3>::from_buffer(w, h, region.pixels).map_err(|e| failed(&e))?;
        let rect = region.rect;
        let (x, y, w, h) = (rect.left as u32, rect.top as u32, rect.width as u32, rect.height as u32);
        let view = TypedCroppedImage::from_ref(&source, x, y, w, h).map_err(|e| failed(&e))?;
        let (w, h) = (width as u32, height as u32);
        let mut target = TypedImage::<U8x3>::from_buffer(w, h, out).map_err(|e| failed(&e))?;
        let filter = match interpolation {
            Interpolation::Bilinear => fir::FilterType::Bilinear,
            Interpolation::Bicubic => fir::FilterType::CatmullRom,
        };
        let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter));
        self.inner.resize_typed(&view, &mut target, &options).map_err(|e| failed(&e))
    }
}
