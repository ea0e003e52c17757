//! One validation split seen in several ways: resolutions, crop ratios, mirrored, by the weights and by their averages.
//!
//! A view is read and decoded once, for all weights and both of plain and mirrored.

use super::evaluate::{each_batch, scores};
use super::stop::Stop;
use crate::backend::{Backend, Score, Weights};
use crate::data::augment::flip_rows;
use crate::data::ilsvrc::val_number;
use crate::data::{BadFile, Batch, EvalOptions, EvalTransform, Interpolation, Loader, Split};
use crate::error::{Error, Result};
use crate::tensor::HostTensor;
use std::path::Path;
use std::sync::Arc;

/// How images are prepared: the crop is `crop_ratio` of the resized shorter side.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    pub resolution: usize,
    pub crop_ratio: f64,
}

/// A network under a name: `live` or `ema`.
pub struct Contender {
    pub name: &'static str,
    pub backend: Box<dyn Backend>,
}

/// What all views share.
pub struct Sweep<'a> {
    pub split: &'a Arc<Split>,
    pub interpolation: Interpolation,
    pub batch: usize,
    /// Which logit stands for each label.
    pub outputs: &'a [u32],
    /// Also the mean of the logits of an image and its mirror image.
    pub flip: bool,
    pub real: Option<&'a RealLabels>,
}

/// One way of seeing, and what it gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    pub view: View,
    pub weights: &'static str,
    pub flip: bool,
    pub score: Score,
    /// Against ReaL's labels.
    pub real: Option<Real>,
}

/// Images that have labels, and those whose first answer is one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Real {
    pub hits: u64,
    pub count: u64,
}

impl Real {
    pub fn percent(&self) -> f64 {
        100.0 * self.hits as f64 / self.count.max(1) as f64
    }
}

/// ReaL's `real.json` (arXiv:2006.07159): for each validation image, in the order of the numbers in their names, the classes
/// that people saw in it; none where they did not agree, and the image does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RealLabels(Vec<Vec<u32>>);

impl RealLabels {
    pub fn read(path: &Path) -> Result<Self> {
        let expected = "ReaL's real.json: a list of lists of class numbers";
        let bytes = std::fs::read(path).map_err(|e| Error::unreadable(path, &e, expected))?;
        let labels = serde_json::from_slice(&bytes);
        labels.map(Self).map_err(|e| Error::input_file(path, format!("{e}; expected {expected}")))
    }

    /// Every image must have its number, and every label its class.
    pub fn check(&self, split: &Split, classes: usize) -> Result<()> {
        if let Some(label) = self.0.iter().flatten().find(|&&label| label as usize >= classes) {
            return Err(Error::input(format!(
                "ReaL's labels have class {label}, the data have {classes} classes"
            )));
        }
        match (0..split.len()).find(|&i| self.of(split, i).is_none()) {
            None => Ok(()),
            Some(i) => Err(Error::input(format!(
                "ReaL's labels are for {} images named ILSVRC2012_val_00000001 and on, and there is {}",
                self.0.len(),
                split.name(i)
            ))),
        }
    }

    fn of(&self, split: &Split, sample: usize) -> Option<&[u32]> {
        self.0.get(val_number(&split.name(sample))? - 1).map(Vec::as_slice)
    }
}

impl Sweep<'_> {
    /// A row for each contender, plain and where asked for mirrored; and the files that could not be used.
    pub fn run(
        &self,
        view: View,
        contenders: &mut [Contender],
        stop: &Stop,
    ) -> Result<(Vec<Row>, Vec<BadFile>)> {
        let transform = EvalTransform::new(view.resolution, view.crop_ratio, self.interpolation);
        let mut loader = Loader::eval(Arc::clone(self.split), EvalOptions::new(transform, self.batch))?;
        let flips: &[bool] = if self.flip { &[false, true] } else { &[false] };
        let empty = |weights: &'static str, flip: bool| {
            let real = self.real.map(|_| Real::default());
            Row { view, weights, flip, score: Score::default(), real }
        };
        let mut rows: Vec<Row> =
            contenders.iter().flat_map(|c| flips.iter().map(|&flip| empty(c.name, flip))).collect();
        each_batch(&mut loader, stop, |batch| {
            batch.labels.iter_mut().for_each(|label| *label = self.outputs[*label as usize]);
            for (contender, rows) in contenders.iter_mut().zip(rows.chunks_mut(flips.len())) {
                for row in rows {
                    let logits = logits(contender.backend.as_mut(), batch, row.flip)?;
                    self.count(row, batch, &logits);
                }
            }
            Ok(())
        })?;
        Ok((rows, loader.bad().to_vec()))
    }

    fn count(&self, row: &mut Row, batch: &Batch, logits: &HostTensor) {
        for ((logits, score), &sample) in scores(logits, &batch.labels).zip(&batch.samples) {
            row.score += score;
            let wanted = self.real.and_then(|labels| labels.of(self.split, sample as usize));
            if let (Some(real), Some(wanted @ [_, ..])) = (&mut row.real, wanted) {
                let first = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
                real.count += 1;
                real.hits +=
                    u64::from(wanted.iter().any(|&w| Some(self.outputs[w as usize] as usize) == first));
            }
        }
    }
}

/// Logits [n, classes] of a batch, averaged with the mirrored images' where that is asked for.
fn logits(backend: &mut dyn Backend, batch: &Batch, flip: bool) -> Result<HostTensor> {
    let mut logits = backend.eval_batch(batch, Weights::Live)?;
    if flip {
        let mut mirrored = batch.clone();
        flip_rows(&mut mirrored.images, batch.resolution);
        let mirrored = backend.eval_batch(&mirrored, Weights::Live)?;
        logits.data.iter_mut().zip(mirrored.data).for_each(|(a, b)| *a = 0.5 * (*a + b));
    }
    Ok(logits)
}
