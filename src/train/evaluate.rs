//! A validation pass: every image once, by whichever rank has its batch.

use super::stop::Stop;
use crate::backend::loss::{LossOptions, softmax_cross_entropy};
use crate::backend::{Backend, Score, Weights};
use crate::comm::{Occasion, Ranks};
use crate::data::{Batch, Loader};
use crate::error::{Error, Result};
use crate::log::Scores;
use crate::tensor::HostTensor;

/// The images of one batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BatchScore {
    pub losses: Vec<f64>,
    pub top1: u64,
    pub top5: u64,
}

/// Scores all batches of `loader`; `None`: somebody asked to stop. The loss is the plain cross-entropy, without smoothing.
pub fn score_share(
    backend: &mut dyn Backend,
    loader: &mut Loader,
    weights: Weights,
    stop: &Stop,
) -> Result<Option<Vec<BatchScore>>> {
    let mut all = vec![];
    let shown = each_batch(loader, stop, |batch| {
        let logits = backend.eval_batch(batch, weights)?;
        let mut sum = BatchScore::default();
        for (_, score) in scores(&logits, &batch.labels) {
            sum.losses.push(score.loss);
            sum.top1 += score.top1;
            sum.top5 += score.top5;
        }
        all.push(sum);
        Ok(())
    });
    match shown {
        Ok(()) => Ok(Some(all)),
        Err(error) if error.kind == crate::error::Kind::Stopped => Ok(None),
        Err(error) => Err(error),
    }
}

/// The score of all ranks' shares. Losses are added image by image, in the order of the batches, so that the sum has the
/// bits that one rank's would have.
pub fn combine(ranks: &Ranks, own: Option<Vec<BatchScore>>) -> Result<Score> {
    let all = match ranks.size() {
        1 => vec![own],
        _ => {
            let all = ranks.all_gather(Occasion::slow("scores of validation"), &pack(own.as_deref()))?;
            all.iter().map(|bytes| unpack(bytes)).collect::<Option<Vec<_>>>().ok_or_else(|| {
                Error::device("another rank's scores cannot be read: it is of another version of engine")
            })?
        }
    };
    let all: Option<Vec<Vec<BatchScore>>> = all.into_iter().collect();
    let all = all.ok_or_else(|| Error::stopped("stopped during validation"))?;
    let mut total = Score::default();
    let rounds = all.iter().map(Vec::len).max().unwrap_or(0);
    for batch in (0..rounds).flat_map(|round| all.iter().filter_map(move |rank| rank.get(round))) {
        batch.losses.iter().for_each(|loss| total.loss += loss);
        total.top1 += batch.top1;
        total.top5 += batch.top5;
        total.count += batch.losses.len() as u64;
    }
    Ok(total)
}

/// A byte that says whether there is anything, then images, hits and losses of each batch.
fn pack(own: Option<&[BatchScore]>) -> Vec<u8> {
    let Some(own) = own else { return vec![0] };
    let mut bytes = vec![1];
    for BatchScore { losses, top1, top5 } in own {
        bytes.extend([losses.len() as u64, *top1, *top5].into_iter().flat_map(u64::to_le_bytes));
        bytes.extend(losses.iter().flat_map(|loss| loss.to_le_bytes()));
    }
    bytes
}

#[expect(clippy::option_option, reason = "unreadable, stopped, or scores")]
fn unpack(bytes: &[u8]) -> Option<Option<Vec<BatchScore>>> {
    let (&first, mut rest) = bytes.split_first()?;
    if first == 0 {
        return Some(None);
    }
    let mut all = vec![];
    while !rest.is_empty() {
        let mut words = [0; 3];
        for word in &mut words {
            let (taken, behind) = rest.split_first_chunk::<8>()?;
            (*word, rest) = (u64::from_le_bytes(*taken), behind);
        }
        let [count, top1, top5] = words;
        let (losses, behind) = rest.split_at_checked(usize::try_from(count).ok()?.checked_mul(8)?)?;
        rest = behind;
        let losses = losses.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
        all.push(BatchScore { losses, top1, top5 });
    }
    Some(Some(all))
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

/// Means and percentages, as the logs have them.
pub fn in_percent(score: Score) -> Scores {
    let count = score.count.max(1) as f64;
    let percent = |hits: u64| 100.0 * hits as f64 / count;
    Scores { loss: score.loss / count, top1: percent(score.top1), top5: percent(score.top5) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_come_back_and_garbage_does_not() {
        let scores = vec![
            BatchScore { losses: vec![0.1, f64::INFINITY], top1: 1, top5: 2 },
            BatchScore { losses: vec![], top1: 0, top5: 0 },
        ];
        let bytes = pack(Some(&scores));
        assert_eq!(unpack(&bytes), Some(Some(scores)));
        assert_eq!(unpack(&pack(None)), Some(None));
        assert_eq!(unpack(&bytes[..bytes.len() - 1]), None);
        assert_eq!(unpack(&[]), None);
        let huge = [&[1][..], &u64::MAX.to_le_bytes(), &[0; 16]].concat();
        assert_eq!(unpack(&huge), None);
    }
}
