//! `engine data`.

use super::args::DataCommand;
use crate::data::synth::{self, SynthOptions};
use crate::error::Result;

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
            let summary = synth::write(output, &options)?;
            eprintln!("{}: {} training and {} validation images", summary.folder.display(), summary.train_images, summary.val_images);
            Ok(())
        }
        _ => Ok(()),
    }
}
