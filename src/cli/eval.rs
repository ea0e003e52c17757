//! `engine eval`.

use super::args::EvalArgs;
use crate::backend::Weights;
use crate::backend::cpu::CpuBackend;
use crate::data::{Class, EvalOptions, Loader, Split, Splits};
use crate::error::{Error, Result};
use crate::terminal::{answer, message};
use crate::train::evaluate::{Evaluation, evaluate};
use crate::train::model_file::Model;
use crate::train::stop::Stop;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

pub fn run(args: &EvalArgs) -> Result<()> {
    let model = Model::read(&args.checkpoint)?;
    let splits = Splits::open(&args.data)?;
    let outputs = outputs_of(&splits.classes, &model).map_err(|reason| {
        let (data, checkpoint) = (args.data.display(), args.checkpoint.display());
        Error::input(format!("{data} and {checkpoint} have different classes: {reason}"))
    })?;
    let resolution = args.resolution.unwrap_or(model.description.resolution);
    let options = EvalOptions::new(model.description.transform(resolution), args.batch.max(1));
    let mut loader = Loader::eval(validation(splits, &args.data)?, options)?;
    let mut backend =
        CpuBackend::for_inference(&model.spec, &model.tensors, resolution, args.threads.threads)?;
    let evaluation = Evaluation { weights: Weights::Live, outputs: Some(&outputs), flip: args.flip };
    let score = evaluate(&mut backend, &mut loader, evaluation, &Stop::default())?;
    for bad in loader.bad() {
        message(format!("warning: left out: {}", bad.message));
    }
    let count = score.count.max(1) as f64;
    let (loss, top1, top5) =
        (score.loss / count, 100.0 * score.top1 as f64 / count, 100.0 * score.top5 as f64 / count);
    if args.json {
        answer(serde_json::json!({
            "images": score.count, "resolution": resolution, "flip": args.flip,
            "val_loss": loss, "val_top1": top1, "val_top5": top5,
        }))
    } else {
        let images = score.count;
        answer(format!(
            "val_loss: {loss:.3}  val_top1: {top1:.2}%  val_top5: {top5:.2}%  images: {images}  at {resolution} px"
        ))
    }
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

/// Which output of the network stands for each class of the data: the one of the same name. Weights without names, such
/// as torchvision's, go by position, and need as many classes as the data have.
fn outputs_of(classes: &[Class], model: &Model) -> std::result::Result<Vec<u32>, String> {
    let names = &model.description.classes;
    let by_name: HashMap<&str, u32> = (0..).zip(names).map(|(index, (id, _))| (id.as_str(), index)).collect();
    let unknown = classes.iter().find(|class| !by_name.contains_key(class.id.as_str()));
    let Some(unknown) = unknown else {
        return Ok(classes.iter().map(|class| by_name[class.id.as_str()]).collect());
    };
    let is_unnamed = names.iter().enumerate().all(|(index, (id, _))| *id == index.to_string());
    match (is_unnamed, classes.len() == names.len()) {
        (true, true) => Ok((0..names.len() as u32).collect()),
        (true, false) => Err(format!(
            "{} in the data, {} without names in the weights; give data with all of the weights' classes",
            classes.len(),
            names.len()
        )),
        (false, _) => Err(format!(
            "the network was not trained on {}; remove it from the data, or give the checkpoint that knows it",
            unknown.id
        )),
    }
}
