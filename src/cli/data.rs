//! `engine data`.

use super::args::DataCommand;
use crate::data::check::{Oddity, check, info};
use crate::data::synth::{self, SynthOptions};
use crate::data::{Splits, available_workers, batches};
use crate::error::{Error, Result};
use crate::terminal::{answer, message};
use crate::train::images::loader_options;
use std::path::Path;

pub fn run(command: &DataCommand) -> Result<()> {
    match command {
        DataCommand::Synth { output, train_per_class, val_per_class, size, seed } => {
            let options = SynthOptions {
                seed: *seed,
                train_per_class: *train_per_class,
                val_per_class: *val_per_class,
                size: *size,
                ..SynthOptions::default()
            };
            draw(output, &options)
        }
        DataCommand::Check { data } => check_all(data),
        DataCommand::Pack(args) => super::pack::run(args),
        DataCommand::Info { data } => answer(info(&Splits::open(data)?)?),
        DataCommand::Batches { config: args, count, to } => {
            let config = args.load()?;
            let dataset = super::train::open_data(&config, args)?;
            batches::write(&dataset.train, loader_options(&config), *count, to)?;
            message(format!(
                "wrote the first {count} training batches of {} images to {}",
                config.micro_batch(),
                to.display()
            ));
            Ok(())
        }
    }
}

fn draw(folder: &Path, options: &SynthOptions) -> Result<()> {
    let summary = synth::write(folder, options)?;
    message(format!(
        "{}: {} training and {} validation images, {} kB{}",
        summary.folder.display(),
        summary.train_images,
        summary.val_images,
        summary.bytes / 1000,
        if summary.reused { ", as they were" } else { "" }
    ));
    Ok(())
}

fn check_all(data: &Path) -> Result<()> {
    let mut unusable = 0;
    for (name, split) in &Splits::open(data)?.splits {
        let report = check(split, available_workers());
        unusable += report.count(Oddity::Unusable);
        answer(format!("{name}: {report}"))?;
    }
    match unusable {
        0 => Ok(()),
        count => Err(Error::input(format!(
            "{}: {count} files cannot be used, listed above; training would skip them up to data.bad_share",
            data.display()
        ))),
    }
}
