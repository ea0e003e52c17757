//! Pillow's `ImageEnhance`: a step from a degenerate picture to the given one, or past it.
//!
//! All in f32 and in Pillow's order, `degenerate + factor * (value - degenerate)`, cut off to a whole level.

use crate::simd::dispatch::multiversion;

/// `Image.blend` of one value. Between the two pictures nothing is clipped, and beyond them Pillow clips as the cast does.
#[inline(always)]
fn blend(degenerate: i32, value: i32, factor: f32) -> u8 {
    let level = degenerate as f32 + factor * (value - degenerate) as f32;
    // SAFETY: clamped to what a u8 holds; a factor is finite, so no level is NaN.
    unsafe { level.clamp(0.0, 255.0).to_int_unchecked::<i32>() as u8 }
}

multiversion! {
    /// Blends with one level: `Brightness` with 0, `Contrast` with [`contrast_level`].
    pub fn from_level(level: u8, factor: f32, pixels: &mut [u8]) {
        let level = i32::from(level);
        pixels.iter_mut().for_each(|x| *x = blend(level, i32::from(*x), factor));
    }
}

multiversion! {
    /// Blends with another picture of the same size.
    pub fn from_picture(degenerate: &[u8], factor: f32, pixels: &mut [u8]) {
        let pairs = pixels.iter_mut().zip(degenerate);
        pairs.for_each(|(x, &d)| *x = blend(i32::from(d), i32::from(*x), factor));
    }
}

/// `Image.convert("L")` (ITU-R 601-2 in 16 bits).
#[inline(always)]
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// The grey that `Contrast` starts from: the mean of the grey picture, to the nearest level.
pub fn contrast_level(pixels: &[u8]) -> u8 {
    let pixels: &[[u8; 3]] = bytemuck::cast_slice(pixels);
    let sum: u64 = pixels.iter().map(|&pixel| u64::from(luma(pixel))).sum();
    (sum as f64 / pixels.len() as f64 + 0.5) as u8
}

multiversion! {
    /// The grey picture that `Color` starts from, in three equal channels.
    pub fn grey(pixels: &[u8], out: &mut [u8]) {
        let (pixels, out): (&[[u8; 3]], &mut [[u8; 3]]) =
            (bytemuck::cast_slice(pixels), bytemuck::cast_slice_mut(out));
        out.iter_mut().zip(pixels).for_each(|(out, &pixel)| *out = [luma(pixel); 3]);
    }
}

/// What [`smooth_rows`] divides by: a weight of 5 and eight of 1.
const SMOOTH_SUM: u32 = 13;

multiversion! {
    /// `ImageFilter.SMOOTH` of one row between two others, without its first and last pixel.
    ///
    /// Pillow adds up f32 products and one half and cuts off. Twice the sum and 13, over 26, is never nearer than 1/26
    /// to a whole number from below, and f32's rounding is far smaller, so whole numbers give the same.
    fn smooth_row(above: &[u8], row: &[u8], below: &[u8], out: &mut [u8]) {
        let inner = row.len() - 6;
        let three = |line: &[u8], i: usize| u32::from(line[i]) + u32::from(line[i + 3]) + u32::from(line[i + 6]);
        let (above, row, below) = (&above[..inner + 6], &row[..inner + 6], &below[..inner + 6]);
        for (i, out) in out[3..inner + 3].iter_mut().enumerate() {
            let sum = three(above, i) + three(row, i) + three(below, i) + 4 * u32::from(row[i + 3]);
            *out = ((2 * sum + SMOOTH_SUM) / (2 * SMOOTH_SUM)) as u8;
        }
    }
}

/// The blurred picture that `Sharpness` starts from; its border is the given picture's.
pub fn smooth(isa: crate::simd::isa::Isa, width: usize, pixels: &[u8], out: &mut [u8]) {
    let stride = 3 * width;
    out.copy_from_slice(pixels);
    if width < 3 {
        return;
    }
    for (rows, out) in pixels.windows(3 * stride).step_by(stride).zip(out[stride..].chunks_exact_mut(stride))
    {
        smooth_row(isa, &rows[..stride], &rows[stride..2 * stride], &rows[2 * stride..], out);
    }
}
