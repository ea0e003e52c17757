//! Runs of several SGD steps.

use super::formula;
use super::networks::{backend, train};
use super::record::{self, Summaries};
use super::report::{BACKWARD_LIMIT, FORWARD_LIMIT, Report};
use engine::backend::{Backend, MOMENTUM_PREFIX};
use engine::model::spec::ResNetSpec;
use engine::optim::sgd::Sgd;
use engine::simd::isa::Isa;
use serde::Deserialize;

#[derive(Deserialize)]
struct Run {
    arch: String,
    case: String,
    resolution: usize,
    batch: usize,
    label_smoothing: f32,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
    lr: Vec<f64>,
    losses: Vec<f64>,
    losses_f32: Vec<f64>,
    parameters: Summaries,
    momenta: Summaries,
    buffers: Summaries,
}

fn check(name: &str) {
    let run: Run = record::read(name);
    let spec = ResNetSpec::named(&run.arch).unwrap();
    let mut backend = backend(spec, run.resolution, 2, Isa::available()[0]);
    let mut losses = vec![];
    for (t, &lr) in run.lr.iter().enumerate() {
        let batch = formula::batch(&format!("{}.{t}", run.case), run.batch, run.resolution, spec.classes);
        let Run { momentum, nesterov, weight_decay, .. } = run;
        let sgd = Sgd { lr: lr as f32, momentum, nesterov, weight_decay };
        let outcome = train(&mut backend, &batch, sgd, run.label_smoothing);
        assert_eq!(outcome.fault, None);
        losses.push((outcome.score.loss / run.batch as f64) as f32);
    }
    let state = backend.state().unwrap();
    let read = |name: &str| Some(state[name].data.clone());
    let mut report = Report::new(name);
    for (t, (&loss, &want)) in losses.iter().zip(&run.losses).enumerate() {
        report.values(&format!("loss {t}"), &[loss], &[want], run.losses_f32[t], FORWARD_LIMIT);
    }
    report.tensors("weights", &run.parameters, BACKWARD_LIMIT, read);
    report.tensors("momenta", &run.momenta, BACKWARD_LIMIT, |name| read(&format!("{MOMENTUM_PREFIX}{name}")));
    report.tensors("running statistics", &run.buffers, FORWARD_LIMIT, read);
    report.finish();
}

#[test]
fn tiny32_sgd() {
    check("tiny32_sgd");
}

#[test]
fn tiny32_sgd_nesterov() {
    check("tiny32_sgd_nesterov");
}

#[test]
fn resnet50_64_sgd() {
    check("resnet50_64_sgd");
}
