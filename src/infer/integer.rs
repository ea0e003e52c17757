//! The 8-bit network in plain integers: the oracle of 8-bit kernels, and the accuracy of a calibration before any of
//! them runs. Sums of products are exact; the few f32 operations behind them are those of [`Quantised`].

use super::fold::rsck_from_krsc;
use super::reference::{max_pool, taps};
use super::weights::{Quantised, SHORTCUT_ZERO, Weights};
use crate::error::{Error, Result};
use crate::model::graph::{ConvShape, Graph, TensorId};
use crate::model::units::{ConvUnit, Unit, units};

/// What the sum of products of one layer becomes.
struct Layer {
    /// i8 [r][s][c][k].
    weight: Vec<i8>,
    /// f32 [k]: real units of one unit of the sum, the input's step included.
    scale: Vec<f32>,
    bias: Vec<f32>,
    padding: Vec<u8>,
}

/// A step and the u8 that stands for 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    pub step: f32,
    pub zero: u8,
}

impl Grid {
    pub fn real(self, value: u8) -> f32 {
        self.step * (f32::from(value) - f32::from(self.zero))
    }

    /// Nearest, ties to even.
    pub fn round(self, real: f32) -> u8 {
        ((real / self.step).round_ties_even() + f32::from(self.zero)).clamp(0.0, 255.0) as u8
    }
}

/// A network in 8 bits.
pub struct IntegerNetwork {
    graph: Graph,
    units: Vec<Unit>,
    /// By unit; empty for pools.
    layers: Vec<Option<Layer>>,
    /// By tensor, where a unit makes it in u8.
    grids: Vec<Option<Grid>>,
}

/// Every tensor that a run made: u8 by tensor, empty where none is.
pub struct IntegerActivations {
    pub values: Vec<Vec<u8>>,
    /// f32 [n, features]: the mean over the last feature map.
    pub features: Vec<f32>,
    /// f32 [n, classes].
    pub logits: Vec<f32>,
}

impl IntegerNetwork {
    pub fn new(graph: &Graph, weights: &dyn Weights) -> Result<Self> {
        let units = units(graph);
        let mut grids = vec![None; graph.tensors.len()];
        grids[graph.input] = Some(Grid { step: weights.scale(graph.input)?, zero: 0 });
        let mut layers = vec![];
        for unit in &units {
            let layer = match unit {
                Unit::Conv(unit) => {
                    let zero = if unit.relu { 0 } else { SHORTCUT_ZERO };
                    grids[unit.y] = Some(Grid { step: weights.scale(unit.y)?, zero });
                    let x_scale = weights.scale(unit.x)?;
                    Some(Layer::new(weights.quantised(unit)?, unit.shape.k, x_scale))
                }
                Unit::MaxPool { x, y } => {
                    grids[*y] = grids[*x];
                    None
                }
                Unit::AvgPool { .. } => None,
                Unit::Linear { y, weight, bias, .. } => {
                    let classes = graph.tensors[*y].c;
                    Some(Layer::new(weights.quantised_classifier(*weight, *bias)?, classes, 1.0))
                }
            };
            layers.push(layer);
        }
        Ok(Self { graph: graph.clone(), units, layers, grids })
    }

    /// Step and zero of a tensor that is u8.
    pub fn grid(&self, tensor: TensorId) -> Option<Grid> {
        self.grids[tensor]
    }

    /// Runs u8 images [n, resolution, resolution, 3].
    pub fn run(&self, images: &[u8]) -> Result<IntegerActivations> {
        let graph = &self.graph;
        let pixels = graph.tensors[graph.input].elements();
        if images.is_empty() || !images.len().is_multiple_of(pixels) {
            let (got, side) = (images.len(), graph.resolution);
            return Err(Error::failed(format!("images have {got} bytes, wanted n x {side} x {side} x 3")));
        }
        let mut values: Vec<Vec<u8>> = vec![vec![]; graph.tensors.len()];
        values[graph.input] = images.to_vec();
        let (mut features, mut logits) = (vec![], vec![]);
        for (unit, layer) in self.units.iter().zip(&self.layers) {
            match (unit, layer) {
                (Unit::Conv(unit), Some(layer)) => values[unit.y] = self.convolution(unit, layer, &values),
                (Unit::Linear { .. }, Some(layer)) => logits = layer.classify(&features),
                (Unit::MaxPool { x, y }, _) => {
                    let info = &graph.tensors[*x];
                    values[*y] = max_pool([info.h, info.w, info.c], &values[*x], 0);
                }
                (Unit::AvgPool { x, .. }, _) => features = self.average(*x, &values[*x]),
                (Unit::Conv(_) | Unit::Linear { .. }, None) => unreachable!("such units have a layer"),
            }
        }
        Ok(IntegerActivations { values, features, logits })
    }

    fn convolution(&self, unit: &ConvUnit, layer: &Layer, values: &[Vec<u8>]) -> Vec<u8> {
        let grid = self.grids[unit.y].expect("every convolution's output has a grid");
        let residual = unit.residual.map(|tensor| {
            let grid = self.grids[tensor].expect("a residual is a unit's output");
            (grid, &values[tensor])
        });
        let finish = |at: usize, real: f32| {
            let real = real + residual.map_or(0.0, |(grid, values)| grid.real(values[at]));
            grid.round(if unit.relu { real.max(0.0) } else { real })
        };
        let mut y = vec![];
        layer.sums(&unit.shape, &values[unit.x], |sums| {
            for (k, &sum) in sums.iter().enumerate() {
                y.push(finish(y.len(), layer.real(k, sum)));
            }
        });
        y
    }

    /// Real values [n, features].
    fn average(&self, x: TensorId, values: &[u8]) -> Vec<f32> {
        let (info, grid) = (&self.graph.tensors[x], self.grids[x].expect("the last feature map is u8"));
        let pixels = (info.h * info.w) as f32;
        let mut features = vec![];
        for values in values.chunks_exact(info.elements()) {
            for c in 0..info.c {
                let sum: u32 = values[c..].iter().step_by(info.c).map(|&value| u32::from(value)).sum();
                features.push(sum as f32 * grid.step / pixels);
            }
        }
        features
    }
}

impl Layer {
    fn new(quantised: Quantised, k: usize, x_scale: f32) -> Self {
        let Quantised { weight, scale, bias, padding } = quantised;
        let scale = scale.into_iter().map(|scale| scale * x_scale).collect();
        Self { weight: rsck_from_krsc(k, &weight), scale, bias, padding }
    }

    fn real(&self, k: usize, sum: i32) -> f32 {
        self.scale[k] * sum as f32 + self.bias[k]
    }

    /// Calls `done` with the sums [k] of each output pixel in order. No sum leaves i32: 255 * 127 * 4608 < 2^28.
    fn sums(&self, shape: &ConvShape, x: &[u8], mut done: impl FnMut(&[i32])) {
        let (c, k) = (shape.c, shape.k);
        let border = self.border(shape);
        let mut sums = vec![0i32; k];
        for x in x.chunks_exact(shape.h * shape.w * c) {
            for (p, q) in (0..shape.p()).flat_map(|p| (0..shape.q()).map(move |q| (p, q))) {
                sums.fill(0);
                let mut outside = vec![true; shape.r * shape.s];
                taps(shape, p, q, |tap, pixel| {
                    outside[tap] = false;
                    let rows = self.weight[tap * c * k..(tap + 1) * c * k].chunks_exact(k);
                    for (x, w) in x[pixel * c..(pixel + 1) * c].iter().zip(rows).filter(|(x, _)| **x != 0) {
                        let x = i32::from(*x);
                        sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += x * i32::from(*w));
                    }
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

    /// f32 features [n, c] -> logits [n, k].
    fn classify(&self, features: &[f32]) -> Vec<f32> {
        let (k, c) = (self.bias.len(), self.weight.len() / self.bias.len());
        let mut logits = vec![];
        for x in features.chunks_exact(c) {
            let mut sums = vec![0.0f64; k];
            for (x, w) in x.iter().zip(self.weight.chunks_exact(k)) {
                sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += f64::from(*x) * f64::from(*w));
            }
            let real =
                |(k, sum): (usize, &f64)| (sum * f64::from(self.scale[k]) + f64::from(self.bias[k])) as f32;
            logits.extend(sums.iter().enumerate().map(real));
        }
        logits
    }
}
