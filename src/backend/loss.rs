//! Softmax cross-entropy with label smoothing, and how often the label is among the best: on logits in host memory.

use crate::backend::Score;

/// What the loss is taken against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossOptions {
    /// Share of the target spread evenly over all classes.
    pub label_smoothing: f32,
    /// Factor on the gradient: one over the images of the optimiser step, since the loss is their mean.
    pub scale: f32,
}

/// logits [n, classes] and labels [n] -> the images' summed score, and d(loss)/d(logits) where `gradient` is given.
///
/// loss = -sum_k t_k log softmax(logits)_k with t = (1 - e) onehot + e / classes, as `torch.nn.CrossEntropyLoss`;
/// computed in f64, since n x classes is small.
pub fn softmax_cross_entropy(
    logits: &[f32],
    labels: &[u32],
    options: LossOptions,
    mut gradient: Option<&mut [f32]>,
) -> Score {
    let classes = logits.len() / labels.len();
    let mut score = Score::default();
    for (i, (row, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: f64 = row.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        let log_sum = exps.ln() + f64::from(largest);
        let smoothing = f64::from(options.label_smoothing);
        let label = label as usize;
        let mean_log: f64 = row.iter().map(|&logit| f64::from(logit) - log_sum).sum::<f64>() / classes as f64;
        score.loss -= (1.0 - smoothing) * (f64::from(row[label]) - log_sum) + smoothing * mean_log;
        let rank = rank(row, label);
        score.top1 += u64::from(rank < 1);
        score.top5 += u64::from(rank < 5);
        score.count += 1;
        if let Some(gradient) = gradient.as_deref_mut() {
            let even = smoothing / classes as f64;
            for (k, (slot, &logit)) in gradient[i * classes..].iter_mut().zip(row).enumerate() {
                let target = even + if k == label { 1.0 - smoothing } else { 0.0 };
                *slot = (((f64::from(logit) - log_sum).exp() - target) * f64::from(options.scale)) as f32;
            }
        }
    }
    score
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
    fn gradient_agrees_with_finite_differences() {
        let logits = [0.3f32, -1.2, 2.0, 0.7, 0.1];
        let options = LossOptions { label_smoothing: 0.1, scale: 1.0 };
        let mut gradient = [0.0; 5];
        softmax_cross_entropy(&logits, &[3], options, Some(&mut gradient));
        for k in 0..5 {
            let loss = |delta: f32| {
                let mut moved = logits;
                moved[k] += delta;
                softmax_cross_entropy(&moved, &[3], options, None).loss
            };
            let slope = (loss(1.0 / 1024.0) - loss(-1.0 / 1024.0)) * 512.0;
            assert!((slope - f64::from(gradient[k])).abs() < 1e-6, "{k}: {slope} against {}", gradient[k]);
        }
    }
}
