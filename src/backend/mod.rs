//! Where the work is done. One trait at the level of a step, so that each backend keeps memory and fusion to itself.

pub mod cpu;
pub mod loss;

use crate::data::Batch;
use crate::error::Result;
use crate::optim::sgd::Sgd;
use crate::tensor::HostTensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tensors by torchvision's names; convolution weights KCRS.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// Prefix of the optimiser's velocities in a state.
pub const MOMENTUM_PREFIX: &str = "optim.momentum.";

/// One forward and backward pass within an optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Position of this pass in its optimiser step; the last one of `of` updates the weights.
    pub index: usize,
    pub of: usize,
    pub sgd: Sgd,
    pub label_smoothing: f32,
}

/// What a training pass or an evaluation found, summed over its images.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Score {
    /// Sum of the images' losses.
    pub loss: f64,
    pub top1: u64,
    pub top5: u64,
    pub count: u64,
}

impl std::ops::AddAssign for Score {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.count += other.count;
    }
}

/// The result of one submitted pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub score: Score,
    /// Where a value first stopped being finite. The weights and running statistics are then those from before the
    /// optimiser step.
    pub fault: Option<String>,
}

/// A device that trains and evaluates one network.
pub trait Backend {
    /// Starts a training pass on `batch`.
    fn submit(&mut self, batch: &Batch, step: &Step) -> Result<()>;

    /// The oldest outcome that has not been taken yet; may lag behind `submit` by a step or two.
    fn poll(&mut self) -> Option<Outcome>;

    /// Logits [n, classes] with the running statistics. The batch's resolution may differ from training's.
    fn eval_batch(&mut self, batch: &Batch) -> Result<HostTensor>;

    /// Everything that a resume needs: parameters, running statistics, velocities.
    fn state(&self) -> NamedTensors;

    /// Takes what `state` gave. A missing or misshapen tensor is an error that names it.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;

    /// One tensor by name: a parameter, a running statistic, a gradient (`grad.<parameter>`), or an activation of the
    /// last pass where the backend still has it (NHWC).
    fn read(&self, name: &str) -> Result<HostTensor>;
}
