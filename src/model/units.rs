//! The graph's operations, grouped as their readers run them: a convolution goes with its batch norm, residual sum and
//! ReLU, so that each activation is read and written once on the way.

use super::graph::{BufferId, ConvShape, Graph, Op, ParamId, TensorId};
use std::collections::BTreeMap;

/// y = relu(batch_norm(conv(x)) + residual); sum and ReLU where the graph has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvUnit {
    pub x: TensorId,
    pub weight: ParamId,
    pub shape: ConvShape,
    /// The convolution's output, before batch norm.
    pub raw: TensorId,
    pub gamma: ParamId,
    pub beta: ParamId,
    pub mean: BufferId,
    pub var: BufferId,
    pub residual: Option<TensorId>,
    pub relu: bool,
    pub y: TensorId,
}

impl ConvUnit {
    /// The output of its batch norm, before sum and ReLU.
    pub fn normed(&self, graph: &Graph) -> TensorId {
        let normed = graph.ops.iter().find_map(|op| match *op {
            Op::BatchNorm { x, y, .. } if x == self.raw => Some(y),
            _ => None,
        });
        normed.expect("a batch norm follows every convolution")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    Conv(ConvUnit),
    MaxPool { x: TensorId, y: TensorId },
    AvgPool { x: TensorId, y: TensorId },
    Linear { x: TensorId, y: TensorId, weight: ParamId, bias: ParamId },
}

impl Unit {
    /// What the forward pass makes, last of all.
    pub fn output(&self) -> TensorId {
        match *self {
            Self::Conv(ConvUnit { y, .. })
            | Self::MaxPool { y, .. }
            | Self::AvgPool { y, .. }
            | Self::Linear { y, .. } => y,
        }
    }

    /// Activations that the forward pass reads.
    pub fn inputs(&self) -> Vec<TensorId> {
        match self {
            Self::Conv(unit) => std::iter::once(unit.x).chain(unit.residual).collect(),
            Self::MaxPool { x, .. } | Self::AvgPool { x, .. } | Self::Linear { x, .. } => vec![*x],
        }
    }
}

/// A shortcut's own unit comes before the unit that adds it.
pub fn units(graph: &Graph) -> Vec<Unit> {
    let mut done = vec![];
    // Units that may still take in what follows, by the tensor that they make so far.
    let mut open: BTreeMap<TensorId, ConvUnit> = BTreeMap::new();
    for op in &graph.ops {
        match *op {
            Op::Conv { x, y, weight, shape } => {
                close(&mut open, x, &mut done);
                let unset = usize::MAX;
                let unit = ConvUnit {
                    x,
                    weight,
                    shape,
                    raw: y,
                    gamma: unset,
                    beta: unset,
                    mean: unset,
                    var: unset,
                    residual: None,
                    relu: false,
                    y,
                };
                open.insert(y, unit);
            }
            Op::BatchNorm { x, y, gamma, beta, mean, var } => {
                let unit = open.remove(&x).expect("a batch norm follows a convolution");
                open.insert(y, ConvUnit { gamma, beta, mean, var, y, ..unit });
            }
            Op::Add { a, b, y } => {
                close(&mut open, b, &mut done);
                let unit = open.remove(&a).expect("a sum follows a batch norm");
                open.insert(y, ConvUnit { residual: Some(b), y, ..unit });
            }
            Op::Relu { x, y } => {
                let unit = open.remove(&x).expect("a ReLU follows a batch norm or a sum");
                done.push(Unit::Conv(ConvUnit { relu: true, y, ..unit }));
            }
            Op::MaxPool { x, y } => done.push(Unit::MaxPool { x, y }),
            Op::GlobalAvgPool { x, y } => done.push(Unit::AvgPool { x, y }),
            Op::Linear { x, y, weight, bias } => done.push(Unit::Linear { x, y, weight, bias }),
            Op::SoftmaxXent { .. } => {}
        }
    }
    assert!(open.is_empty(), "every convolution ends in a ReLU or a sum");
    done
}

fn close(open: &mut BTreeMap<TensorId, ConvUnit>, tensor: TensorId, done: &mut Vec<Unit>) {
    if let Some(unit) = open.remove(&tensor) {
        done.push(Unit::Conv(unit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{graph::lower, spec::RESNET50};

    #[test]
    fn resnet50_is_53_fused_convolutions_in_an_order_that_runs() {
        let graph = lower(&RESNET50, 224).unwrap();
        let units = units(&graph);
        let convs: Vec<&ConvUnit> = units
            .iter()
            .filter_map(|unit| if let Unit::Conv(conv) = unit { Some(conv) } else { None })
            .collect();
        let count = |holds: fn(&ConvUnit) -> bool| convs.iter().filter(|unit| holds(unit)).count();
        assert_eq!((units.len(), convs.len()), (56, 53));
        assert_eq!((count(|u| u.residual.is_some()), count(|u| !u.relu)), (16, 4));
        let mut made = vec![graph.input];
        for unit in &units {
            assert!(unit.inputs().iter().all(|x| made.contains(x)), "{unit:?} runs before its input");
            made.push(unit.output());
        }
    }
}
