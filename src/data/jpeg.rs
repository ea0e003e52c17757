//! JPEG: what the headers say, and the pixels by zune-jpeg.
//!
//! The headers are read here and not by the decoder, because the pixel cap, the crop and the check for truncation
//! come before or after decoding and are the same for every decoder.

use super::decode::{because, grow};
use super::exif;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// What the markers before the first scan say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JpegHeader {
    pub width: usize,
    pub height: usize,
    pub components: u8,
    pub progressive: bool,
    /// EXIF orientation, 1 to 8, where there is one.
    pub orientation: Option<u16>,
    /// The largest sampling factors of any component, (horizontal, vertical).
    sampling: (u8, u8),
    /// Rows in one row of minimum coded units.
    mcu_rows: usize,
    /// Huffman-coded sequential frame whose only scan holds all components: rows decode from the top, one after
    /// another, and none depends on what lies below the next row of units.
    single_scan: bool,
    /// Where the frame header keeps its two bytes of height.
    height_at: usize,
    /// Where the entropy-coded data begins.
    scan_at: usize,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(*bytes.get(at)?) << 8 | usize::from(*bytes.get(at + 1)?))
}

/// Reads the markers up to the first scan (ITU-T T.81, annex B). `bytes` begin with FF D8.
pub(crate) fn read_header(bytes: &[u8]) -> Result<JpegHeader, String> {
    let cut = || format!("the JPEG is cut short in its headers ({} bytes)", bytes.len());
    let mut header: Option<JpegHeader> = None;
    let mut orientation = None;
    let mut at = 2;
    loop {
        // Any number of FF may fill up before a marker code.
        if *bytes.get(at).ok_or_else(cut)? != 0xff {
            return Err(format!("the JPEG's headers are damaged at byte {at}"));
        }
        while *bytes.get(at).ok_or_else(cut)? == 0xff {
            at += 1;
        }
        let code = bytes[at];
        let len = u16_at(bytes, at + 1).ok_or_else(cut)?;
        let segment = bytes.get(at + 3..at + 1 + len.max(2)).ok_or_else(cut)?;
        match code {
            // SOF0-15 without DHT (C4), JPG (C8) and DAC (CC).
            0xc0..=0xcf if !matches!(code, 0xc4 | 0xc8 | 0xcc) => {
                header = Some(frame(code, segment, at + 4).ok_or_else(cut)??);
            }
            0xe1 if orientation.is_none() && segment.starts_with(b"Exif\0\0") => {
                orientation = exif::orientation(segment);
            }
            0xda => {
                let mut header = header.ok_or("the JPEG has no frame header before its first scan")?;
                header.single_scan &= segment.first() == Some(&header.components);
                header.scan_at = at + 1 + len;
                header.orientation = orientation;
                return Ok(header);
            }
            0xd9 => return Err("the JPEG ends before its first scan".into()),
            _ => {}
        }
        at += 1 + len.max(2);
    }
}

/// `None`: cut short.
fn frame(code: u8, segment: &[u8], height_at: usize) -> Option<Result<JpegHeader, String>> {
    let precision = *segment.first()?;
    let (height, width) = (u16_at(segment, 1)?, u16_at(segment, 3)?);
    let components = *segment.get(5)?;
    let mut sampling = (1, 1);
    for i in 0..usize::from(components) {
        let factors = *segment.get(7 + 3 * i)?;
        // T.81, B.2.2; the decoder panics at some that do not exist.
        if !(1..=4).contains(&(factors >> 4)) || !(1..=4).contains(&(factors & 0xf)) {
            let (h, v) = (factors >> 4, factors & 0xf);
            return Some(Err(format!(
                "the JPEG's headers are damaged: a sampling of {h} x {v} does not exist"
            )));
        }
        sampling = (sampling.0.max(factors >> 4), sampling.1.max(factors & 0xf));
    }
    if precision != 8 {
        return Some(Err(format!("a JPEG of {precision} bits a sample; 8 are expected: convert it")));
    }
    if width == 0 || height == 0 {
        return Some(Err(format!("the JPEG says that it is {width} x {height} pixels")));
    }
    Some(Ok(JpegHeader {
        width,
        height,
        components,
        progressive: matches!(code, 0xc2 | 0xc6 | 0xca | 0xce),
        orientation: None,
        sampling,
        mcu_rows: 8 * usize::from(sampling.1),
        single_scan: matches!(code, 0xc0 | 0xc1),
        height_at,
        scan_at: 0,
    }))
}

/// Entropy-coded data stuffs a zero after each FF, so FF D9 in it is the end-of-image marker and nothing else. A
/// whole file has it in its last bytes, so the search from the end is short; a file that was cut has none. Decoders
/// do not tell: zune-jpeg takes a last row of units that runs out, and libjpeg fills with grey.
pub(crate) fn check_whole(bytes: &[u8], header: &JpegHeader) -> Result<(), String> {
    let scan = bytes.get(header.scan_at..).unwrap_or(&[]);
    if scan.windows(2).rev().any(|pair| pair == [0xff, 0xd9]) {
        return Ok(());
    }
    Err(format!(
        "the JPEG is cut short: {} bytes without an end-of-image marker; fetch the file again",
        bytes.len()
    ))
}

/// Calls `decode` with `bytes` whose frame header says a height that has `rows` rows and no more than it needs, and
/// with that height; afterwards `bytes` are as they were.
///
/// In a single-scan frame rows decode from the top, so that a decoder stops where the header says. One row of units
/// beyond the wanted rows keeps the chroma neighbours of the last ones what they are, so the wanted rows equal those
/// of the full decode. Any other frame keeps its height.
pub(crate) fn with_height<T>(
    bytes: &mut [u8],
    header: &JpegHeader,
    rows: usize,
    decode: impl FnOnce(&[u8], usize) -> T,
) -> T {
    let short = rows.next_multiple_of(header.mcu_rows) + header.mcu_rows;
    if !header.single_scan || short >= header.height {
        return decode(bytes, header.height);
    }
    let at = header.height_at..header.height_at + 2;
    bytes[at.clone()].copy_from_slice(&(short as u16).to_be_bytes());
    let result = decode(bytes, short);
    bytes[at].copy_from_slice(&(header.height as u16).to_be_bytes());
    result
}

/// Decodes the first `rows` rows at least, as RGB by zune-jpeg, and returns how many there are in `pixels`.
pub(crate) fn decode_rows(
    bytes: &mut [u8],
    header: &JpegHeader,
    rows: usize,
    pixels: &mut Vec<u8>,
) -> Result<usize, String> {
    if header.sampling.0 > 2 || header.sampling.1 > 2 {
        // zune-jpeg 0.5.15 decodes these without an error and shifts their colours: 33 levels from libjpeg on average.
        let (h, v) = header.sampling;
        return Err(format!(
            "a JPEG of chroma sampling {h} x {v}, which this build decodes wrongly: convert it to 4:2:0 or 4:4:4, \
             or build with the feature turbojpeg"
        ));
    }
    with_height(bytes, header, rows, |bytes, height| {
        decode(bytes, header.width, height, pixels).map(|()| height)
    })
}

fn decode(bytes: &[u8], width: usize, height: usize, pixels: &mut Vec<u8>) -> Result<(), String> {
    // Strict: a marker in the wrong place and entropy-coded data that runs out are errors. CMYK and YCCK come out as
    // Pillow's convert("RGB") has them: inverted values, each of C, M, Y times K over 255.
    let options = DecoderOptions::new_fast()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let len = width * height * 3;
    grow(pixels, len)?;
    decoder.decode_headers().map_err(|e| because("the JPEG's headers are damaged", &format!("{e:?}")))?;
    if decoder.dimensions() != Some((width, height)) {
        return Err(format!("the JPEG has more than one frame header: {:?}", decoder.dimensions()));
    }
    decoder.decode_into(&mut pixels[..len]).map_err(|e| because("the JPEG is damaged", &format!("{e:?}")))
}
