//! `engine eval`.

use super::args::EvalArgs;
use crate::backend::cpu::CpuBackend;
use crate::data::{Dataset, EvalOptions, EvalTransform, Loader};
use crate::error::{Error, Result};
use crate::train::evaluate::evaluate;
use crate::train::model_file::Model;
use crate::train::stop::Stop;
use std::sync::Arc;

pub fn run(args: &EvalArgs) -> Result<()> {
    let model = Model::read(&args.checkpoint)?;
    let dataset = Dataset::open(&args.data)?;
    let classes = dataset.classes.len();
    if classes > model.spec.classes {
        return Err(Error::input(format!(
            "{} has {classes} classes, {} tells {} apart",
            args.data.display(),
            args.checkpoint.display(),
            model.spec.classes
        )));
    }
    let resolution = args.resolution.unwrap_or(model.description.resolution);
    let transform = EvalTransform {
        resize: (resolution as f64 / model.description.crop_ratio).round() as usize,
        crop: resolution,
        interpolation: model.description.interpolation,
    };
    let options = EvalOptions::new(transform, args.batch.max(1));
    let mut loader = Loader::eval(Arc::clone(&dataset.val), options)?;
    let mut backend =
        CpuBackend::for_inference(&model.spec, &model.tensors, resolution, args.threads.threads)?;
    let score = evaluate(&mut backend, &mut loader, args.flip, &Stop::default())?;
    for bad in loader.bad() {
        eprintln!("warning: left out: {}", bad.message);
    }
    let count = score.count.max(1) as f64;
    let (loss, top1, top5) =
        (score.loss / count, 100.0 * score.top1 as f64 / count, 100.0 * score.top5 as f64 / count);
    if args.json {
        let answer = serde_json::json!({
            "images": score.count, "resolution": resolution, "flip": args.flip,
            "val_loss": loss, "val_top1": top1, "val_top5": top5,
        });
        println!("{answer}");
    } else {
        let images = score.count;
        println!(
            "val_loss: {loss:.3}  val_top1: {top1:.2}%  val_top5: {top5:.2}%  images: {images}  at {resolution} px"
        );
    }
    Ok(())
}
