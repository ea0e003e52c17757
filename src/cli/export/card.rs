//! `engine export --card`.

use super::tested::Tested;
use super::{ExportArgs, message};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::export::card::Card;
use crate::files;
use crate::infer::file::Description;
use crate::train::state::RunState;
use std::fs;
use std::path::{Path, PathBuf};

/// Writes the card of `checkpoint`, which `exported` were made from.
pub fn write(
    args: &ExportArgs,
    path: &Path,
    checkpoint: &Checkpoint,
    description: &Description,
    tested: Option<&Tested>,
    exported: &[PathBuf],
) -> Result<()> {
    // Weights from elsewhere have no state.
    let state = RunState::from_checkpoint(&args.checkpoint.display().to_string(), checkpoint).ok();
    let folder = run_folder(&args.checkpoint);
    let read = |name: &str| fs::read_to_string(folder.as_ref()?.join(name)).ok();
    let last = state.as_ref().and_then(|state| state.history.last());
    let is_logged = last.and_then(|last| Some(read("logs.md")?.contains(&last.fields())));
    let hours = state.as_ref().and_then(|state| {
        let run: serde_json::Value = serde_json::from_str(&read("run.json")?).ok()?;
        let is_same = serde_json::to_value(&state.recipe).is_ok_and(|recipe| run["recipe"] == recipe);
        run["hours"].as_f64().filter(|_| is_same)
    });
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let files: Vec<String> = exported.iter().filter_map(name).collect();
    let card = Card {
        description,
        history: state.as_ref().map_or(&[], |state| &state.history),
        hours,
        is_logged,
        verified: tested.map(|tested| (tested.rows.as_slice(), last_part(&tested.pictures.name))),
        files: &files,
        license: &args.license,
        dataset: args.dataset.as_deref(),
    };
    files::write_bytes_atomically("export", path, card.text().as_bytes())?;
    message(format!("wrote {}: the model card", path.display()));
    Ok(())
}

/// Where pictures lie on this machine is nothing for a public page.
fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Where a checkpoint's run has its log: `RUN/checkpoints/best.safetensors`.
fn run_folder(checkpoint: &Path) -> Option<PathBuf> {
    Some(checkpoint.canonicalize().ok()?.parent()?.parent()?.to_owned())
}
