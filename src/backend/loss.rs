//! The loss of logits against smoothed and mixed targets, and how often the label is among the best: in host memory.

use crate::backend::Score;
use crate::config::Reduction;
use crate::data::Batch;

/// What is minimised: of each image, and the mean over the images of an optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    pub objective: Objective,
    /// Share of the target that is spread evenly over all classes.
    pub label_smoothing: f32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// -sum_k t_k log softmax(z)_k, as `torch.nn.CrossEntropyLoss`.
    SoftmaxCrossEntropy,
    /// The sum or mean over the classes of -t_k log sigmoid(z_k) - (1 - t_k) log(1 - sigmoid(z_k)), as timm's
    /// `BinaryCrossEntropy` (timm/loss/binary_cross_entropy.py).
    BinaryCrossEntropy {
        /// Where a target is above it, it becomes 1, elsewhere 0.
        threshold: Option<f32>,
        reduction: Reduction,
    },
}

impl Default for Loss {
    /// Plain cross-entropy.
    fn default() -> Self {
        Self { objective: Objective::SoftmaxCrossEntropy, label_smoothing: 0.0 }
    }
}

/// One image's labels before smoothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    pub label: u32,
    /// That of the image that it is mixed with.
    pub partner: u32,
    /// The share of `label`.
    pub lambda: f32,
}

impl Target {
    /// Of an image that is not mixed.
    pub fn of(label: u32) -> Self {
        Self { label, partner: label, lambda: 1.0 }
    }

    /// Those of a batch, image by image.
    pub fn all(batch: &Batch) -> Vec<Self> {
        let target = |(index, &label): (usize, &u32)| {
            let mix = batch.mix(index);
            Self { label, partner: batch.labels[mix.partner as usize], lambda: mix.lambda }
        };
        batch.labels.iter().enumerate().map(target).collect()
    }

    /// The label that counts as right: the one of the larger share, and the image's own where they are equal.
    pub fn counted(&self) -> u32 {
        if self.lambda >= 0.5 { self.label } else { self.partner }
    }
}

impl Loss {
    /// logits [n, classes] and targets [n] -> the images' summed score, and d(loss)/d(logits) times `scale` where `gradient` is
    /// given. Computed in f64, since n x classes is small.
    pub fn of(
        &self,
        logits: &[f32],
        targets: &[Target],
        scale: f32,
        mut gradient: Option<&mut [f32]>,
    ) -> Score {
        let classes = logits.len() / targets.len();
        let mut score = Score::default();
        for (i, (row, target)) in logits.chunks_exact(classes).zip(targets).enumerate() {
            let slopes = gradient.as_deref_mut().map(|gradient| &mut gradient[i * classes..][..classes]);
            let shares = Shares::new(self.label_smoothing, target, classes);
            score.loss += match self.objective {
                Objective::SoftmaxCrossEntropy => softmax(row, &shares, f64::from(scale), slopes),
                Objective::BinaryCrossEntropy { threshold, reduction } => {
                    let classes = if reduction == Reduction::Mean { classes as f64 } else { 1.0 };
                    binary(row, &shares, threshold, f64::from(scale) / classes, slopes) / classes
                }
            };
            let rank = rank(row, target.counted() as usize);
            score.top1 += u64::from(rank < 1);
            score.top5 += u64::from(rank < 5);
            score.count += 1;
        }
        score
    }
}

/// t_k = (1 - e) (lambda onehot(label) + (1 - lambda) onehot(partner)) + e / classes: torchvision smooths a mixed target so,
/// timm mixes smoothed ones, which is the same.
struct Shares {
    label: usize,
    partner: usize,
    of_label: f64,
    of_partner: f64,
    everywhere: f64,
}

impl Shares {
    fn new(smoothing: f32, target: &Target, classes: usize) -> Self {
        let (smoothing, lambda) = (f64::from(smoothing), f64::from(target.lambda));
        Self {
            label: target.label as usize,
            partner: target.partner as usize,
            of_label: (1.0 - smoothing) * lambda,
            of_partner: (1.0 - smoothing) * (1.0 - lambda),
            everywhere: smoothing / classes as f64,
        }
    }

    fn at(&self, k: usize) -> f64 {
        let of = |class: usize, share: f64| if k == class { share } else { 0.0 };
        self.everywhere + of(self.label, self.of_label) + of(self.partner, self.of_partner)
    }
}

fn softmax(row: &[f32], shares: &Shares, scale: f64, slopes: Option<&mut [f32]>) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let log_sum = exps.ln() + f64::from(largest);
    if let Some(slopes) = slopes {
        for (k, (slot, &logit)) in slopes.iter_mut().zip(row).enumerate() {
            *slot = (((f64::from(logit) - log_sum).exp() - shares.at(k)) * scale) as f32;
        }
    }
    let log = |k: usize| f64::from(row[k]) - log_sum;
    let mut loss = -shares.of_label * log(shares.label);
    // A share of nothing of a class that is impossible is no loss.
    if shares.of_partner > 0.0 {
        loss -= shares.of_partner * log(shares.partner);
    }
    let sum: f64 = row.iter().map(|&logit| f64::from(logit) - log_sum).sum();
    loss - shares.everywhere * sum
}

fn binary(
    row: &[f32],
    shares: &Shares,
    threshold: Option<f32>,
    scale: f64,
    mut slopes: Option<&mut [f32]>,
) -> f64 {
    let mut loss = 0.0;
    for (k, &logit) in row.iter().enumerate() {
        let (z, share) = (f64::from(logit), shares.at(k));
        let target = threshold.map_or(share, |threshold| f64::from(u8::from(share > f64::from(threshold))));
        let small = (-z.abs()).exp();
        loss += z.max(0.0) - z * target + small.ln_1p();
        if let Some(slopes) = slopes.as_deref_mut() {
            let sigmoid = if z >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) };
            slopes[k] = ((sigmoid - target) * scale) as f32;
        }
    }
    // The maximum with 0 has lost what is not a number.
    if row.iter().any(|logit| logit.is_nan()) { f64::NAN } else { loss }
}

/// What plain cross-entropy is taken against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    /// Share of the target spread evenly over all classes.
    pub label_smoothing: f32,
    /// Factor on the gradient: one over the images of the optimiser step, since the loss is their mean.
    pub scale: f32,
}

/// [`Loss::of`] for softmax cross-entropy against labels [n].
pub fn softmax_cross_entropy(
    logits: &[f32],
    labels: &[u32],
    options: LossOptions,
    gradient: Option<&mut [f32]>,
) -> Score {
    let targets: Vec<Target> = labels.iter().map(|&label| Target::of(label)).collect();
    let loss = Loss { label_smoothing: options.label_smoothing, ..Loss::default() };
    loss.of(logits, &targets, options.scale, gradient)
}

/// How many classes stand before `label`: those with a larger logit, and equal ones with a smaller index. A logit that
/// is not a number stands before all others.
fn rank(row: &[f32], label: usize) -> usize {
    let own = row[label];
    let before = |(k, &logit): (usize, &f32)| {
        k != label && (logit > own || logit.is_nan() || (logit == own && k < label))
    };
    if own.is_nan() { row.len() } else { row.iter().enumerate().filter(|&item| before(item)).count() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_cost_the_log_of_the_classes() {
        let options = LossOptions { label_smoothing: 0.1, scale: 1.0 };
        let mut gradient = [0.0; 8];
        let score = softmax_cross_entropy(&[0.5; 8], &[1, 3], options, Some(&mut gradient));
        assert!((score.loss - 2.0 * 4f64.ln()).abs() < 1e-12, "{}", score.loss);
        assert_eq!((score.top1, score.top5, score.count), (0, 2, 2));
        assert!(gradient[..4].iter().sum::<f32>().abs() < 1e-7);
        assert!((gradient[1] + 0.675).abs() < 1e-6, "0.25 - 0.925: {}", gradient[1]);
    }

    #[test]
    fn ranks() {
        assert_eq!(rank(&[1.0, 3.0, 2.0], 1), 0);
        assert_eq!(rank(&[1.0, 3.0, 2.0], 0), 2);
        assert_eq!(rank(&[2.0, 2.0, 2.0], 2), 2);
        assert_eq!(rank(&[f32::NAN, 1.0, 0.0], 1), 1);
    }

    #[test]
    fn the_larger_share_counts() {
        let target = Target { label: 1, partner: 0, lambda: 0.3 };
        assert_eq!((target.counted(), Target { lambda: 0.5, ..target }.counted()), (0, 1));
        let score = Loss::default().of(&[3.0, 1.0, 0.0], &[target], 1.0, None);
        assert_eq!(score.top1, 1);
    }

    #[test]
    fn a_fault_is_no_loss_of_zero() {
        let binary = Objective::BinaryCrossEntropy { threshold: None, reduction: Reduction::Sum };
        for objective in [Objective::SoftmaxCrossEntropy, binary] {
            let loss = Loss { objective, label_smoothing: 0.1 };
            assert!(
                !loss.of(&[1.0, f32::NAN], &[Target::of(0)], 1.0, None).loss.is_finite(),
                "{objective:?}"
            );
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let logits = [0.3f32, -1.2, 2.0, 0.7, 0.1];
        let target = Target { label: 3, partner: 1, lambda: 0.6 };
        let binary = |threshold, reduction| Objective::BinaryCrossEntropy { threshold, reduction };
        for objective in [
            Objective::SoftmaxCrossEntropy,
            binary(None, Reduction::Mean),
            binary(None, Reduction::Sum),
            binary(Some(0.2), Reduction::Mean),
        ] {
            let options = Loss { objective, label_smoothing: 0.1 };
            let mut gradient = [0.0; 5];
            options.of(&logits, &[target], 1.0, Some(&mut gradient));
            for k in 0..5 {
                let loss = |delta: f32| {
                    let mut moved = logits;
                    moved[k] += delta;
                    options.of(&moved, &[target], 1.0, None).loss
                };
                let slope = (loss(1.0 / 1024.0) - loss(-1.0 / 1024.0)) * 512.0;
                let got = f64::from(gradient[k]);
                assert!((slope - got).abs() < 1e-6, "{objective:?}, class {k}: {slope} against {got}");
            }
        }
    }
}
