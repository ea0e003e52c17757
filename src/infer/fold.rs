//! Batch norm folded into the convolution before it, and the layouts that weights change between.

use super::weights::Folded;
use crate::model::graph::{ConvShape, EPS};

/// A batch norm for evaluation, one number a channel.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub mean: &'a [f32],
    pub var: &'a [f32],
}

/// `weight` [k][c][r][s] f32 and the batch norm after it -> weight [k][r][s][c] and bias [k]: with
/// f = gamma / sqrt(var + eps), weight f and beta - mean f. In f64, rounded once.
///
/// The lengths are those of `shape`: the caller has them from the graph.
pub fn fold(shape: &ConvShape, weight: &[f32], norm: &BatchNorm) -> Folded {
    assert_eq!(weight.len(), shape.weights(), "length of the weight, {shape:?}");
    let (factor, bias) = factors(norm);
    Folded { weight: scaled_krsc(shape, weight, &factor), bias }
}

/// What a batch norm multiplies the filters before it with, f64 [k], and the bias that it leaves, f32 [k].
pub fn factors(norm: &BatchNorm) -> (Vec<f64>, Vec<f32>) {
    let factor = |(gamma, var): (&f32, &f32)| f64::from(*gamma) / (f64::from(*var) + EPS).sqrt();
    let factors: Vec<f64> = norm.gamma.iter().zip(norm.var).map(factor).collect();
    let shift =
        |(k, factor): (usize, &f64)| (f64::from(norm.beta[k]) - f64::from(norm.mean[k]) * factor) as f32;
    let bias = factors.iter().enumerate().map(shift).collect();
    (factors, bias)
}

/// [k][c][r][s] -> [k][r][s][c].
pub fn krsc_from_kcrs(shape: &ConvShape, from: &[f32]) -> Vec<f32> {
    scaled_krsc(shape, from, &vec![1.0; shape.k])
}

/// [k][c][r][s] -> [k][r][s][c], each filter by its factor.
fn scaled_krsc(shape: &ConvShape, from: &[f32], factors: &[f64]) -> Vec<f32> {
    let (c, taps) = (shape.c, shape.r * shape.s);
    let scale = |from: f32, factor: f64| (f64::from(from) * factor) as f32;
    let mut weight = vec![0.0; from.len()];
    let filters = weight.chunks_exact_mut(c * taps).zip(from.chunks_exact(c * taps));
    for ((to, from), &factor) in filters.zip(factors) {
        if taps == 1 {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = scale(*from, factor));
            continue;
        }
        for (channel, from) in from.chunks_exact(taps).enumerate() {
            let to = to[channel..].iter_mut().step_by(c);
            to.zip(from).for_each(|(to, from)| *to = scale(*from, factor));
        }
    }
    weight
}

/// [k][r][s][c] -> [r][s][c][k], as the loops of the reference and of `simd::conv` read it.
pub fn rsck_from_krsc<T: Copy>(k: usize, from: &[T]) -> Vec<T> {
    let row = from.len() / k;
    (0..row).flat_map(|at| (0..k).map(move |k| from[k * row + at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_and_factors_by_hand() {
        let shape = ConvShape { h: 4, w: 4, c: 2, k: 2, r: 1, s: 2, stride: 1, pad: 0 };
        // Element (k, c, s) is 100 k + 10 c + s.
        let weight = [0.0, 1.0, 10.0, 11.0, 100.0, 101.0, 110.0, 111.0];
        assert_eq!(krsc_from_kcrs(&shape, &weight), [0.0, 10.0, 1.0, 11.0, 100.0, 110.0, 101.0, 111.0]);
        let krsc = krsc_from_kcrs(&shape, &weight);
        assert_eq!(rsck_from_krsc(2, &krsc), [0.0, 100.0, 10.0, 110.0, 1.0, 101.0, 11.0, 111.0]);
        let var = [(0.25 - EPS) as f32, (4.0 - EPS) as f32];
        let norm = BatchNorm { gamma: &[1.0, 3.0], beta: &[0.5, 0.0], mean: &[2.0, -1.0], var: &var };
        let folded = fold(&shape, &weight, &norm);
        for (got, want) in folded.bias.iter().zip([0.5 - 4.0, 1.5]) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        for (i, (got, weight)) in folded.weight.iter().zip(krsc).enumerate() {
            let want = weight * if i < 4 { 2.0 } else { 1.5 };
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{i}: {got} {want}");
        }
    }
}
