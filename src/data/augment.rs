//! torchvision's geometry, to the letter, as functions of the image's size and of the draws.

use super::decode::{Decoder, Header, Limits, Rect, Region, read_header};
use super::resize::{Interpolation, Resizer};
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

/// Resize(resize) of the shorter side, then CenterCrop(crop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvalTransform {
    pub resize: usize,
    pub crop: usize,
    pub interpolation: Interpolation,
}

impl EvalTransform {
    /// At `resolution` pixels: the crop is `crop_ratio` of the resized shorter side, rounded (224 of 256 at 0.875).
    pub fn new(resolution: usize, crop_ratio: f64, interpolation: Interpolation) -> Self {
        let resize = (resolution as f64 / crop_ratio).round() as usize;
        Self { resize, crop: resolution, interpolation }
    }
}

/// Python's `int(round(x))`: ties go to the even number.
fn round(x: f64) -> i64 {
    x.round_ties_even() as i64
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

/// torchvision's `Resize(size)` with one number: the shorter side becomes `size`, the longer one
/// `int(size * long / short)`. (height, width) -> (height, width).
pub fn resized_size(height: usize, width: usize, size: usize) -> (usize, usize) {
    let (short, long) = (height.min(width), height.max(width));
    let new_long = (size * long / short).max(1);
    if width <= height { (new_long, size) } else { (size, new_long) }
}

/// One axis of torchvision's `CenterCrop`: where the crop begins in the image, negative where the image is padded
/// with zeros because it is smaller.
pub(crate) fn center_offset(len: usize, crop: usize) -> i64 {
    if crop > len {
        // The padding before is (crop - len) // 2, and what remains of it goes after.
        return -(((crop - len) / 2) as i64);
    }
    round((len - crop) as f64 / 2.0)
}

impl EvalTransform {
    /// A file's bytes -> u8 [crop, crop, 3]; `name` is for messages.
    pub fn apply(&self, bytes: &[u8], name: &str, limits: Limits) -> crate::error::Result<Vec<u8>> {
        let mut out = vec![0; self.crop * self.crop * 3];
        read_header(bytes, limits)
            .and_then(|header| Workshop::default().eval(&mut bytes.to_vec(), &header, self, &mut out))
            .map_err(|reason| crate::error::Error::input_file(name, reason))?;
        Ok(out)
    }
}

/// Everything that a worker needs to turn bytes into pixels.
#[derive(Default)]
pub(crate) struct Workshop {
    decoder: Decoder,
    resizer: Resizer,
    resized: Vec<u8>,
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

    /// The evaluation image, into `out` [crop, crop, 3].
    pub fn eval(
        &mut self,
        bytes: &mut [u8],
        header: &Header,
        transform: &EvalTransform,
        out: &mut [u8],
    ) -> Result<(), String> {
        let region = self.decoder.decode(bytes, header, Rect::whole(header.height, header.width))?;
        eval_pixels(region, transform, &mut self.resizer, &mut self.resized, out)
    }
}

/// Mirrors each row of `pixels` [_, width, 3].
pub(crate) fn flip_rows(pixels: &mut [u8], width: usize) {
    for row in pixels.chunks_exact_mut(width * 3) {
        let row: &mut [[u8; 3]] = bytemuck::cast_slice_mut(row);
        row.reverse();
    }
}

fn eval_pixels(
    region: Region<'_>,
    transform: &EvalTransform,
    resizer: &mut Resizer,
    resized: &mut Vec<u8>,
    out: &mut [u8],
) -> Result<(), String> {
    let crop = transform.crop;
    let (height, width) = resized_size(region.rect.height, region.rect.width, transform.resize);
    // A strip of an image within the limit may be beyond it once its short side has grown.
    if (height * width) as u64 > Limits::default().pixels {
        let Rect { height: h, width: w, .. } = region.rect;
        return Err(format!("{w} x {h} would become {width} x {height} for evaluation: crop it"));
    }
    let len = height * width * 3;
    resized.resize(len.max(resized.len()), 0);
    resizer.resize(region, transform.interpolation, height, width, &mut resized[..len])?;
    let (top, left) = (center_offset(height, crop), center_offset(width, crop));
    let (from, to) = ((left.max(0)) as usize, (-left).max(0) as usize);
    let count = crop.min(width);
    out.fill(0);
    for (y, row) in out.chunks_exact_mut(crop * 3).enumerate() {
        let source = y as i64 + top;
        if (0..height as i64).contains(&source) {
            let at = (source as usize * width + from) * 3;
            row[to * 3..(to + count) * 3].copy_from_slice(&resized[at..at + count * 3]);
        }
    }
    Ok(())
}
