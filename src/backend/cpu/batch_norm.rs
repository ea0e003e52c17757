//! Batch norm with residual sum and ReLU, NHWC, both ways. Rows are pixels of all images, columns channels.

use super::Cpu;
use crate::backend::{EPS, RUNNING_MOMENTUM};
use crate::simd::dispatch::multiversion;

/// A batch's statistics by channel.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statistics {
    pub mean: Vec<f32>,
    /// Biased: the divisor is the number of values.
    pub var: Vec<f64>,
    /// 1 / sqrt(var + eps).
    pub rstd: Vec<f32>,
    /// Values a channel.
    pub count: usize,
}

impl Statistics {
    pub fn new(mean: Vec<f32>, var: Vec<f64>, count: usize) -> Self {
        let rstd = var.iter().map(|var| (1.0 / (var + EPS).sqrt()) as f32).collect();
        Self { mean, var, rstd, count }
    }

    /// For evaluation.
    pub fn running(mean: &[f32], var: &[f32]) -> Self {
        Self::new(mean.to_vec(), var.iter().map(|&var| f64::from(var)).collect(), 1)
    }

    /// gamma / sqrt(var + eps), by channel.
    pub fn scale(&self, gamma: &[f32]) -> Vec<f32> {
        gamma.iter().zip(&self.rstd).map(|(gamma, rstd)| gamma * rstd).collect()
    }
}

/// Elements of one task: three streams of this size stay in a core's cache.
const CHUNK: usize = 32 * 1024;

/// Elements of one task's rows; a function of the channels alone.
fn chunk(channels: usize) -> usize {
    (CHUNK / channels).max(1) * channels
}

/// Mean and variance of each column of `x`. Each chunk is summed in two passes while it is in cache; chunks are combined
/// in order in f64 (Chan, Golub, LeVeque 1983), which is exact enough whatever the mean.
pub fn statistics(cpu: Cpu, x: &[f32], channels: usize) -> Statistics {
    let partials = cpu.pool.map(x.chunks(chunk(channels)).collect(), |x| {
        let rows = (x.len() / channels) as f32;
        let (mut mean, mut squares) = (vec![0.0; channels], vec![0.0; channels]);
        column_sums(cpu.isa, x, &mut mean);
        mean.iter_mut().for_each(|mean| *mean /= rows);
        column_squares(cpu.isa, x, &mean, &mut squares);
        (x.len() / channels, mean, squares)
    });
    let count = x.len() / channels;
    let (mut mean, mut var) = (vec![0.0f64; channels], vec![0.0f64; channels]);
    for (rows, partial, _) in &partials {
        mean.iter_mut().zip(partial).for_each(|(mean, &part)| *mean += f64::from(part) * *rows as f64);
    }
    mean.iter_mut().for_each(|mean| *mean /= count as f64);
    for (rows, partial, squares) in &partials {
        for c in 0..channels {
            let shift = f64::from(partial[c]) - mean[c];
            var[c] += f64::from(squares[c]) + *rows as f64 * shift * shift;
        }
    }
    var.iter_mut().for_each(|var| *var /= count as f64);
    Statistics::new(mean.iter().map(|&mean| mean as f32).collect(), var, count)
}

multiversion! {
    fn column_sums(x: &[f32], sums: &mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}

multiversion! {
    fn column_squares(x: &[f32], mean: &[f32], sums: &mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            for ((sum, &x), &mean) in sums.iter_mut().zip(row).zip(mean) {
                *sum += (x - mean) * (x - mean);
            }
        }
    }
}

/// y = (x - mean) scale + shift by channel.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    pub mean: &'a [f32],
    /// gamma / sqrt(var + eps).
    pub scale: &'a [f32],
    /// beta.
    pub shift: &'a [f32],
}

/// What follows the normalisation.
#[derive(Debug, Clone, Copy)]
pub struct Epilogue<'a> {
    pub residual: Option<&'a [f32]>,
    pub relu: bool,
}

/// x -> y = relu((x - mean) scale + shift + residual), sum and ReLU as the epilogue says.
pub fn apply(cpu: Cpu, affine: Affine, epilogue: Epilogue, x: &[f32], y: &mut [f32]) {
    let size = chunk(affine.mean.len());
    match epilogue.residual {
        None => cpu.pool.for_each(x.chunks(size).zip(y.chunks_mut(size)).collect(), |(x, y)| {
            normalise(cpu.isa, affine, epilogue.relu, x, y);
        }),
        Some(residual) => {
            let items = x.chunks(size).zip(y.chunks_mut(size)).zip(residual.chunks(size)).collect();
            cpu.pool.for_each(items, |((x, y), residual)| {
                normalise_and_add(cpu.isa, affine, epilogue.relu, x, residual, y);
            });
        }
    }
}

/// `relu` turns negative values into 0 and keeps NaN, so that a fault stays visible.
#[inline(always)]
fn rectify(value: f32, floor: f32) -> f32 {
    if value < floor { 0.0 } else { value }
}

multiversion! {
    fn normalise(affine: Affine, relu: bool, x: &[f32], y: &mut [f32]) {
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        let channels = affine.mean.len();
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            let constants = affine.mean.iter().zip(affine.scale).zip(affine.shift);
            for ((y, &x), ((&mean, &scale), &shift)) in y.iter_mut().zip(x).zip(constants) {
                *y = rectify((x - mean) * scale + shift, floor);
            }
        }
    }
}

multiversion! {
    fn normalise_and_add(affine: Affine, relu: bool, x: &[f32], residual: &[f32], y: &mut [f32]) {
        let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
        let channels = affine.mean.len();
        let rows = x.chunks_exact(channels).zip(residual.chunks_exact(channels));
        for ((x, residual), y) in rows.zip(y.chunks_exact_mut(channels)) {
            let constants = affine.mean.iter().zip(affine.scale).zip(affine.shift);
            for (((y, &x), &residual), ((&mean, &scale), &shift)) in
                y.iter_mut().zip(x).zip(residual).zip(constants)
            {
                *y = rectify((x - mean) * scale + shift + residual, floor);
            }
        }
    }
}

/// Gradients of a batch norm's parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamGradients {
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
}

/// Which gradients pass the ReLU behind a batch norm.
#[derive(Debug, Clone, Copy)]
pub enum Gate<'a> {
    /// All: there is no ReLU.
    Open,
    /// Where the unit's output is positive.
    Output(&'a [f32]),
    /// Where the normalised value, computed once more by the forward pass's constants, is positive. That reads nothing
    /// that the backward pass does not read anyway; it needs that no residual was added.
    Recomputed(Affine<'a>),
}

/// First half of the backward pass: the gradients of gamma and beta. `x` is the convolution's output. With
/// `Gate::Output`, `dy` becomes the gradient behind the ReLU, which is the residual's as well.
pub fn backward_reduce(
    cpu: Cpu,
    statistics: &Statistics,
    x: &[f32],
    gate: Gate,
    dy: &mut [f32],
) -> ParamGradients {
    let channels = statistics.mean.len();
    let size = chunk(channels);
    let sums = |x: &[f32], dy: &[f32]| {
        let (mut products, mut sums) = (vec![0.0; channels], vec![0.0; channels]);
        match gate {
            Gate::Recomputed(affine) => reduce_gated(cpu.isa, affine, x, dy, &mut products, &mut sums),
            _ => reduce(cpu.isa, &statistics.mean, x, dy, &mut products, &mut sums),
        }
        (products, sums)
    };
    let partials = match gate {
        Gate::Output(y) => {
            let items: Vec<_> = x.chunks(size).zip(y.chunks(size)).zip(dy.chunks_mut(size)).collect();
            cpu.pool.map(items, |((x, y), dy)| {
                mask(cpu.isa, y, dy);
                sums(x, dy)
            })
        }
        _ => cpu.pool.map(x.chunks(size).zip(dy.chunks(size)).collect(), |(x, dy)| sums(x, dy)),
    };
    let (mut gamma, mut beta) = (vec![0.0f64; channels], vec![0.0f64; channels]);
    for (products, sums) in &partials {
        gamma.iter_mut().zip(products).for_each(|(total, &part)| *total += f64::from(part));
        beta.iter_mut().zip(sums).for_each(|(total, &part)| *total += f64::from(part));
    }
    let gamma =
        gamma.iter().zip(&statistics.rstd).map(|(&sum, &rstd)| (sum * f64::from(rstd)) as f32).collect();
    ParamGradients { gamma, beta: beta.iter().map(|&sum| sum as f32).collect() }
}

/// What [`backward_reduce`] does to `dy`, where there is nothing to reduce.
pub fn pass_output_gate(cpu: Cpu, gate: Gate, dy: &mut [f32]) {
    if let Gate::Output(y) = gate {
        let items = y.chunks(CHUNK).zip(dy.chunks_mut(CHUNK)).collect();
        cpu.pool.for_each(items, |(y, dy)| mask(cpu.isa, y, dy));
    }
}

multiversion! {
    fn mask(y: &[f32], dy: &mut [f32]) {
        for (dy, &y) in dy.iter_mut().zip(y) {
            *dy = if y > 0.0 { *dy } else { 0.0 };
        }
    }
}

multiversion! {
    fn reduce(mean: &[f32], x: &[f32], dy: &[f32], products: &mut [f32], sums: &mut [f32]) {
        let channels = mean.len();
        for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
            let totals = products.iter_mut().zip(sums.iter_mut());
            for (((&x, &dy), &mean), (product, sum)) in x.iter().zip(dy).zip(mean).zip(totals) {
                *product += dy * (x - mean);
                *sum += dy;
            }
        }
    }
}

/// `dy` where the forward pass's value of the same `x` is positive, 0 elsewhere.
#[inline(always)]
fn gated(dy: f32, centred: f32, scale: f32, shift: f32) -> f32 {
    if centred * scale + shift > 0.0 { dy } else { 0.0 }
}

multiversion! {
    fn reduce_gated(forward: Affine, x: &[f32], dy: &[f32], products: &mut [f32], sums: &mut [f32]) {
        let channels = forward.mean.len();
        for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact(channels)) {
            let totals = products.iter_mut().zip(sums.iter_mut());
            let constants = forward.mean.iter().zip(forward.scale).zip(forward.shift);
            for (((&x, &dy), ((&mean, &scale), &shift)), (product, sum)) in x.iter().zip(dy).zip(constants).zip(totals) {
                let dy = gated(dy, x - mean, scale, shift);
                *product += dy * (x - mean);
                *sum += dy;
            }
        }
    }
}

/// Second half: dx = gamma rstd (dy - mean(dy) - xhat mean(dy xhat)), with the means from `gradients`.
pub struct BackwardApply {
    mean: Vec<f32>,
    scale: Vec<f32>,
    mean_dy: Vec<f32>,
    /// mean(dy xhat) rstd: what multiplies x - mean.
    slope: Vec<f32>,
}

impl BackwardApply {
    pub fn new(statistics: &Statistics, gamma: &[f32], gradients: &ParamGradients) -> Self {
        let count = statistics.count as f64;
        let by_channel = |value: &dyn Fn(usize) -> f64| (0..gamma.len()).map(|c| value(c) as f32).collect();
        let rstd = |c: usize| f64::from(statistics.rstd[c]);
        Self {
            mean: statistics.mean.clone(),
            scale: by_channel(&|c| f64::from(gamma[c]) * rstd(c)),
            mean_dy: by_channel(&|c| f64::from(gradients.beta[c]) / count),
            slope: by_channel(&|c| f64::from(gradients.gamma[c]) * rstd(c) / count),
        }
    }

    /// dx = gamma rstd dy: of a batch norm whose statistics are constants.
    pub fn fixed(statistics: &Statistics, gamma: &[f32]) -> Self {
        let none = vec![0.0; gamma.len()];
        Self::new(statistics, gamma, &ParamGradients { gamma: none.clone(), beta: none })
    }

    /// `dy` has passed the ReLU.
    pub fn run(&self, cpu: Cpu, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let size = chunk(self.mean.len());
        let items = x.chunks(size).zip(dy.chunks(size)).zip(dx.chunks_mut(size)).collect();
        cpu.pool.for_each(items, |((x, dy), dx)| spread(cpu.isa, self, x, dy, dx));
    }

    /// `dy` becomes dx; it passes the ReLU of `forward` on the way.
    pub fn run_gated(&self, cpu: Cpu, forward: Affine, x: &[f32], dy: &mut [f32]) {
        let size = chunk(self.mean.len());
        let items = x.chunks(size).zip(dy.chunks_mut(size)).collect();
        cpu.pool.for_each(items, |(x, dy)| spread_gated(cpu.isa, self, forward, x, dy));
    }
}

multiversion! {
    fn spread(constants: &BackwardApply, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let BackwardApply { mean, scale, mean_dy, slope } = constants;
        let channels = mean.len();
        let rows = x.chunks_exact(channels).zip(dy.chunks_exact(channels));
        for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(channels)) {
            let constants = mean.iter().zip(scale).zip(mean_dy).zip(slope);
            for (((&x, &dy), dx), (((&mean, &scale), &mean_dy), &slope)) in x.iter().zip(dy).zip(dx).zip(constants) {
                *dx = scale * (dy - mean_dy - (x - mean) * slope);
            }
        }
    }
}

multiversion! {
    fn spread_gated(constants: &BackwardApply, forward: Affine, x: &[f32], dy: &mut [f32]) {
        let BackwardApply { mean, scale, mean_dy, slope } = constants;
        let channels = mean.len();
        for (x, dy) in x.chunks_exact(channels).zip(dy.chunks_exact_mut(channels)) {
            let constants = mean.iter().zip(scale).zip(mean_dy).zip(slope);
            let gates = forward.scale.iter().zip(forward.shift);
            for (((&x, dy), (((&mean, &scale), &mean_dy), &slope)), (&gate, &shift)) in
                x.iter().zip(dy).zip(constants).zip(gates)
            {
                let passed = gated(*dy, x - mean, gate, shift);
                *dy = scale * (passed - mean_dy - (x - mean) * slope);
            }
        }
    }
}

/// running = 0.9 running + 0.1 batch, with the unbiased variance (PyTorch).
pub fn update_running(statistics: &Statistics, mean: &mut [f32], var: &mut [f32]) {
    let unbias = statistics.count as f64 / (statistics.count as f64 - 1.0).max(1.0);
    let blend =
        |old: f32, new: f64| ((1.0 - RUNNING_MOMENTUM) * f64::from(old) + RUNNING_MOMENTUM * new) as f32;
    for c in 0..mean.len() {
        mean[c] = blend(mean[c], f64::from(statistics.mean[c]));
        var[c] = blend(var[c], statistics.var[c] * unbias);
    }
}
