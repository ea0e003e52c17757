//! What the trainer says of a run as a whole.

use super::images::training_images;
use super::output::Output;
use super::state::RunState;
use crate::config::Config;
use crate::data::{Dataset, JPEG_DECODER};

/// The first line on a terminal.
pub fn opening(config: &Config, dataset: &Dataset, state: &RunState, output: &Output) -> String {
    let at = match state.total_steps {
        0 => String::new(),
        _ => format!(", going on from epoch {}, step {}", state.epoch + 1, state.step),
    };
    format!(
        "{}: {} at {}, {} of {} classes, batch {}, {}, learning rate {}, into {}{at}",
        config.name,
        config.model.arch,
        pixels(config),
        images(config, dataset),
        dataset.classes.len(),
        config.data.batch,
        epochs(config.epochs),
        significant(config.full_lr()),
        output.folder.display(),
    )
}

/// A line or two for the log's section.
pub fn summary(config: &Config, dataset: &Dataset) -> String {
    let (optim, data) = (&config.optim, &config.data);
    format!(
        "{} at {}, {} classes, {}, batch {}, {}, seed {}; {:?} lr {} \
         momentum {} weight decay {}, {:?} schedule after {} epochs of warm-up, label smoothing {}, augmentation {}; \
         decoder {JPEG_DECODER}",
        config.model.arch,
        pixels(config),
        dataset.classes.len(),
        images(config, dataset),
        data.batch,
        epochs(config.epochs),
        config.seed,
        optim.rule,
        significant(config.full_lr()),
        optim.momentum,
        optim.weight_decay,
        config.schedule.kind,
        config.schedule.warmup_epochs,
        config.loss.label_smoothing,
        augmentation(config),
    )
}

fn pixels(config: &Config) -> String {
    match (config.resolution_at(0), config.data.resolution) {
        (first, last) if first == last => format!("{last} px"),
        (first, last) => format!("{first} to {last} px"),
    }
}

/// The policy and what goes with it.
fn augmentation(config: &Config) -> String {
    let (augment, data) = (&config.augment, &config.data);
    let mut words = augment.auto.to_string();
    if augment.color_jitter != [0.0; 4] {
        words += &format!(", jitter {:?}", augment.color_jitter);
    }
    if augment.erase > 0.0 {
        words += &format!(", erasing {}", augment.erase);
    }
    if data.repeats > 1 {
        words += &format!(", {} copies of an image", data.repeats);
    }
    words
}

fn images(config: &Config, dataset: &Dataset) -> String {
    let (used, all, val) = (training_images(config, dataset), dataset.train.len(), dataset.val.len());
    let of_all = if used < all { format!(" of {all}") } else { String::new() };
    format!("{used}{of_all} training and {val} validation images")
}

fn epochs(count: usize) -> String {
    format!("{count} epoch{}", if count == 1 { "" } else { "s" })
}

/// Four digits are enough to know a rate by.
fn significant(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

pub fn finished(state: &RunState, output: &Output) -> String {
    let best = state.best.as_ref().map_or(String::new(), |best| {
        format!("; best val_top1 {:.2}% after epoch {}", best.top1, best.epoch)
    });
    let folder = output.checkpoints();
    format!("finished: {}{best}; checkpoints in {}", epochs(state.epoch), folder.display())
}
