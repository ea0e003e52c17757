//! The exact training batches as a file, so that another program can be fed the same pixels.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};

use super::{Loader, Rect, Split, TrainOptions};
use crate::error::{Error, Result};
use crate::files;

/// Writes `count` batches from `options.start_batch` on as safetensors: `images` u8 [count, n, r, r, 3], `labels` and
/// `samples` i64 [count, n]. A recipe that mixes images adds how (the images are as they are before it): `partners` i64
/// [count, n], `lambdas` f32 [count, n], and `regions` i64 [count, n, 4], the top, left, height and width of cutmix's box, all 0
/// for mixup. Everything is held in memory: `count * n * r * r * 3` bytes.
pub fn write(split: &Arc<Split>, options: TrainOptions, count: usize, path: &Path) -> Result<()> {
    let (n, r, start) = (options.batch, options.transform.resolution, options.start_batch);
    let mixes = options.mix.is_some();
    let mut loader = Loader::train(Arc::clone(split), options)?;
    let left = loader.batches_per_epoch().saturating_sub(start);
    if count == 0 || count > left {
        return Err(Error::usage(format!(
            "{count} batches were asked for; from batch {start} on the epoch has {left} of {n} images"
        )));
    }
    let mut images = Vec::with_capacity(count * n * r * r * 3);
    let (mut labels, mut samples) = (Vec::new(), Vec::new());
    let (mut partners, mut lambdas, mut regions) = (Vec::new(), Vec::new(), Vec::new());
    for batch in loader.by_ref().take(count) {
        let batch = batch?;
        images.extend_from_slice(&batch.images);
        labels.extend(batch.labels.iter().flat_map(|&l| i64::from(l).to_le_bytes()));
        samples.extend(batch.samples.iter().flat_map(|&s| i64::from(s).to_le_bytes()));
        for mix in (0..n).filter(|_| mixes).map(|index| batch.mix(index)) {
            partners.extend(i64::from(mix.partner).to_le_bytes());
            lambdas.extend(mix.lambda.to_le_bytes());
            let Rect { top, left, height, width } = mix.region.unwrap_or(Rect::whole(0, 0));
            regions
                .extend([top, left, height, width].into_iter().flat_map(|edge| (edge as i64).to_le_bytes()));
        }
    }
    let view = |dtype, shape: Vec<usize>, data| {
        TensorView::new(dtype, shape, data)
            .map_err(|e| Error::failed(format!("cannot lay out the batches: {e}")))
    };
    let mut tensors = vec![
        ("images", view(Dtype::U8, vec![count, n, r, r, 3], &images)?),
        ("labels", view(Dtype::I64, vec![count, n], &labels)?),
        ("samples", view(Dtype::I64, vec![count, n], &samples)?),
    ];
    if mixes {
        tensors.push(("partners", view(Dtype::I64, vec![count, n], &partners)?));
        tensors.push(("lambdas", view(Dtype::F32, vec![count, n], &lambdas)?));
        tensors.push(("regions", view(Dtype::I64, vec![count, n, 4], &regions)?));
    }
    let bytes = safetensors::serialize(tensors, None::<HashMap<String, String>>)
        .map_err(|e| Error::failed(format!("cannot lay out the batches: {e}")))?;
    files::write_bytes_atomically("batches", path, &bytes)
}
