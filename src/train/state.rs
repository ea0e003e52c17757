//! Where a run stands: what a checkpoint holds besides tensors, as JSON under `engine.state`.

use crate::backend::{Backend, NamedTensors, Score};
use crate::checkpoint::{Checkpoint, Position, Tensor, Values};
use crate::error::{Error, Result};
use crate::log::EpochScores;
use crate::tensor::HostTensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Metadata key of the state.
const STATE_KEY: &str = "engine.state";
/// Raised when an older program could not go on from the file.
const FORMAT: u32 = 1;

/// A run's position and everything that its further course depends on besides tensors. No path, host or wall clock: a
/// checkpoint's bytes are a function of the run alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    pub format: u32,
    /// Every key that the result depends on, and what the data were.
    pub recipe: BTreeMap<String, String>,
    /// What the bits depend on besides the recipe.
    pub environment: Environment,
    /// Completed epochs.
    pub epoch: usize,
    /// Optimiser steps done in the current epoch.
    pub step: usize,
    /// Optimiser steps since the beginning.
    pub total_steps: u64,
    /// Forward and backward passes since the beginning: `num_batches_tracked`.
    pub passes: u64,
    /// Running sums of the current epoch.
    pub sums: Score,
    pub history: Vec<EpochScores>,
    pub best: Option<Best>,
    /// The library routine of each product, as the backend names them; none on a CPU.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub choices: BTreeMap<String, String>,
}

/// Where the same recipe gives the same bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub engine: String,
    pub device: String,
    pub isa: String,
    pub decoder: String,
    /// Ranks that train together.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub ranks: usize,
}

fn one() -> usize {
    1
}

fn is_one(ranks: &usize) -> bool {
    *ranks == 1
}

/// The epoch with the highest validation top-1, the first of equals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub top1: f64,
    pub epoch: usize,
    pub total_steps: u64,
}

impl RunState {
    pub fn new(recipe: BTreeMap<String, String>, environment: Environment) -> Self {
        Self {
            format: FORMAT,
            recipe,
            environment,
            epoch: 0,
            step: 0,
            total_steps: 0,
            passes: 0,
            sums: Score::default(),
            history: vec![],
            best: None,
            choices: BTreeMap::new(),
        }
    }

    pub fn position(&self) -> Position {
        Position {
            epoch: self.epoch as u32,
            step: self.total_steps,
            epoch_end: self.epoch > 0 && self.step == 0,
        }
    }

    /// Position of the best epoch's checkpoint.
    pub fn best_position(&self) -> Option<Position> {
        let best = self.best.as_ref()?;
        Some(Position { epoch: best.epoch as u32, step: best.total_steps, epoch_end: true })
    }

    /// State and tensors as one checkpoint, with torchvision's `num_batches_tracked` beside the running statistics.
    pub fn to_checkpoint(&self, backend: &dyn Backend, model: &str) -> Result<Checkpoint> {
        let mut tensors: BTreeMap<String, Tensor> =
            backend.state()?.into_iter().map(|(name, tensor)| (name, tensor.into())).collect();
        let norms: Vec<String> =
            tensors.keys().filter_map(|name| name.strip_suffix(".running_mean").map(str::to_owned)).collect();
        for norm in norms {
            tensors.insert(format!("{norm}.num_batches_tracked"), Tensor::i64_scalar(self.passes as i64));
        }
        let state = serde_json::to_string(self).expect("plain fields, no map with keys that are not strings");
        let metadata =
            [(STATE_KEY.to_owned(), state), (super::model_file::MODEL_KEY.to_owned(), model.to_owned())];
        Ok(Checkpoint { tensors, metadata: metadata.into() })
    }

    /// The state of a training checkpoint; `name` is the file's, for messages.
    pub fn from_checkpoint(name: &str, checkpoint: &Checkpoint) -> Result<Self> {
        let text = checkpoint.metadata.get(STATE_KEY).ok_or_else(|| {
            Error::input(format!("{name}: no {STATE_KEY}: weights alone; start from them with --init {name}"))
        })?;
        let version: serde_json::Value = serde_json::from_str(text)
            .map_err(|error| Error::input(format!("{name}: {STATE_KEY}: {error}")))?;
        if version["format"] != FORMAT {
            let found = &version["format"];
            return Err(Error::input(format!("{name}: state format {found}, this engine reads {FORMAT}")));
        }
        serde_json::from_value(version).map_err(|error| Error::input(format!("{name}: {STATE_KEY}: {error}")))
    }
}

/// The f32 tensors of a checkpoint, as a backend takes them.
pub fn named_tensors(checkpoint: Checkpoint) -> NamedTensors {
    let host = |(name, tensor): (String, Tensor)| match tensor.values {
        Values::F32(data) => Some((name, HostTensor { shape: tensor.shape, data })),
        _ => None,
    };
    checkpoint.tensors.into_iter().filter_map(host).collect()
}
