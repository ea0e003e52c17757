//! What the trainer says of a run as a whole.

use super::images::training_images;
use super::output::Output;
use super::state::RunState;
use crate::backend::Score;
use crate::checkpoint::Store;
use crate::config::{Config, LossKind, RuleKind};
use crate::data::{Dataset, JPEG_DECODER};

/// The first line on a terminal.
pub fn opening(config: &Config, dataset: &Dataset, state: &RunState, output: &Output) -> String {
    let at = match state.total_steps {
        0 => String::new(),
        _ => format!(", going on from epoch {}, step {}", state.epoch + 1, state.step),
    };
    format!(
        "{}: {} at {}, {} of {} classes, batch {}, {}, learning rate {}{}{}, into {}{at}",
        config.name,
        config.model.arch,
        pixels(config),
        images(config, dataset),
        dataset.classes.len(),
        config.data.batch,
        epochs(config.epochs),
        significant(config.full_lr()),
        scaling(config),
        frozen(config),
        output.folder.display(),
    )
}

/// A line or two for the log's section.
pub fn summary(config: &Config, dataset: &Dataset) -> String {
    let data = &config.data;
    format!(
        "{} at {}, {} classes, {}, batch {}, {}, seed {}; {}, {:?} schedule after {} epochs of warm-up{}, augmentation {}; decoder \
         {JPEG_DECODER}",
        config.model.arch,
        pixels(config),
        dataset.classes.len(),
        images(config, dataset),
        data.batch,
        epochs(config.epochs),
        config.seed,
        rule(config),
        config.schedule.kind,
        config.schedule.warmup_epochs,
        regularisation(config),
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

fn rule(config: &Config) -> String {
    let optim = &config.optim;
    let lr = significant(config.full_lr());
    let momentum = match optim.rule {
        RuleKind::Lamb => format!("betas {} {}", optim.betas[0], optim.betas[1]),
        RuleKind::Sgd | RuleKind::Lars => format!("momentum {}", optim.momentum),
    };
    format!("{:?} lr {lr} {momentum} weight decay {}{}", optim.rule, optim.weight_decay, frozen(config))
}

fn frozen(config: &Config) -> String {
    match config.optim.freeze.as_str() {
        "" => String::new(),
        parts => format!(", frozen: {parts}"),
    }
}

/// Loss, mixing and whatever else is on.
fn regularisation(config: &Config) -> String {
    let Config { loss, mix, model, ema, optim, .. } = config;
    let is_on = [
        (loss.kind == LossKind::Bce, format!("binary cross-entropy, {:?} over classes", loss.reduction)),
        (loss.target_threshold > 0.0, format!("targets above {}", loss.target_threshold)),
        (true, format!("label smoothing {}", loss.label_smoothing)),
        (mix.mixup > 0.0, format!("mixup {}", mix.mixup)),
        (mix.cutmix > 0.0, format!("cutmix {}", mix.cutmix)),
        (model.drop_path > 0.0, format!("drop path {}", model.drop_path)),
        (optim.clip_norm > 0.0, format!("gradients cut to a norm of {}", optim.clip_norm)),
        (
            ema.is_on(),
            format!("validated on moving averages of decay {} every {} steps", ema.decay, ema.every),
        ),
    ];
    is_on.into_iter().filter(|(on, _)| *on).map(|(_, words)| format!(", {words}")).collect()
}

fn images(config: &Config, dataset: &Dataset) -> String {
    let (used, all, val) = (training_images(config, dataset), dataset.train.len(), dataset.val.len());
    let of_all = if used < all { format!(" of {all}") } else { String::new() };
    format!("{used}{of_all} training and {val} validation images")
}

fn epochs(count: usize) -> String {
    format!("{count} epoch{}", if count == 1 { "" } else { "s" })
}

/// Where the rate comes from, if it is scaled to the batch.
fn scaling(config: &Config) -> String {
    let (optim, batch) = (&config.optim, config.data.batch);
    match optim.lr_per {
        0 => String::new(),
        per if per == batch => String::new(),
        per => format!(" ({} for {per} images, scaled to {batch})", optim.lr),
    }
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

/// A loss that is no number any more.
pub fn diverged(store: &Store, place: &str, score: Score, fault: &str) -> String {
    let last = store.newest().ok().and_then(|search| search.found);
    let kept = last.map_or("there is no checkpoint yet".to_owned(), |found| {
        format!("the last good checkpoint is {}", found.path.display())
    });
    format!(
        "{place}: the loss is {} ({fault}); {kept}; a lower optim.lr or a longer schedule.warmup_epochs may help, in another \
         --output or with --resume none",
        score.loss / score.count.max(1) as f64,
    )
}

/// What is left of a run whose device is lost.
pub fn what_is_kept(store: &Store, total_steps: u64) -> String {
    let kept = match store.newest().ok().and_then(|search| search.found) {
        Some(found) => {
            let lost = total_steps.saturating_sub(found.at.step);
            format!("{} is whole, steps lost since: {lost}", found.path.display())
        }
        None => format!("there is no checkpoint yet, steps lost: {total_steps}"),
    };
    format!("{kept}; run the same command again to go on from there")
}
