//! A training run's configuration: TOML, environment and `--set`, merged into one validated struct.

mod form;
mod freeze;
mod merge;
mod one_pass;
mod recipe;
mod slabs;
mod training;
mod validate;

pub use form::{Form, Fusion, Pointwise, Residual, Routines, Search, Stem, Wgrad};
pub use merge::{Overrides, load};
pub use one_pass::{Chip, Norm};
pub use recipe::{changes, differing_keys, recipe_keys};
pub use slabs::Slabs;
pub use training::{
    Decay, Ema, EmaForm, Loss, LossKind, Mixing, Optim, Per, Reduction, RuleKind, Schedule, ScheduleKind,
};

pub use crate::data::augment::erase::EraseFill;
use crate::data::augment::repeat::Repeat;
use crate::data::augment::{Auto as AutoPolicy, Sampling};
pub use crate::data::{Interpolation, MixForm};
use crate::model::freeze::Freeze;
pub use crate::model::spec::Fan;
use crate::model::spec::ResNetSpec;
use serde::{Deserialize, Serialize};

/// More threads than any machine has cores: the system would refuse them one by one.
pub const MAX_THREADS: usize = 1024;

/// Everything that a run is told. Field names are the keys of the file; the defaults are the requirements' recipe
/// (90 epochs, batch 256, lr 0.1, momentum 0.9, weight decay 1e-4, cosine with 5 epochs of warm-up).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the run in logs and curves.
    pub name: String,
    pub epochs: usize,
    pub seed: u64,
    pub model: Model,
    pub data: Data,
    pub augment: Augment,
    pub mix: Mixing,
    pub loss: Loss,
    pub optim: Optim,
    pub schedule: Schedule,
    pub ema: Ema,
    pub eval: Eval,
    pub checkpoint: CheckpointPolicy,
    pub stop: Stopping,
    pub device: Device,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// A name of `model::spec::ALL`; the number of classes comes from the data.
    pub arch: String,
    /// Start the last batch norm of each block at zero (arXiv:1706.02677).
    pub zero_gamma: bool,
    /// What the first weights of a convolution are sized by: `fan_out` (torchvision, timm) or `fan_in` (NVIDIA).
    pub init: Fan,
    /// Share of the images that skip the residual branch of the last block; it rises evenly from 0 at the first (stochastic
    /// depth, arXiv:1603.09382).
    pub drop_path: f64,
    /// Several ranks: batch norm sees the images of all of them in a pass, not each rank its own.
    pub sync_batch_norm: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Folder or tar; empty means the embedded synthetic set, written below the output folder.
    pub path: String,
    /// Side of a training image in pixels.
    pub resolution: usize,
    /// Images in an optimiser step.
    pub batch: usize,
    /// Images in one forward and backward pass; 0 means `batch`. Batch norm sees this many.
    pub micro_batch: usize,
    pub workers: Workers,
    /// First N images of a fixed shuffle; 0 means all.
    pub limit: usize,
    /// Share of unreadable images above which a run fails.
    pub bad_share: f64,
    /// Copies of an image in an epoch, each augmented for itself; 1 means none.
    pub repeats: usize,
    /// GPUs among which the copies are dealt out, in turn in every step; 0 means one a micro-batch.
    pub repeat_ranks: usize,
    pub progressive: Progressive,
    pub synth: Synth,
}

/// Smaller images at first: from side `from` in epochs up to `begin`, linearly in whole 32s, to `data.resolution` from epoch
/// `end` on. Epochs count from 0.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Progressive {
    /// Side of the first images in pixels; 0 means `data.resolution` throughout.
    pub from: usize,
    pub begin: usize,
    pub end: usize,
}

/// Size of the embedded set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Synth {
    pub train_per_class: usize,
    pub val_per_class: usize,
    /// Side of a picture in pixels.
    pub size: usize,
}

/// Decoding threads: `"auto"` or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"auto\" or a number")]
pub enum Workers {
    Auto(Auto),
    Count(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    Auto,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Share of the picture's area that a random crop covers, from and to.
    pub crop_scale: [f64; 2],
    /// Width over height of a random crop, from and to.
    pub crop_ratio: [f64; 2],
    /// Probability of a horizontal flip.
    pub flip: f64,
    pub interpolation: Interpolation,
    /// `"none"`, `"randaugment-n2-m9"`, `"trivialaugment"`, `"autoaugment"` (torchvision's) or `"rand-m7-mstd0.5-inc1"` (timm's).
    pub auto: AutoPolicy,
    /// Of shears, translations and rotations by `auto`.
    pub auto_interpolation: AutoInterpolation,
    /// ColorJitter: how far brightness, contrast, saturation and hue move; 0 leaves one alone.
    pub color_jitter: [f64; 4],
    /// Probability of random erasing.
    pub erase: f64,
    pub erase_fill: EraseFill,
    /// Share of the image's area that an erased rectangle covers, from and to.
    pub erase_area: [f64; 2],
    /// Height over width of an erased rectangle, from and to.
    pub erase_ratio: [f64; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoInterpolation {
    /// As `augment.interpolation`.
    Same,
    Nearest,
    Bilinear,
    Bicubic,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Side of a validation image; 0 means `data.resolution`.
    pub resolution: usize,
    /// Centre crop as a share of the resized shorter side (224 of 256).
    pub crop_ratio: f64,
    /// Images in one forward pass; 0 means the training batch.
    pub batch: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointPolicy {
    /// Between 1 and 5.
    pub every_epochs: usize,
    /// Also inside an epoch, after this many minutes; 0 turns it off.
    pub every_minutes: f64,
    /// Also every this many optimiser steps; 0 turns it off.
    pub every_steps: usize,
    /// Newest checkpoints kept, at least 2.
    pub keep: usize,
    /// Kept for good: every this many epochs, at most 5.
    pub keep_every_epochs: usize,
    /// `s3://BUCKET/PREFIX`: checkpoints and logs go there as well; empty for nowhere.
    pub remote: String,
    /// From a request to stop to the end of the process: what does not reach `remote` by then stays on disk alone.
    pub grace_seconds: f64,
}

/// Ends before the last epoch; 0 turns each off. None is part of the recipe: a run may go on with another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stopping {
    /// Validation top-1 in percent, reached in two epochs in succession.
    pub top1: f64,
    /// Of training, all attempts together.
    pub hours: f64,
    /// The same in money, at `price`.
    pub dollars: f64,
    /// Dollars an hour of the machine.
    pub price: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// CPU threads for training; 0 means one a core. The result does not depend on it.
    pub threads: usize,
    pub precision: Precision,
    /// Only library routines that give the same bits every time.
    pub deterministic: bool,
    /// `"find"`: each shape's routine is found by timing, once a run; `"file:PATH"`: taken from there, or found and
    /// written there.
    pub algorithms: String,
    /// How a step is laid out on a GPU.
    pub form: Form,
    /// What the search for routines may look at.
    pub search: Search,
    /// fp16 only. The first factor on the loss, a power of two.
    pub loss_scale: f64,
    /// Clean steps after which it doubles.
    pub loss_scale_interval: usize,
    /// Where it stands, an overflow stops the run.
    pub loss_scale_floor: f64,
}

/// How activations and gradients are stored, and what convolutions compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// fp16 on a GPU, fp32 on the CPU.
    Auto,
    Fp32,
    /// fp32 in memory, products rounded to 10 bits (Ampere and later).
    Tf32,
    Fp16,
    /// Ampere and later.
    Bf16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "run".into(),
            epochs: 90,
            seed: 0,
            model: Model::default(),
            data: Data::default(),
            augment: Augment::default(),
            mix: Mixing::default(),
            loss: Loss::default(),
            optim: Optim::default(),
            schedule: Schedule::default(),
            ema: Ema::default(),
            eval: Eval::default(),
            checkpoint: CheckpointPolicy::default(),
            stop: Stopping::default(),
            device: Device::default(),
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            arch: "resnet50".into(),
            zero_gamma: true,
            init: Fan::FanOut,
            drop_path: 0.0,
            sync_batch_norm: false,
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            path: String::new(),
            resolution: 224,
            batch: 256,
            micro_batch: 0,
            workers: Workers::Auto(Auto::Auto),
            limit: 0,
            bad_share: 0.01,
            repeats: 1,
            repeat_ranks: 0,
            progressive: Progressive::default(),
            synth: Synth::default(),
        }
    }
}

impl Default for Synth {
    fn default() -> Self {
        Self { train_per_class: 200, val_per_class: 40, size: 72 }
    }
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            crop_scale: [0.08, 1.0],
            crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            interpolation: Interpolation::Bilinear,
            auto: AutoPolicy::None,
            auto_interpolation: AutoInterpolation::Same,
            color_jitter: [0.0; 4],
            erase: 0.0,
            erase_fill: EraseFill::Zero,
            erase_area: [0.02, 0.33],
            erase_ratio: [0.3, 3.3],
        }
    }
}

impl Default for Eval {
    fn default() -> Self {
        Self { resolution: 0, crop_ratio: 0.875, batch: 0 }
    }
}

impl Default for CheckpointPolicy {
    fn default() -> Self {
        Self {
            every_epochs: 1,
            every_minutes: 10.0,
            every_steps: 0,
            keep: 2,
            keep_every_epochs: 5,
            remote: String::new(),
            grace_seconds: 90.0,
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        Self {
            threads: 0,
            precision: Precision::Auto,
            deterministic: true,
            algorithms: "find".into(),
            form: Form::BASE,
            search: Search::BASE,
            loss_scale: 65536.0,
            loss_scale_interval: 2000,
            loss_scale_floor: 1.0,
        }
    }
}

impl Config {
    /// Images in one forward and backward pass.
    pub fn micro_batch(&self) -> usize {
        if self.data.micro_batch == 0 { self.data.batch } else { self.data.micro_batch }
    }

    /// Forward and backward passes in an optimiser step.
    pub fn micro_steps(&self) -> usize {
        self.data.batch / self.micro_batch()
    }

    /// Side of a training image in an epoch, counted from 0. FFCV's ramp: halves round to the even number of 32s.
    pub fn resolution_at(&self, epoch: usize) -> usize {
        let Data { resolution, progressive: Progressive { from, begin, end }, .. } = self.data;
        if from == 0 || epoch >= end {
            return resolution;
        }
        let done = epoch.saturating_sub(begin) as f64 / (end - begin) as f64;
        let side = from as f64 + (resolution as f64 - from as f64) * done;
        (side / 32.0).round_ties_even() as usize * 32
    }

    /// How images are repeated in an epoch.
    pub fn repeat(&self) -> Repeat {
        let ranks = if self.data.repeat_ranks == 0 { self.micro_steps() } else { self.data.repeat_ranks };
        match self.data.repeats {
            1 => Repeat::OFF,
            times => Repeat { times, ranks, batch: self.data.batch },
        }
    }

    /// How `augment.auto` reads between pixels.
    pub fn auto_sampling(&self) -> Sampling {
        match (self.augment.auto_interpolation, self.augment.interpolation) {
            (AutoInterpolation::Nearest, _) => Sampling::Nearest,
            (AutoInterpolation::Bilinear, _) | (AutoInterpolation::Same, Interpolation::Bilinear) => {
                Sampling::Bilinear
            }
            (AutoInterpolation::Bicubic, _) | (AutoInterpolation::Same, Interpolation::Bicubic) => {
                Sampling::Bicubic
            }
        }
    }

    /// The parts that are not trained.
    pub fn freeze(&self) -> Freeze {
        self.frozen_parts().expect("the configuration is validated")
    }

    fn frozen_parts(&self) -> Result<Freeze, String> {
        let spec = ResNetSpec::named(&self.model.arch).ok_or("is of an unknown network")?;
        freeze::parse(&self.optim.freeze, &spec)
    }

    /// The learning rate after linear scaling.
    pub fn full_lr(&self) -> f64 {
        match self.optim.lr_per {
            0 => self.optim.lr,
            per => self.optim.lr * self.data.batch as f64 / per as f64,
        }
    }

    pub fn eval_resolution(&self) -> usize {
        if self.eval.resolution == 0 { self.data.resolution } else { self.eval.resolution }
    }

    pub fn eval_batch(&self) -> usize {
        if self.eval.batch == 0 { self.micro_batch() } else { self.eval.batch }
    }

    pub fn workers(&self) -> usize {
        match self.data.workers {
            Workers::Auto(_) => std::thread::available_parallelism().map_or(1, usize::from),
            Workers::Count(count) => count.max(1),
        }
    }

    /// The file that `train` leaves beside the log: every key with the value in effect.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is plain tables, numbers and strings")
    }
}
