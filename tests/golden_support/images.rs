//! Pillow's and torchvision's pixels, and RandomResizedCrop's arithmetic.

use super::formula;
use super::record;
use engine::data::augment::random_resized_crop;
use engine::data::decode::Region;
use engine::data::preprocess::resized_size;
use engine::data::resize::Resizer;
use engine::data::{Crop, EvalTransform, Interpolation, Limits, Rect};
use engine::rng::{Purpose, Rng};
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    crops: Vec<Cropped>,
    eval: Vec<Evaluated>,
    random_resized_crop: Draws,
}

#[derive(Deserialize)]
struct Cropped {
    height: usize,
    width: usize,
    crop: [usize; 4],
    size: usize,
    pixels: String,
}

#[derive(Deserialize)]
struct Evaluated {
    height: usize,
    width: usize,
    resize: usize,
    crop: usize,
    resized: (usize, usize),
    pixels: String,
}

#[derive(Deserialize)]
struct Draws {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    height: usize,
    width: usize,
    key: (u64, u64, u64),
    units: Vec<f64>,
    tries: usize,
    fallback: bool,
    crop: [usize; 4],
}

fn rect([top, left, height, width]: [usize; 4]) -> Rect {
    Rect { top, left, height, width }
}

fn picture(height: usize, width: usize) -> Vec<u8> {
    formula::picture(&format!("picture.{height}x{width}"), height, width)
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64: {byte}"),
    };
    let group = |group: &[u8]| {
        let digits: Vec<u32> = group.iter().copied().take_while(|&byte| byte != b'=').map(digit).collect();
        let word = digits.iter().enumerate().fold(0, |word, (i, digit)| word | digit << (18 - 6 * i));
        (0..digits.len() - 1).map(move |i| (word >> (16 - 8 * i)) as u8).collect::<Vec<u8>>()
    };
    text.as_bytes().chunks(4).flat_map(group).collect()
}

/// Levels that two pictures differ by: the most, and how many pixels differ at all.
#[derive(Default)]
struct Levels {
    worst: u8,
    differing: usize,
    count: usize,
}

impl Levels {
    /// Both round each of two passes to whole levels, with weights of other widths: one level apart at most.
    fn add(&mut self, what: &str, got: &[u8], want: &[u8]) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
            let off = got.abs_diff(want);
            assert!(off <= 1, "{what}, byte {i}: {got}, Pillow has {want}");
            self.worst = self.worst.max(off);
            self.differing += usize::from(off > 0);
            self.count += 1;
        }
    }

    fn print(&self, what: &str) {
        let Self { worst, differing, count } = self;
        println!("\n{what}: at most {worst} level from Pillow, {differing} of {count} bytes differ");
    }
}

#[test]
fn crops_are_pillows() {
    let recorded: Recorded = record::read("images");
    let mut levels = Levels::default();
    for Cropped { height, width, crop, size, pixels } in recorded.crops {
        let source = picture(height, width);
        let region = Region { pixels: &source, height, width, rect: rect(crop) };
        let mut out = vec![0; size * size * 3];
        Resizer::default().resize(region, Interpolation::Bilinear, size, size, &mut out).unwrap();
        levels.add(&format!("{height} x {width}, {crop:?} to {size}"), &out, &base64(&pixels));
    }
    levels.print("resized crops");
}

/// A lossless file of the same pixels.
fn png(height: usize, width: usize, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    bytes
}

#[test]
fn evaluation_images_are_torchvisions() {
    let recorded: Recorded = record::read("images");
    let mut levels = Levels::default();
    for Evaluated { height, width, resize, crop, resized, pixels } in recorded.eval {
        assert_eq!(resized_size(height, width, resize), resized, "{height} x {width} to {resize}");
        let file = png(height, width, &picture(height, width));
        let transform = EvalTransform { resize, crop, interpolation: Interpolation::Bilinear };
        let got = transform.apply(&file, "picture.png", Limits::default()).unwrap();
        levels.add(&format!("{height} x {width}, {resize} then {crop}"), &got, &base64(&pixels));
    }
    levels.print("Resize and CenterCrop");
}

#[test]
fn random_crops_are_torchvisions() {
    let recorded: Recorded = record::read("images");
    let (mut fallbacks, cases) = (0, recorded.random_resized_crop.cases);
    for Case { height, width, key, units, tries, fallback, crop } in &cases {
        let (seed, epoch, sample) = *key;
        let mut rng = Rng::new(seed, epoch, sample, Purpose::Crop);
        let mut drawn = vec![];
        let got = random_resized_crop(*height, *width, &Crop::default(), &mut || {
            drawn.push(rng.unit());
            drawn[drawn.len() - 1]
        });
        assert_eq!((got, &drawn), (rect(*crop), units), "{height} x {width}, {key:?}");
        assert_eq!(drawn.len(), 2 * tries + if *fallback { 0 } else { 2 }, "draws of {key:?}");
        fallbacks += usize::from(*fallback);
    }
    println!("\nrandom crops: {} cases, {fallbacks} of them fallbacks, all the same", cases.len());
}
