//! From the bytes of an image file to RGB pixels, by what the bytes are and not by what the file is called.
//!
//! JPEG, PNG and WebP come out as Pillow's `convert("RGB")` has them, or as a person sees them: see [`Reading`]. Every
//! failure is one sentence; whoever knows the file's name puts it in front.

use std::io::Cursor;
use std::time::Duration;

use super::exif::{self, Orientation};
use super::jpeg::{self, JpegHeader};
use crate::cpu_time::thread_time;
use crate::error::{Error, Result};

/// What a decoder may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Width times height. Pillow warns above 89,478,485 and refuses above twice that (`Image.MAX_IMAGE_PIXELS`).
    pub pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { pixels: 178_956_970 }
    }
}

/// What a file's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reading {
    /// As Pillow's `convert("RGB")` and so torchvision's `ImageFolder` have them: alpha is dropped, 16-bit grey is clipped,
    /// EXIF orientation is ignored. Training and evaluation on a data set read so.
    #[default]
    DataSet,
    /// As a viewer shows it: turned by EXIF orientation, alpha laid over white, 16-bit grey by its high byte. People's
    /// own pictures are read so.
    Photograph,
}

/// RGB u8, row by row, [height, width, 3].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    pub width: usize,
    pub height: usize,
    pub pixels: Vec<u8>,
}

/// Rows `top..top + height`, columns `left..left + width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

impl Rect {
    pub fn whole(height: usize, width: usize) -> Self {
        Self { top: 0, left: 0, height, width }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    Jpeg,
    Png,
    WebP,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
        }
    }
}

/// What an image says about itself before it is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub format: Format,
    pub width: usize,
    pub height: usize,
    /// 1 grey, 2 grey with alpha, 3 colour or palette, 4 colour with alpha or CMYK.
    pub channels: u8,
    pub bits: u8,
    pub progressive: bool,
    /// EXIF orientation, 1 to 8.
    pub orientation: Option<u16>,
    jpeg: Option<JpegHeader>,
}

/// Beginnings of files that are often met in an image folder and are not decoded here.
const OTHERS: [(&[u8], &str); 14] = [
    (b"GIF8", "a GIF image"),
    (b"<svg", "an SVG drawing"),
    (b"%PDF", "a PDF document"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"P6", "a PPM image"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"PK\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a Git LFS pointer (run `git lfs pull`)"),
];

/// Brands of the ISO media container (ISO 14496-12, 4.3) that hold still pictures.
const BRANDS: [(&[u8], &str); 7] = [
    (b"heic", "a HEIC photograph"),
    (b"heix", "a HEIC photograph"),
    (b"hevc", "a HEIC photograph"),
    (b"mif1", "a HEIF photograph"),
    (b"msf1", "a HEIF photograph"),
    (b"avif", "an AVIF image"),
    (b"avis", "an AVIF image"),
];

/// What a file that is not decoded here is, as far as its beginning tells.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    let begins =
        |text: &[u8]| OTHERS.iter().find(|(magic, _)| text.starts_with(magic)).map(|(_, name)| *name);
    if bytes.get(4..8) == Some(b"ftyp") {
        let brand = BRANDS.iter().find(|(brand, _)| bytes.get(8..12) == Some(brand));
        return Some(brand.map_or("a video or another ISO media file", |(_, name)| name));
    }
    if text.starts_with(b"<?xml") || text.starts_with(b"<!--") {
        let head = &text[..text.len().min(4096)];
        let is_svg = head.windows(4).any(|part| part == b"<svg");
        return Some(if is_svg { "an SVG drawing" } else { "an XML document" });
    }
    begins(bytes).or_else(|| begins(text))
}

fn sniff(bytes: &[u8]) -> Result<Format, String> {
    if bytes.is_empty() {
        return Err("the file has no bytes".into());
    }
    if bytes.starts_with(b"\xff\xd8\xff") {
        return Ok(Format::Jpeg);
    }
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Format::Png);
    }
    if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        return Ok(Format::WebP);
    }
    let what = other_kind(bytes).map_or_else(
        || format!("not an image (it begins with {:02x?})", &bytes[..bytes.len().min(8)]),
        Into::into,
    );
    Err(format!("{what}; JPEG, PNG and WebP are read"))
}

/// Format, size and layout, and the pixel cap, from the headers alone.
pub fn read_header(bytes: &[u8], limits: Limits) -> Result<Header, String> {
    let header = match sniff(bytes)? {
        Format::Jpeg => {
            let jpeg = jpeg::read_header(bytes)?;
            Header {
                format: Format::Jpeg,
                width: jpeg.width,
                height: jpeg.height,
                channels: jpeg.components,
                bits: 8,
                progressive: jpeg.progressive,
                orientation: jpeg.orientation,
                jpeg: Some(jpeg),
            }
        }
        Format::Png => Header { orientation: exif::of_png(bytes), ..png_header(bytes)? },
        Format::WebP => {
            let decoder = webp_decoder(bytes)?;
            let (width, height) = decoder.dimensions();
            let channels = if decoder.has_alpha() { 4 } else { 3 };
            let header = plain_header(Format::WebP, width, height, channels, 8);
            Header { orientation: exif::of_webp(bytes), ..header }
        }
    };
    let pixels = header.width as u64 * header.height as u64;
    if pixels > limits.pixels {
        let (w, h) = (header.width, header.height);
        let cap = limits.pixels;
        return Err(format!(
            "{w} x {h} is {pixels} pixels, more than the {cap} that are decoded: make it smaller"
        ));
    }
    Ok(header)
}

fn plain_header(format: Format, width: u32, height: u32, channels: u8, bits: u8) -> Header {
    let (width, height) = (width as usize, height as usize);
    Header { format, width, height, channels, bits, progressive: false, orientation: None, jpeg: None }
}

/// A decoder with its buffer: one per worker.
#[derive(Default)]
pub struct Decoder {
    pub reading: Reading,
    /// CPU time of all decodes.
    pub(super) spent: Duration,
    pixels: Vec<u8>,
    scratch: Vec<u8>,
    #[cfg(feature = "turbojpeg")]
    turbo: super::turbo::Turbo,
}

/// The part of an image that was asked for, inside a buffer that may hold more of it.
#[derive(Debug, Clone, Copy)]
pub struct Region<'a> {
    /// RGB u8, [height, width, 3].
    pub pixels: &'a [u8],
    pub height: usize,
    pub width: usize,
    /// Where the part lies in `pixels`.
    pub rect: Rect,
}

impl Region<'_> {
    /// The part alone.
    pub fn to_image(self) -> Image {
        let Rect { top, left, height, width } = self.rect;
        let row = |y: usize| &self.pixels[((top + y) * self.width + left) * 3..][..width * 3];
        Image { width, height, pixels: (0..height).flat_map(row).copied().collect() }
    }
}

/// The name of the JPEG decoder that this binary was built with.
pub const JPEG_DECODER: &str =
    if cfg!(feature = "turbojpeg") { "libjpeg-turbo (region)" } else { "zune-jpeg (pure Rust)" };

/// What is wrong, and a library's reason for it in one line: some end theirs in a newline.
pub(super) fn because(what: &str, reason: &str) -> String {
    let words: Vec<&str> = reason.split_whitespace().collect();
    format!("{what}: {}", words.join(" "))
}

/// Makes room for `len` bytes, or says that the machine has none.
pub(super) fn grow(buffer: &mut Vec<u8>, len: usize) -> Result<(), String> {
    let more = len.saturating_sub(buffer.len());
    buffer
        .try_reserve_exact(more)
        .map_err(|_| format!("there is no memory for {} MB of pixels: make it smaller", len >> 20))?;
    buffer.resize(len.max(buffer.len()), 0);
    Ok(())
}

impl Decoder {
    /// How what [`Self::decode`] gives has to be turned.
    pub fn orientation(&self, header: &Header) -> Orientation {
        match self.reading {
            Reading::DataSet => Orientation::default(),
            Reading::Photograph => header.orientation.map_or(Orientation::default(), Orientation::from_exif),
        }
    }

    /// Bytes of the buffers that are kept from picture to picture.
    pub fn held_bytes(&self) -> usize {
        self.pixels.capacity() + self.scratch.capacity()
    }

    /// Decodes at least `rect`, which lies inside the image. `bytes` are changed while this runs, and are as they
    /// were when it returns.
    ///
    /// A JPEG's rows below `rect` (and with libjpeg-turbo also those above) are not looked at, so damage there goes
    /// unseen; a file that was cut short is an error whatever `rect` is.
    pub fn decode(&mut self, bytes: &mut [u8], header: &Header, rect: Rect) -> Result<Region<'_>, String> {
        let begin = thread_time();
        let placed = self.decode_placed(bytes, header, rect);
        self.spent += thread_time() - begin;
        let (height, width, rect) = placed?;
        Ok(Region { pixels: &self.pixels[..height * width * 3], height, width, rect })
    }

    /// Height and width of what is in `pixels` then, and where `rect` lies in it.
    fn decode_placed(
        &mut self,
        bytes: &mut [u8],
        header: &Header,
        rect: Rect,
    ) -> Result<(usize, usize, Rect), String> {
        let (mut height, width) = (header.height, header.width);
        match (header.format, &header.jpeg) {
            (Format::Jpeg, Some(jpeg)) => {
                jpeg::check_whole(bytes, jpeg)?;
                #[cfg(feature = "turbojpeg")]
                if super::turbo::takes(jpeg) {
                    return self.turbo.decode(bytes, jpeg, rect, &mut self.pixels);
                }
                height = jpeg::decode_rows(bytes, jpeg, rect.top + rect.height, &mut self.pixels)?;
            }
            (Format::Png, _) => self.decode_png(bytes, header)?,
            _ => self.decode_webp(bytes, header)?,
        }
        Ok((height, width, rect))
    }

    fn decode_png(&mut self, bytes: &[u8], header: &Header) -> Result<(), String> {
        let damaged = |e: png::DecodingError| because("the PNG is damaged or cut short", &e.to_string());
        let mut decoder = png::Decoder::new(Cursor::new(bytes));
        // The pixel cap has been applied; the library's own default of 64 MiB is below it.
        decoder.set_limits(png::Limits { bytes: usize::MAX });
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().map_err(damaged)?;
        let len = reader.output_buffer_size().ok_or("the PNG is too large for this machine")?;
        grow(&mut self.scratch, len)?;
        let frame = reader.next_frame(&mut self.scratch[..len]).map_err(damaged)?;
        let channels = frame.color_type.samples();
        let wide = frame.bit_depth == png::BitDepth::Sixteen;
        let count = header.width * header.height;
        if (frame.width as usize, frame.height as usize) != (header.width, header.height) {
            return Err("the PNG's first frame does not have the size of the image".into());
        }
        grow(&mut self.pixels, count * 3)?;
        let width = if wide { 2 } else { 1 };
        let as_seen = self.reading == Reading::Photograph;
        let samples = self.scratch.chunks_exact(channels * width);
        for (to, from) in self.pixels.chunks_exact_mut(3).zip(samples).take(count) {
            // The high byte of a 16-bit sample stands first.
            let sample = |i: usize| from[i * width];
            let mut rgb = if channels <= 2 { [sample(0); 3] } else { [sample(0), sample(1), sample(2)] };
            match channels {
                // Pillow keeps 16-bit grey as it is and clips it on the way to RGB; it takes the high byte of every
                // other 16-bit layout (Pillow 13.0, `I;16` and `RGB;16B`).
                1 if wide && !as_seen => rgb = [if from[0] == 0 { from[1] } else { 255 }; 3],
                2 | 4 if as_seen => rgb = over_white(rgb, sample(channels - 1)),
                _ => {}
            }
            to.copy_from_slice(&rgb);
        }
        Ok(())
    }

    fn decode_webp(&mut self, bytes: &[u8], header: &Header) -> Result<(), String> {
        let mut decoder = webp_decoder(bytes)?;
        let len = decoder.output_buffer_size().ok_or("the WebP is too large for this machine")?;
        grow(&mut self.scratch, len)?;
        decoder
            .read_image(&mut self.scratch[..len])
            .map_err(|e| because("the WebP is damaged or cut short", &e.to_string()))?;
        let count = header.width * header.height;
        grow(&mut self.pixels, count * 3)?;
        let channels = if decoder.has_alpha() { 4 } else { 3 };
        let as_seen = self.reading == Reading::Photograph;
        let samples = self.scratch.chunks_exact(channels);
        for (to, from) in self.pixels.chunks_exact_mut(3).zip(samples).take(count) {
            let rgb = [from[0], from[1], from[2]];
            to.copy_from_slice(&if channels == 4 && as_seen { over_white(rgb, from[3]) } else { rgb });
        }
        Ok(())
    }
}

/// `rgb` of opacity `alpha` / 255 on white, rounded to the nearest; neither PNG nor WebP has premultiplied colours.
fn over_white(rgb: [u8; 3], alpha: u8) -> [u8; 3] {
    let alpha = u32::from(alpha);
    rgb.map(|c| ((u32::from(c) * alpha + 255 * (255 - alpha) + 127) / 255) as u8)
}

fn png_header(bytes: &[u8]) -> Result<Header, String> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    let info =
        decoder.read_header_info().map_err(|e| because("the PNG's headers are damaged", &e.to_string()))?;
    let channels = match info.color_type {
        png::ColorType::Grayscale => 1,
        png::ColorType::GrayscaleAlpha => 2,
        png::ColorType::Rgb | png::ColorType::Indexed => 3,
        png::ColorType::Rgba => 4,
    };
    Ok(plain_header(Format::Png, info.width, info.height, channels, info.bit_depth as u8))
}

fn webp_decoder(bytes: &[u8]) -> Result<image_webp::WebPDecoder<Cursor<&[u8]>>, String> {
    image_webp::WebPDecoder::new(Cursor::new(bytes))
        .map_err(|e| because("the WebP's headers are damaged", &e.to_string()))
}

/// Decodes a whole image; `name` goes in front of the sentence where it cannot be done.
pub fn decode(bytes: &[u8], name: &str, limits: Limits) -> Result<Image> {
    decode_region(bytes, name, limits, None)
}

/// Decodes `rect` alone (the whole image: `None`). Equal to the same part of the whole decode, byte for byte.
pub fn decode_region(bytes: &[u8], name: &str, limits: Limits, rect: Option<Rect>) -> Result<Image> {
    let named = |reason: String| Error::input_file(name, reason);
    let header = read_header(bytes, limits).map_err(named)?;
    let rect = rect.unwrap_or(Rect::whole(header.height, header.width));
    if rect.top + rect.height > header.height || rect.left + rect.width > header.width {
        let (w, h) = (header.width, header.height);
        return Err(named(format!("the region {rect:?} is not inside the image of {w} x {h}")));
    }
    let mut decoder = Decoder::default();
    decoder.decode(&mut bytes.to_vec(), &header, rect).map(Region::to_image).map_err(named)
}
