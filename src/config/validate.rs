//! Values that each are of the right type but make no sense.

use super::{Config, Data, LossKind, MAX_THREADS, Progressive};
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
        self.frozen_parts().map_err(|reason| Error::usage(format!("optim.freeze {reason}")))?;
        match self
            .data_requirements()
            .into_iter()
            .chain(self.progressive_requirements())
            .chain(self.augment_requirements())
            .chain(self.training_requirements())
            .chain(self.regularisation_requirements())
            .chain(self.device_requirements())
            .chain(self.stop_requirements())
            .find(|required| !required.holds)
        {
            Some(Requirement { key, got, wanted, .. }) => {
                Err(Error::usage(format!("{key} is {got}, expected {wanted}")))
            }
            None => Ok(()),
        }
    }

    fn stop_requirements(&self) -> Vec<Requirement> {
        let stop = &self.stop;
        let has_price = stop.dollars == 0.0 || stop.price > 0.0;
        let is_size = |value: f64| value.is_finite() && value >= 0.0;
        vec![
            require("stop.top1", stop.top1, (0.0..=100.0).contains(&stop.top1), "0 to 100 percent"),
            require("stop.hours", stop.hours, is_size(stop.hours), "0 or more hours"),
            require("stop.dollars", stop.dollars, is_size(stop.dollars), "0 or more dollars"),
            require("stop.price", stop.price, is_size(stop.price), "0 or more dollars an hour"),
            require(
                "stop.price",
                stop.price,
                has_price,
                "the machine's dollars an hour, which stop.dollars counts by",
            ),
        ]
    }

    fn data_requirements(&self) -> Vec<Requirement> {
        let Self { data, eval, .. } = self;
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
            require("data.repeats", data.repeats, (1..=16).contains(&data.repeats), "1 to 16"),
            require(
                "data.repeat_ranks",
                data.repeat_ranks,
                data.batch.is_multiple_of(self.repeat().ranks.max(1)),
                "0 or a divisor of data.batch",
            ),
        ]
    }

    /// Progressive resolution: sides are whole 32s, which is what a ramp goes in.
    fn progressive_requirements(&self) -> Vec<Requirement> {
        let Data { resolution, progressive: Progressive { from, begin, end }, .. } = self.data;
        let off = from == 0;
        vec![
            require(
                "data.progressive.from",
                from,
                off || from.is_multiple_of(32) && from <= resolution,
                "0, or a multiple of 32 up to data.resolution",
            ),
            require(
                "data.resolution",
                resolution,
                off || resolution.is_multiple_of(32),
                "a multiple of 32, since data.progressive.from is set",
            ),
            require(
                "data.progressive.end",
                end,
                off || begin < end && end <= self.epochs,
                "an epoch after data.progressive.begin and not after the last",
            ),
        ]
    }

    fn augment_requirements(&self) -> Vec<Requirement> {
        let augment = &self.augment;
        let (scale, ratio) = (augment.crop_scale, augment.crop_ratio);
        let (area, erase_ratio) = (augment.erase_area, augment.erase_ratio);
        let [.., hue] = augment.color_jitter;
        let rising = |[low, high]: [f64; 2]| 0.0 < low && low <= high && high.is_finite();
        vec![
            share("augment.flip", augment.flip),
            require(
                "augment.crop_scale",
                format!("{scale:?}"),
                rising(scale) && scale[1] <= 1.0,
                "[low, high] with 0 < low <= high <= 1",
            ),
            require(
                "augment.crop_ratio",
                format!("{ratio:?}"),
                rising(ratio),
                "[low, high] with 0 < low <= high",
            ),
            require(
                "augment.color_jitter",
                format!("{:?}", augment.color_jitter),
                augment.color_jitter.iter().all(|&v| v >= 0.0 && v.is_finite()) && hue <= 0.5,
                "[brightness, contrast, saturation, hue], each 0 or more, hue up to 0.5",
            ),
            share("augment.erase", augment.erase),
            require(
                "augment.erase_area",
                format!("{area:?}"),
                rising(area) && area[1] <= 1.0,
                "[low, high] with 0 < low <= high <= 1",
            ),
            require(
                "augment.erase_ratio",
                format!("{erase_ratio:?}"),
                rising(erase_ratio),
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
                "device.search.workspace",
                device.search.workspace,
                (1..=65536).contains(&device.search.workspace),
                "1 to 65536 MiB",
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
                "checkpoint.remote",
                format!("{:?}", checkpoint.remote),
                checkpoint.remote.is_empty() || checkpoint.remote.starts_with("s3://"),
                "\"\" or s3://BUCKET/PREFIX",
            ),
            require(
                "checkpoint.grace_seconds",
                checkpoint.grace_seconds,
                (1.0..=3600.0).contains(&checkpoint.grace_seconds),
                "1 to 3600",
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

#[cfg(test)]
mod tests {
    use super::super::{Overrides, load};
    use super::*;

    fn with(set: &[&str]) -> Result<Config> {
        load(None, &Overrides { environment: vec![], set: set.iter().map(|s| (*s).to_owned()).collect() })
    }

    #[test]
    fn augmentation_that_cannot_be_is_named() {
        let message = |set: &[&str]| with(set).unwrap_err().message;
        let unknown = message(&["augment.auto=randagument"]);
        assert!(unknown.contains("augment.auto") && unknown.contains("there is no policy"), "{unknown}");
        let range = message(&["augment.auto=rand-m12-mstd0.5"]);
        assert!(range.contains("m12 is out of range, expected from 0 to 10"), "{range}");
        for (set, reason) in [
            ("augment.color_jitter=[0.4,0.4,0.4,0.6]", "hue up to 0.5"),
            ("augment.erase=1.5", "augment.erase is 1.5, expected from 0 to 1"),
            ("augment.erase_area=[0.5,0.2]", "augment.erase_area is [0.5, 0.2]"),
            ("data.repeats=0", "data.repeats is 0, expected 1 to 16"),
            ("data.progressive.from=100", "data.progressive.from is 100, expected 0, or a multiple of 32"),
        ] {
            assert!(message(&[set]).contains(reason), "{}", message(&[set]));
        }
        let ranks = message(&["data.repeats=3", "data.repeat_ranks=7"]);
        assert!(ranks.contains("data.repeat_ranks is 7, expected 0 or a divisor of data.batch"), "{ranks}");
        let end = message(&["data.progressive.from=160", "data.progressive.end=0"]);
        assert!(end.contains("data.progressive.end is 0"), "{end}");
        let uneven = message(&["data.progressive.from=160", "data.progressive.end=3", "data.resolution=200"]);
        assert!(uneven.contains("data.resolution is 200, expected a multiple of 32"), "{uneven}");
    }

    #[test]
    fn resolution_follows_ffcvs_ramp() {
        let set = ["data.resolution=192", "data.progressive.from=160", "data.progressive.begin=11"];
        let config = with(&[&set[..], &["data.progressive.end=13"]].concat()).unwrap();
        // 176 px are five and a half 32s.
        let sides: Vec<usize> = (10..15).map(|epoch| config.resolution_at(epoch)).collect();
        assert_eq!(sides, [160, 160, 192, 192, 192]);
        let long = ["data.resolution=224", "data.progressive.from=128", "data.progressive.end=8"];
        let config = with(&long).unwrap();
        let sides: Vec<usize> = (0..9).map(|epoch| config.resolution_at(epoch)).collect();
        assert_eq!(sides, [128, 128, 160, 160, 192, 192, 192, 224, 224]);
        assert_eq!(with(&[]).unwrap().resolution_at(0), 224);
    }
}
