//! From a file's bytes to the pixels that a network is evaluated on, by torchvision's definitions: Resize of the
//! shorter side, then CenterCrop. Validation, `engine predict` and `classify` all come through here.

use super::decode::{Decoder, Header, Limits, Reading, Rect, Region, grow, read_header};
use super::exif::Orientation;
use super::resize::{Interpolation, Resizer};
use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};

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
pub(super) fn round(x: f64) -> i64 {
    x.round_ties_even() as i64
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
    /// A file's bytes, read as a data set's are -> u8 [crop, crop, 3]; `name` is for messages.
    pub fn apply(&self, bytes: &[u8], name: &str, limits: Limits) -> Result<Vec<u8>> {
        let mut out = vec![0; self.crop * self.crop * 3];
        let mut preprocessor = Preprocessor { limits, ..Preprocessor::new(*self, Reading::DataSet) };
        let done = preprocessor.run(&mut bytes.to_vec(), &mut out);
        done.map_err(|reason| Error::input_file(name, reason))?;
        Ok(out)
    }
}

/// Bytes of buffers that are kept for the next picture: a photograph of 20 million pixels. What a larger one took is
/// given back, so that one of them does not hold a server's memory for good.
const KEPT_BYTES: usize = 64 << 20;

/// Files, one after another, to network inputs; keeps its buffers.
pub struct Preprocessor {
    pub transform: EvalTransform,
    pub reading: Reading,
    pub limits: Limits,
    workshop: Workshop,
}

impl Preprocessor {
    pub fn new(transform: EvalTransform, reading: Reading) -> Self {
        Self { transform, reading, limits: Limits::default(), workshop: Workshop::default() }
    }

    /// The bytes of a file -> `out` u8 [crop, crop, 3]; the error is the sentence that says why it cannot be. `bytes`
    /// are changed while this runs, and are as they were when it returns, unless a decoder panicked.
    pub fn run(&mut self, bytes: &mut [u8], out: &mut [u8]) -> Result<(), String> {
        self.workshop.decoder.reading = self.reading;
        let Self { transform, limits, workshop, .. } = self;
        // A damaged file that trips a decoder costs itself, and no other picture.
        let done = catch_unwind(AssertUnwindSafe(|| {
            let header = read_header(bytes, *limits)?;
            workshop.eval(bytes, &header, *limits, transform, out)
        }));
        if done.is_err() || self.workshop.held_bytes() > KEPT_BYTES {
            self.workshop = Workshop::default();
        }
        let panicked = "the decoder panicked on it; please report it with the file";
        done.unwrap_or_else(|_| Err(panicked.to_owned()))
    }
}

/// Everything that a worker needs to turn bytes into pixels.
#[derive(Default)]
pub(crate) struct Workshop {
    pub(super) decoder: Decoder,
    pub(super) resizer: Resizer,
    resized: Vec<u8>,
}

impl Workshop {
    fn held_bytes(&self) -> usize {
        self.decoder.held_bytes() + self.resized.capacity()
    }

    /// The evaluation image, into `out` [crop, crop, 3].
    pub fn eval(
        &mut self,
        bytes: &mut [u8],
        header: &Header,
        limits: Limits,
        transform: &EvalTransform,
        out: &mut [u8],
    ) -> Result<(), String> {
        let orientation = self.decoder.orientation(header);
        let region = self.decoder.decode(bytes, header, Rect::whole(header.height, header.width))?;
        let (height, width) = resize(region, limits, transform, &mut self.resizer, &mut self.resized)?;
        center_crop(&self.resized, (height, width), orientation, transform.crop, out);
        Ok(())
    }
}

/// torchvision's `Resize` of `region`, into `resized`; its height and width.
fn resize(
    region: Region<'_>,
    limits: Limits,
    transform: &EvalTransform,
    resizer: &mut Resizer,
    resized: &mut Vec<u8>,
) -> Result<(usize, usize), String> {
    let (height, width) = resized_size(region.rect.height, region.rect.width, transform.resize);
    // A strip of an image within the limit may be beyond it once its short side has grown.
    if (height * width) as u64 > limits.pixels {
        let Rect { height: h, width: w, .. } = region.rect;
        return Err(format!("{w} x {h} would become {width} x {height} for the network: crop it"));
    }
    let len = height * width * 3;
    grow(resized, len)?;
    resizer.resize(region, transform.interpolation, height, width, &mut resized[..len])?;
    Ok((height, width))
}

/// torchvision's `CenterCrop` of `pixels` [height, width, 3] once they are turned by `orientation`.
///
/// The picture is turned after it was resized, when there is little of it: turned before, the two passes of the resize
/// would change places, and a pixel could round to the next grey level.
fn center_crop(
    pixels: &[u8],
    (height, width): (usize, usize),
    orientation: Orientation,
    crop: usize,
    out: &mut [u8],
) {
    let pixels: &[[u8; 3]] = bytemuck::cast_slice(pixels);
    let out: &mut [[u8; 3]] = bytemuck::cast_slice_mut(out);
    let (turned_height, turned_width) =
        if orientation.transposed { (width, height) } else { (height, width) };
    let (top, left) = (center_offset(turned_height, crop), center_offset(turned_width, crop));
    // Where the picture lies in the crop: all of it, unless the picture is smaller.
    let inside = |offset: i64, len: usize| {
        let begin = (-offset).max(0) as usize;
        begin..begin + crop.min(len)
    };
    let (rows, columns) = (inside(top, turned_height), inside(left, turned_width));
    let file_row = |y: usize| if orientation.rows_reversed { height - 1 - y } else { y };
    let file_column = |x: usize| if orientation.columns_reversed { width - 1 - x } else { x };
    out.fill([0; 3]);
    for y in rows {
        let turned_y = (y as i64 + top) as usize;
        for x in columns.clone() {
            let turned_x = (x as i64 + left) as usize;
            let (row, column) =
                if orientation.transposed { (turned_x, turned_y) } else { (turned_y, turned_x) };
            out[y * crop + x] = pixels[file_row(row) * width + file_column(column)];
        }
    }
}
