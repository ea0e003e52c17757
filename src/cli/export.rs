//! `engine export`.

use super::args::{ExportArgs, ExportFormat};
use crate::checkpoint::read_weights;
use crate::error::Result;
use crate::export::{Weights, export_pth, export_safetensors, state_dict};
use crate::model::graph::lower;
use crate::train::model_file::{MODEL_KEY, Model};

pub fn run(args: &ExportArgs) -> Result<()> {
    let model = Model::read(&args.checkpoint)?;
    let checkpoint = read_weights(&args.checkpoint)?;
    let graph = lower(&model.spec, model.description.resolution)?;
    let state = state_dict(&checkpoint, &graph, Weights::Live)?;
    match args.format {
        ExportFormat::Safetensors => {
            let metadata = [(MODEL_KEY.to_owned(), model.description.to_json())].into();
            export_safetensors(&state, &metadata, &args.output)?;
        }
        ExportFormat::Pth => export_pth(&state, &args.output)?,
    }
    eprintln!("wrote {}: {} with {} classes", args.output.display(), model.spec.name, model.spec.classes);
    Ok(())
}
