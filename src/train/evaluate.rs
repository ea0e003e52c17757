//! A validation pass: every image once.

use super::stop::Stop;
use crate::backend::loss::{LossOptions, softmax_cross_entropy};
use crate::backend::{Backend, Score, Weights};
use crate::data::augment::flip_rows;
use crate::data::{Batch, Loader};
use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// What of a network is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evaluation<'a> {
    pub weights: Weights,
    /// Which logit stands for each label; `None`: the one of its number.
    pub outputs: Option<&'a [u32]>,
    /// The logits are averaged with those of the mirrored images.
    pub flip: bool,
}

/// Scores all batches of `loader`. The loss is the plain cross-entropy, without smoothing.
pub fn evaluate(
    backend: &mut dyn Backend,
    loader: &mut Loader,
    evaluation: Evaluation,
    stop: &Stop,
) -> Result<Score> {
    let mut total = Score::default();
    while let Some(batch) = loader.next() {
        if stop.requested() {
            return Err(Error::stopped("stopped during validation"));
        }
        let mut batch = batch?;
        if let Some(outputs) = evaluation.outputs {
            batch.labels.iter_mut().for_each(|label| *label = outputs[*label as usize]);
        }
        let logits = logits(backend, &batch, evaluation)?;
        let options = LossOptions { label_smoothing: 0.0, scale: 1.0 };
        // Image by image, so that no rounding of the sum depends on the size of a batch.
        let images = logits.data.chunks_exact(logits.data.len() / batch.labels.len());
        for (logits, label) in images.zip(&batch.labels) {
            total += softmax_cross_entropy(logits, std::slice::from_ref(label), options, None);
        }
        loader.recycle(batch);
    }
    Ok(total)
}

/// Logits [n, classes] of a batch, averaged with the mirrored images' where that is asked for.
pub fn logits(backend: &mut dyn Backend, batch: &Batch, evaluation: Evaluation) -> Result<HostTensor> {
    let Evaluation { weights, flip, .. } = evaluation;
    let mut logits = backend.eval_batch(batch, weights)?;
    if flip {
        let mirrored = backend.eval_batch(&mirror(batch), weights)?;
        logits.data.iter_mut().zip(mirrored.data).for_each(|(a, b)| *a = 0.5 * (*a + b));
    }
    Ok(logits)
}

fn mirror(batch: &Batch) -> Batch {
    let mut mirrored = batch.clone();
    flip_rows(&mut mirrored.images, batch.resolution);
    mirrored
}
