//! `engine eval`.

use super::args::EvalArgs;
use crate::backend::cpu::CpuBackend;
use crate::data::{EvalOptions, Loader, Split, Splits};
use crate::error::{Error, Result};
use crate::terminal::{answer, message};
use crate::train::evaluate::evaluate;
use crate::train::model_file::{Model, outputs_of};
use crate::train::stop::Stop;
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
    let score = evaluate(&mut backend, &mut loader, Some(&outputs), args.flip, &Stop::default())?;
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
