//! `engine check --dump`: weights, one batch, its loss and every gradient, for a program that computes the same.

use super::args::CheckArgs;
use super::device;
use crate::backend::NamedTensors;
use crate::check::{Case, pass, step};
use crate::checkpoint::{Checkpoint, Tensor, Values};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::graph::lower;
use crate::model::spec::ResNetSpec;
use crate::terminal::message;
use std::collections::BTreeMap;
use std::path::Path;

/// Low enough for fresh weights without zeroed gammas; also PyTorch's `GradScaler` is told to begin with it.
const LOSS_SCALE: f64 = 1024.0;

/// Writes `weights.safetensors` (torchvision's names) and `step.safetensors`: `images` u8 [n, h, w, 3], `labels` i64 [n],
/// `loss` f32 [1] (the mean), and `grad.<parameter>`, f32 in torchvision's shapes.
pub fn run(args: &CheckArgs, folder: &Path) -> Result<()> {
    let spec = ResNetSpec::named(&args.arch)
        .ok_or_else(|| Error::usage(format!("--arch {}: no such network; resnet50 is one", args.arch)))?;
    if args.batch == 0 {
        return Err(Error::usage("--batch 0: a step needs an image"));
    }
    std::fs::create_dir_all(folder)
        .map_err(|error| Error::failed(format!("{} cannot be made: {error}", folder.display())))?;
    let config = config(args);
    let (mut backend, environment) = device::open(&config, spec.classes, args.device)?;
    let state = backend.state()?;
    let weights: NamedTensors = state.into_iter().filter(|(name, _)| !name.starts_with("optim.")).collect();
    let tensors = weights.into_iter().map(|(name, tensor)| (name, Tensor::from(tensor))).collect();
    Checkpoint { tensors, metadata: BTreeMap::new() }.write(&folder.join("weights.safetensors"), &[])?;

    let step = step(0, 1);
    let batch = Case::noise(&spec, args.resolution, args.batch, 1);
    let outcome = pass(backend.as_mut(), &batch, &step)?;
    if outcome.fault.is_some() || outcome.skipped {
        return Err(Error::failed(format!("the step ended in {outcome:?}")));
    }
    let mut tensors = BTreeMap::new();
    for param in &lower(&spec, args.resolution)?.params {
        let name = format!("grad.{}", param.name);
        tensors.insert(name.clone(), Tensor::from(backend.read(&name)?));
    }
    let (n, side) = (args.batch, args.resolution);
    let labels = batch.labels.iter().map(|&label| i64::from(label)).collect();
    let loss = (outcome.score.loss / n as f64) as f32;
    tensors
        .insert("images".into(), Tensor { shape: vec![n, side, side, 3], values: Values::U8(batch.images) });
    tensors.insert("labels".into(), Tensor { shape: vec![n], values: Values::I64(labels) });
    tensors.insert("loss".into(), Tensor::f32(&[1], vec![loss]));
    let metadata = [
        ("arch", spec.name.to_owned()),
        ("device", environment.device),
        ("precision", format!("{:?}", args.precision).to_lowercase()),
        ("label_smoothing", step.loss.label_smoothing.to_string()),
        ("loss_scale", outcome.loss_scale.to_string()),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    Checkpoint { tensors, metadata }.write(&folder.join("step.safetensors"), &[])?;
    message(format!("wrote one step of {} to {}", spec.name, folder.display()));
    Ok(())
}

fn config(args: &CheckArgs) -> Config {
    let mut config = Config::default();
    config.model.arch.clone_from(&args.arch);
    // With gammas of zero most gradients are zero: nothing would be compared.
    config.model.zero_gamma = false;
    config.data.resolution = args.resolution;
    config.data.batch = args.batch;
    config.device.precision = args.precision;
    config.device.loss_scale = LOSS_SCALE;
    config
}
