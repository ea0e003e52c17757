//! What a run takes of its data: how images are read, how many steps an epoch has, what the result depends on.

use crate::backend::Weights;
use crate::base64::hex;
use crate::config::Config;
use crate::data::augment::Jitter;
use crate::data::augment::erase::Erasing;
use crate::data::{
    BadFile, Crop, Dataset, EvalOptions, EvalTransform, Loader, Share, TrainOptions as LoaderOptions,
    TrainTransform,
};
use crate::error::{Error, Result};
use crate::terminal::message;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How training reads its images in an epoch, counted from 0; from its first batch.
pub fn loader_options(config: &Config, epoch: usize) -> LoaderOptions {
    let augment = &config.augment;
    let pair = |[low, high]: [f64; 2]| (low, high);
    let [brightness, contrast, saturation, hue] = augment.color_jitter;
    let transform = TrainTransform {
        resolution: config.resolution_at(epoch),
        crop: Crop { scale: pair(augment.crop_scale), ratio: pair(augment.crop_ratio) },
        flip: augment.flip,
        interpolation: augment.interpolation,
        auto: augment.auto,
        sampling: config.auto_sampling(),
        jitter: Jitter { brightness, contrast, saturation, hue },
        erase: Erasing {
            probability: augment.erase,
            area: pair(augment.erase_area),
            ratio: pair(augment.erase_ratio),
            fill: augment.erase_fill,
        },
    };
    LoaderOptions {
        transform,
        mix: config.mix.options(),
        batch: config.micro_batch(),
        seed: config.seed,
        epoch: epoch as u64,
        share: Share::ALL,
        start_batch: 0,
        limit: config.data.limit,
        repeat: config.repeat(),
        workers: config.workers(),
        bad_share: config.data.bad_share,
    }
}

/// A share of the validation images, and which weights they are for.
pub fn validation(config: &Config, dataset: &Dataset, share: Share) -> Result<(Loader, Weights)> {
    let (eval, interpolation) = (&config.eval, config.augment.interpolation);
    let transform = EvalTransform::new(config.eval_resolution(), eval.crop_ratio, interpolation);
    let loader = Loader::eval(
        Arc::clone(&dataset.val),
        EvalOptions {
            transform,
            batch: config.eval_batch(),
            share,
            limit: 0,
            workers: config.workers(),
            bad_share: config.data.bad_share,
        },
    )?;
    Ok((loader, if config.ema.is_on() { Weights::Averaged } else { Weights::Live }))
}

/// The reasons a run cannot begin that only show once the data are known.
pub fn steps_per_epoch(config: &Config, dataset: &Dataset) -> Result<usize> {
    let images = training_images(config, dataset);
    match config.repeat().epoch_len(images) / config.data.batch {
        0 => Err(Error::usage(format!(
            "data.batch is {}, but there are only {images} training images; lower data.batch",
            config.data.batch
        ))),
        steps => Ok(steps),
    }
}

/// What of the data a run's result depends on: counts, and a digest of class names and labels.
pub fn data_identity(dataset: &Dataset) -> Vec<(String, String)> {
    let mut hash = Sha256::new();
    for class in &dataset.classes {
        hash.update(class.id.as_bytes());
        hash.update([0]);
    }
    for split in [&dataset.train, &dataset.val] {
        (0..split.len()).for_each(|index| hash.update(split.label(index).to_le_bytes()));
    }
    let digest = hex(&hash.finalize()[..8]);
    vec![
        ("data: training images".into(), dataset.train.len().to_string()),
        ("data: validation images".into(), dataset.val.len().to_string()),
        ("data: classes and labels".into(), digest),
    ]
}

pub fn training_images(config: &Config, dataset: &Dataset) -> usize {
    let all = dataset.train.len();
    if config.data.limit == 0 { all } else { all.min(config.data.limit) }
}

/// Bad files that have been named, so that each is named once and not in every epoch.
#[derive(Debug, Default)]
pub(super) struct NamedBad(BTreeSet<(&'static str, u32)>);

impl NamedBad {
    /// `what`: training or validation.
    pub fn report(&mut self, what: &'static str, bad: &[BadFile]) {
        for bad in bad {
            if self.0.insert((what, bad.sample)) {
                message(format!("warning: left out of {what}, in every epoch: {}", bad.message));
            }
        }
    }
}
