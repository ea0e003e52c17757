//! `engine train`.

use super::args::{ConfigArgs, TrainArgs};
use super::device;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::synth::{self, SynthOptions};
use crate::error::{Error, Result};
use crate::terminal::message;
use crate::train::notice;
use crate::train::stop::Stop;
use crate::train::{Resume, TrainOptions, train};
use std::path::{Path, PathBuf};

pub fn run(args: &TrainArgs) -> Result<()> {
    // First of all: a signal while the data are opened also ends in a checkpoint and exit code 75.
    let stop = Stop::on_signals()?;
    notice::watch(&stop);
    let config = args.config.load()?;
    if let (Some(_), Resume::From(path)) = (&args.init, args.resume()) {
        return Err(Error::usage(format!(
            "--init begins a run with the weights of a file, --resume {} goes on with one; give one of the two",
            path.display()
        )));
    }
    device::preflight(args.device)?;
    let dataset = open_data(&config, &args.config)?;
    let (mut backend, environment) = device::open(&config, dataset.classes.len(), args.device)?;
    let options = TrainOptions {
        output: args.config.output.clone(),
        resume: args.resume(),
        init: args.init.clone(),
        stop,
    };
    train(&config, &options, &dataset, backend.as_mut(), environment)
}

/// The data that the configuration names, or the embedded set, written below the output folder.
pub fn open_data(config: &Config, args: &ConfigArgs) -> Result<Dataset> {
    if config.data.path.is_empty() {
        return Dataset::open(&write_synth(config, &args.output)?);
    }
    Dataset::open(Path::new(&config.data.path))
}

fn write_synth(config: &Config, output: &Path) -> Result<PathBuf> {
    let folder = output.join("datasets").join("synth");
    let synth = &config.data.synth;
    let options = SynthOptions {
        train_per_class: synth.train_per_class,
        val_per_class: synth.val_per_class,
        size: synth.size,
        ..SynthOptions::default()
    };
    message(format!("no --data given: taking the embedded synthetic set in {}", folder.display()));
    synth::write(&folder, &options)?;
    Ok(folder)
}
