//! The loss of every image, its gradient, and their sums.

use super::compare::{Allowed, UNIT, Want, rounding, to_f64};
use super::layers::{Layers, Sent};
use crate::backend::cuda::abi::RowScore;
use crate::backend::cuda::machine::Machine;
use crate::backend::loss::Target;
use crate::backend::{Loss, Objective};
use crate::config::Reduction;
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

impl<M: Machine> Layers<'_, M> {
    pub fn loss(&mut self, sent: &Sent) -> Result<()> {
        let Some(&Unit::Linear { y, bias, .. }) = self.units.last() else { return Ok(()) };
        let (logits, bias) = (self.seen.f32s(self.seen.buffer("logits")?)?, self.seen.vector(bias));
        let images = (self.seen.n() * sent.step.of) as f32;
        let factor = (1.0 / images) * self.seen.before.state().scale;
        let (mut rows, mut rows_allowed) = (vec![], vec![]);
        let (mut gradient, mut gradient_allowed) = (vec![], vec![]);
        for (logits, target) in logits.chunks_exact(bias.len()).zip(&Target::all(sent.batch)) {
            let z: Vec<f32> = logits.iter().zip(&bias).map(|(logit, bias)| logit + bias).collect();
            let Row { score, loss_allowed, slopes, allowed } = Row::of(&sent.step.loss, &z, target, factor);
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

/// The target of class `k` before any threshold.
fn share(loss: &Loss, target: &Target, k: usize, classes: usize) -> f64 {
    let (smoothing, lambda) = (f64::from(loss.label_smoothing), f64::from(target.lambda));
    let of = |label: u32, share: f64| if k == label as usize { (1.0 - smoothing) * share } else { 0.0 };
    smoothing / classes as f64 + of(target.label, lambda) + of(target.partner, 1.0 - lambda)
}

impl Row {
    /// `factor`: on the gradient: one over the step's images, times the loss scale.
    fn of(loss: &Loss, z: &[f32], target: &Target, factor: f32) -> Self {
        let mut slopes = vec![0.0; z.len()];
        let score = loss.of(z, std::slice::from_ref(target), factor, Some(&mut slopes));
        let targets: Vec<f64> = (0..z.len()).map(|k| share(loss, target, k, z.len())).collect();
        let (loss_allowed, allowed) = match loss.objective {
            Objective::SoftmaxCrossEntropy => softmax(z, &slopes, &targets, score.loss, factor),
            Objective::BinaryCrossEntropy { threshold, reduction } => {
                let binary =
                    |t: &f64| threshold.map_or(*t, |least| f64::from(u8::from(*t > f64::from(least))));
                let over = if reduction == Reduction::Mean { z.len() as f64 } else { 1.0 };
                let targets: Vec<f64> = targets.iter().map(binary).collect();
                binary_cross_entropy(z, &slopes, &targets, factor, over)
            }
        };
        let score = [score.loss, score.top1 as f64, score.top5 as f64];
        Self { score, loss_allowed, slopes: to_f64(&slopes), allowed }
    }
}

/// How far loss and slopes may be: exp of a difference that is rounded, and a sum of such, each a few units off; a slope is a
/// probability less a target.
fn softmax(z: &[f32], slopes: &[f32], targets: &[f64], loss: f64, factor: f32) -> (f64, Vec<f64>) {
    let span = f64::from(z.iter().copied().fold(f32::MIN, f32::max))
        - f64::from(z.iter().copied().fold(f32::MAX, f32::min));
    let error = (48.0 + 4.0 * span) * UNIT;
    let allowed =
        |(slope, target): (&f32, &f64)| error * (f64::from(slope.abs()) + target * f64::from(factor));
    (error + 16.0 * UNIT * loss.abs(), slopes.iter().zip(targets).map(allowed).collect())
}

/// The same of max(z, 0) - z t + log(1 + exp(-|z|)), summed over classes and divided by `over`: exp, log1p, their sum and
/// products are each a few units off; a thread adds one class in `BLOCK`, then comes a tree of eight levels. A slope is a
/// sigmoid less a target.
fn binary_cross_entropy(
    z: &[f32],
    slopes: &[f32],
    targets: &[f64],
    factor: f32,
    over: f64,
) -> (f64, Vec<f64>) {
    let additions = z.len().div_ceil(BLOCK) as f64 + 8.0 + 2.0;
    let (mut loss, mut allowed) = (0.0, vec![]);
    for ((&z, &slope), target) in z.iter().zip(slopes).zip(targets) {
        let z = f64::from(z);
        let term = z.max(0.0) - z * target + (-z.abs()).exp().ln_1p();
        loss += UNIT * (additions * term + 8.0 * (z.abs() * (1.0 + target) + 1.0));
        let share = f64::from(factor) / over;
        allowed.push(16.0 * UNIT * (f64::from(slope.abs()) + 2.0 * target * share));
    }
    (loss / over, allowed)
}
