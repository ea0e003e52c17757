//! `engine export`.

use super::args::{ExportArgs, ExportFormat};
use crate::error::Result;
use crate::export::{export_pth, export_safetensors};
use crate::train::model_file::{MODEL_KEY, read_any};

pub fn run(args: &ExportArgs) -> Result<()> {
    let checkpoint = read_any(&args.checkpoint)?;
    match args.format {
        ExportFormat::Safetensors => {
            let metadata = checkpoint.metadata.iter().filter(|(key, _)| *key == MODEL_KEY);
            let metadata = metadata.map(|(key, value)| (key.clone(), value.clone())).collect();
            export_safetensors(&checkpoint.tensors, &metadata, &args.output)?;
        }
        ExportFormat::Pth => export_pth(&checkpoint.tensors, &args.output)?,
    }
    eprintln!("wrote {}", args.output.display());
    Ok(())
}
