//! Tests on images and archives that they make themselves, and on real ones where they are.

mod augment;
mod decode;
mod index;
mod loader;
mod pack;
mod photograph;
mod real;
mod resize;
mod tools;

use std::fs;
use std::path::Path;

/// A picture with smooth parts and edges, different for each `seed`: RGB u8 [height, width, 3].
pub(super) fn picture(height: usize, width: usize, seed: u64) -> Vec<u8> {
    let mut rng = crate::rng::Rng::new(seed, 0, 0, crate::rng::Purpose::Synth);
    let (fx, fy, edge) = (rng.range(0.02, 0.4), rng.range(0.02, 0.4), rng.range(0.2, 0.8));
    let mut pixels = Vec::with_capacity(height * width * 3);
    for y in 0..height {
        for x in 0..width {
            let wave = (x as f64 * fx).sin() * 60.0 + (y as f64 * fy).cos() * 60.0;
            let side = if (x as f64) < edge * width as f64 { 40.0 } else { -40.0 };
            pixels.extend(
                [128.0 + wave, 128.0 + side - wave, 128.0 + side].map(|v: f64| v.clamp(0.0, 255.0) as u8),
            );
        }
    }
    pixels
}

pub(super) fn encode(
    pixels: &[u8],
    height: usize,
    width: usize,
    color: jpeg_encoder::ColorType,
    set: impl FnOnce(&mut jpeg_encoder::Encoder<&mut Vec<u8>>),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    set(&mut encoder);
    encoder.encode(pixels, width as u16, height as u16, color).unwrap();
    bytes
}

/// A baseline JPEG of [`picture`].
pub(super) fn jpeg(height: usize, width: usize, seed: u64) -> Vec<u8> {
    encode(&picture(height, width, seed), height, width, jpeg_encoder::ColorType::Rgb, |_| {})
}

/// A PNG of `data`, whose layout is the caller's.
pub(super) fn png(
    width: usize,
    height: usize,
    color: png::ColorType,
    depth: png::BitDepth,
    palette: Option<(Vec<u8>, Vec<u8>)>,
    data: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if let Some((colors, alpha)) = palette {
        encoder.set_palette(colors);
        encoder.set_trns(alpha);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}

/// A tar with these members, in this order; a name that ends in `/` is a folder.
pub(super) fn tar(path: &Path, members: &[(&str, Vec<u8>)]) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        header.set_cksum();
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.finish().unwrap();
}

/// `root/{train,val}/{cat,dog,owl}/*.jpg`: `train` and `val` images a class.
pub(super) fn class_folders(root: &Path, train: usize, val: usize) {
    for (split, count) in [("train", train), ("val", val)] {
        for (class, number) in [("cat", 0), ("dog", 1), ("owl", 2)] {
            let folder = root.join(split).join(class);
            fs::create_dir_all(&folder).unwrap();
            for i in 0..count {
                let seed = (number * 1000 + i + if split == "val" { 500 } else { 0 }) as u64;
                let bytes = jpeg(40 + i % 7 * 5, 48 + i % 5 * 4, seed);
                fs::write(folder.join(format!("{class}_{i:03}.jpg")), bytes).unwrap();
            }
        }
    }
}
