//! The unfused reference of `infer` against PyTorch's evaluation, and the CPU backend against the reference, tensor by
//! tensor.

use super::networks::{STILL, TrainingPass, backend, train};
use super::{formula, record};
use engine::backend::{Backend, Weights};
use engine::error::Error;
use engine::infer::reference::Reference;
use engine::infer::weights::Normalisation;
use engine::model::graph::lower;
use engine::model::spec::ResNetSpec;
use engine::simd::isa::Isa;
use engine::tensor::Difference;

/// What the order of f32 sums may change, of 50 layers' largest values. With batch norm's statistics of a pass with
/// random weights this is the difference that f32 and f64 have anywhere in these networks, times four.
const LIMIT: f64 = 1e-5;

fn check(name: &str) {
    let pass: TrainingPass = record::read(name);
    let spec = ResNetSpec::named(&pass.arch).unwrap();
    let batch = formula::batch(&pass.case, pass.batch, pass.resolution, spec.classes);
    let mut backend = backend(spec, pass.resolution, 2, Isa::available()[0]);
    backend.keep_activations();
    // The recorded evaluation has the running statistics of one training pass.
    train(&mut backend, &batch, STILL, pass.label_smoothing);
    let state = backend.state().unwrap();
    let graph = lower(&spec, pass.resolution).unwrap();
    let read = |name: &str| {
        let tensor = state.get(name).ok_or_else(|| Error::input(format!("{name} is missing")));
        tensor.map(|tensor| tensor.data.clone())
    };
    let reference = Reference::new(&graph, Normalisation::IMAGENET, read).unwrap();
    let run = reference.run(&batch.images).unwrap();

    let want: Vec<f32> = pass.eval_logits.iter().map(|&logit| logit as f32).collect();
    let recorded = Difference::between(run.logits(), &want);
    recorded.assert_within(&format!("{name}: logits, PyTorch"), LIMIT);
    let logits = backend.eval_batch(&batch, Weights::Live).unwrap();
    Difference::between(&logits.data, run.logits()).assert_within(&format!("{name}: logits"), LIMIT);
    let (mut compared, mut worst) = (0, 0.0f64);
    for (tensor, info) in graph.tensors.iter().enumerate() {
        // A batch norm or sum that runs into its ReLU is fused.
        if let Ok(got) = backend.read(&info.name) {
            let difference = Difference::between(&got.data, run.tensor(tensor));
            difference.assert_within(&format!("{name}: {}", info.name), LIMIT);
            (compared, worst) = (compared + 1, worst.max(difference.relative));
        }
    }
    println!(
        "{name}: {compared} tensors within {worst:.1e}, PyTorch's logits within {:.1e}",
        recorded.relative
    );
    assert!(compared > graph.tensors.len() / 2, "{compared} of {}", graph.tensors.len());
}

#[test]
fn tiny32() {
    check("tiny32");
}

#[test]
fn resnet50_64() {
    check("resnet50_64");
}

#[test]
fn resnet50_224() {
    check("resnet50_224");
}
