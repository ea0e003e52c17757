use image_webp::{ColorType as WebPColor, WebPEncoder};
use jpeg_encoder::{ColorType, SamplingFactor};
use png::{BitDepth, ColorType as PngColor};

use super::super::decode::{Header, read_header};
use super::super::*;
use super::{encode, jpeg, picture, png};

fn decoded(bytes: &[u8]) -> Image {
    decode(bytes, "x", Limits::default()).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    let error = decode(bytes, "a/b.jpg", Limits::default()).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.message.starts_with("a/b.jpg: ") && !error.message.contains('\n'), "{error}");
    error.message
}

fn header(bytes: &[u8]) -> Header {
    read_header(bytes, Limits::default()).unwrap()
}

/// Mean absolute difference.
fn mean_error(a: &[u8], b: &[u8]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / a.len() as f64
}

const SAMPLINGS: [SamplingFactor; 4] =
    [SamplingFactor::R_4_4_4, SamplingFactor::R_4_2_0, SamplingFactor::R_4_2_2, SamplingFactor::R_4_4_0];

#[test]
fn jpegs_of_all_kinds_look_like_their_source() {
    let (h, w) = (61, 83);
    let source = picture(h, w, 1);
    for sampling in SAMPLINGS {
        for progressive in [false, true] {
            let bytes = encode(&source, h, w, ColorType::Rgb, |e| {
                e.set_sampling_factor(sampling);
                e.set_progressive(progressive);
                e.set_restart_interval(3);
            });
            assert_eq!(header(&bytes).progressive, progressive);
            let image = decoded(&bytes);
            assert_eq!((image.height, image.width), (h, w));
            let error = mean_error(&image.pixels, &source);
            assert!(error < 6.0, "{sampling:?}, progressive {progressive}: {error}");
        }
    }
    let grey: Vec<u8> = source.iter().step_by(3).copied().collect();
    let bytes = encode(&grey, h, w, ColorType::Luma, |_| {});
    assert_eq!(header(&bytes).channels, 1);
    let image = decoded(&bytes);
    assert!(image.pixels.chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
    assert!(mean_error(&image.pixels.iter().step_by(3).copied().collect::<Vec<_>>(), &grey) < 2.0);
}

/// zune-jpeg gives wrong colours here, so it is not asked; libjpeg-turbo's whole decode is its own region's oracle.
#[test]
fn rare_samplings_are_refused_or_right() {
    for sampling in [SamplingFactor::R_4_1_1, SamplingFactor::R_4_4_1, SamplingFactor::R_4_1_0] {
        let bytes = encode(&picture(64, 96, 1), 64, 96, ColorType::Rgb, |e| e.set_sampling_factor(sampling));
        if cfg!(feature = "turbojpeg") {
            let rect = Rect { top: 20, left: 41, height: 30, width: 22 };
            let part = decode_region(&bytes, "x", Limits::default(), Some(rect)).unwrap();
            let whole = decoded(&bytes);
            for y in 0..30 {
                let want = &whole.pixels[((20 + y) * 96 + 41) * 3..][..22 * 3];
                assert!(part.pixels[y * 22 * 3..][..22 * 3] == *want, "{sampling:?}, row {y}");
            }
        } else {
            assert!(refusal(&bytes).contains("of chroma sampling"), "{sampling:?}");
        }
    }
}

#[test]
fn cmyk_and_ycck_are_inverted_as_pillow_does() {
    // One flat colour survives the DCT as it is. Adobe's files hold 255 - ink; Pillow: R = C' * K' / 255, rounded.
    let ink = [40u8, 90, 200, 130];
    let flat: Vec<u8> = ink.repeat(32 * 32);
    let want = [0, 1, 2].map(|i| ((255 - u32::from(ink[i])) * (255 - u32::from(ink[3])) + 127) / 255);
    for color in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        let bytes = encode(&flat, 32, 32, color, |_| {});
        assert_eq!(header(&bytes).channels, 4);
        let image = decoded(&bytes);
        for pixel in image.pixels.chunks_exact(3) {
            for c in 0..3 {
                // YCCK rounds through YCbCr.
                assert!(u32::from(pixel[c]).abs_diff(want[c]) <= 1, "{color:?}: {pixel:?}, want {want:?}");
            }
        }
    }
}

#[test]
fn a_region_equals_that_part_of_the_whole() {
    let (h, w) = (149, 203);
    let source = picture(h, w, 5);
    let rects = [
        Rect::whole(h, w),
        Rect { top: 0, left: 0, height: 1, width: 1 },
        Rect { top: 17, left: 33, height: 46, width: 100 },
        Rect { top: 64, left: 128, height: 32, width: 64 },
        Rect { top: 148, left: 202, height: 1, width: 1 },
        Rect { top: 31, left: 0, height: 17, width: 203 },
    ];
    for sampling in SAMPLINGS {
        for (progressive, restart) in [(false, 0), (false, 5), (true, 0)] {
            let bytes = encode(&source, h, w, ColorType::Rgb, |e| {
                e.set_sampling_factor(sampling);
                e.set_progressive(progressive);
                e.set_restart_interval(restart);
            });
            let whole = decoded(&bytes);
            for rect in rects {
                let part = decode_region(&bytes, "x", Limits::default(), Some(rect)).unwrap();
                let row = |y: usize| ((rect.top + y) * w + rect.left) * 3;
                let want: Vec<u8> = (0..rect.height)
                    .flat_map(|y| &whole.pixels[row(y)..][..rect.width * 3])
                    .copied()
                    .collect();
                let first = part.pixels.iter().zip(&want).position(|(a, b)| a != b);
                assert_eq!(
                    first, None,
                    "{sampling:?}, progressive {progressive}, restart {restart}, {rect:?}"
                );
            }
        }
    }
}

#[test]
fn a_jpeg_cut_anywhere_is_an_error() {
    for progressive in [false, true] {
        let bytes = encode(&picture(40, 56, 2), 40, 56, ColorType::Rgb, |e| e.set_progressive(progressive));
        for len in 0..bytes.len() - 1 {
            let message = refusal(&bytes[..len]);
            assert!(len == 0 || len > 2 || message.contains("not an image"), "{len}: {message}");
        }
        // One byte of the end-of-image marker missing is cut too; bytes behind it do not matter.
        assert!(refusal(&bytes[..bytes.len() - 1]).contains("cut short"));
        let mut longer = bytes.clone();
        longer.extend([0; 100]);
        assert_eq!(decoded(&longer), decoded(&bytes));
    }
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let mut rng = crate::rng::Rng::new(9, 0, 0, crate::rng::Purpose::Synth);
    let samples = [
        jpeg(33, 47, 1),
        encode(&picture(33, 47, 1), 33, 47, ColorType::Rgb, |e| e.set_progressive(true)),
        png(47, 33, PngColor::Rgb, BitDepth::Eight, None, &picture(33, 47, 1)),
        webp(33, 47, WebPColor::Rgb8, &picture(33, 47, 1)),
    ];
    for bytes in samples {
        for _ in 0..400 {
            let mut bad = bytes.clone();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bad.len() as u64) as usize;
                bad[at] = rng.next_u64() as u8;
            }
            bad.truncate(bytes.len() - rng.below(8) as usize);
            // Either outcome is fine; the size that comes out is that of the header.
            match decode(&bad, "x", Limits { pixels: 1 << 22 }) {
                Ok(image) => assert_eq!(image.pixels.len(), image.width * image.height * 3),
                Err(error) => assert!(!error.message.contains('\n'), "one line: {error}"),
            }
        }
    }
}

fn webp(h: usize, w: usize, color: WebPColor, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    WebPEncoder::new(&mut bytes).encode(pixels, w as u32, h as u32, color).unwrap();
    bytes
}

#[test]
fn png_and_webp_come_out_as_pillows_rgb() {
    let rgb = picture(9, 7, 4);
    let grey: Vec<u8> = rgb.iter().step_by(3).copied().collect();
    let grey_rgb: Vec<u8> = grey.iter().flat_map(|&g| [g; 3]).collect();
    let with = |bytes: &[u8], per: usize, extra: u8| -> Vec<u8> {
        bytes.chunks_exact(per).flat_map(|p| p.iter().copied().chain([extra])).collect()
    };
    let wide = |bytes: &[u8]| -> Vec<u8> { bytes.iter().flat_map(|&b| [b, 77]).collect() };
    let encode = |color, depth, data: &[u8]| decoded(&png(7, 9, color, depth, None, data)).pixels;
    assert_eq!(encode(PngColor::Rgb, BitDepth::Eight, &rgb), rgb);
    assert_eq!(encode(PngColor::Rgba, BitDepth::Eight, &with(&rgb, 3, 3)), rgb);
    assert_eq!(encode(PngColor::Rgb, BitDepth::Sixteen, &wide(&rgb)), rgb);
    assert_eq!(encode(PngColor::Rgba, BitDepth::Sixteen, &wide(&with(&rgb, 3, 0))), rgb);
    assert_eq!(encode(PngColor::Grayscale, BitDepth::Eight, &grey), grey_rgb);
    assert_eq!(encode(PngColor::GrayscaleAlpha, BitDepth::Eight, &with(&grey, 1, 0)), grey_rgb);
    assert_eq!(encode(PngColor::GrayscaleAlpha, BitDepth::Sixteen, &wide(&with(&grey, 1, 9))), grey_rgb);
    // 16-bit grey is clipped: recorded from Pillow 13.0 for 0, 100, 255, 256, 20000.
    let levels: Vec<u8> = [0u16, 100, 255, 256, 20000].iter().flat_map(|v| v.to_be_bytes()).collect();
    let image = decoded(&png(5, 1, PngColor::Grayscale, BitDepth::Sixteen, None, &levels));
    assert_eq!(image.pixels, [0, 0, 0, 100, 100, 100, 255, 255, 255, 255, 255, 255, 255, 255, 255]);
    // Fewer bits are spread over the range; a palette with transparency gives its colours.
    let image = decoded(&png(4, 1, PngColor::Grayscale, BitDepth::Two, None, &[0b00_01_10_11]));
    assert_eq!(image.pixels, [0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255]);
    let image = decoded(&png(8, 1, PngColor::Grayscale, BitDepth::One, None, &[0b1000_0000]));
    assert_eq!(image.pixels[..6], [255, 255, 255, 0, 0, 0]);
    let palette = (vec![1, 2, 3, 200, 100, 50], vec![0, 128]);
    let image = decoded(&png(2, 1, PngColor::Indexed, BitDepth::Eight, Some(palette), &[1, 0]));
    assert_eq!(image.pixels, [200, 100, 50, 1, 2, 3]);

    assert_eq!(decoded(&webp(9, 7, WebPColor::Rgb8, &rgb)).pixels, rgb);
    assert_eq!(decoded(&webp(9, 7, WebPColor::Rgba8, &with(&rgb, 3, 1))).pixels, rgb);
}

#[test]
fn what_is_no_image_says_what_it_is() {
    assert!(refusal(b"").contains("the file has no bytes"));
    assert!(refusal(b"<!DOCTYPE html><p>404").contains("an HTML page; JPEG, PNG and WebP are read"));
    assert!(refusal(b"GIF89a....").contains("a GIF image"));
    assert!(refusal(b"hello world").contains("not an image (it begins with [68, 65, 6c"));
    let mut huge = jpeg(8, 8, 0);
    let at = huge.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
    huge[at..at + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    assert!(refusal(&huge).contains("65535 x 65535 is 4294836225 pixels, more than the 178956970"));
    huge[at..at + 2].fill(0);
    assert!(refusal(&huge).contains("says that it is 65535 x 0"));
    let rect = Rect { top: 0, left: 5, height: 8, width: 4 };
    let error = decode_region(&jpeg(8, 8, 0), "x", Limits::default(), Some(rect)).unwrap_err();
    assert!(error.message.contains("is not inside the image of 8 x 8"), "{error}");
}

#[test]
fn exif_orientation_is_seen_and_ignored() {
    let plain = jpeg(24, 40, 0);
    for (order, value) in [
        (&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"[..], 6),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0", 8),
    ] {
        let mut exif = b"Exif\0\0".to_vec();
        exif.extend(order);
        let mut bytes = plain[..2].to_vec();
        bytes.extend([0xff, 0xe1]);
        bytes.extend((exif.len() as u16 + 2).to_be_bytes());
        bytes.extend(&exif);
        bytes.extend(&plain[2..]);
        assert_eq!(header(&bytes).orientation, Some(value));
        assert_eq!(decoded(&bytes), decoded(&plain));
    }
    assert_eq!(header(&plain).orientation, None);
}

/// zune-jpeg 0.5.15 panics at a sampling factor of 0.
#[test]
fn samplings_that_do_not_exist_are_refused() {
    let whole = jpeg(16, 16, 0);
    let at = whole.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 11;
    for factors in [0x01, 0x10, 0x00, 0x51, 0x1f] {
        let mut bytes = whole.clone();
        bytes[at] = factors;
        assert!(refusal(&bytes).contains("does not exist"), "{factors:#x}");
    }
}
