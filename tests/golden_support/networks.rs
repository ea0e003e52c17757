//! One training pass of each network.

use super::formula;
use super::record::{self, Summaries};
use super::report::{BACKWARD_LIMIT, FORWARD_LIMIT, Report};
use engine::backend::cpu::{CpuBackend, CpuOptions};
use engine::backend::{Backend, Extras, Outcome, Step, Weights};
use engine::config::Decay;
use engine::model::graph::lower;
use engine::model::spec::ResNetSpec;
use engine::optim::sgd::Sgd;
use engine::simd::isa::Isa;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct TrainingPass {
    pub arch: String,
    pub case: String,
    pub resolution: usize,
    pub batch: usize,
    pub label_smoothing: f32,
    labels: Vec<u32>,
    loss: f64,
    loss_f32: f64,
    logits: Vec<f64>,
    logits_f32: f64,
    pub eval_logits: Vec<f64>,
    eval_logits_f32: f64,
    gradients: Summaries,
    buffers: Summaries,
    activations: Summaries,
}

/// Changes no weight, so that evaluation after the step sees the recorded ones.
pub const STILL: Sgd = Sgd { lr: 0.0, momentum: 0.0, nesterov: false, weight_decay: 0.0 };

/// With the formula's weights.
pub fn backend(spec: ResNetSpec, resolution: usize, threads: usize, isa: Isa) -> CpuBackend {
    let (seed, zero_gamma, decay) = (0, false, Decay::Weights);
    let extras = Extras::default();
    let mut backend =
        CpuBackend::new(&CpuOptions { spec, resolution, seed, zero_gamma, decay, extras, threads, isa })
            .unwrap();
    backend.load_state(&formula::state(&lower(&spec, resolution).unwrap())).unwrap();
    backend
}

/// A whole optimiser step in one pass.
pub fn train(
    backend: &mut CpuBackend,
    batch: &engine::data::Batch,
    sgd: Sgd,
    label_smoothing: f32,
) -> Outcome {
    backend.submit(batch, &Step::plain(0, 1, sgd, label_smoothing)).unwrap();
    backend.poll().unwrap().expect("the CPU backend is done when submit returns")
}

fn check(name: &str, isa: Isa) {
    let pass: TrainingPass = record::read(name);
    let spec = ResNetSpec::named(&pass.arch).unwrap();
    let batch = formula::batch(&pass.case, pass.batch, pass.resolution, spec.classes);
    assert_eq!(batch.labels, pass.labels);
    let mut backend = backend(spec, pass.resolution, 2, isa);
    backend.keep_activations();
    let outcome = train(&mut backend, &batch, STILL, pass.label_smoothing);
    assert_eq!((outcome.fault, outcome.score.count), (None, pass.batch as u64));
    let read = |name: &str| backend.read(name).ok().map(|tensor| tensor.data);

    let mut report = Report::new(format!("{name}, {}", isa.name()));
    let loss = (outcome.score.loss / pass.batch as f64) as f32;
    report.values("loss", &[loss], &[pass.loss], pass.loss_f32, FORWARD_LIMIT);
    report.values("logits", &read("fc").unwrap(), &pass.logits, pass.logits_f32, FORWARD_LIMIT);
    if !pass.activations.is_empty() {
        let compared = report.tensors("activations", &pass.activations, FORWARD_LIMIT, read);
        // A batch norm or sum that runs into its ReLU is fused: 10 batch norms and 3 sums here.
        assert_eq!(compared, pass.activations.len() - 13);
    }
    let gradient = |name: &str| Some(read(&format!("grad.{name}")).expect("a gradient a parameter"));
    let compared = report.tensors("gradients", &pass.gradients, BACKWARD_LIMIT, gradient);
    assert_eq!(compared, lower(&spec, pass.resolution).unwrap().params.len());
    let compared = report.tensors("running statistics", &pass.buffers, FORWARD_LIMIT, read);
    assert_eq!(compared, pass.buffers.len());
    let logits = backend.eval_batch(&batch, Weights::Live).unwrap().data;
    report.values("eval logits", &logits, &pass.eval_logits, pass.eval_logits_f32, FORWARD_LIMIT);
    report.finish();
}

#[test]
fn tiny32_on_every_instruction_set() {
    for isa in Isa::available() {
        check("tiny32", isa);
    }
}

#[test]
fn resnet50_64() {
    check("resnet50_64", Isa::available()[0]);
}

#[test]
fn resnet50_224() {
    check("resnet50_224", Isa::available()[0]);
}
