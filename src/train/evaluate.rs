//! A validation pass: every image once.

use super::stop::Stop;
use crate::backend::loss::{LossOptions, softmax_cross_entropy};
use crate::backend::{Backend, Score, Weights};
use crate::data::{Batch, Loader};
use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// Scores all batches of `loader`. The loss is the plain cross-entropy, without smoothing.
pub fn evaluate(
    backend: &mut dyn Backend,
    loader: &mut Loader,
    weights: Weights,
    stop: &Stop,
) -> Result<Score> {
    let mut total = Score::default();
    each_batch(loader, stop, |batch| {
        let logits = backend.eval_batch(batch, weights)?;
        scores(&logits, &batch.labels).for_each(|(_, score)| total += score);
        Ok(())
    })?;
    Ok(total)
}

/// Shows every batch of `loader` to `look`, until somebody asks to stop.
pub fn each_batch(
    loader: &mut Loader,
    stop: &Stop,
    mut look: impl FnMut(&mut Batch) -> Result<()>,
) -> Result<()> {
    while let Some(batch) = loader.next() {
        if stop.requested() {
            return Err(Error::stopped("stopped during validation"));
        }
        let mut batch = batch?;
        look(&mut batch)?;
        loader.recycle(batch);
    }
    Ok(())
}

/// Each image's logits and score: image by image, so that no rounding of a sum depends on the size of a batch.
pub fn scores<'a>(logits: &'a HostTensor, labels: &'a [u32]) -> impl Iterator<Item = (&'a [f32], Score)> {
    let options = LossOptions { label_smoothing: 0.0, scale: 1.0 };
    let images = logits.data.chunks_exact(logits.data.len() / labels.len());
    images.zip(labels).map(move |(logits, label)| {
        (logits, softmax_cross_entropy(logits, std::slice::from_ref(label), options, None))
    })
}
