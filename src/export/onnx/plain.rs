//! The network in f32.

use super::builder::{Builder, float};
use super::schema::GraphProto;
use crate::checkpoint::StateDict;
use crate::error::Result;
use crate::export::cpu::network::{folded, values};
use crate::model::graph::{BufferId, EPS, Graph, Op, ParamId, TensorId};
use crate::model::units::{ConvUnit, Unit, units};

/// Where batch norms are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// In the weights and biases of the convolutions before them: one node instead of two, and what runtimes do anyway.
    Folded,
    /// Nodes of their own; every constant is a tensor of the state dict, as it is.
    Kept,
}

/// `state` fits `graph`. Constants have the state dict's names; a folded convolution has a bias beside its weight.
pub fn plain(state: &StateDict, graph: &Graph, norms: Norms) -> Result<GraphProto> {
    let mut writer = Writer { builder: Builder::default(), state, graph };
    match norms {
        Norms::Folded => units(graph).iter().try_for_each(|unit| writer.unit(unit))?,
        Norms::Kept => graph.ops.iter().try_for_each(|op| writer.op(op))?,
    }
    Ok(writer.builder.finish(graph.spec.name, graph.resolution, graph.spec.classes))
}

struct Writer<'a> {
    builder: Builder,
    state: &'a StateDict,
    graph: &'a Graph,
}

impl Writer<'_> {
    fn param(&mut self, id: ParamId) -> Result<String> {
        let param = &self.graph.params[id];
        Ok(self.builder.constant(&param.name, &param.shape, values(self.state, &param.name)?))
    }

    fn buffer(&mut self, id: BufferId) -> Result<String> {
        let buffer = &self.graph.buffers[id];
        Ok(self.builder.constant(&buffer.name, &[buffer.channels], values(self.state, &buffer.name)?))
    }

    fn unit(&mut self, unit: &Unit) -> Result<()> {
        let graph = self.graph;
        match unit {
            Unit::Conv(unit) => self.conv_unit(unit)?,
            Unit::MaxPool { x, y } => {
                self.builder.max_pool(&graph.tensors[*x].name, &graph.tensors[*y].name);
            }
            // Part of the classifier's nodes.
            Unit::AvgPool { .. } => {}
            Unit::Linear { weight, bias, .. } => self.classifier(*weight, *bias)?,
        }
        Ok(())
    }

    fn conv_unit(&mut self, unit: &ConvUnit) -> Result<()> {
        let (graph, shape, builder) = (self.graph, &unit.shape, &mut self.builder);
        let Names { x, conv, norm, sum, y } = Names::of(graph, unit);
        let folded = folded(self.state, graph, unit)?;
        let kcrs = kcrs_from_krsc([shape.k, shape.r, shape.s, shape.c], &folded.weight);
        let weight = builder.constant(format!("{conv}.weight"), &graph.params[unit.weight].shape, &kcrs);
        let bias = builder.constant(format!("{conv}.bias"), &[shape.k], &folded.bias);
        let mut made = builder.conv(conv, &[x, &weight, &bias], norm, shape);
        if let Some((residual, sum)) = sum {
            made = builder.simple("Add", &[&made, residual], sum);
        }
        if unit.relu {
            builder.simple("Relu", &[&made], y);
        }
        Ok(())
    }

    fn classifier(&mut self, weight: ParamId, bias: ParamId) -> Result<()> {
        let (weight, bias) = (self.param(weight)?, self.param(bias)?);
        self.builder.classifier(last_map(self.graph), &weight, &bias);
        Ok(())
    }

    fn op(&mut self, op: &Op) -> Result<()> {
        let graph = self.graph;
        let tensor = |id: TensorId| graph.tensors[id].name.as_str();
        match *op {
            Op::Conv { x, y, weight, ref shape } => {
                let weight = self.param(weight)?;
                self.builder.conv(tensor(y), &[tensor(x), &weight], tensor(y), shape);
            }
            Op::BatchNorm { x, y, gamma, beta, mean, var } => {
                let constants =
                    [self.param(gamma)?, self.param(beta)?, self.buffer(mean)?, self.buffer(var)?];
                let [gamma, beta, mean, var] = constants.each_ref().map(String::as_str);
                let inputs = [tensor(x), gamma, beta, mean, var];
                let epsilon = vec![float("epsilon", EPS as f32)];
                self.builder.node("BatchNormalization", tensor(y), &inputs, tensor(y), epsilon);
            }
            Op::Relu { x, y } => drop(self.builder.simple("Relu", &[tensor(x)], tensor(y))),
            Op::Add { a, b, y } => drop(self.builder.simple("Add", &[tensor(a), tensor(b)], tensor(y))),
            Op::MaxPool { x, y } => drop(self.builder.max_pool(tensor(x), tensor(y))),
            // Part of the classifier's nodes.
            Op::GlobalAvgPool { .. } | Op::SoftmaxXent { .. } => {}
            Op::Linear { weight, bias, .. } => self.classifier(weight, bias)?,
        }
        Ok(())
    }
}

/// What the tensors of a unit are called.
pub struct Names<'a> {
    /// The input.
    pub x: &'a str,
    /// `layer1.0.conv3`.
    pub conv: &'a str,
    /// What comes out of its batch norm: `layer1.0.bn3`.
    pub norm: &'a str,
    /// The other side of the sum, and the sum itself.
    pub sum: Option<(&'a str, &'a str)>,
    /// The output: `layer1.0.relu`, and `norm` where there is no ReLU.
    pub y: &'a str,
}

impl<'a> Names<'a> {
    pub fn of(graph: &'a Graph, unit: &ConvUnit) -> Self {
        let name = |tensor: TensorId| graph.tensors[tensor].name.as_str();
        let norm = unit.normed(graph);
        let sum = graph.ops.iter().find_map(|op| match *op {
            Op::Add { a, b, y } if a == norm => Some((name(b), name(y))),
            _ => None,
        });
        Self { x: name(unit.x), conv: name(unit.raw), norm: name(norm), sum, y: name(unit.y) }
    }
}

/// The feature map that the average is taken of.
pub fn last_map(graph: &Graph) -> &str {
    let x = graph.ops.iter().find_map(|op| match *op {
        Op::GlobalAvgPool { x, .. } => Some(x),
        _ => None,
    });
    &graph.tensors[x.expect("every network pools before its classifier")].name
}

/// [k][r][s][c] -> [k][c][r][s], which is ONNX's order.
pub fn kcrs_from_krsc<T: Copy>([k, r, s, c]: [usize; 4], from: &[T]) -> Vec<T> {
    let taps = r * s;
    let at = |k: usize, c_at: usize, tap: usize| from[(k * taps + tap) * c + c_at];
    (0..k).flat_map(|k| (0..c).flat_map(move |c| (0..taps).map(move |tap| at(k, c, tap)))).collect()
}
