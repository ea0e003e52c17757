//! What a layer should give: convolutions by the CPU's own, batch norms in f64.

use super::compare::UNIT;
use crate::backend::cpu::Cpu;
use crate::model::graph::ConvShape;
use crate::simd::conv::{self, Scratch};
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;

/// Threads, instructions and scratch memory.
pub struct Oracle {
    pool: Pool,
    isa: Isa,
    scratch: Scratch,
}

impl Oracle {
    pub fn new() -> Self {
        Self { pool: Pool::new(0), isa: Isa::current(), scratch: Scratch::default() }
    }

    pub fn cpu(&self) -> Cpu<'_> {
        Cpu { pool: &self.pool, isa: self.isa }
    }

    /// x [n][h][w][c], w [k][r][s][c] -> y [n][p][q][k]
    pub fn forward(&mut self, shape: &ConvShape, n: usize, x: &[f32], w: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; n * shape.p() * shape.q() * shape.k];
        let w = rsck_from_krsc(shape, w);
        conv::forward(&self.pool, self.isa, shape, n, x, &w, &mut y, &mut self.scratch);
        y
    }

    /// dy [n][p][q][k], w [k][r][s][c] -> dx [n][h][w][c]
    pub fn dgrad(&mut self, shape: &ConvShape, n: usize, dy: &[f32], w: &[f32]) -> Vec<f32> {
        let mut dx = vec![0.0; n * shape.h * shape.w * shape.c];
        let w = rsck_from_krsc(shape, w);
        conv::dgrad(&self.pool, self.isa, shape, n, dy, &w, &mut dx, false, &mut self.scratch);
        dx
    }

    /// x [n][h][w][c], dy [n][p][q][k] -> dw [k][r][s][c]
    pub fn wgrad(&mut self, shape: &ConvShape, n: usize, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let mut dw = vec![0.0; shape.weights()];
        conv::wgrad(&self.pool, self.isa, shape, n, x, dy, &mut dw, false, &mut self.scratch);
        krsc_from_rsck(shape, &dw)
    }
}

/// The classifier: a 1x1 convolution over one row of `n` pixels.
pub fn classifier(n: usize, features: usize, classes: usize) -> ConvShape {
    ConvShape { h: 1, w: n, c: features, k: classes, r: 1, s: 1, stride: 1, pad: 0 }
}

fn rsck_from_krsc(shape: &ConvShape, krsc: &[f32]) -> Vec<f32> {
    let row = shape.r * shape.s * shape.c;
    let mut rsck = vec![0.0; krsc.len()];
    for (k, filter) in krsc.chunks_exact(row).enumerate() {
        filter.iter().enumerate().for_each(|(at, &value)| rsck[at * shape.k + k] = value);
    }
    rsck
}

fn krsc_from_rsck(shape: &ConvShape, rsck: &[f32]) -> Vec<f32> {
    let row = shape.r * shape.s * shape.c;
    (0..shape.k).flat_map(|k| (0..row).map(move |at| rsck[at * shape.k + k])).collect()
}

/// y = (x - mean) scale + beta by channel, as a card has it.
pub struct Affine {
    pub mean: Vec<f32>,
    pub scale: Vec<f32>,
    pub beta: Vec<f32>,
}

/// A value, and how far f32 arithmetic may be from it.
#[derive(Clone, Copy)]
pub struct Bounded {
    pub value: f64,
    pub bound: f64,
}

impl Affine {
    /// Of element `index` of a tensor with `self`'s channels. Three roundings, each of at most the terms' size.
    pub fn at(&self, x: &[f32], index: usize) -> Bounded {
        let c = index % self.mean.len();
        let product = (f64::from(x[index]) - f64::from(self.mean[c])) * f64::from(self.scale[c]);
        let beta = f64::from(self.beta[c]);
        Bounded { value: product + beta, bound: 4.0 * UNIT * (product.abs() + beta.abs()) }
    }
}

/// A batch's statistics of one channel, in f64.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    pub mean: f64,
    /// Biased.
    pub variance: f64,
}

/// By channel, in two passes. x [rows][channels].
pub fn moments(x: &[f32], channels: usize) -> Vec<Moments> {
    let rows = (x.len() / channels) as f64;
    let mut moments = vec![Moments { mean: 0.0, variance: 0.0 }; channels];
    for row in x.chunks_exact(channels) {
        moments.iter_mut().zip(row).for_each(|(to, &x)| to.mean += f64::from(x));
    }
    moments.iter_mut().for_each(|to| to.mean /= rows);
    for row in x.chunks_exact(channels) {
        moments.iter_mut().zip(row).for_each(|(to, &x)| to.variance += (f64::from(x) - to.mean).powi(2));
    }
    moments.iter_mut().for_each(|to| to.variance /= rows);
    moments
}

/// The gradient behind a ReLU, and, where f32 cannot tell whether the gate is open, how much is in doubt.
#[derive(Clone)]
pub struct Gated {
    pub d: Vec<f64>,
    pub doubt: Vec<f64>,
}

impl Gated {
    pub fn open(dy: &[f32]) -> Self {
        Self { d: dy.iter().map(|&dy| f64::from(dy)).collect(), doubt: vec![0.0; dy.len()] }
    }

    /// Times a factor an image.
    pub fn scaled(&self, factors: &[f32]) -> Self {
        let image = self.d.len() / factors.len();
        let times = |values: &[f64]| -> Vec<f64> {
            values
                .iter()
                .enumerate()
                .map(|(index, value)| value * f64::from(factors[index / image]))
                .collect()
        };
        Self { d: times(&self.d), doubt: times(&self.doubt) }
    }

    /// Bit i of `mask` lets element i through.
    pub fn masked(dy: &[f32], mask: &[u8]) -> Self {
        let mut gated = Self::open(dy);
        let closed = |index: usize| mask[index / 8] >> (index % 8) & 1 == 0;
        gated.d.iter_mut().enumerate().filter(|(index, _)| closed(*index)).for_each(|(_, d)| *d = 0.0);
        gated
    }

    /// Where the forward pass's value of `x` is positive.
    pub fn recomputed(dy: &[f32], x: &[f32], forward: &Affine) -> Self {
        let mut gated = Self::open(dy);
        for index in 0..dy.len() {
            let Bounded { value, bound } = forward.at(x, index);
            if value.abs() <= bound {
                gated.doubt[index] = gated.d[index].abs();
            }
            if value <= 0.0 {
                gated.d[index] = 0.0;
            }
        }
        gated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_inverse() {
        let shape = ConvShape { h: 4, w: 4, c: 3, k: 5, r: 3, s: 2, stride: 1, pad: 1 };
        let w: Vec<f32> = (0..shape.weights()).map(|i| i as f32).collect();
        assert_eq!(krsc_from_rsck(&shape, &rsck_from_krsc(&shape, &w)), w);
    }

    #[test]
    fn gates() {
        let affine = Affine { mean: vec![1.0], scale: vec![2.0], beta: vec![0.0] };
        let Gated { d, doubt } = Gated::recomputed(&[5.0, 6.0, 7.0], &[2.0, 0.0, 1.0], &affine);
        assert_eq!((d, doubt), (vec![5.0, 0.0, 0.0], vec![0.0, 0.0, 7.0]));
        assert_eq!(Gated::masked(&[5.0, 6.0], &[0b10]).d, [0.0, 6.0]);
    }

    #[test]
    fn moments_of_a_column() {
        let found = moments(&[1.0, 5.0, 3.0, 5.0], 2);
        assert_eq!(found, [Moments { mean: 2.0, variance: 1.0 }, Moments { mean: 5.0, variance: 0.0 }]);
    }
}
