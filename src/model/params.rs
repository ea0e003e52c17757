//! Parameters and buffers: torchvision's names and shapes, what they are for, how they begin.

use super::freeze::Part;
use crate::rng::{Purpose, Rng};

/// What a parameter does. The optimiser decides on weight decay from it, never from the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Convolution weight, KCRS.
    ConvWeight,
    /// Batch-norm scale (`bn*.weight`).
    Gamma,
    /// Batch-norm shift (`bn*.bias`).
    Beta,
    /// Classifier weight, [classes, features].
    LinearWeight,
    LinearBias,
}

/// Where a parameter's first values come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal of the given standard deviation: `sqrt(2 / fan)`, `crate::model::spec::Fan` (PyTorch's
    /// `kaiming_normal_(nonlinearity="relu")`).
    Normal {
        std: f32,
    },
    /// Uniform in [-bound, bound): PyTorch's `nn.Linear`, bound = 1 / sqrt(fan_in) for the weight and the bias.
    Uniform {
        bound: f32,
    },
    Constant(f32),
}

/// A trained tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// torchvision's: `layer3.0.conv2.weight`.
    pub name: String,
    /// KCRS for convolutions, [classes, features] for the classifier, [channels] otherwise.
    pub shape: Vec<usize>,
    pub role: Role,
    /// What it is frozen with.
    pub part: Part,
    pub init: Init,
    /// The scale of a block's last batch norm, where `zero_gamma` starts at 0: each block begins as the identity
    /// (Goyal et al., arXiv:1706.02677).
    pub closes_block: bool,
}

impl Param {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// First values in the order of `shape`. `index` is the parameter's position in the graph: each has its own stream.
    pub fn initial_values(&self, seed: u64, index: usize, zero_gamma: bool) -> Vec<f32> {
        let n = self.elements();
        let mut rng = Rng::new(seed, 0, index as u64, Purpose::Init);
        match self.init {
            Init::Normal { std } => (0..n).map(|_| (rng.normal() * f64::from(std)) as f32).collect(),
            Init::Uniform { bound } => {
                (0..n).map(|_| rng.range(-f64::from(bound), f64::from(bound)) as f32).collect()
            }
            Init::Constant(_) if zero_gamma && self.closes_block => vec![0.0; n],
            Init::Constant(value) => vec![value; n],
        }
    }
}

/// A batch norm's running statistics; part of the state dict, not trained.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// `bn1.running_mean`, `bn1.running_var`.
    pub name: String,
    pub channels: usize,
    /// What it is frozen with.
    pub part: Part,
    /// 0 for means, 1 for variances.
    pub initial: f32,
}
