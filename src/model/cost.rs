//! What a network costs, for `engine plan`, benchmarks and progress: counted from the graph, not remembered.

use super::graph::{Graph, Op};
use super::params::Param;

/// Work of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Multiply-adds of a forward pass: convolutions and the classifier.
    pub macs: usize,
    /// Trained parameters.
    pub params: usize,
}

pub fn cost(graph: &Graph) -> Cost {
    let macs = graph.ops.iter().map(|op| match op {
        Op::Conv { shape, .. } => shape.macs(),
        Op::Linear { x, y, .. } => graph.tensors[*x].c * graph.tensors[*y].c,
        _ => 0,
    });
    Cost { macs: macs.sum(), params: graph.params.iter().map(Param::elements).sum() }
}

impl Cost {
    /// Floating-point operations of a training image: 2 a multiply-add, three passes (forward, dgrad, wgrad). The
    /// first convolution needs no dgrad; that is 3 % of its pass and is not subtracted.
    pub fn training_flops(&self) -> usize {
        6 * self.macs
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{graph::lower, spec::RESNET50};

    #[test]
    fn resnet50_is_4_gmac() {
        let cost = super::cost(&lower(&RESNET50, 224).unwrap());
        assert_eq!((cost.macs, cost.params), (4_089_184_256, 25_557_032));
    }
}
