//! A validation pass: every image once.

use super::stop::Stop;
use crate::backend::loss::{LossOptions, softmax_cross_entropy};
use crate::backend::{Backend, Score};
use crate::data::augment::flip_rows;
use crate::data::{Batch, Loader};
use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// Scores all batches of `loader`. `outputs` says which logit stands for each label; `None`: the one of its number. With
/// `flip`, the logits are averaged with those of the mirrored images. The loss is the plain cross-entropy, without smoothing.
pub fn evaluate(
    backend: &mut dyn Backend,
    loader: &mut Loader,
    outputs: Option<&[u32]>,
    flip: bool,
    stop: &Stop,
) -> Result<Score> {
    let mut total = Score::default();
    while let Some(batch) = loader.next() {
        if stop.requested() {
            return Err(Error::stopped("stopped during validation"));
        }
        let mut batch = batch?;
        if let Some(outputs) = outputs {
            batch.labels.iter_mut().for_each(|label| *label = outputs[*label as usize]);
        }
        let logits = logits(backend, &batch, flip)?;
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

/// Logits [n, classes] of a batch, averaged with the mirrored images' where `flip` is set.
pub fn logits(backend: &mut dyn Backend, batch: &Batch, flip: bool) -> Result<HostTensor> {
    let mut logits = backend.eval_batch(batch)?;
    if flip {
        let mirrored = backend.eval_batch(&mirror(batch))?;
        logits.data.iter_mut().zip(mirrored.data).for_each(|(a, b)| *a = 0.5 * (*a + b));
    }
    Ok(logits)
}

fn mirror(batch: &Batch) -> Batch {
    let mut mirrored = batch.clone();
    flip_rows(&mut mirrored.images, batch.resolution);
    mirrored
}
