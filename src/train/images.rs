//! What a run takes of its data: how images are read, how many steps an epoch has, what the result depends on.

use crate::config::Config;
use crate::data::augment::repeat::Repeat;
use crate::data::{Crop, Dataset, TrainOptions as LoaderOptions, TrainTransform};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};

/// How training reads its images; from the first batch of the first epoch.
pub fn loader_options(config: &Config) -> LoaderOptions {
    let [low, high] = config.augment.crop_scale;
    let [narrow, wide] = config.augment.crop_ratio;
    let transform = TrainTransform {
        resolution: config.data.resolution,
        crop: Crop { scale: (low, high), ratio: (narrow, wide) },
        flip: config.augment.flip,
        interpolation: config.augment.interpolation,
        ..TrainTransform::new(config.data.resolution)
    };
    LoaderOptions {
        transform,
        batch: config.micro_batch(),
        seed: config.seed,
        epoch: 0,
        start_batch: 0,
        limit: config.data.limit,
        repeat: Repeat::OFF,
        workers: config.workers(),
        bad_share: config.data.bad_share,
    }
}

/// The reasons a run cannot begin that only show once the data are known.
pub fn steps_per_epoch(config: &Config, dataset: &Dataset) -> Result<usize> {
    let images = training_images(config, dataset);
    match images / config.data.batch {
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
    let digest: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
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
