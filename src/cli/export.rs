//! `engine export`.

use super::args::{ExportArgs, ExportFormat};
use crate::checkpoint::{Checkpoint, read_weights};
use crate::error::{Error, Result};
use crate::export::{Weights, export_cpu, export_pth, export_safetensors, state_dict};
use crate::infer::file::{Description, Source};
use crate::model::graph::lower;
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
    let checkpoint = read_weights(&args.checkpoint)?;
    // A copy in memory costs less than reading and verifying the file once more.
    let model = Model::from_weights(&args.checkpoint, checkpoint.clone())?;
    let graph = lower(&model.spec, model.description.resolution)?;
    let state = state_dict(&checkpoint, &graph, Weights::Live)?;
    match args.format {
        ExportFormat::Safetensors => {
            let metadata = [(MODEL_KEY.to_owned(), model.description.to_json())].into();
            export_safetensors(&state, &metadata, &args.output)?;
        }
        ExportFormat::Pth => export_pth(&state, &args.output)?,
        ExportFormat::Cpu => {
            let description = describe(&model, source(&args.checkpoint, &checkpoint)?);
            export_cpu(&state, vec![], &description, &args.output)?;
        }
    }
    let (to, classes) = (args.output.display(), model.spec.classes);
    message(format!("wrote {to}: {} with {classes} classes", model.spec.name));
    Ok(())
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
