//! What every export says of its network besides numbers: classes, preparation of pictures, recipe, scores, origin.

use crate::base64::hex;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::infer::file::{Description, Source};
use crate::model::spec::{MEAN, STD};
use crate::train::model_file::{MODEL_KEY, Model};
use crate::train::state::RunState;
use sha2::{Digest, Sha256};
use std::path::Path;

/// The description of `model`, which is `checkpoint` as it was read from `path`.
pub fn describe(model: &Model, checkpoint: &Checkpoint, path: &Path) -> Result<Description> {
    let found = &model.description;
    Ok(Description {
        arch: model.spec.name.to_owned(),
        classes: found.classes.clone(),
        resolution: found.resolution,
        crop_ratio: found.crop_ratio,
        interpolation: found.interpolation,
        mean: MEAN,
        std: STD,
        source: source(path, checkpoint)?,
        int8: None,
        crc32c: [].into(),
    })
}

/// Where the weights of `checkpoint` come from. An export of an export keeps what the first one said.
fn source(path: &Path, checkpoint: &Checkpoint) -> Result<Source> {
    let said = checkpoint.metadata.get(MODEL_KEY);
    let said = said.and_then(|text| serde_json::from_str::<Description>(text).ok());
    if let Some(description) = said {
        return Ok(description.source);
    }
    let bytes = std::fs::read(path).map_err(|error| Error::unreadable(path, &error, "a checkpoint"))?;
    let sha256 = hex(&Sha256::digest(&bytes));
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
