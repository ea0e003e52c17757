//! Which pictures a checkpoint and its exports are compared on.

use crate::config::{Overrides, load};
use crate::data::index::unlabelled;
use crate::data::synth::{self, SynthOptions};
use crate::data::{Batch, EvalOptions, EvalTransform, Loader, Split, Splits};
use crate::error::{Error, Result};
use crate::train::model_file::{Model, outputs_of};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images in one pass.
pub const BATCH: usize = 16;

/// Pictures, prepared as the model's validation images were.
pub struct Pictures {
    /// What a person calls them: `DIR (val)`.
    pub name: String,
    split: Arc<Split>,
    transform: EvalTransform,
    /// How many are used, of a fixed shuffle; 0: all of them.
    limit: usize,
    /// By label: the logit that stands for it.
    outputs: Option<Vec<u32>>,
    /// Why there are no labels.
    pub unlabelled: Option<String>,
}

impl Pictures {
    /// The validation half of `path`, all of it where it is not divided, or the images that lie in the folder itself.
    pub fn open(path: &Path, model: &Model, limit: usize) -> Result<Self> {
        let resolution = model.description.resolution;
        let mut pictures = Self {
            name: path.display().to_string(),
            split: Arc::default(),
            transform: model.description.transform(resolution),
            limit,
            outputs: None,
            unlabelled: None,
        };
        // A folder that holds images itself has no classes.
        if path.is_dir() && Splits::open(path).is_err() {
            pictures.split = unlabelled(path)?;
            pictures.unlabelled = Some("they lie in no class folders".into());
            return Ok(pictures);
        }
        let Splits { mut splits, classes } = Splits::open(path)?;
        let (half, split) = splits.pop().ok_or_else(|| Error::input_file(path, "has no images"))?;
        pictures.name = format!("{} ({half})", pictures.name);
        pictures.split = split;
        match outputs_of(&classes, model) {
            Ok(outputs) => pictures.outputs = Some(outputs),
            Err(reason) => pictures.unlabelled = Some(reason),
        }
        Ok(pictures)
    }

    /// Where no pictures are given: those that the run of `checkpoint` was validated on, if its folder names them and they
    /// are there, else the embedded set, drawn anew.
    pub fn of_run(checkpoint: &Path, model: &Model, limit: usize) -> Result<(Self, Option<Temporary>)> {
        if let Some(path) = data_of_run(checkpoint)
            && let Ok(pictures) = Self::open(&path, model, limit)
        {
            return Ok((pictures, None));
        }
        let folder = Temporary::new()?;
        // 200 pictures, drawn in a second: enough to show a wrong file.
        let options = SynthOptions { train_per_class: 1, val_per_class: 20, ..SynthOptions::default() };
        let drawn = folder.path.join("synth");
        synth::write(&drawn, &options)?;
        let mut pictures = Self::open(&drawn, model, limit)?;
        pictures.name = "the embedded synthetic set".into();
        Ok((pictures, Some(folder)))
    }

    pub fn is_labelled(&self) -> bool {
        self.outputs.is_some()
    }

    /// The pictures in order, with the labels of their own data.
    pub fn loader(&self) -> Result<Loader> {
        let options = EvalOptions { limit: self.limit, ..EvalOptions::new(self.transform, BATCH) };
        Loader::eval(Arc::clone(&self.split), options)
    }

    /// Labels become numbers of logits, 0 where there are none.
    pub fn relabel(&self, batch: &mut Batch) {
        let output = |label: u32| self.outputs.as_ref().map_or(0, |outputs| outputs[label as usize]);
        batch.labels.iter_mut().for_each(|label| *label = output(*label));
    }
}

/// A checkpoint lies in `RUN/checkpoints/`, and `RUN/config.toml` says what the run read: a path, or nothing for the
/// embedded set, which was drawn below the run.
fn data_of_run(checkpoint: &Path) -> Option<PathBuf> {
    let run = checkpoint.canonicalize().ok()?.parent()?.parent()?.to_owned();
    let config = load(Some(&run.join("config.toml")), &Overrides::default()).ok()?;
    let path = match config.data.path.as_str() {
        "" => run.join("datasets").join("synth"),
        path => PathBuf::from(path),
    };
    path.exists().then_some(path)
}

/// A folder that goes when this does.
pub struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("engine-verify-{}", std::process::id()));
        // What a killed process of the same number left.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(|error| Error::output_file(&path, "create", &error))?;
        Ok(Self { path })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is in a folder that the system clears.
        let _ = fs::remove_dir_all(&self.path);
    }
}
