//! Where the work is done. One trait at the level of a step, so that each backend keeps memory and fusion to itself.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod drop_path;
pub mod fault;
pub mod loss;

pub use crate::model::graph::EPS;
pub use crate::model::spec::{MEAN, STD};
pub use drop_path::DropPath;
pub use loss::{Loss, Objective};

use crate::config::RuleKind;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::freeze::Freeze;
use crate::optim::Rule;
use crate::optim::sgd::Sgd;
use crate::tensor::{HostTensor, first_non_finite};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tensors by torchvision's names; convolution weights KCRS.
pub type NamedTensors = BTreeMap<String, HostTensor>;

/// Batch norm: PyTorch's default, which torchvision keeps.
pub const RUNNING_MOMENTUM: f64 = 0.1;

/// About as many bytes of gradients are added up over ranks at a time (PyTorch's DDP): large enough for the links, small
/// enough that the first leave while later ones are still being made.
pub const BUCKET_BYTES: u64 = 25 << 20;

/// Prefix of all that the optimiser has in a state.
pub const OPTIMISER_PREFIX: &str = "optim.";

/// Prefix of the optimiser's velocities in a state.
pub const MOMENTUM_PREFIX: &str = "optim.momentum.";

/// Prefix of LAMB's second moments in a state; its first ones take the place of velocities.
pub const SECOND_MOMENT_PREFIX: &str = "optim.second_moment.";

/// How many updates the weights have had, where a rule asks for it: f32 [1].
pub const UPDATES: &str = "optim.updates";

/// Prefix of the moving averages of weights and running statistics in a state.
pub const EMA_PREFIX: &str = "ema.";

/// One forward and backward pass within an optimiser step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Position of this pass in its optimiser step; the last one of `of` updates the weights.
    pub index: usize,
    pub of: usize,
    /// Ranks that each do as many passes at the same time, on other images: the step is of `of * ranks` passes.
    pub ranks: usize,
    pub rule: Rule,
    pub loss: Loss,
    /// The norm that the gradient of all parameters together is clipped to ([`crate::optim::clip`]); 0: no limit.
    pub clip_norm: f32,
    /// With the update, averages become `decay * average + (1 - decay) * weights`, and so do those of running statistics;
    /// `Some(0.0)` copies, `None` leaves them as they are.
    pub ema_decay: Option<f32>,
    pub drop_path: DropPath,
}

impl Step {
    /// Passes of the whole optimiser step, over all ranks.
    pub fn passes(&self) -> usize {
        self.of * self.ranks
    }

    /// SGD on softmax cross-entropy, and nothing else.
    pub fn plain(index: usize, of: usize, sgd: Sgd, label_smoothing: f32) -> Self {
        let (rule, loss) = (Rule::Sgd(sgd), Loss { label_smoothing, ..Loss::default() });
        Self { index, of, ranks: 1, rule, loss, clip_norm: 0.0, ema_decay: None, drop_path: DropPath::OFF }
    }
}

/// What of a recipe a backend makes room for when it is opened; every [`Step`] agrees with it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Extras {
    /// Whose state besides weights is kept.
    pub rule: RuleKind,
    /// Moving averages of weights and running statistics are kept.
    pub averages: bool,
    /// What is not trained.
    pub freeze: Freeze,
}

impl Extras {
    /// Whether there is room for what `step` asks for.
    pub fn check(&self, step: &Step) -> Result<()> {
        if step.rule.kind() != self.rule || (step.ema_decay.is_some() && !self.averages) {
            return Err(Error::failed(format!("a step by {step:?} for a network opened for {self:?}")));
        }
        Ok(())
    }
}

/// Why an evaluation of averages cannot be.
pub const NO_AVERAGES: &str =
    "there are no averages to evaluate; set ema.decay, or evaluate the weights themselves";

/// The fault of a rank that has none of its own.
pub const ELSEWHERE: &str = "another rank's loss is not finite";

/// Which weights of a network: in an evaluation, and out of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Weights {
    /// Those that training moves.
    Live,
    /// Their moving averages, with those of the running statistics.
    Averaged,
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
    /// The loss scale made a gradient leave its type's range: weights stay as they are, the schedule goes on. No fault.
    pub skipped: bool,
    /// Factor on the loss; 1 where none is needed.
    pub loss_scale: f32,
}

/// A device that trains and evaluates one network.
pub trait Backend {
    /// Starts a training pass on `batch`.
    fn submit(&mut self, batch: &Batch, step: &Step) -> Result<()>;

    /// The oldest outcome that has not been taken yet; may lag behind `submit` by a step or two.
    fn poll(&mut self) -> Result<Option<Outcome>>;

    /// The same, but waits for it; `None` only when no pass is under way.
    fn wait(&mut self) -> Result<Option<Outcome>>;

    /// Logits [n, classes] with the running statistics. The batch's resolution may differ from training's. Averages that the
    /// backend was not told to keep are an error.
    fn eval_batch(&mut self, batch: &Batch, weights: Weights) -> Result<HostTensor>;

    /// Everything that a resume needs: parameters, running statistics, velocities.
    fn state(&self) -> Result<NamedTensors>;

    /// Takes what `state` gave. A missing or misshapen tensor is an error that names it.
    fn load_state(&mut self, state: &NamedTensors) -> Result<()>;

    /// One tensor by name: a parameter, a running statistic, a gradient (`grad.<parameter>`), or an activation of the
    /// last pass where the backend still has it (NHWC).
    fn read(&self, name: &str) -> Result<HostTensor>;

    /// The library routine in use for each product, by name: what the bits of a run depend on besides its recipe.
    fn choices(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Choices of an earlier run, to be made again where they still exist. Before the first `submit`.
    fn set_choices(&mut self, _: &BTreeMap<String, String>) {}
}

/// Whether a batch's parts fit each other and the network.
pub fn check_batch(batch: &Batch, classes: usize) -> Result<()> {
    let want = batch.labels.len() * batch.resolution * batch.resolution * 3;
    if batch.images.len() != want || batch.labels.is_empty() {
        let got = batch.images.len();
        return Err(Error::failed(format!(
            "batch.images has {got} bytes, its labels and resolution want {want}"
        )));
    }
    check_mixes(batch)?;
    match batch.labels.iter().find(|&&label| label as usize >= classes) {
        Some(label) => {
            Err(Error::input(format!("label {label} in a batch; the model has {classes} classes")))
        }
        None => Ok(()),
    }
}

fn check_mixes(batch: &Batch) -> Result<()> {
    let (n, side) = (batch.labels.len(), batch.resolution);
    let fits = |len: usize| len == 0 || len == n;
    if !fits(batch.mixes.len()) || !fits(batch.erased.len()) {
        let (mixes, erased) = (batch.mixes.len(), batch.erased.len());
        return Err(Error::failed(format!(
            "batch.mixes has {mixes} entries and batch.erased {erased}, expected none or one for each of {n} images"
        )));
    }
    let regions = batch.mixes.iter().filter_map(|mix| mix.region);
    let mut rects = regions.chain(batch.erased.iter().flatten().map(|erase| erase.rect));
    if let Some(rect) = rects.find(|rect| rect.top + rect.height > side || rect.left + rect.width > side) {
        return Err(Error::failed(format!("{rect:?} in a batch reaches out of its {side} px")));
    }
    match batch.mixes.iter().find(|mix| mix.partner as usize >= n || !(0.0..=1.0).contains(&mix.lambda)) {
        Some(mix) => {
            Err(Error::failed(format!("{mix:?} in a batch of {n} images, expected one of them and a share")))
        }
        None => Ok(()),
    }
}

/// A tensor of a state, by name and shape; all its values are finite.
pub fn find<'s>(state: &'s NamedTensors, name: &str, shape: &[usize]) -> Result<&'s [f32]> {
    let tensor = state
        .get(name)
        .ok_or_else(|| Error::input(format!("{name} is missing; this checkpoint is of another network")))?;
    if tensor.shape != shape {
        let got = &tensor.shape;
        return Err(Error::input(format!(
            "{name} is {got:?}, the network wants {shape:?}; trained from another spec?"
        )));
    }
    if let Some(index) = first_non_finite(&tensor.data) {
        let value = tensor.data[index];
        return Err(Error::input(format!("{name} has {value} at index {index}; take an earlier checkpoint")));
    }
    Ok(&tensor.data)
}
