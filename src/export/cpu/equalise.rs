//! Channels of one size, so that one step suits all of a tensor's.
//!
//! A positive factor on a channel goes through ReLU, pools and sums: a network whose convolutions make s[c] y[c], and whose
//! next convolutions read y[c] / s[c], has the same logits (arXiv:1906.04721 §4.1). Tensors that meet in a sum share
//! their factors.

use crate::infer::weights::Folded;
use crate::model::graph::{Graph, TensorId};
use crate::model::units::Unit;

/// Factors stay within this and its inverse: what a channel is not, a few images cannot tell.
const LARGEST: f64 = 16.0;

/// How large the channels of all tensors are.
pub struct Sizes {
    /// By tensor and channel: the sum of squares.
    squares: Vec<Vec<f64>>,
}

impl Sizes {
    pub fn new(graph: &Graph) -> Self {
        Self { squares: graph.tensors.iter().map(|tensor| vec![0.0; tensor.c]).collect() }
    }

    /// `values` [..][channels] of a tensor.
    pub fn add(&mut self, tensor: TensorId, values: &[f32]) {
        let squares = &mut self.squares[tensor];
        for pixel in values.chunks_exact(squares.len()) {
            squares.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += f64::from(value * value));
        }
    }

    /// By tensor and channel: the factor; 1 for the image and the logits.
    pub fn factors(&self, graph: &Graph, units: &[Unit]) -> Vec<Vec<f32>> {
        let groups = groups(graph, units);
        let mut factors: Vec<Vec<f32>> = graph.tensors.iter().map(|tensor| vec![1.0; tensor.c]).collect();
        for group in groups {
            let sizes = self.mean_sizes(&group);
            for tensor in group {
                factors[tensor] = sizes.iter().map(|size| size.recip().min(LARGEST) as f32).collect();
            }
        }
        factors
    }

    /// Root mean squares of the channels, relative to the tensor's; their mean over the tensors of a group.
    fn mean_sizes(&self, group: &[TensorId]) -> Vec<f64> {
        let mut mean = vec![0.0; self.squares[group[0]].len()];
        for &tensor in group {
            let squares = &self.squares[tensor];
            let all = squares.iter().sum::<f64>() / squares.len() as f64;
            if all > 0.0 {
                mean.iter_mut().zip(squares).for_each(|(mean, square)| *mean += (square / all).sqrt());
            }
        }
        let largest = mean.iter().copied().fold(0.0, f64::max);
        mean.iter_mut().for_each(|size| *size /= largest.max(f64::MIN_POSITIVE));
        mean
    }
}

/// Tensors whose channels are joined one to one, by sums and pools; without the image and the logits.
fn groups(graph: &Graph, units: &[Unit]) -> Vec<Vec<TensorId>> {
    let mut leader: Vec<TensorId> = (0..graph.tensors.len()).collect();
    let mut join = |a: TensorId, b: TensorId| {
        let (from, to) = (leader[a], leader[b]);
        leader.iter_mut().filter(|leader| **leader == from).for_each(|leader| *leader = to);
    };
    let mut made = vec![];
    for unit in units {
        match *unit {
            Unit::Conv(ref unit) => {
                made.push(unit.y);
                unit.residual.into_iter().for_each(|residual| join(unit.y, residual));
            }
            Unit::MaxPool { x, y } | Unit::AvgPool { x, y } => {
                made.push(y);
                join(x, y);
            }
            Unit::Linear { .. } => {}
        }
    }
    let of = |first: TensorId| made.iter().copied().filter(|&tensor| leader[tensor] == first).collect();
    (0..leader.len()).map(of).filter(|group: &Vec<_>| !group.is_empty()).collect()
}

/// `folded` [k][..][c] with the factors of what it reads and makes.
pub fn scale(folded: &mut Folded, x: &[f32], y: &[f32]) {
    let filter = folded.weight.len() / y.len();
    for (filter, y) in folded.weight.chunks_exact_mut(filter).zip(y) {
        for weights in filter.chunks_exact_mut(x.len()) {
            weights.iter_mut().zip(x).for_each(|(weight, x)| *weight *= y / x);
        }
    }
    folded.bias.iter_mut().zip(y).for_each(|(bias, y)| *bias *= y);
}
