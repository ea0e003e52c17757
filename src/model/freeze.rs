//! Which parts of a network training leaves as they are, and what of a backward pass is left to do then.
//!
//! A frozen part is a fixed function: its weights take no update, no decay and have no velocity, and its batch norms take and keep
//! their running statistics, as timm's `freeze` makes them (huggingface/pytorch-image-models, timm/utils/model.py: frozen
//! batch norms become `FrozenBatchNorm2d`) and as torchvision's detectors have their backbones. Parameters alone with
//! `requires_grad = False` would let the statistics drift. Drop path goes on in frozen blocks, as in timm.

use super::graph::{Graph, TensorId};
use super::spec::ResNetSpec;
use super::units::Unit;
use std::fmt;

/// A piece of a network that can be frozen by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first convolution and its batch norm.
    Stem,
    /// A stage, counted from 1 as torchvision does.
    Layer(u32),
    /// The classifier.
    Fc,
}

impl Part {
    /// In the order in which an image goes through them.
    pub fn all(spec: &ResNetSpec) -> Vec<Self> {
        let layers = (1..=spec.stages.len() as u32).map(Self::Layer);
        std::iter::once(Self::Stem).chain(layers).chain([Self::Fc]).collect()
    }

    const fn bit(self) -> u32 {
        match self {
            Self::Stem => 1,
            Self::Layer(number) => 1 << number,
            Self::Fc => 1 << 31,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stem => f.write_str("stem"),
            Self::Layer(number) => write!(f, "layer{number}"),
            Self::Fc => f.write_str("fc"),
        }
    }
}

/// The frozen parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freeze(u32);

impl Freeze {
    pub const NONE: Self = Self(0);

    /// The stem and the first `layers` stages.
    pub const fn up_to(layers: u32) -> Self {
        Self((2 << layers) - 1)
    }

    pub const fn only(part: Part) -> Self {
        Self(part.bit())
    }

    pub fn has(self, part: Part) -> bool {
        self.0 & part.bit() != 0
    }

    pub fn add(&mut self, part: Part) {
        self.0 |= part.bit();
    }
}

/// What of a backward pass there is to do: below the lowest part that trains there is nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// By unit: its parameters are trained, and its batch norm takes the batch's statistics.
    pub trains: Vec<bool>,
    /// By tensor: something that makes it is trained, so that its gradient is wanted. Only of outputs of units.
    pub gradient: Vec<bool>,
}

impl Demand {
    pub fn new(graph: &Graph, units: &[Unit], freeze: Freeze) -> Self {
        let mut demand = Self { trains: vec![], gradient: vec![false; graph.tensors.len()] };
        for unit in units {
            let trains = match unit {
                Unit::Conv(conv) => !freeze.has(graph.params[conv.weight].part),
                Unit::Linear { weight, .. } => !freeze.has(graph.params[*weight].part),
                Unit::MaxPool { .. } | Unit::AvgPool { .. } => false,
            };
            demand.trains.push(trains);
            demand.gradient[unit.output()] = trains || unit.inputs().iter().any(|&x| demand.gradient[x]);
        }
        demand
    }

    /// Whether the unit is walked backward at all.
    pub fn wants(&self, tensor: TensorId) -> bool {
        self.gradient[tensor]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::lower;
    use crate::model::spec::RESNET50;
    use crate::model::units::units;

    #[test]
    fn the_cut_is_where_nothing_below_trains() {
        let graph = lower(&RESNET50, 64).unwrap();
        let units = units(&graph);
        let wanted = |freeze: Freeze| {
            let demand = Demand::new(&graph, &units, freeze);
            let count = units.iter().filter(|unit| demand.wants(unit.output())).count();
            (count, demand.trains.iter().filter(|&&trains| trains).count())
        };
        assert_eq!(wanted(Freeze::NONE), (56, 54));
        // layer4 has ten convolutions; average pool and classifier follow.
        assert_eq!(wanted(Freeze::up_to(3)), (12, 11));
        assert_eq!(wanted(Freeze::up_to(4)), (1, 1));
        // Above what trains, gradients go through.
        assert_eq!(wanted(Freeze::only(Part::Layer(4))), (56, 44));
        assert_eq!(wanted(Freeze::only(Part::Fc)), (56, 53));
    }
}
