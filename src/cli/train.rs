//! `engine train`.

use super::args::{ConfigArgs, TrainArgs};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::config::Config;
use crate::data::synth::{self, SynthOptions};
use crate::data::{Dataset, JPEG_DECODER};
use crate::error::{Error, Result};
use crate::model::spec::ResNetSpec;
use crate::simd::isa::Isa;
use crate::terminal::message;
use crate::train::state::Environment;
use crate::train::stop::Stop;
use crate::train::{Resume, TrainOptions, train};
use std::path::{Path, PathBuf};

pub fn run(args: &TrainArgs) -> Result<()> {
    // First of all: a signal while the data are opened also ends in a checkpoint and exit code 75.
    let stop = Stop::on_signals()?;
    let config = args.config.load()?;
    if let (Some(_), Resume::From(path)) = (&args.init, args.resume()) {
        return Err(Error::usage(format!(
            "--init begins a run with the weights of a file, --resume {} goes on with one; give one of the two",
            path.display()
        )));
    }
    let dataset = open_data(&config, &args.config)?;
    let mut backend = CpuBackend::new(&cpu_options(&config, &dataset))?;
    let options = TrainOptions {
        output: args.config.output.clone(),
        resume: args.resume(),
        init: args.init.clone(),
        stop,
    };
    train(&config, &options, &dataset, &mut backend, environment())
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

fn cpu_options(config: &Config, dataset: &Dataset) -> CpuOptions {
    let spec = ResNetSpec::named(&config.model.arch).expect("the configuration is validated");
    CpuOptions {
        spec: spec.with_classes(dataset.classes.len()),
        resolution: config.data.resolution,
        seed: config.seed,
        zero_gamma: config.model.zero_gamma,
        decay: config.optim.decay,
        threads: config.device.threads,
        isa: Isa::current(),
    }
}

fn environment() -> Environment {
    Environment {
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        device: "cpu".to_owned(),
        isa: Isa::current().name().to_owned(),
        decoder: JPEG_DECODER.to_owned(),
    }
}
