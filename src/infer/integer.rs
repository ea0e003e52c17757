//! The 8-bit network in plain integers: the oracle of 8-bit kernels, and the accuracy of a calibration before any of
//! them runs. Sums of products are exact; the few f32 operations behind them are fused and ordered as [`Quantised`] says,
//! so that an 8-bit program on any machine gives the same bits.

use super::fold::rsck_from_krsc;
use super::reference::{max_pool, taps};
use super::weights::{Quantised, Weights};
use crate::error::{Error, Result};
use crate::model::graph::{ConvShape, Graph, TensorId};
use crate::model::units::{ConvUnit, Unit, units};
use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;

/// What the sum of products of one layer becomes: scale[k] sum + bias[k] in steps of the output.
struct Layer {
    /// i8 [r][s][c][k].
    weight: Vec<i8>,
    /// f32 [k].
    scale: Vec<f32>,
    bias: Vec<f32>,
    padding: Vec<u8>,
    /// Of the residual, in steps of the output.
    r_scale: f32,
}

/// A network in 8 bits.
pub struct IntegerNetwork {
    graph: Graph,
    units: Vec<Unit>,
    /// By unit; `None` for pools.
    layers: Vec<Option<Layer>>,
    /// By tensor: the step of u8 values, 1 for what stays f32.
    steps: Vec<f32>,
}

/// A feature map.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    U8(Vec<u8>),
    /// A shortcut's, in real units.
    F32(Vec<f32>),
}

/// What a run made.
pub struct IntegerActivations {
    /// By tensor, NHWC; `None` for what the fused units never hold.
    pub tensors: Vec<Option<Values>>,
    /// f32 [n, features]: the mean over the last feature map.
    pub features: Vec<f32>,
    /// f32 [n, classes].
    pub logits: Vec<f32>,
}

impl IntegerActivations {
    fn u8(&self, tensor: TensorId) -> &[u8] {
        match &self.tensors[tensor] {
            Some(Values::U8(values)) => values,
            _ => unreachable!("units read what follows a ReLU, the image or the max-pool: all u8"),
        }
    }
}

impl IntegerNetwork {
    pub fn new(graph: &Graph, weights: &dyn Weights) -> Result<Self> {
        let units = units(graph);
        let mut steps = vec![1.0; graph.tensors.len()];
        let mut layers = vec![];
        for unit in &units {
            layers.push(match unit {
                Unit::Conv(unit) => {
                    steps[unit.y] = if unit.relu { weights.scale(unit.y)? } else { 1.0 };
                    let layer =
                        Layer::new(weights.quantised(unit)?, unit.shape.k, steps[unit.x], steps[unit.y]);
                    let r_scale = unit.residual.map_or(0.0, |residual| steps[residual] / steps[unit.y]);
                    Some(Layer { r_scale, ..layer })
                }
                Unit::MaxPool { x, y } => {
                    steps[*y] = steps[*x];
                    None
                }
                Unit::AvgPool { .. } => None,
                Unit::Linear { y, weight, bias, .. } => {
                    let quantised = weights.quantised_classifier(*weight, *bias)?;
                    Some(Layer::new(quantised, graph.tensors[*y].c, 1.0, 1.0))
                }
            });
        }
        Ok(Self { graph: graph.clone(), units, layers, steps })
    }

    /// The real value of a tensor's 1, as u8; 1 for what stays f32.
    pub fn step(&self, tensor: TensorId) -> f32 {
        self.steps[tensor]
    }

    /// Runs u8 images [n, resolution, resolution, 3].
    pub fn run(&self, images: &[u8]) -> Result<IntegerActivations> {
        let graph = &self.graph;
        let pixels = graph.tensors[graph.input].elements();
        if images.is_empty() || !images.len().is_multiple_of(pixels) {
            let (got, side) = (images.len(), graph.resolution);
            return Err(Error::failed(format!("images have {got} bytes, wanted n x {side} x {side} x 3")));
        }
        let tensors = vec![None; graph.tensors.len()];
        let mut made = IntegerActivations { tensors, features: vec![], logits: vec![] };
        made.tensors[graph.input] = Some(Values::U8(images.to_vec()));
        for (unit, layer) in self.units.iter().zip(&self.layers) {
            match (unit, layer) {
                (Unit::Conv(unit), Some(layer)) => {
                    made.tensors[unit.y] = Some(layer.convolution(unit, &made));
                }
                (Unit::Linear { .. }, Some(layer)) => made.logits = layer.classify(&made.features),
                (Unit::MaxPool { x, y }, _) => {
                    let info = &graph.tensors[*x];
                    let pooled = max_pool([info.h, info.w, info.c], made.u8(*x), 0);
                    made.tensors[*y] = Some(Values::U8(pooled));
                }
                (Unit::AvgPool { x, .. }, _) => made.features = self.average(*x, made.u8(*x)),
                (Unit::Conv(_) | Unit::Linear { .. }, None) => unreachable!("such units have a layer"),
            }
        }
        Ok(made)
    }

    /// Real values [n, features]: sum (step / pixels).
    fn average(&self, x: TensorId, values: &[u8]) -> Vec<f32> {
        let (info, step) = (&self.graph.tensors[x], self.steps[x]);
        let scale = step / (info.h * info.w) as f32;
        let mut features = vec![];
        for values in values.chunks_exact(info.elements()) {
            for c in 0..info.c {
                let sum: u32 = values[c..].iter().step_by(info.c).map(|&value| u32::from(value)).sum();
                features.push(sum as f32 * scale);
            }
        }
        features
    }
}

impl Layer {
    fn new(quantised: Quantised, k: usize, x_step: f32, y_step: f32) -> Self {
        let Quantised { weight, scale, bias, padding } = quantised;
        let scale = scale.into_iter().map(|scale| scale * x_step / y_step).collect();
        let bias = bias.into_iter().map(|bias| bias / y_step).collect();
        Self { weight: rsck_from_krsc(k, &weight), scale, bias, padding, r_scale: 0.0 }
    }

    fn convolution(&self, unit: &ConvUnit, made: &IntegerActivations) -> Values {
        let add_residual = |at: usize, y: f32| match unit.residual.map(|residual| &made.tensors[residual]) {
            Some(Some(Values::U8(values))) => f32::from(values[at]).mul_add(self.r_scale, y),
            Some(Some(Values::F32(values))) => values[at].mul_add(self.r_scale, y),
            _ => y,
        };
        let mut y = vec![];
        self.sums(&unit.shape, made.u8(unit.x), |sums| {
            for (k, &sum) in sums.iter().enumerate() {
                y.push(add_residual(y.len(), (sum as f32).mul_add(self.scale[k], self.bias[k])));
            }
        });
        if !unit.relu {
            return Values::F32(y);
        }
        Values::U8(y.into_iter().map(|y| y.round_ties_even().clamp(0.0, 255.0) as u8).collect())
    }

    /// Calls `done` with the sums [k] of each output pixel in order. No sum leaves i32: 255 * 127 * 4608 < 2^28.
    fn sums(&self, shape: &ConvShape, x: &[u8], mut done: impl FnMut(&[i32])) {
        let (c, k) = (shape.c, shape.k);
        let (isa, border) = (Isa::current(), self.border(shape));
        let mut sums = vec![0i32; k];
        for x in x.chunks_exact(shape.h * shape.w * c) {
            for (p, q) in (0..shape.p()).flat_map(|p| (0..shape.q()).map(move |q| (p, q))) {
                sums.fill(0);
                let mut outside = vec![true; shape.r * shape.s];
                taps(shape, p, q, |tap, pixel| {
                    outside[tap] = false;
                    let x = &x[pixel * c..(pixel + 1) * c];
                    add_products(isa, x, &self.weight[tap * c * k..(tap + 1) * c * k], &mut sums);
                });
                for tap in (0..outside.len()).filter(|&tap| outside[tap]) {
                    let border = &border[tap * k..(tap + 1) * k];
                    sums.iter_mut().zip(border).for_each(|(sum, border)| *sum += border);
                }
                done(&sums);
            }
        }
    }

    /// [r][s][k]: what a tap outside the feature map adds.
    fn border(&self, shape: &ConvShape) -> Vec<i32> {
        let (c, k) = (shape.c, shape.k);
        let mut border = vec![0; shape.r * shape.s * k];
        for (tap, sums) in border.chunks_exact_mut(k).enumerate() {
            for (&padding, at) in self.padding.iter().zip(tap * c..) {
                let w = &self.weight[at * k..(at + 1) * k];
                sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += i32::from(padding) * i32::from(*w));
            }
        }
        border
    }

    /// f32 features [n, c] -> logits [n, k]. Four sums of every fourth feature, the first of which has what is left of
    /// them, added in pairs.
    fn classify(&self, features: &[f32]) -> Vec<f32> {
        let (k, c) = (self.bias.len(), self.weight.len() / self.bias.len());
        let mut logits = vec![];
        for x in features.chunks_exact(c) {
            let mut sums = vec![[0.0f32; 4]; k];
            for (at, (x, w)) in x.iter().zip(self.weight.chunks_exact(k)).enumerate() {
                let chain = if at < c - c % 4 { at % 4 } else { 0 };
                sums.iter_mut().zip(w).for_each(|(sums, w)| sums[chain] += f32::from(*w) * x);
            }
            let real =
                |(k, [a, b, c, d]): (usize, &[f32; 4])| ((a + b) + (c + d)) * self.scale[k] + self.bias[k];
            logits.extend(sums.iter().enumerate().map(real));
        }
        logits
    }
}

multiversion! {
    /// sums [k] += x [c] w [c][k].
    fn add_products(x: &[u8], w: &[i8], sums: &mut [i32]) {
        for (x, w) in x.iter().zip(w.chunks_exact(sums.len())) {
            let x = i32::from(*x);
            // Half of what follows a ReLU.
            if x != 0 {
                sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += x * i32::from(*w));
            }
        }
    }
}
