//! People's own pictures: turned as EXIF says, alpha on white, 16-bit grey.

use super::super::decode::read_header;
use super::super::exif::Orientation;
use super::super::*;
use super::{encode, picture, png};
use png::{BitDepth, ColorType};

/// An EXIF block with an orientation and nothing else, in either byte order.
fn block(value: u8, little: bool) -> Vec<u8> {
    let mut tiff = if little {
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\0\0\0\0\0\0\0\0".to_vec()
    } else {
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec()
    };
    tiff[if little { 18 } else { 19 }] = value;
    tiff
}

/// A lossless file of `pixels` with the block where its format keeps it.
fn with_exif(format: Format, pixels: &[u8], (height, width): (usize, usize), exif: &[u8]) -> Vec<u8> {
    match format {
        Format::Jpeg => {
            let plain = encode(pixels, height, width, jpeg_encoder::ColorType::Rgb, |_| {});
            let length = (exif.len() as u16 + 8).to_be_bytes();
            [&plain[..2], b"\xff\xe1", &length, b"Exif\0\0", exif, &plain[2..]].concat()
        }
        Format::Png => {
            let plain = png(width, height, ColorType::Rgb, BitDepth::Eight, None, pixels);
            let length = (exif.len() as u32).to_be_bytes();
            let body = [b"eXIf", exif].concat();
            // Behind the pixels, where a reader that stops early does not look.
            let at = plain.len() - 12;
            let crc = crc32(&body).to_be_bytes();
            [&plain[..at], &length, &body, &crc, &plain[at..]].concat()
        }
        Format::WebP => {
            let mut bytes = vec![];
            let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
            encoder.set_exif_metadata(exif.to_vec());
            encoder.encode(pixels, width as u32, height as u32, image_webp::ColorType::Rgb8).unwrap();
            bytes
        }
    }
}

/// PNG's checksum (ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |crc, _| step(crc)))
}

/// `pixels` [height, width, 3] as EXIF says that they are seen, by the standard's words: where the stored first row and
/// first column lie in the picture.
fn turned(pixels: &[u8], (height, width): (usize, usize), orientation: u8) -> (Vec<u8>, usize, usize) {
    let (h, w) = if orientation >= 5 { (width, height) } else { (height, width) };
    let mut out = vec![0; h * w * 3];
    for row in 0..height {
        for column in 0..width {
            let (bottom, right) = (height - 1 - row, width - 1 - column);
            // (y, x) of what is stored at (row, column).
            let (y, x) = match orientation {
                1 => (row, column),
                2 => (row, right),
                3 => (bottom, right),
                4 => (bottom, column),
                5 => (column, row),
                6 => (column, bottom),
                7 => (right, bottom),
                _ => (right, row),
            };
            let from = &pixels[(row * width + column) * 3..][..3];
            out[(y * w + x) * 3..][..3].copy_from_slice(from);
        }
    }
    (out, h, w)
}

fn preprocessed(bytes: &[u8], transform: EvalTransform, reading: Reading) -> Vec<u8> {
    let mut out = vec![0; transform.crop * transform.crop * 3];
    Preprocessor::new(transform, reading).run(&mut bytes.to_vec(), &mut out).unwrap();
    out
}

#[test]
fn all_eight_orientations_in_every_format() {
    // Odd and even differences to the crop's side, so that the crop's rounding is met on both axes.
    let (h, w) = (37, 52);
    let source = picture(h, w, 3);
    // Resized to its own short side, the picture keeps its pixels.
    let transform = EvalTransform { resize: 37, crop: 20, interpolation: Interpolation::Bilinear };
    for format in [Format::Jpeg, Format::Png, Format::WebP] {
        for value in 1..=8 {
            let bytes = with_exif(format, &source, (h, w), &block(value, value % 2 == 0));
            let header = read_header(&bytes, Limits::default()).unwrap();
            assert_eq!(header.orientation, Some(u16::from(value)), "{format:?}");
            let stored = decode(&bytes, "x", Limits::default()).unwrap().pixels;
            let (upright, th, tw) = turned(&stored, (h, w), value);
            let upright = png(tw, th, ColorType::Rgb, BitDepth::Eight, None, &upright);
            let want = preprocessed(&upright, transform, Reading::DataSet);
            let got = preprocessed(&bytes, transform, Reading::Photograph);
            let first = got.iter().zip(&want).position(|(got, want)| got != want);
            assert_eq!(first, None, "{format:?}, orientation {value}");
            // A data set's reading leaves the picture as it lies.
            let plain = with_exif(format, &source, (h, w), &block(1, true));
            let unturned = preprocessed(&bytes, transform, Reading::DataSet);
            assert!(unturned == preprocessed(&plain, transform, Reading::DataSet), "{format:?}, {value}");
        }
    }
}

#[test]
fn a_turned_picture_is_resized_within_a_grey_level_of_turning_first() {
    let (h, w) = (61, 45);
    let source = picture(h, w, 8);
    let transform = EvalTransform { resize: 24, crop: 24, interpolation: Interpolation::Bilinear };
    for value in 1..=8 {
        let bytes = with_exif(Format::Png, &source, (h, w), &block(value, true));
        let (upright, th, tw) = turned(&source, (h, w), value);
        let upright = png(tw, th, ColorType::Rgb, BitDepth::Eight, None, &upright);
        let want = preprocessed(&upright, transform, Reading::DataSet);
        let got = preprocessed(&bytes, transform, Reading::Photograph);
        let worst = got.iter().zip(&want).map(|(got, want)| got.abs_diff(*want)).max().unwrap();
        assert!(worst <= 1, "orientation {value}: {worst} levels");
    }
}

#[test]
fn a_picture_smaller_than_the_crop_keeps_its_place_when_it_is_turned() {
    let source = picture(5, 9, 2);
    let transform = EvalTransform { resize: 5, crop: 12, interpolation: Interpolation::Bilinear };
    let bytes = with_exif(Format::Png, &source, (5, 9), &block(6, false));
    let (upright, th, tw) = turned(&source, (5, 9), 6);
    let upright = png(tw, th, ColorType::Rgb, BitDepth::Eight, None, &upright);
    let want = preprocessed(&upright, transform, Reading::DataSet);
    assert!(preprocessed(&bytes, transform, Reading::Photograph) == want);
}

#[test]
fn damaged_exif_turns_nothing() {
    let source = picture(8, 8, 1);
    let whole = block(6, true);
    let orientation = |exif: &[u8]| {
        let bytes = with_exif(Format::Png, &source, (8, 8), exif);
        read_header(&bytes, Limits::default()).unwrap().orientation
    };
    assert_eq!(orientation(&whole), Some(6));
    for len in 0..20 {
        assert_eq!(orientation(&whole[..len]), None, "cut to {len} bytes");
    }
    // A directory beyond the block, a value that means nothing.
    let mut far = whole.clone();
    far[4..8].fill(0xff);
    assert_eq!(orientation(&far), None);
    assert_eq!(orientation(&block(9, true)), None);
    assert_eq!(Orientation::from_exif(9), Orientation::default());
}

/// The pixels of a picture of one row, read as a photograph.
fn row(bytes: &[u8]) -> Vec<u8> {
    let header = read_header(bytes, Limits::default()).unwrap();
    let mut decoder = Decoder::default();
    decoder.reading = Reading::Photograph;
    let all = Rect::whole(header.height, header.width);
    decoder.decode(&mut bytes.to_vec(), &header, all).unwrap().to_image().pixels
}

#[test]
fn alpha_lies_on_white_and_16_bit_grey_keeps_its_high_byte() {
    // Opacity 0, 128 of 255, 255 of the colour (200, 100, 0): 255 - (255 - c) a / 255.
    let colours = [[200, 100, 0, 0], [200, 100, 0, 128], [200, 100, 0, 255]].concat();
    let want = [255, 255, 255, 227, 177, 127, 200, 100, 0];
    assert_eq!(row(&png(3, 1, ColorType::Rgba, BitDepth::Eight, None, &colours)), want);
    let wide: Vec<u8> = colours.iter().flat_map(|&byte| [byte, 7]).collect();
    assert_eq!(row(&png(3, 1, ColorType::Rgba, BitDepth::Sixteen, None, &wide)), want);
    let mut bytes = vec![];
    image_webp::WebPEncoder::new(&mut bytes).encode(&colours, 3, 1, image_webp::ColorType::Rgba8).unwrap();
    assert_eq!(row(&bytes), want);

    let grey = png(2, 1, ColorType::GrayscaleAlpha, BitDepth::Eight, None, &[100, 0, 100, 255]);
    assert_eq!(row(&grey), [255, 255, 255, 100, 100, 100]);
    let palette = (vec![1, 2, 3, 200, 100, 50], vec![0, 255]);
    let indexed = png(2, 1, ColorType::Indexed, BitDepth::Eight, Some(palette), &[0, 1]);
    assert_eq!(row(&indexed), [255, 255, 255, 200, 100, 50]);
    let levels: Vec<u8> = [0u16, 255, 256, 40_000].iter().flat_map(|v| v.to_be_bytes()).collect();
    let wide = row(&png(4, 1, ColorType::Grayscale, BitDepth::Sixteen, None, &levels));
    assert_eq!(wide, [0, 0, 0, 0, 0, 0, 1, 1, 1, 156, 156, 156]);
}

#[test]
fn what_people_send_instead_of_a_picture_is_called_by_its_name() {
    for (bytes, name) in [
        (&b"\0\0\0\x18ftypheic\0\0\0\0"[..], "a HEIC photograph"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "a HEIF photograph"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF image"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "an SVG drawing"),
        (b"<?xml version=\"1.0\"?>\n<svg/>", "an SVG drawing"),
        (b"\n <!-- drawn -->\n<svg/>", "an SVG drawing"),
        (b"<?xml version=\"1.0\"?>\n<feed/>", "an XML document"),
        (b"GIF89a", "a GIF image"),
        (b"%PDF-1.7", "a PDF document"),
    ] {
        let message = decode(bytes, "x", Limits::default()).unwrap_err().message;
        assert!(message.starts_with(&format!("x: {name}")), "{name}: {message}");
        assert!(message.ends_with("JPEG, PNG and WebP are read"), "{message}");
    }
}
