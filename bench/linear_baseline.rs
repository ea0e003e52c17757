//! How much of a data set a linear classifier on the pixels gets right: the floor that a network has to leave behind.
//!
//!     cargo run --release --example linear_baseline -- FOLDER
//!
//! Softmax regression on 64x64 RGB pixels (shorter side to 64, middle crop), standardised per channel. Stochastic descent
//! runs once for each strength of L2, and the best validation figure of all strengths and epochs is printed, which
//! favours the linear classifier.

use engine::data::{Dataset, EvalOptions, EvalTransform, Interpolation, Loader, Split};
use engine::error::{Error, Result};
use engine::rng::{Purpose, Rng};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

const SIDE: usize = 64;
const PIXELS: usize = SIDE * SIDE * 3;
const EPOCHS: usize = 30;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("linear_baseline: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn measure() -> Result<()> {
    let folder = std::env::args().nth(1);
    let folder =
        folder.ok_or_else(|| Error::usage("wanted: linear_baseline FOLDER (with train/ and val/ inside)"))?;
    let data = Dataset::open(Path::new(&folder))?;
    let set = |split: &Arc<Split>| load(Arc::clone(split), data.classes.len());
    let (mut train, mut val) = (set(&data.train)?, set(&data.val)?);
    standardise(&mut train, &mut val);
    let mut best = Accuracy { train: 0.0, val: 0.0 };
    for l2 in [0.0, 1.0, 30.0] {
        let figures = fit(&train, &val, l2);
        eprintln!("l2 {l2:<4} best val_top1 {:.2}%  (train_top1 there {:.2}%)", figures.val, figures.train);
        if figures.val > best.val {
            best = figures;
        }
    }
    println!("linear_baseline: train_top1: {:.2}%  val_top1: {:.2}%", best.train, best.val);
    Ok(())
}

struct Accuracy {
    train: f64,
    val: f64,
}

/// Pixels of all images one after the other, and their labels.
struct Set {
    pixels: Vec<f32>,
    labels: Vec<usize>,
    classes: usize,
}

impl Set {
    fn image(&self, index: usize) -> &[f32] {
        &self.pixels[index * PIXELS..][..PIXELS]
    }
}

/// A split as the trainer's validation sees one: shorter side resized, middle cropped.
fn load(split: Arc<Split>, classes: usize) -> Result<Set> {
    let transform = EvalTransform::new(SIDE, 1.0, Interpolation::Bilinear);
    let mut set = Set { pixels: Vec::new(), labels: Vec::new(), classes };
    for batch in Loader::eval(split, EvalOptions::new(transform, 64))? {
        let batch = batch?;
        set.pixels.extend(batch.images.iter().map(|&v| f32::from(v) / 255.0));
        set.labels.extend(batch.labels.iter().map(|&label| label as usize));
    }
    Ok(set)
}

/// Zero mean and unit variance per channel, with the training set's figures.
fn standardise(train: &mut Set, val: &mut Set) {
    for channel in 0..3 {
        let values = || train.pixels.iter().skip(channel).step_by(3).map(|&v| f64::from(v));
        let count = train.pixels.len() as f64 / 3.0;
        let mean = values().sum::<f64>() / count;
        let deviation = (values().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt().max(1e-6);
        for set in [&mut *train, &mut *val] {
            for value in set.pixels.iter_mut().skip(channel).step_by(3) {
                *value = ((f64::from(*value) - mean) / deviation) as f32;
            }
        }
    }
}

/// Descends on mean cross-entropy + l2/2 |W|^2 and returns the figures of the epoch with the best validation.
fn fit(train: &Set, val: &Set, l2: f32) -> Accuracy {
    let images = train.labels.len();
    // The loss of one image has curvature of at most |x|^2 / 2.
    let norm = dot(&train.pixels, &train.pixels) / images as f32;
    let top_rate = 1.0 / (0.5 * norm + l2);
    let mut weights = vec![0.0f32; train.classes * PIXELS];
    let mut order: Vec<usize> = (0..images).collect();
    let mut best = Accuracy { train: 0.0, val: 0.0 };
    for epoch in 0..EPOCHS {
        Rng::new(0, epoch as u64, 0, Purpose::Shuffle).shuffle(&mut order);
        let rate = top_rate * (1.0 - epoch as f32 / EPOCHS as f32);
        for &index in &order {
            step(&mut weights, train.image(index), train.labels[index], Rates { rate, l2 });
        }
        let val_top1 = accuracy(val, &weights);
        if val_top1 > best.val {
            best = Accuracy { train: accuracy(train, &weights), val: val_top1 };
        }
    }
    best
}

struct Rates {
    rate: f32,
    l2: f32,
}

/// One step of stochastic descent on one image. The weights are [classes, PIXELS].
fn step(weights: &mut [f32], image: &[f32], label: usize, Rates { rate, l2 }: Rates) {
    let logits = logits(image, weights);
    let top = logits.iter().copied().fold(f32::MIN, f32::max);
    let total: f32 = logits.iter().map(|l| (l - top).exp()).sum();
    for (class, row) in weights.chunks_exact_mut(PIXELS).enumerate() {
        let target = if class == label { 1.0 } else { 0.0 };
        let slope = rate * ((logits[class] - top).exp() / total - target);
        for (w, x) in row.iter_mut().zip(image) {
            *w -= rate * l2 * *w + slope * x;
        }
    }
}

fn accuracy(set: &Set, weights: &[f32]) -> f64 {
    let is_hit = |(image, &label): (&[f32], &usize)| {
        let logits = logits(image, weights);
        (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])) == Some(label)
    };
    let hits = set.pixels.chunks_exact(PIXELS).zip(&set.labels).filter(|&pair| is_hit(pair)).count();
    100.0 * hits as f64 / set.labels.len() as f64
}

fn logits(image: &[f32], weights: &[f32]) -> Vec<f32> {
    weights.chunks_exact(PIXELS).map(|row| dot(image, row)).collect()
}

/// Sixteen partial sums, so that the compiler can use vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    for (a, b) in a.chunks_exact(16).zip(b.chunks_exact(16)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}
