//! Logits -> the classes to name.

use serde::Serialize;

/// One class with its softmax probability.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prediction<'a> {
    pub index: usize,
    pub label: &'a str,
    pub probability: f64,
}

/// The `count` largest of the softmax of `logits` f32 [classes], largest first, the first of equals first. `label` gives a
/// class its name.
pub fn top<'a>(logits: &[f32], label: impl Fn(usize) -> &'a str, count: usize) -> Vec<Prediction<'a>> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| exps[b].total_cmp(&exps[a]));
    let prediction = |index: usize| Prediction { index, label: label(index), probability: exps[index] / sum };
    order.into_iter().take(count).map(prediction).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_sum_to_one() {
        let names = ["a", "b", "c", "d"];
        let logits = [1.0, 1000.0, 1000.0, 999.0];
        let all = top(&logits, |index| names[index], 9);
        assert_eq!(all.iter().map(|p| p.label).collect::<Vec<_>>(), ["b", "c", "d", "a"]);
        assert!((all.iter().map(|p| p.probability).sum::<f64>() - 1.0).abs() < 1e-12);
        // 1 / (2 + 1/e).
        assert!((all[0].probability - 0.422_318_8).abs() < 1e-6, "{}", all[0].probability);
        assert_eq!(top(&logits, |index| names[index], 1), all[..1]);
    }
}
