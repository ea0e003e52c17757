//! `engine export`.

use super::args::{ExportArgs, ExportFormat};
use crate::checkpoint::read_weights;
use crate::error::{Error, Result};
use crate::export::{Weights, export_pth, export_safetensors, state_dict};
use crate::model::graph::lower;
use crate::terminal::message;
use crate::train::model_file::{MODEL_KEY, Model};

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
    }
    let (to, classes) = (args.output.display(), model.spec.classes);
    message(format!("wrote {to}: {} with {classes} classes", model.spec.name));
    Ok(())
}
