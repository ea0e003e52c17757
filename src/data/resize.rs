//! Antialiased resizing with Pillow's filters: at most one grey level from `Image.resize` on the same pixels.

use fast_image_resize as fir;
use fir::images::{CroppedImage, Image as Target, ImageRef};

use super::decode::Region;
pub use crate::config::Interpolation;

/// Resizing with its buffers: one per worker.
#[derive(Default)]
pub struct Resizer {
    inner: fir::Resizer,
}

impl Resizer {
    /// Results do not depend on the instruction set: integer weights and sums (a test compares them). This lets that
    /// test, and a benchmark, choose.
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
        let source =
            ImageRef::new(region.width as u32, region.height as u32, region.pixels, fir::PixelType::U8x3)
                .map_err(|e| failed(&e))?;
        let rect = region.rect;
        let view = CroppedImage::new(
            &source,
            rect.left as u32,
            rect.top as u32,
            rect.width as u32,
            rect.height as u32,
        )
        .map_err(|e| failed(&e))?;
        let mut target = Target::from_slice_u8(width as u32, height as u32, out, fir::PixelType::U8x3)
            .map_err(|e| failed(&e))?;
        let filter = match interpolation {
            Interpolation::Bilinear => fir::FilterType::Bilinear,
            Interpolation::Bicubic => fir::FilterType::CatmullRom,
        };
        let options = fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter));
        self.inner.resize(&view, &mut target, &options).map_err(|e| failed(&e))
    }
}
