//! Every export, run again before it gets its name: does the written file say what the checkpoint says?
//!
//! | file | gives |
//! |---|---|
//! | [`images`] | the pictures that both are shown |
//! | [`runner`] | a written file -> logits |
//!
//! The checkpoint runs on the CPU backend ([`Reference`]), each file on what it is for: a state dict on the same backend,
//! a model file on the inference program, an ONNX file on [`crate::export::onnx::run`].

pub mod images;
pub mod runner;
#[cfg(test)]
mod tests;

pub use images::{Pictures, Temporary};
pub use runner::Runner;

use crate::error::{Error, Result};
use crate::train::model_file::Model;
use serde::Serialize;
use std::fmt;

/// The f32 formats that compute as the checkpoint does, in another order.
pub const F32: f64 = 1e-4;
/// Winograd's algorithm rounds in its transforms.
pub const WINOGRAD: f64 = 1e-3;

/// What the checkpoint makes of the pictures.
pub struct Reference {
    classes: usize,
    /// f32 [images][classes].
    logits: Vec<f32>,
    /// By image: the logit that stands for its class.
    labels: Option<Vec<u32>>,
    /// Why each picture that is left out cannot be read.
    pub bad: Vec<String>,
}

impl Reference {
    pub fn of(model: &Model, pictures: &Pictures, threads: usize) -> Result<Self> {
        let mut runner = Runner::weights(model, threads)?;
        let (mut logits, mut labels) = (vec![], vec![]);
        let mut loader = pictures.loader()?;
        for batch in loader.by_ref() {
            let mut batch = batch?;
            pictures.relabel(&mut batch);
            logits.append(&mut runner.logits(&batch)?);
            labels.append(&mut batch.labels);
        }
        let bad = loader.bad().iter().map(|bad| bad.message.clone()).collect();
        match labels.is_empty() {
            true => Err(Error::input_file(&pictures.name, "has no image to verify with")),
            false => {
                let labels = pictures.is_labelled().then_some(labels);
                Ok(Self { classes: model.spec.classes, logits, labels, bad })
            }
        }
    }

    pub fn images(&self) -> usize {
        self.logits.len() / self.classes
    }

    /// The checkpoint's own row: what it is compared with is itself.
    pub fn row(&self) -> Row {
        self.compare("checkpoint", &self.logits)
    }

    /// Runs `runner` on the same pictures.
    pub fn check(&self, format: &str, runner: &mut Runner, pictures: &Pictures) -> Result<Row> {
        let mut logits = vec![];
        for batch in pictures.loader()? {
            let mut batch = batch?;
            pictures.relabel(&mut batch);
            logits.append(&mut runner.logits(&batch)?);
        }
        match logits.len() == self.logits.len() {
            true => Ok(self.compare(format, &logits)),
            false => Err(Error::failed(format!(
                "{format} gave {} logits, the checkpoint {}",
                logits.len(),
                self.logits.len()
            ))),
        }
    }

    fn compare(&self, format: &str, got: &[f32]) -> Row {
        let (mut same, mut right, mut relative) = (0, 0, 0.0f64);
        let images = got.chunks_exact(self.classes).zip(self.logits.chunks_exact(self.classes));
        for (image, (got, want)) in images.enumerate() {
            let best = largest(got);
            same += usize::from(best == largest(want));
            let label = self.labels.as_ref().map(|labels| labels[image] as usize);
            right += usize::from(label == Some(best));
            let worst = worst(got, want);
            // A NaN is worse than every number.
            if worst.is_nan() || worst > relative {
                relative = worst;
            }
        }
        let percent = |count: usize| 100.0 * count as f64 / self.images() as f64;
        Row {
            format: format.to_owned(),
            images: self.images(),
            same_top1: percent(same),
            relative,
            top1: self.labels.as_ref().map(|_| percent(right)),
        }
    }
}

fn largest(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap_or(0)
}

/// max|got - want| / max|want| of one image.
fn worst(got: &[f32], want: &[f32]) -> f64 {
    let difference = |(got, want): (&f32, &f32)| f64::from((got - want).abs());
    let worse = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
    let largest = want.iter().fold(f64::MIN_POSITIVE, |max, want| max.max(f64::from(want.abs())));
    got.iter().zip(want).map(difference).fold(0.0, worse) / largest
}

/// How one format agrees with the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub format: String,
    pub images: usize,
    /// Images of the same first class, in percent.
    pub same_top1: f64,
    /// The largest max|a - b| / max|b| of an image's logits, where b is the checkpoint's.
    pub relative: f64,
    /// Accuracy in percent; none where the pictures have no labels that the network knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
}

impl Row {
    pub const HEADING: &str = "format            same top-1  logits differ by   top-1";
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, same_top1, relative, top1, .. } = self;
        let top1 = top1.map_or("unknown".to_owned(), |top1| format!("{top1:.2} %"));
        write!(f, "{format:<16} {same_top1:>9.2} %  {relative:>16.2e}  {top1:>8}")
    }
}

/// What a format has to keep of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Promise {
    /// Logits within this, relative.
    Logits(f64),
    /// At most so many points of top-1 less, where labels tell.
    Loss(f64),
    /// Shown, and no more.
    Nothing,
}

impl Promise {
    pub fn hold(self, row: &Row, reference: &Row) -> Result<()> {
        let Row { format, relative, images, .. } = row;
        match (self, reference.top1, row.top1) {
            // Written so that a NaN does not pass.
            (Self::Logits(bound), ..) if relative <= &bound => Ok(()),
            (Self::Logits(bound), ..) => Err(Error::failed(format!(
                "{format}: logits differ from the checkpoint's by {relative:.2e} of the largest, at most {bound:.0e} is \
                 allowed; nothing was written. This is a bug in engine, please report it"
            ))),
            (Self::Loss(allowed), Some(before), Some(after)) if before - after > allowed => {
                Err(Error::failed(format!(
                    "{format}: top-1 is {after:.2} % on {images} images, the checkpoint's {before:.2} %: {:.2} points are \
                     lost, at most {allowed} are allowed (--max-loss); nothing was written. Calibrate on more or \
                     other pictures, try --calibration percentile, verify on more (--verify-images), or allow the loss",
                    before - after
                )))
            }
            (Self::Loss(_) | Self::Nothing, ..) if relative.is_finite() => Ok(()),
            _ => Err(Error::failed(format!("{format}: its logits are not finite; nothing was written"))),
        }
    }
}
