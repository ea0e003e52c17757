//! How policies are named, how often they draw what, and that a batch depends on its keys alone.

use std::collections::BTreeMap;

use super::super::augment::ops::Op;
use super::super::augment::repeat::Repeat;
use super::super::augment::{Auto, Jitter, Key, Sampling, erase};
use super::super::*;
use super::class_folders;
use crate::rng::Purpose;

#[test]
fn policies_are_read_as_they_are_written() {
    for (text, written) in [
        ("none", "none"),
        ("randaugment", "randaugment-n2-m9"),
        ("randaugment-m30-n1", "randaugment-n1-m30"),
        ("trivialaugment", "trivialaugment"),
        ("autoaugment", "autoaugment"),
        ("rand-m7-mstd0.5-inc1", "rand-m7-n2-p0.5-mstd0.5-inc1"),
        ("rand", "rand-m10-n2-p0.5-mstd0-inc0"),
        ("rand-n3-p1-mstd200", "rand-m10-n3-p1-mstd101-inc0"),
    ] {
        let auto: Auto = text.parse().unwrap();
        assert_eq!(auto.to_string(), written);
        assert_eq!(written.parse(), Ok(auto));
    }
    for (text, message) in [
        ("randagument", "there is no policy \"randagument\", expected \"none\", \"randaugment-n2-m9\""),
        ("randaugment-n2-m31", "\"randaugment-n2-m31\": m31 is out of range, expected from 0 to 30"),
        ("randaugment-n0", "\"randaugment-n0\": n0 is out of range, expected from 1 to 16"),
        ("rand-m12", "\"rand-m12\": m12 is out of range, expected from 0 to 10"),
        ("rand-m7.5", "\"rand-m7.5\": m7.5 is out of range, expected a whole number from 0 to 10"),
        ("rand-m7-p1.5", "\"rand-m7-p1.5\": p1.5 is out of range, expected from 0 to 1"),
        (
            "rand-m7-tweights",
            "\"rand-m7-tweights\": tweights is no part of it, expected m, mstd, n, p or inc",
        ),
        ("trivialaugment-m3", "\"trivialaugment-m3\": this policy has no parts"),
    ] {
        let error = text.parse::<Auto>().unwrap_err();
        assert!(error.starts_with(message), "{error}");
    }
}

/// The operation's name and whether its argument is on the far side of the coin.
fn name(op: &Op) -> (&'static str, bool) {
    match *op {
        Op::AutoContrast => ("autocontrast", false),
        Op::Equalize => ("equalize", false),
        Op::Invert => ("invert", false),
        Op::Posterize(_) => ("posterize", false),
        Op::Solarize(_) => ("solarize", false),
        Op::SolarizeAdd(_) => ("solarize-add", false),
        Op::Brightness(factor) => ("brightness", factor < 1.0),
        Op::Contrast(factor) => ("contrast", factor < 1.0),
        Op::Color(factor) => ("color", factor < 1.0),
        Op::Sharpness(factor) => ("sharpness", factor < 1.0),
        Op::Hue(shift) => ("hue", shift < 0.0),
        Op::Affine { matrix: [_, b, c, d, _, f], .. } => match (b != 0.0, d != 0.0) {
            (true, true) => ("rotate", b < 0.0),
            (true, false) => ("shear-x", b < 0.0),
            (false, true) => ("shear-y", d < 0.0),
            (false, false) if c != 0.0 => ("translate-x", c < 0.0),
            (false, false) => ("translate-y", f < 0.0),
        },
    }
}

const PICTURES: u32 = 40_000;

/// How often `auto` draws each operation, and how often with the coin's far side.
fn counts(auto: &str) -> BTreeMap<&'static str, (u32, u32)> {
    let auto: Auto = auto.parse().unwrap();
    let mut counts = BTreeMap::new();
    for sample in 0..PICTURES {
        let mut draws = Key { seed: 5, epoch: 0, sample, copy: 0 }.draws(Purpose::Auto);
        auto.draw(224, 224, Sampling::Nearest, &mut draws, &mut |op| {
            let (name, far) = name(&op);
            let (count, of_them) = counts.entry(name).or_insert((0, 0));
            *count += 1;
            *of_them += u32::from(far);
        });
    }
    counts
}

/// Within five standard deviations of a binomial.
fn is_share(what: &str, count: u32, of: u32, share: f64) {
    let (mean, deviation) = (f64::from(of) * share, (f64::from(of) * share * (1.0 - share)).sqrt());
    assert!(
        (f64::from(count) - mean).abs() <= 5.0 * deviation,
        "{what}: {count} of {of}, expected {mean:.0}"
    );
}

#[test]
fn operations_come_as_often_as_in_the_originals() {
    const SIGNED: [&str; 9] = [
        "brightness",
        "color",
        "contrast",
        "rotate",
        "sharpness",
        "shear-x",
        "shear-y",
        "translate-x",
        "translate-y",
    ];
    // Identity is the fourteenth of torchvision's operations.
    let randaugment = counts("randaugment-n2-m9");
    assert_eq!(randaugment.len(), 13);
    for (name, (count, far)) in randaugment {
        is_share(name, count, 2 * PICTURES, 1.0 / 14.0);
        is_share(name, far, count, if SIGNED.contains(&name) { 0.5 } else { 0.0 });
    }
    // An argument of 0, one bin in 31, reads as another operation or as none.
    for (name, (count, _)) in counts("trivialaugment") {
        if !SIGNED.contains(&name) {
            is_share(name, count, PICTURES, 1.0 / 14.0);
        }
    }
    let timm = counts("rand-m7-mstd0.5-inc1");
    assert_eq!(timm.len(), 15);
    for (name, (count, far)) in timm {
        is_share(name, count, 2 * PICTURES, 0.5 / 15.0);
        is_share(name, far, count, if SIGNED.contains(&name) { 0.5 } else { 0.0 });
    }
    // Of 25 pairs: probabilities of all steps with the operation, added up.
    let autoaugment = counts("autoaugment");
    for (name, expected) in
        [("invert", 0.6 * 3.0), ("sharpness", 0.4), ("shear-x", 0.6), ("autocontrast", 1.2)]
    {
        is_share(name, autoaugment[name].0, PICTURES, expected / 25.0);
    }
}

#[test]
fn timms_magnitudes_are_normal_and_clipped() {
    let level = |auto: &str| -> Vec<f64> {
        let auto: Auto = auto.parse().unwrap();
        let mut levels = Vec::new();
        for sample in 0..PICTURES {
            let mut draws = Key { seed: 6, epoch: 0, sample, copy: 0 }.draws(Purpose::Auto);
            auto.draw(224, 224, Sampling::Nearest, &mut draws, &mut |op| {
                if let (Op::Affine { matrix, .. }, ("shear-x", _)) = (op, name(&op)) {
                    levels.push(matrix[1].abs() / 0.03);
                }
            });
        }
        levels
    };
    let moments = |levels: &[f64]| {
        let mean = levels.iter().sum::<f64>() / levels.len() as f64;
        (mean, (levels.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / levels.len() as f64).sqrt())
    };
    let levels = level("rand-m7-mstd0.5-inc1-p1");
    let (mean, deviation) = moments(&levels);
    let error = 0.5 / (levels.len() as f64).sqrt();
    assert!((mean - 7.0).abs() < 5.0 * error && (deviation - 0.5).abs() < 5.0 * error, "{mean} {deviation}");
    let clipped = level("rand-m10-mstd0.5-p1");
    assert!(clipped.iter().all(|level| *level <= 10.0 + 1e-9));
    let at_most = clipped.iter().filter(|level| **level > 10.0 - 1e-9).count();
    is_share("clipped", at_most as u32, clipped.len() as u32, 0.5);
    let (mean, deviation) = moments(&level("rand-m6-mstd101-p1"));
    assert!((mean - 3.0).abs() < 0.2 && (deviation - 6.0 / 12f64.sqrt()).abs() < 0.1, "{mean} {deviation}");
}

/// Everything on.
fn options(start_batch: usize, workers: usize) -> TrainOptions {
    let transform = TrainTransform {
        auto: "rand-m9-mstd0.5-n4-p1".parse().unwrap(),
        sampling: Sampling::Bicubic,
        jitter: Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 },
        erase: erase::Erasing {
            probability: 0.5,
            fill: erase::EraseFill::Noise,
            ..erase::Erasing::default()
        },
        ..TrainTransform::new(24)
    };
    let repeat = Repeat { times: 3, ranks: 2, batch: 4 };
    TrainOptions { seed: 3, epoch: 2, start_batch, repeat, workers, ..TrainOptions::new(transform, 4) }
}

fn batches(split: &std::sync::Arc<Split>, options: TrainOptions) -> Vec<Batch> {
    Loader::train(split.clone(), options).unwrap().map(Result::unwrap).collect()
}

#[test]
fn augmented_batches_depend_on_neither_workers_nor_start() {
    let dir = tempfile::tempdir().unwrap();
    class_folders(dir.path(), 9, 1);
    let data = Dataset::open(dir.path()).unwrap();
    let want = batches(&data.train, options(0, 1));
    // 27 images, 14 for each of two ranks, in batches of 2 each.
    assert_eq!(want.len(), 7);
    assert_eq!(want.len() * 4, options(0, 1).repeat.epoch_len(27));
    for (workers, start) in [(1, 3), (2, 0), (8, 5)] {
        assert!(
            batches(&data.train, options(start, workers)) == want[start..],
            "{workers} workers from {start}"
        );
    }
    let erased = want.iter().flat_map(|batch| &batch.erased).flatten().count();
    assert!((4..25).contains(&erased), "{erased} of 28 erased");
    // Copies of an image in one step are different pictures, with a label.
    let mut pairs = 0;
    for batch in &want {
        let image = |i: usize| &batch.images[i * 24 * 24 * 3..][..24 * 24 * 3];
        for (i, j) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            if batch.samples[i] == batch.samples[j] {
                pairs += 1;
                assert!(image(i) != image(j) && batch.labels[i] == batch.labels[j]);
            }
        }
    }
    assert!(pairs > 0, "no copies in one step");
}
