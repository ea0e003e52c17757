//! `engine predict`.

use super::args::PredictArgs;
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::data::{Batch, EvalTransform, Limits};
use crate::error::{Error, Result};
use crate::terminal::{answer, message};
use crate::train::model_file::Model;
use std::path::Path;

/// One class with its softmax probability.
#[derive(serde::Serialize)]
struct Prediction<'a> {
    index: usize,
    label: &'a str,
    probability: f64,
}

pub fn run(args: &PredictArgs) -> Result<()> {
    let model = Model::read(&args.checkpoint)?;
    let description = &model.description;
    let transform = description.transform(description.resolution);
    let threads = args.threads.threads;
    let mut backend =
        CpuBackend::for_inference(&model.spec, &model.tensors, description.resolution, threads)?;
    let mut failures = vec![];
    for path in &args.images {
        // One bad picture does not keep the others from their answer.
        match read_image(path, &transform) {
            Ok(batch) => {
                let logits = backend.eval_batch(&batch)?;
                print(args, path, &best(&logits.data, &model, args.top))?;
            }
            Err(error) => failures.push(error),
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        count => {
            failures.iter().for_each(|error| message(format!("warning: {error}")));
            let all = args.images.len();
            Err(Error::input(format!("{count} of {all} pictures could not be read; they are named above")))
        }
    }
}

fn read_image(path: &Path, transform: &EvalTransform) -> Result<Batch> {
    let bytes = std::fs::read(path)
        .map_err(|error| Error::unreadable(path, &error, "a JPEG, PNG or WebP picture"))?;
    let images = transform.apply(&bytes, &path.display().to_string(), Limits::default())?;
    Ok(Batch { images, labels: vec![0], samples: vec![0], resolution: transform.crop })
}

/// The `top` largest of the softmax, largest first, the first of equals first.
fn best<'m>(logits: &[f32], model: &'m Model, top: usize) -> Vec<Prediction<'m>> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| exps[b].total_cmp(&exps[a]));
    let prediction = |index: usize| Prediction {
        index,
        label: &model.description.classes[index].1,
        probability: exps[index] / sum,
    };
    order.into_iter().take(top).map(prediction).collect()
}

fn print(args: &PredictArgs, path: &Path, predictions: &[Prediction]) -> Result<()> {
    let file = path.display().to_string();
    if args.json {
        return answer(serde_json::json!({ "file": file, "predictions": predictions }));
    }
    answer(file)?;
    predictions.iter().try_for_each(|Prediction { index, label, probability }| {
        answer(format!("  {:6.2}%  {label} ({index})", 100.0 * probability))
    })
}
