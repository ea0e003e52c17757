//! The loss of every image, its gradient, and their sums.

use super::compare::{Allowed, UNIT, Want, rounding, to_f64};
use super::layers::{Layers, Sent};
use crate::backend::cuda::abi::RowScore;
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::plan::Loss;
use crate::backend::loss::{LossOptions, softmax_cross_entropy};
use crate::error::Result;
use crate::model::units::Unit;

/// Threads of the block that has a row.
const BLOCK: usize = 256;

/// What one image should give: loss, top-1, top-5, and the gradient of its logits.
struct Row {
    score: [f64; 3],
    loss_allowed: f64,
    slopes: Vec<f64>,
    /// Their rounding to the storage type not counted.
    allowed: Vec<f64>,
}

/// What the losses of a pass share.
struct Constants {
    smoothing: f32,
    /// On the gradient: one over the step's images, times the loss scale.
    factor: f32,
}

impl<M: Machine> Layers<'_, M> {
    pub fn loss(&mut self, sent: &Sent) -> Result<()> {
        let Some(&Unit::Linear { y, bias, .. }) = self.units.last() else { return Ok(()) };
        let (logits, bias) = (self.seen.f32s(self.seen.buffer("logits")?)?, self.seen.vector(bias));
        let images = (self.seen.n() * sent.step.of) as f32;
        let factor = (1.0 / images) * self.seen.before.state().scale;
        let constants = Constants { smoothing: sent.step.label_smoothing, factor };
        let row = match self.seen.plan.options.recipe.loss {
            Loss::SoftmaxCrossEntropy => softmax,
            Loss::BinaryCrossEntropy => binary_cross_entropy,
        };
        let (mut rows, mut rows_allowed) = (vec![], vec![]);
        let (mut gradient, mut gradient_allowed) = (vec![], vec![]);
        for (logits, &label) in logits.chunks_exact(bias.len()).zip(&sent.batch.labels) {
            let z: Vec<f32> = logits.iter().zip(&bias).map(|(logit, bias)| logit + bias).collect();
            let Row { score, loss_allowed, slopes, allowed } = row(&z, label, &constants);
            rows.extend(score);
            rows_allowed.extend([loss_allowed, 0.0, 0.0]);
            let stored = slopes.iter().map(|&slope| rounding(self.seen.storage(), slope));
            gradient_allowed.extend(stored.zip(allowed).map(|(stored, allowed)| stored + allowed));
            gradient.extend(slopes);
        }
        let nodes = ["loss".to_owned()];
        let got = to_f64(&self.seen.gradient(y)?);
        let want = Want { values: gradient, allowed: Allowed::Each(gradient_allowed) };
        self.note("loss gradient", &nodes, "grad.fc", &got, &want);
        let got = self.row_scores()?;
        let want = Want { values: rows, allowed: Allowed::Each(rows_allowed) };
        self.note("loss", &nodes, "loss.rows", &got, &want);
        self.score(sent, &got);
        Ok(())
    }

    /// Loss, top-1 and top-5 of every image, one after another.
    fn row_scores(&self) -> Result<Vec<f64>> {
        let bytes = self.seen.bytes(self.seen.buffer("loss.rows")?)?;
        let figures = |row: &[u8]| {
            let RowScore { loss, top1, top5 } = bytemuck::pod_read_unaligned(row);
            [f64::from(loss), f64::from(top1), f64::from(top5)]
        };
        Ok(bytes.chunks_exact(size_of::<RowScore>()).flat_map(figures).collect())
    }

    /// The pass's score is the sum of its rows, in f64.
    fn score(&mut self, sent: &Sent, rows: &[f64]) {
        let sum = |column: usize| rows[column..].iter().step_by(3).sum::<f64>();
        let values = vec![sum(0), sum(1), sum(2), (rows.len() / 3) as f64];
        let allowed = Allowed::Each(vec![1e-12 * values[0].abs(), 0.0, 0.0, 0.0]);
        let score = &sent.outcome.score;
        let got = [score.loss, score.top1 as f64, score.top5 as f64, score.count as f64];
        self.note("loss", &["loss.finalize".to_owned()], "outcome.score", &got, &Want { values, allowed });
    }
}

fn softmax(z: &[f32], label: u32, by: &Constants) -> Row {
    let options = LossOptions { label_smoothing: by.smoothing, scale: by.factor };
    let mut slopes = vec![0.0; z.len()];
    let score = softmax_cross_entropy(z, &[label], options, Some(&mut slopes));
    let span = f64::from(z.iter().copied().fold(f32::MIN, f32::max))
        - f64::from(z.iter().copied().fold(f32::MAX, f32::min));
    // exp of a difference that is rounded, and a sum of such, each a few units off.
    let error = (48.0 + 4.0 * span) * UNIT;
    let slopes = to_f64(&slopes);
    let allowed = |&slope: &f64| {
        // A probability less a target, which is 1 at most, and at most the smoothing where it is not the label.
        let target = f64::from(if slope < 0.0 { 1.0 } else { by.smoothing });
        error * (slope.abs() + target * f64::from(by.factor))
    };
    Row {
        score: [score.loss, score.top1 as f64, score.top5 as f64],
        loss_allowed: error + 16.0 * UNIT * score.loss.abs(),
        allowed: slopes.iter().map(allowed).collect(),
        slopes,
    }
}

/// The mean over classes of max(z, 0) - z t + log(1 + exp(-|z|)), in f64. On a card exp, log1p, their sum and products
/// are each a few units off; a thread adds one class in `BLOCK`, then a tree of eight levels.
fn binary_cross_entropy(z: &[f32], label: u32, by: &Constants) -> Row {
    // Ranks are those of any loss.
    let ranks = softmax_cross_entropy(z, &[label], LossOptions { label_smoothing: 0.0, scale: 0.0 }, None);
    let classes = z.len() as f64;
    let (smoothing, factor) = (f64::from(by.smoothing), f64::from(by.factor));
    let additions = z.len().div_ceil(BLOCK) as f64 + 8.0;
    let (mut loss, mut loss_allowed) = (0.0, 0.0);
    let (mut slopes, mut allowed) = (vec![], vec![]);
    for (k, &z) in z.iter().enumerate() {
        let z = f64::from(z);
        let target = smoothing / classes + if k == label as usize { 1.0 - smoothing } else { 0.0 };
        let term = z.max(0.0) - z * target + (-z.abs()).exp().ln_1p();
        let sigmoid = 1.0 / (1.0 + (-z).exp());
        loss += term;
        loss_allowed += UNIT * (additions * term + 8.0 * (z.abs() * (1.0 + target) + 1.0));
        slopes.push((sigmoid - target) / classes * factor);
        allowed.push(16.0 * UNIT * (sigmoid + target) / classes * factor);
    }
    let score = [loss / classes, ranks.top1 as f64, ranks.top5 as f64];
    Row { score, loss_allowed: loss_allowed / classes + 2.0 * UNIT * score[0], slopes, allowed }
}
