//! `engine predict`.

use super::args::PredictArgs;
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Weights};
use crate::classify::{one_of, print};
use crate::data::picture::read_picture;
use crate::data::{Batch, Preprocessor, Reading};
use crate::error::{Error, Result};
use crate::infer::top::top;
use crate::train::model_file::Model;
use std::path::Path;

pub fn run(args: &PredictArgs) -> Result<()> {
    let model = Model::read_as(&args.checkpoint, args.weights.wanted())?;
    let description = &model.description;
    let transform = description.transform(description.resolution);
    let mut preprocessor = Preprocessor::new(transform, Reading::Photograph);
    let threads = args.threads.threads;
    let mut backend =
        CpuBackend::for_inference(&model.spec, &model.tensors, description.resolution, threads)?;
    let mut failures = vec![];
    for path in &args.images {
        // One bad picture does not keep the others from their answer.
        match read_image(path, &mut preprocessor) {
            Ok(batch) => {
                let logits = backend.eval_batch(&batch, Weights::Live)?;
                let label = |index: usize| description.classes[index].1.as_str();
                print(path, &top(&logits.data, label, args.top), args.json)?;
            }
            Err(error) => failures.push(error),
        }
    }
    one_of(failures, args.images.len())
}

fn read_image(path: &Path, preprocessor: &mut Preprocessor) -> Result<Batch> {
    let mut bytes = read_picture(path)?;
    let resolution = preprocessor.transform.crop;
    let mut images = vec![0; resolution * resolution * 3];
    preprocessor.run(&mut bytes, &mut images).map_err(|reason| Error::input_file(path, reason))?;
    Ok(Batch { images, labels: vec![0], samples: vec![0], resolution, ..Batch::default() })
}
