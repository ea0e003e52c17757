//! `engine eval`.

use super::args::EvalArgs;
use super::device::{self, Device};
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Weights};
use crate::checkpoint::read_weights;
use crate::config::Config;
use crate::data::{Split, Splits};
use crate::error::{Error, Result};
use crate::log::Scores;
use crate::terminal::{answer, message};
use crate::train::evaluate::in_percent;
use crate::train::model_file::{Model, outputs_of};
use crate::train::stop::Stop;
use crate::train::sweep::{Contender, RealLabels, Row, Sweep, View};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

pub fn run(args: &EvalArgs) -> Result<()> {
    let models = models(args)?;
    let model = &models[0].1;
    let splits = Splits::open(&args.data)?;
    let outputs = outputs_of(&splits.classes, model).map_err(|reason| {
        let (data, checkpoint) = (args.data.display(), args.checkpoint.display());
        Error::input(format!("{data} and {checkpoint} have different classes: {reason}"))
    })?;
    let classes = splits.classes.len();
    let split = validation(splits, &args.data)?;
    let real = args.real.as_deref().map(RealLabels::read).transpose()?;
    if let Some(real) = &real {
        real.check(&split, classes)?;
    }
    let views = views(args, model);
    let sweep = Sweep {
        split: &split,
        interpolation: model.description.interpolation,
        batch: args.batch.max(1),
        outputs: &outputs,
        flip: args.flip,
        real: real.as_ref(),
    };
    let first = views[0].resolution;
    let mut contenders = models
        .iter()
        .map(|(name, model)| Ok(Contender { name, backend: backend(args, model, first)? }))
        .collect::<Result<Vec<_>>>()?;
    let (mut rows, mut named) = (vec![], BTreeSet::new());
    for &view in &views {
        let (found, bad) = sweep.run(view, &mut contenders, &Stop::default())?;
        for bad in bad {
            if named.insert(bad.sample) {
                message(format!("warning: left out: {}", bad.message));
            }
        }
        if views.len() > 1 {
            message(format!("{} px, crop ratio {}: done", view.resolution, view.crop_ratio));
        }
        rows.extend(found);
    }
    if args.sweep.is_empty() { answer_one(args, &rows) } else { answer_table(args, &rows) }
}

/// The networks that are asked for: the weights, their averages, or for a sweep both where they are there.
fn models(args: &EvalArgs) -> Result<Vec<(&'static str, Model)>> {
    let (path, wanted) = (&args.checkpoint, args.weights.wanted());
    let checkpoint = read_weights(path)?;
    let wants_both = !args.sweep.is_empty() && wanted.is_none();
    // A copy in memory costs less than reading and verifying the file once more.
    let plain = || Model::from_checkpoint(path, checkpoint.clone(), Some(Weights::Live));
    let plain = wants_both.then(plain).transpose()?;
    let model = Model::from_checkpoint(path, checkpoint, wanted)?;
    let is_averaged = model.weights == Weights::Averaged;
    let name = if is_averaged { "ema" } else { "plain" };
    let plain = plain.filter(|_| is_averaged).map(|plain| ("plain", plain));
    Ok(plain.into_iter().chain([(name, model)]).collect())
}

fn views(args: &EvalArgs, model: &Model) -> Vec<View> {
    let or = |given: &[f64], default: f64| if given.is_empty() { vec![default] } else { given.to_vec() };
    let ratios = or(&args.crop_ratio, model.description.crop_ratio);
    let resolutions = match (&args.sweep[..], args.resolution) {
        ([], resolution) => vec![resolution.unwrap_or(model.description.resolution)],
        (sweep, _) => sweep.to_vec(),
    };
    let at = |resolution| ratios.iter().map(move |&crop_ratio| View { resolution, crop_ratio });
    resolutions.into_iter().flat_map(at).collect()
}

fn backend(args: &EvalArgs, model: &Model, resolution: usize) -> Result<Box<dyn Backend>> {
    let on_cpu = || -> Result<Box<dyn Backend>> {
        let (spec, tensors) = (&model.spec, &model.tensors);
        Ok(Box::new(CpuBackend::for_inference(spec, tensors, resolution, args.threads.threads)?))
    };
    if args.device == Device::Cpu {
        return on_cpu();
    }
    let mut config = Config::default();
    config.model.arch = model.spec.name.to_owned();
    (config.data.resolution, config.data.batch) = (resolution, args.batch.max(1));
    config.device.threads = args.threads.threads;
    let (mut backend, environment) = device::open(&config, model.spec.classes, args.device)?;
    if environment.device == "cpu" {
        return on_cpu();
    }
    backend.load_state(&model.tensors).map_err(|error| error.within(args.checkpoint.display()))?;
    Ok(backend)
}

/// Mean loss, and top-1 and top-5 in percent.
fn figures(row: &Row) -> [f64; 3] {
    let Scores { loss, top1, top5 } = in_percent(row.score);
    [loss, top1, top5]
}

fn json(row: &Row) -> serde_json::Value {
    let [loss, top1, top5] = figures(row);
    let mut object = serde_json::json!({
        "images": row.score.count, "resolution": row.view.resolution, "crop_ratio": row.view.crop_ratio,
        "weights": row.weights, "flip": row.flip, "val_loss": loss, "val_top1": top1, "val_top5": top5,
    });
    if let Some(real) = row.real {
        object["real_top1"] = real.percent().into();
        object["real_images"] = real.count.into();
    }
    object
}

/// A line for each of the weights: mirrored where that was asked for.
fn answer_one(args: &EvalArgs, rows: &[Row]) -> Result<()> {
    for row in rows.iter().filter(|row| row.flip == args.flip) {
        if args.json {
            answer(json(row))?;
            continue;
        }
        let [loss, top1, top5] = figures(row);
        let images = row.score.count;
        let real = row.real.map_or(String::new(), |real| format!("  real_top1: {:.2}%", real.percent()));
        let weights = if row.weights == "ema" { ", moving averages" } else { "" };
        answer(format!(
            "val_loss: {loss:.3}  val_top1: {top1:.2}%  val_top5: {top5:.2}%{real}  images: {images}  at {} px{weights}",
            row.view.resolution
        ))?;
    }
    Ok(())
}

/// Columns of one width, as Markdown; the best top-1 is told below.
fn answer_table(args: &EvalArgs, rows: &[Row]) -> Result<()> {
    if args.json {
        return answer(serde_json::json!({"rows": rows.iter().map(json).collect::<Vec<_>>()}));
    }
    let has_real = rows.iter().any(|row| row.real.is_some());
    let real = |text: String| if has_real { text } else { String::new() };
    answer(format!(
        "|  px | crop  | weights | mirrored | val_loss |  top-1 |  top-5 |{}",
        real("   ReaL |".into())
    ))?;
    answer(format!(
        "|----:|------:|---------|----------|---------:|-------:|-------:|{}",
        real("-------:|".into())
    ))?;
    for row in rows {
        let [loss, top1, top5] = figures(row);
        let (View { resolution, crop_ratio }, weights) = (row.view, row.weights);
        let mirrored = if row.flip { "mean" } else { "no" };
        let real = real(row.real.map_or(String::new(), |real| format!(" {:6.2} |", real.percent())));
        answer(format!(
            "| {resolution:3} | {crop_ratio:<5} | {weights:7} | {mirrored:8} | {loss:8.3} | {top1:6.2} | {top5:6.2} |{real}"
        ))?;
    }
    let best = rows.iter().rev().max_by_key(|row| row.score.top1);
    best.map_or(Ok(()), |row| {
        answer(format!(
            "best: {:.2} % at {} px, crop ratio {}, {} weights{}, of {} images",
            figures(row)[1],
            row.view.resolution,
            row.view.crop_ratio,
            row.weights,
            if row.flip { ", mirrored as well" } else { "" },
            row.score.count
        ))
    })
}

/// The validation half, or everything where the data are not divided.
fn validation(splits: Splits, data: &Path) -> Result<Arc<Split>> {
    let found = splits.splits.into_iter().find(|(name, _)| name != "train");
    found.map(|(_, split)| split).ok_or_else(|| {
        Error::input_file(
            data,
            "has training images only; expected val/<class>/ folders or val*.tar beside them",
        )
    })
}
