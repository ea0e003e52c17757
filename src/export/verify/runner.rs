//! What runs a written file.

use super::images::BATCH;
use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Weights};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::export::onnx::Session;
use crate::infer::file::layout::MODEL_KEY;
use crate::infer::file::{Description, ModelFile};
use crate::infer::reference::normalise;
use crate::infer::weights::Normalisation;
use crate::infer::{Options, Precision, Program};
use crate::train::model_file::Model;
use std::path::Path;

pub enum Runner {
    /// A state dict on the CPU backend.
    Weights(Box<CpuBackend>),
    /// A model file on the inference program.
    Program(Box<Program>),
    /// An ONNX file, node by node.
    Onnx { session: Box<Session>, normalisation: Normalisation, side: usize },
}

impl Runner {
    pub fn weights(model: &Model, threads: usize) -> Result<Self> {
        let resolution = model.description.resolution;
        let backend = CpuBackend::for_inference(&model.spec, &model.tensors, resolution, threads)?;
        Ok(Self::Weights(Box::new(backend)))
    }

    /// A safetensors or .pth file, which has to describe itself as `original` does.
    pub fn state_dict(path: &Path, original: &Model, threads: usize) -> Result<Self> {
        let model = Model::read(path)?;
        if (model.spec, &model.description) != (original.spec, &original.description) {
            return Err(Error::failed(format!(
                "what was written describes another network than the checkpoint: {:?}; this is a bug in engine",
                model.description
            )));
        }
        Self::weights(&model, threads)
    }

    pub fn program(file: &ModelFile, precision: Precision, threads: usize) -> Result<Self> {
        let Description { mean, std, .. } = *file.description();
        let options = Options { threads, batch: BATCH, ..Options::new(precision, mean, std) };
        Ok(Self::Program(Box::new(Program::compile(file.graph(), file, &options)?)))
    }

    pub fn onnx(path: &Path, threads: usize) -> Result<Self> {
        let session = Session::open(path, threads)?;
        let text = session.metadata(MODEL_KEY).unwrap_or_default();
        let description = Description::parse(text).map_err(|reason| Error::input_file(path, reason))?;
        let (normalisation, side) = (description.normalisation(), description.resolution);
        Ok(Self::Onnx { session: Box::new(session), normalisation, side })
    }

    /// f32 [n][classes].
    pub fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        match self {
            Self::Weights(backend) => Ok(backend.eval_batch(batch, Weights::Live)?.data),
            Self::Program(program) => Ok(program.run(&batch.images)?.to_vec()),
            Self::Onnx { session, normalisation, side } => {
                session.run(normalise(&batch.images, normalisation), *side)
            }
        }
    }
}
