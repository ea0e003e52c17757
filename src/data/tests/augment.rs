use super::super::augment::{crop_size, random_resized_crop};
use super::super::decode::Region;
use super::super::preprocess::{center_offset, resized_size};
use super::super::resize::Resizer;
use super::super::*;
use super::picture;
use crate::rng::{Purpose, Rng};

#[test]
fn sizes_are_torchvisions() {
    // (height, width, size) -> torchvision 0.28 `_compute_resized_output_size`.
    assert_eq!(resized_size(375, 500, 256), (256, 341));
    assert_eq!(resized_size(500, 375, 256), (341, 256));
    assert_eq!(resized_size(64, 64, 72), (72, 72));
    assert_eq!(resized_size(3, 1000, 2), (2, 666));
    // Python's round: ties to even.
    assert_eq!([341, 256, 229, 227, 225].map(|len| center_offset(len, 224)), [58, 16, 2, 2, 0]);
    assert_eq!([223, 222, 10].map(|len| center_offset(len, 224)), [0, -1, -107]);
}

#[test]
fn a_try_rounds_and_fits_as_torchvisions() {
    // int(round(sqrt(area * share * aspect))), ties to even.
    assert_eq!(crop_size(400, 300, 0.5, 1.0), Some((245, 245)));
    assert_eq!(crop_size(5, 5, 0.25, 1.0), Some((2, 2)));
    assert_eq!(crop_size(400, 300, 1.0, 4.0 / 3.0), None);
}

#[test]
fn draws_are_used_in_order_and_the_fallback_is_central() {
    let crop = Crop::default();
    let mut used = 0;
    let mut replay = |draws: &[f64], height, width| {
        used = 0;
        let rect = random_resized_crop(height, width, &crop, &mut || {
            used += 1;
            draws[(used - 1) % draws.len()]
        });
        (rect, used)
    };
    // share 0.08 + 0.92 * 0.5 = 0.54, aspect exp(0) = 1: side round(sqrt(0.54 * 100 * 200)) = 104 > 100, which does
    // not fit; then share 0.08: side 40; of 61 rows and 161 columns the ones at 0.999 and 0.
    let (rect, used) = replay(&[0.5, 0.5, 0.0, 0.5, 0.999, 0.0], 100, 200);
    assert_eq!((rect, used), (Rect { top: 60, left: 0, height: 40, width: 40 }, 6));
    // Ten tries that do not fit take twenty draws: the widest allowed, 4/3 of the height, in the middle.
    let (rect, used) = replay(&[0.99, 0.5], 100, 500);
    assert_eq!((rect, used), (Rect { top: 0, left: 183, height: 100, width: 133 }, 20));
    let (rect, _) = replay(&[0.99, 0.5], 500, 90);
    assert_eq!(rect, Rect { top: 190, left: 0, height: 120, width: 90 });
}

#[test]
fn crops_are_inside_and_have_the_distribution() {
    let crop = Crop::default();
    let (mut area, mut log_aspect, n) = (0.0, 0.0, 20_000);
    for i in 0..n {
        let mut rng = Rng::new(1, 0, i, Purpose::Crop);
        let (h, w) = (400, 400);
        let rect = random_resized_crop(h, w, &crop, &mut || rng.unit());
        assert!(rect.top + rect.height <= h && rect.left + rect.width <= w && rect.height * rect.width > 0);
        area += (rect.height * rect.width) as f64 / (h * w) as f64;
        log_aspect += (rect.width as f64 / rect.height as f64).ln();
    }
    // A square image refuses large areas with a far aspect, which takes the mean below (0.08 + 1) / 2 = 0.54.
    let (area, log_aspect) = (area / n as f64, log_aspect / n as f64);
    assert!((0.47..0.54).contains(&area), "{area}");
    assert!(log_aspect.abs() < 0.01, "{log_aspect}");
    for (h, w) in [(1, 1), (1, 300), (300, 1), (2, 3)] {
        for i in 0..100 {
            let mut rng = Rng::new(2, 0, i, Purpose::Crop);
            let rect = random_resized_crop(h, w, &crop, &mut || rng.unit());
            assert!(
                rect.height > 0
                    && rect.width > 0
                    && rect.top + rect.height <= h
                    && rect.left + rect.width <= w
            );
        }
    }
}

/// The definition: each output pixel is the filter's weighted mean over the crop, in f64, horizontally then
/// vertically with rounding to u8 between, as Pillow does it.
fn reference(pixels: &[u8], height: usize, width: usize, out: (usize, usize), cubic: bool) -> Vec<u8> {
    let filter = |x: f64| {
        let x = x.abs();
        match (cubic, x) {
            (false, x) if x < 1.0 => 1.0 - x,
            (true, x) if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            (true, x) if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            _ => 0.0,
        }
    };
    let weights = |from: usize, to: usize| -> Vec<(usize, Vec<f64>)> {
        let scale = from as f64 / to as f64;
        let wide = scale.max(1.0);
        let support = wide * if cubic { 2.0 } else { 1.0 };
        (0..to)
            .map(|i| {
                let center = (i as f64 + 0.5) * scale;
                let low = ((center - support + 0.5) as i64).max(0) as usize;
                let high = ((center + support + 0.5) as usize).min(from);
                let w: Vec<f64> = (low..high).map(|x| filter((x as f64 - center + 0.5) / wide)).collect();
                let sum: f64 = w.iter().sum();
                (low, w.into_iter().map(|w| w / sum).collect())
            })
            .collect()
    };
    let round = |v: f64| (v + 0.5).clamp(0.0, 255.0) as u8;
    let mut rows = vec![0; height * out.1 * 3];
    for (x, (low, w)) in weights(width, out.1).iter().enumerate() {
        for y in 0..height {
            for c in 0..3 {
                let sum: f64 =
                    w.iter().zip(*low..).map(|(w, i)| w * f64::from(pixels[(y * width + i) * 3 + c])).sum();
                rows[(y * out.1 + x) * 3 + c] = round(sum);
            }
        }
    }
    let mut result = vec![0; out.0 * out.1 * 3];
    for (y, (low, w)) in weights(height, out.0).iter().enumerate() {
        for i in 0..out.1 * 3 {
            let sum: f64 =
                w.iter().zip(*low..).map(|(w, row)| w * f64::from(rows[row * out.1 * 3 + i])).sum();
            result[y * out.1 * 3 + i] = round(sum);
        }
    }
    result
}

#[test]
fn bilinear_is_pillows_within_one_level_and_the_same_on_every_instruction_set() {
    let (height, width) = (97, 131);
    let pixels = picture(height, width, 3);
    let rects = [
        Rect::whole(height, width),
        Rect { top: 11, left: 17, height: 64, width: 50 },
        Rect { top: 90, left: 120, height: 5, width: 9 },
        Rect { top: 3, left: 0, height: 1, width: 131 },
    ];
    for rect in rects {
        let region = Region { pixels: &pixels, height, width, rect };
        let cut = region.to_image();
        for (h, w) in [(32, 32), (64, 50), (40, 90), (120, 160)] {
            for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
                let run = |mut resizer: Resizer| {
                    let mut out = vec![0; h * w * 3];
                    resizer.resize(region, interpolation, h, w, &mut out).unwrap();
                    out
                };
                let got = run(Resizer::default());
                assert_eq!(got, run(Resizer::without_simd()), "SIMD differs at {rect:?} -> {h} x {w}");
                let cubic = interpolation == Interpolation::Bicubic;
                let want = reference(&cut.pixels, cut.height, cut.width, (h, w), cubic);
                let off = |(a, b): (&u8, &u8)| f64::from(a.abs_diff(*b));
                let worst = got.iter().zip(&want).map(off).fold(0.0, f64::max);
                let mean = got.iter().zip(&want).map(off).sum::<f64>() / got.len() as f64;
                // A sum half way between two levels may go to either: the weights have 22 bits.
                assert!(
                    worst <= 1.0 && mean < 0.05,
                    "{worst} levels off, {mean} in the mean: {rect:?} -> {h} x {w}, {interpolation:?}"
                );
            }
        }
    }
}
