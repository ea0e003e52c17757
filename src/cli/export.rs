//! `engine export`.

use super::args::{ExportArgs, ExportFormat, Range};
use crate::checkpoint::{Checkpoint, StateDict, read_weights};
use crate::data::index::unlabelled;
use crate::error::{Error, Result};
use crate::export::cpu::calibrate::Noise;
use crate::export::cpu::{Method, Photographs, Quantisation, calibrate, entries};
use crate::export::{Weights, export_cpu, export_pth, export_safetensors, state_dict};
use crate::infer::file::{Description, Source};
use crate::model::graph::{Graph, lower};
use crate::model::spec::{MEAN, STD};
use crate::terminal::message;
use crate::train::model_file::{MODEL_KEY, Model};
use crate::train::state::RunState;
use sha2::{Digest, Sha256};
use std::path::Path;

pub fn run(args: &ExportArgs) -> Result<()> {
    if let (Ok(from), Ok(to)) = (args.checkpoint.canonicalize(), args.output.canonicalize())
        && from == to
    {
        let to = args.output.display();
        return Err(Error::usage(format!(
            "--output {to} is the checkpoint itself, which holds more than an export; choose another name"
        )));
    }
    if args.int8 && args.format != ExportFormat::Cpu {
        return Err(Error::usage("--int8 goes with --format cpu alone; the other formats hold f32 weights"));
    }
    let checkpoint = read_weights(&args.checkpoint)?;
    // A copy in memory costs less than reading and verifying the file once more.
    let model = Model::from_weights(&args.checkpoint, checkpoint.clone(), args.weights.take())?;
    let graph = lower(&model.spec, model.description.resolution)?;
    let weights = if model.averaged { Weights::Ema } else { Weights::Live };
    let state = state_dict(&checkpoint, &graph, weights)?;
    match args.format {
        ExportFormat::Safetensors => {
            let metadata = [(MODEL_KEY.to_owned(), model.description.to_json())].into();
            export_safetensors(&state, &metadata, &args.output)?;
        }
        ExportFormat::Pth => export_pth(&state, &args.output)?,
        ExportFormat::Cpu => {
            let mut description = describe(&model, source(&args.checkpoint, &checkpoint)?);
            let mut int8 = vec![];
            if let Some(photographs) = &args.calibrate {
                let quantisation = calibrated(args, photographs, &state, &graph, &description)?;
                report(&quantisation.report);
                int8 = entries(&quantisation.layers, &graph);
                description.int8 = Some(quantisation.calibration);
            }
            export_cpu(&state, int8, &description, &args.output)?;
        }
    }
    let (to, classes) = (args.output.display(), model.spec.classes);
    let of = if model.averaged { ", moving averages" } else { "" };
    message(format!("wrote {to}: {} with {classes} classes{of}", model.spec.name));
    Ok(())
}

/// 8-bit numbers from the images of `path`.
fn calibrated(
    args: &ExportArgs,
    path: &Path,
    state: &StateDict,
    graph: &Graph,
    description: &Description,
) -> Result<Quantisation> {
    let photographs = Photographs {
        split: unlabelled(path)?,
        transform: description.transform(),
        normalisation: description.normalisation(),
        count: args.calibration_images as usize,
    };
    let method = match args.calibration {
        Range::Mse => Method::Mse,
        Range::Percentile => Method::Percentile(0.9999),
    };
    let quantisation = calibrate(state, graph, &photographs, method, args.threads.threads)?;
    let (images, method) = (quantisation.calibration.images, &quantisation.calibration.method);
    message(format!("calibrated on {images} images of {} ({method})", path.display()));
    Ok(quantisation)
}

/// The table of noise; the five layers that add most are marked.
fn report(noise: &[Noise]) {
    let mut order: Vec<f64> = noise.iter().map(|layer| layer.own).collect();
    order.sort_by(f64::total_cmp);
    let worst = order.get(4).copied().unwrap_or(f64::NEG_INFINITY);
    message("signal to noise in dB: the layer alone in 8 bits, and all layers up to it");
    message(format!("{:<24} {:>10} {:>8} {:>8}", "layer", "step", "alone", "all"));
    for Noise { layer, step, own, accumulated } in noise {
        let step = step.map_or("f32".to_owned(), |step| format!("{step:.3e}"));
        let mark = if *own <= worst { "  <- among the worst" } else { "" };
        message(format!("{layer:<24} {step:>10} {own:>8.1} {accumulated:>8.1}{mark}"));
    }
}

/// What a model file says of `model`.
fn describe(model: &Model, source: Source) -> Description {
    let found = &model.description;
    Description {
        arch: model.spec.name.to_owned(),
        classes: found.classes.clone(),
        resolution: found.resolution,
        crop_ratio: found.crop_ratio,
        interpolation: found.interpolation,
        mean: MEAN,
        std: STD,
        source,
        int8: None,
        crc32c: [].into(),
    }
}

/// Where the weights of `checkpoint`, read from `path`, come from.
fn source(path: &Path, checkpoint: &Checkpoint) -> Result<Source> {
    let bytes = std::fs::read(path).map_err(|error| Error::unreadable(path, &error, "a checkpoint"))?;
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let written_by = concat!("engine ", env!("CARGO_PKG_VERSION")).to_owned();
    // Weights from elsewhere have no state.
    let Ok(state) = RunState::from_checkpoint(&path.display().to_string(), checkpoint) else {
        return Ok(Source { sha256, written_by, ..Source::default() });
    };
    let scores = state.history.last().map(|epoch| {
        [
            ("val_loss".to_owned(), epoch.val.loss),
            ("val_top1".to_owned(), epoch.val.top1),
            ("val_top5".to_owned(), epoch.val.top5),
        ]
    });
    Ok(Source {
        sha256,
        written_by,
        epoch: Some(state.epoch as u64),
        steps: Some(state.total_steps),
        recipe: state.recipe,
        scores: scores.into_iter().flatten().collect(),
    })
}
