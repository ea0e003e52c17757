//! Values that each are of the right type but make no sense.

use super::{Config, LossKind, MAX_THREADS};
use crate::error::{Error, Result};
use crate::model::graph::{MAX_RESOLUTION, MIN_RESOLUTION};
use crate::model::spec::{ALL, ResNetSpec};

impl Config {
    /// The first key that does not hold is the error.
    pub(super) fn validate(&self) -> Result<()> {
        let arch = &self.model.arch;
        if ResNetSpec::named(arch).is_none() {
            let known = ALL.map(|spec| spec.name).join(", ");
            return Err(Error::usage(format!("model.arch is \"{arch}\", expected one of {known}")));
        }
        match self
            .data_requirements()
            .into_iter()
            .chain(self.training_requirements())
            .chain(self.regularisation_requirements())
            .chain(self.device_requirements())
            .find(|required| !required.holds)
        {
            Some(Requirement { key, got, wanted, .. }) => {
                Err(Error::usage(format!("{key} is {got}, expected {wanted}")))
            }
            None => Ok(()),
        }
    }

    fn data_requirements(&self) -> Vec<Requirement> {
        let Self { data, augment, eval, .. } = self;
        let (scale, ratio) = (augment.crop_scale, augment.crop_ratio);
        let sides = MIN_RESOLUTION..=MAX_RESOLUTION;
        let micro = self.micro_batch();
        vec![
            require("data.batch", data.batch, data.batch > 0, "at least 1"),
            require(
                "data.micro_batch",
                micro,
                data.batch.is_multiple_of(micro.max(1)),
                "a divisor of data.batch",
            ),
            require(
                "data.resolution",
                data.resolution,
                sides.contains(&data.resolution),
                "at least 8 and at most 4096",
            ),
            require(
                "eval.resolution",
                eval.resolution,
                sides.contains(&self.eval_resolution()),
                "0, or 8 to 4096",
            ),
            require(
                "eval.crop_ratio",
                eval.crop_ratio,
                (0.05..=1.0).contains(&eval.crop_ratio),
                "from 0.05 to 1",
            ),
            share("data.bad_share", data.bad_share),
            share("augment.flip", augment.flip),
            require(
                "augment.crop_scale",
                format!("{scale:?}"),
                0.0 < scale[0] && scale[0] <= scale[1] && scale[1] <= 1.0,
                "[low, high] with 0 < low <= high <= 1",
            ),
            require(
                "augment.crop_ratio",
                format!("{ratio:?}"),
                0.0 < ratio[0] && ratio[0] <= ratio[1] && ratio[1].is_finite(),
                "[low, high] with 0 < low <= high",
            ),
        ]
    }

    fn device_requirements(&self) -> Vec<Requirement> {
        let device = &self.device;
        let power_of_two = |value: f64| value >= 1.0 && value <= 2f64.powi(24) && value.log2().fract() == 0.0;
        let algorithms = &device.algorithms;
        let named = algorithms.strip_prefix("file:").is_some_and(|path| !path.is_empty());
        let (scale, floor, interval) =
            (device.loss_scale, device.loss_scale_floor, device.loss_scale_interval);
        vec![
            require("device.threads", device.threads, device.threads <= MAX_THREADS, "0, or at most 1024"),
            require(
                "device.algorithms",
                algorithms,
                algorithms == "find" || named,
                "\"find\" or \"file:PATH\"",
            ),
            require(
                "device.input_channels",
                device.input_channels,
                [4, 8].contains(&device.input_channels),
                "4 or 8",
            ),
            require("device.loss_scale", scale, power_of_two(scale), "a power of two from 1 to 16777216"),
            require(
                "device.loss_scale_floor",
                floor,
                power_of_two(floor) && floor <= scale,
                "a power of two from 1 to device.loss_scale",
            ),
            require(
                "device.loss_scale_interval",
                interval,
                (1..=1_000_000).contains(&interval),
                "1 to 1000000 steps",
            ),
        ]
    }

    fn training_requirements(&self) -> Vec<Requirement> {
        let Self { optim, schedule, checkpoint, .. } = self;
        let milestones = &schedule.milestones;
        let is_size = |value: f64| value >= 0.0 && value.is_finite();
        let few = |epochs: usize| (1..=5).contains(&epochs);
        vec![
            require("epochs", self.epochs, self.epochs > 0, "at least 1"),
            require("optim.lr", optim.lr, optim.lr > 0.0 && optim.lr.is_finite(), "above 0"),
            require(
                "optim.momentum",
                optim.momentum,
                (0.0..1.0).contains(&optim.momentum),
                "from 0 to below 1",
            ),
            require("optim.weight_decay", optim.weight_decay, is_size(optim.weight_decay), "0 or more"),
            require(
                "schedule.warmup_epochs",
                schedule.warmup_epochs,
                is_size(schedule.warmup_epochs),
                "0 or more",
            ),
            share("schedule.warmup_start", schedule.warmup_start),
            require("schedule.hold_epochs", schedule.hold_epochs, is_size(schedule.hold_epochs), "0 or more"),
            share("schedule.end", schedule.end),
            require(
                "schedule.k_decay",
                schedule.k_decay,
                schedule.k_decay > 0.0 && schedule.k_decay.is_finite(),
                "above 0",
            ),
            require("schedule.factor", schedule.factor, is_size(schedule.factor), "0 or more"),
            require(
                "schedule.milestones",
                format!("{milestones:?}"),
                milestones.iter().all(|&epoch| is_size(epoch)),
                "epochs, each 0 or more",
            ),
            require(
                "checkpoint.every_epochs",
                checkpoint.every_epochs,
                few(checkpoint.every_epochs),
                "1 to 5",
            ),
            require(
                "checkpoint.every_minutes",
                checkpoint.every_minutes,
                is_size(checkpoint.every_minutes),
                "0 or more",
            ),
            require(
                "checkpoint.keep",
                checkpoint.keep,
                checkpoint.keep >= 2,
                "at least 2: the last may be torn",
            ),
            require(
                "checkpoint.keep_every_epochs",
                checkpoint.keep_every_epochs,
                few(checkpoint.keep_every_epochs),
                "1 to 5",
            ),
        ]
    }
}

impl Config {
    fn regularisation_requirements(&self) -> Vec<Requirement> {
        let Self { model, mix, loss, optim, ema, .. } = self;
        let is_size = |value: f64| value >= 0.0 && value.is_finite();
        let below_one = |value: f64| (0.0..1.0).contains(&value);
        vec![
            require("model.drop_path", model.drop_path, below_one(model.drop_path), "from 0 to below 1"),
            require("mix.mixup", mix.mixup, is_size(mix.mixup), "0 or more"),
            require("mix.cutmix", mix.cutmix, is_size(mix.cutmix), "0 or more"),
            share("mix.probability", mix.probability),
            share("mix.switch", mix.switch),
            share("loss.label_smoothing", loss.label_smoothing),
            require(
                "loss.target_threshold",
                loss.target_threshold,
                below_one(loss.target_threshold)
                    && (loss.target_threshold == 0.0 || loss.kind == LossKind::Bce),
                "from 0 to below 1, and 0 where loss.kind is not bce",
            ),
            require(
                "optim.betas",
                format!("{:?}", optim.betas),
                optim.betas.iter().all(|&beta| below_one(beta)),
                "two numbers from 0 to below 1",
            ),
            require("optim.epsilon", optim.epsilon, is_size(optim.epsilon), "0 or more"),
            require("optim.trust", optim.trust, optim.trust > 0.0 && optim.trust.is_finite(), "above 0"),
            require("optim.clip_norm", optim.clip_norm, is_size(optim.clip_norm), "0 or more"),
            require("ema.decay", ema.decay, below_one(ema.decay), "from 0 to below 1"),
            require("ema.every", ema.every, ema.every > 0, "at least 1"),
        ]
    }
}

/// What must hold for a key's value, and how to say so where it does not.
struct Requirement {
    key: &'static str,
    got: String,
    holds: bool,
    wanted: &'static str,
}

fn require(key: &'static str, got: impl ToString, holds: bool, wanted: &'static str) -> Requirement {
    Requirement { key, got: got.to_string(), holds, wanted }
}

fn share(key: &'static str, value: f64) -> Requirement {
    require(key, value, (0.0..=1.0).contains(&value), "from 0 to 1")
}
