//! The folded network in f32, one unit at a time: what calibration looks into.

use super::levels::Levels;
use crate::checkpoint::{StateDict, Values};
use crate::error::{Error, Result};
use crate::infer::fold::{BatchNorm, fold, rsck_from_krsc};
use crate::infer::reference::{average_pool, max_pool};
use crate::infer::weights::{Folded, Quantised};
use crate::model::graph::{ConvShape, Graph, TensorId};
use crate::model::units::{ConvUnit, Unit};
use crate::simd::conv::{self, Scratch};
use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;

/// Threads and instructions with their scratch memory.
pub struct Machine {
    pub pool: Pool,
    pub isa: Isa,
    scratch: Scratch,
}

/// A convolution or the classifier as [`Machine`] takes it.
pub struct Layer {
    /// f32 [r][s][c][k].
    weight: Vec<f32>,
    /// f32 [k].
    pub bias: Vec<f32>,
}

impl Layer {
    pub fn new(folded: &Folded) -> Self {
        let bias = folded.bias.clone();
        Self { weight: rsck_from_krsc(bias.len(), &folded.weight), bias }
    }

    /// The real values of 8-bit weights, for an input in real units; the stem's input is byte - padding, so that what
    /// lies outside the image is 0.
    pub fn dequantised(quantised: &Quantised) -> Self {
        let filter = quantised.weight.len() / quantised.scale.len();
        let scale = |at: usize| quantised.scale[at / filter];
        let real = |(at, weight): (usize, &i8)| scale(at) * f32::from(*weight);
        let weight: Vec<f32> = quantised.weight.iter().enumerate().map(real).collect();
        let shift = |(filter, bias): (&[f32], &f32)| {
            let padding = quantised.padding.iter().cycle().map(|&byte| f64::from(byte));
            let sum: f64 = filter.iter().zip(padding).map(|(w, padding)| f64::from(*w) * padding).sum();
            (f64::from(*bias) + sum) as f32
        };
        let bias = weight.chunks_exact(filter).zip(&quantised.bias).map(shift).collect();
        Self { weight: rsck_from_krsc(quantised.scale.len(), &weight), bias }
    }
}

/// Batch norm folded into the unit's convolution, out of a state dict that fits the graph.
pub fn folded(state: &StateDict, graph: &Graph, unit: &ConvUnit) -> Result<Folded> {
    let param = |id: usize| values(state, &graph.params[id].name);
    let buffer = |id: usize| values(state, &graph.buffers[id].name);
    let norm = BatchNorm {
        gamma: param(unit.gamma)?,
        beta: param(unit.beta)?,
        mean: buffer(unit.mean)?,
        var: buffer(unit.var)?,
    };
    Ok(fold(&unit.shape, param(unit.weight)?, &norm))
}

pub fn values<'s>(state: &'s StateDict, name: &str) -> Result<&'s [f32]> {
    match state.get(name).map(|tensor| &tensor.values) {
        Some(Values::F32(values)) => Ok(values),
        _ => Err(Error::input(format!("{name} is missing in f32"))),
    }
}

impl Machine {
    pub fn new(threads: usize) -> Self {
        Self { pool: Pool::new(threads), isa: Isa::current(), scratch: Scratch::default() }
    }

    /// x [n,h,w,c] -> conv(x) + bias [n,p,q,k].
    pub fn convolve(&mut self, shape: &ConvShape, n: usize, x: &[f32], layer: &Layer) -> Vec<f32> {
        let mut y = vec![0.0; n * shape.p() * shape.q() * shape.k];
        conv::forward(&self.pool, self.isa, shape, n, x, &layer.weight, &mut y, &mut self.scratch);
        self.add_channels(&layer.bias, &mut y);
        y
    }

    /// x [n][features] -> logits [n][classes].
    pub fn classify(&mut self, n: usize, x: &[f32], layer: &Layer) -> Vec<f32> {
        let (c, k) = (x.len() / n, layer.bias.len());
        let shape = ConvShape { h: 1, w: n, c, k, r: 1, s: 1, stride: 1, pad: 0 };
        self.convolve(&shape, 1, x, layer)
    }

    /// Adds the residual and applies ReLU, where the unit has them.
    pub fn finish(&self, unit: &ConvUnit, residual: Option<&[f32]>, y: &mut [f32]) {
        self.in_rows(y, unit.shape.k, |isa, at, rows| {
            if let Some(residual) = residual {
                add(isa, &residual[at..at + rows.len()], rows);
            }
            if unit.relu {
                relu(isa, rows);
            }
        });
    }

    /// Adds `bias` [k] to rows of k.
    pub fn add_channels(&self, bias: &[f32], y: &mut [f32]) {
        self.in_rows(y, bias.len(), |isa, _, rows| add_bias(isa, bias, rows));
    }

    /// To the nearest of `levels`.
    pub fn round(&self, levels: Levels, y: &mut [f32]) {
        self.in_rows(y, 1, |isa, _, rows| round(isa, levels, rows));
    }

    /// Calls `body(isa, offset, rows)` for blocks of whole rows of `k`.
    fn in_rows(&self, y: &mut [f32], k: usize, body: impl Fn(Isa, usize, &mut [f32]) + Sync) {
        let block = ((32 << 10) / k).max(1) * k;
        let blocks: Vec<_> = y.chunks_mut(block).enumerate().collect();
        self.pool.for_each(blocks, |(i, rows)| body(self.isa, i * block, rows));
    }
}

multiversion! {
    fn add_bias(bias: &[f32], rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
    }
}

multiversion! {
    fn add(residual: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(residual).for_each(|(y, residual)| *y += residual);
    }
}

multiversion! {
    fn relu(y: &mut [f32]) {
        y.iter_mut().for_each(|y| *y = y.max(0.0));
    }
}

multiversion! {
    fn round(levels: Levels, y: &mut [f32]) {
        y.iter_mut().for_each(|y| *y = levels.nearest(*y));
    }
}

/// Feature maps that later units still read.
pub struct Live {
    values: Vec<Vec<f32>>,
    last_reader: Vec<usize>,
}

impl Live {
    pub fn new(graph: &Graph, units: &[Unit], input: Vec<f32>) -> Self {
        let mut values = vec![vec![]; graph.tensors.len()];
        values[graph.input] = input;
        let mut last_reader = vec![usize::MAX; values.len()];
        for (index, unit) in units.iter().enumerate() {
            unit.inputs().into_iter().for_each(|x| last_reader[x] = index);
        }
        Self { values, last_reader }
    }

    pub fn get(&self, tensor: TensorId) -> &[f32] {
        &self.values[tensor]
    }

    /// Takes the output of unit number `index`, and drops what nothing reads after it.
    pub fn put(&mut self, index: usize, tensor: TensorId, values: Vec<f32>) {
        self.values[tensor] = values;
        for (values, last_reader) in self.values.iter_mut().zip(&self.last_reader) {
            if *last_reader == index {
                *values = vec![];
            }
        }
    }

    /// A pool's output.
    pub fn pool(&self, graph: &Graph, unit: &Unit) -> Vec<f32> {
        match *unit {
            Unit::MaxPool { x, .. } => {
                let info = &graph.tensors[x];
                max_pool([info.h, info.w, info.c], self.get(x), f32::NEG_INFINITY)
            }
            Unit::AvgPool { x, .. } => {
                let info = &graph.tensors[x];
                average_pool(info.c, info.elements(), self.get(x))
            }
            Unit::Conv(_) | Unit::Linear { .. } => unreachable!("only pools have no weights"),
        }
    }
}
