//! The exact training batches as a file, so that another program can be fed the same pixels.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};

use super::{Loader, Split, TrainOptions};
use crate::error::{Error, Result};
use crate::files;

/// Writes `count` batches from `options.start_batch` on as safetensors: `images` u8 [count, n, r, r, 3], `labels` and
/// `samples` i64 [count, n]. Everything is held in memory: `count * n * r * r * 3` bytes.
pub fn write(split: &Arc<Split>, options: TrainOptions, count: usize, path: &Path) -> Result<()> {
    let (n, r, start) = (options.batch, options.transform.resolution, options.start_batch);
    let mut loader = Loader::train(Arc::clone(split), options)?;
    let left = loader.batches_per_epoch().saturating_sub(start);
    if count == 0 || count > left {
        return Err(Error::usage(format!(
            "{count} batches were asked for; from batch {start} on the epoch has {left} of {n} images"
        )));
    }
    let mut images = Vec::with_capacity(count * n * r * r * 3);
    let (mut labels, mut samples) = (Vec::new(), Vec::new());
    for batch in loader.by_ref().take(count) {
        let batch = batch?;
        images.extend_from_slice(&batch.images);
        labels.extend(batch.labels.iter().flat_map(|&l| i64::from(l).to_le_bytes()));
        samples.extend(batch.samples.iter().flat_map(|&s| i64::from(s).to_le_bytes()));
    }
    let view = |dtype, shape: Vec<usize>, data| {
        TensorView::new(dtype, shape, data)
            .map_err(|e| Error::failed(format!("cannot lay out the batches: {e}")))
    };
    let tensors = [
        ("images", view(Dtype::U8, vec![count, n, r, r, 3], &images)?),
        ("labels", view(Dtype::I64, vec![count, n], &labels)?),
        ("samples", view(Dtype::I64, vec![count, n], &samples)?),
    ];
    let bytes = safetensors::serialize(tensors, None::<HashMap<String, String>>)
        .map_err(|e| Error::failed(format!("cannot lay out the batches: {e}")))?;
    files::write_bytes_atomically("batches", path, &bytes)
}
