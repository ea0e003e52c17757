//! `engine train`.

use super::args::TrainArgs;
use super::config::ConfigArgs;
use super::device;
use crate::backend::Backend;
use crate::comm::{self, Occasion, Ranks, World};
use crate::config::{Config, changes};
use crate::data::Dataset;
use crate::data::synth::{self, SynthOptions};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::leave::leave_silently;
use crate::log::rate_plot::plot_rates;
use crate::terminal::{answer, message, set_rank};
use crate::train::lr_find::{Range, lr_find};
use crate::train::notice;
use crate::train::stop::Stop;
use crate::train::{TrainOptions, train};
use std::path::{Path, PathBuf};

pub fn run(args: &TrainArgs) -> Result<()> {
    // First of all: a signal while the data are opened also ends in a checkpoint and exit code 75.
    let stop = Stop::on_signals()?;
    let mut config = args.config.load()?;
    let world = World::from_environment()?;
    set_rank(world.rank);
    args.begin.check(&config)?;
    if let Some(file) = &args.config.config {
        let changes = changes(file, &config)?;
        if !changes.is_empty() && world.rank == 0 {
            message(format!("not the recipe of {}: {}", file.display(), changes.join("; ")));
        }
    }
    device::preflight(args.device, &config)?;
    device::check_ranks(&config, args.device, &world)?;
    if args.lr_find.is_some() && !world.is_alone() {
        return Err(Error::usage("--lr-find runs on one rank: start it without a launcher"));
    }
    if world.local_rank == 0 {
        notice::watch(&stop);
    }
    device::share_cores(&mut config, &world);
    if world.is_alone() {
        return train_among(args, &config, stop, &world, &comm::alone());
    }
    let ranks = comm::open(&world)?;
    let outcome = train_among(args, &config, stop, &world, &ranks);
    if let Err(error) = &outcome
        && error.kind != Kind::Stopped
    {
        // What talks to the other ranks waits for them when it is taken apart, and they may be gone.
        message(format!("engine: {error}"));
        leave_silently(error.exit_code());
    }
    outcome
}

fn train_among(args: &TrainArgs, config: &Config, stop: Stop, world: &World, ranks: &Ranks) -> Result<()> {
    // Rank 0 draws the embedded set, if it is that, before the others look for it.
    let occasion = Occasion::slow("data");
    if world.rank > 0 {
        ranks.barrier(occasion)?;
    }
    let dataset = open_data(config, &args.config)?;
    if world.rank == 0 {
        ranks.barrier(occasion)?;
    }
    let (mut backend, environment) =
        device::open_among(config, dataset.classes.len(), args.device, world, ranks)?;
    if let Some(steps) = args.lr_find {
        return find_rate(args, config, &dataset, backend.as_mut(), steps as usize, &stop);
    }
    let options = TrainOptions {
        output: args.config.output.clone(),
        resume: args.begin.resume(),
        init: args.begin.init(),
        stop,
        ranks: Ranks::clone(ranks),
    };
    train(config, &options, &dataset, backend.as_mut(), environment)
}

/// The range test: a picture and a suggestion. The output folder's logs and checkpoints are not looked at.
fn find_rate(
    args: &TrainArgs,
    config: &Config,
    dataset: &Dataset,
    backend: &mut dyn Backend,
    steps: usize,
    stop: &Stop,
) -> Result<()> {
    if let Some(init) = args.begin.init() {
        init.load(backend)?;
    }
    let range = Range { low: args.lr_range[0], high: args.lr_range[1], steps };
    message(format!(
        "{steps} steps of {} images, at rates from {} to {}",
        config.data.batch, range.low, range.high
    ));
    let found = lr_find(config, dataset, backend, &range, stop)?;
    let path = args.config.output.join("lr_find.svg");
    let title = format!("{}: loss by learning rate, batch {}", config.name, config.data.batch);
    files::create_folder(&args.config.output)?;
    let picture = plot_rates(&title, &found.points, found.suggested);
    files::write_bytes_atomically("lr_find", &path, picture.as_bytes())?;
    let per = match config.optim.lr_per {
        0 => String::new(),
        per => format!(
            ", which is optim.lr = {:.3e} with optim.lr_per = {per}",
            found.suggested * per as f64 / config.data.batch as f64
        ),
    };
    answer(format!(
        "suggested rate of the whole batch: {:.3e}{per}\nlowest loss at {:.3e}, steepest fall at {:.3e}, {} steps; {}",
        found.suggested,
        found.lowest,
        found.steepest,
        found.points.len(),
        path.display()
    ))
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
