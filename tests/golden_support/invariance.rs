//! What must not matter: the number of threads, the cut into micro-steps, a step that failed.

use super::formula;
use super::networks::{STILL, backend, train};
use engine::backend::cpu::{CpuBackend, CpuOptions};
use engine::backend::{Backend, Extras, NamedTensors, Step, Weights};
use engine::config::Decay;
use engine::model::spec::{RESNET_TINY, RESNET50, ResNetSpec};
use engine::optim::sgd::Sgd;
use engine::simd::isa::Isa;
use engine::tensor::Difference;

const SGD: Sgd = Sgd { lr: 0.01, momentum: 0.9, nesterov: false, weight_decay: 1e-4 };

/// The state in bits, so that NaN equals itself and 0 does not equal -0.
fn bits(state: &NamedTensors) -> Vec<(&str, Vec<u32>)> {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
    state.iter().map(|(name, tensor)| (name.as_str(), bits(&tensor.data))).collect()
}

#[track_caller]
fn assert_same_bits(what: &str, got: &NamedTensors, want: &NamedTensors) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in bits(got).into_iter().zip(bits(want)) {
        assert_eq!(got.0, want.0, "{what}");
        let differs = got.1.iter().zip(&want.1).position(|(got, want)| got != want);
        assert_eq!(differs, None, "{what}: {} differs there", got.0);
    }
}

/// From the backend's own initialisation, as training begins.
fn fresh(spec: ResNetSpec, resolution: usize, threads: usize, isa: Isa) -> CpuBackend {
    let (seed, zero_gamma, decay) = (5, false, Decay::Weights);
    let extras = Extras::default();
    CpuBackend::new(&CpuOptions { spec, resolution, seed, zero_gamma, decay, extras, threads, isa }).unwrap()
}

/// Batches of `n`, one a step, then an evaluation, whose logits join the state.
fn state_after(
    spec: ResNetSpec,
    resolution: usize,
    n: usize,
    steps: usize,
    threads: usize,
    isa: Isa,
) -> NamedTensors {
    let mut backend = fresh(spec, resolution, threads, isa);
    let batch = |t: usize| formula::batch(&format!("threads.{t}"), n, resolution, spec.classes);
    for t in 0..steps {
        assert_eq!(train(&mut backend, &batch(t), SGD, 0.1).fault, None);
    }
    let mut state = backend.state().unwrap();
    state.insert("logits".into(), backend.eval_batch(&batch(steps), Weights::Live).unwrap());
    state
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut cases: Vec<_> = Isa::available().into_iter().map(|isa| (RESNET_TINY, 32, 6, 3, isa)).collect();
    cases.push((RESNET50, 32, 2, 1, Isa::available()[0]));
    for (spec, resolution, n, steps, isa) in cases {
        let one = state_after(spec, resolution, n, steps, 1, isa);
        for threads in [2, 3] {
            let many = state_after(spec, resolution, n, steps, threads, isa);
            assert_same_bits(&format!("{}, {}, {threads} threads", spec.name, isa.name()), &many, &one);
        }
    }
}

/// The same images in both micro-steps have the same batch statistics, so the mean gradient is that of one pass.
#[test]
fn micro_steps_sum_to_the_mean_gradient() {
    let isa = Isa::available()[0];
    let batch = formula::batch("tiny32", 2, 32, RESNET_TINY.classes);
    let mut whole = backend(RESNET_TINY, 32, 2, isa);
    train(&mut whole, &batch, STILL, 0.1);
    let mut cut = backend(RESNET_TINY, 32, 2, isa);
    for index in 0..2 {
        cut.submit(&batch, &Step::plain(index, 2, STILL, 0.1)).unwrap();
        assert_eq!(cut.poll().unwrap().unwrap().fault, None);
    }
    // Halving is exact, so each micro-step's gradient is half the whole bit for bit, and wgrad starts its sum from
    // the first half: a rounding a term at most, of which there are 256 pixels here.
    let mut worst = (0.0, String::new());
    for name in whole.state().unwrap().keys().filter(|name| whole.read(&format!("grad.{name}")).is_ok()) {
        let [got, want] = [&cut, &whole].map(|backend| backend.read(&format!("grad.{name}")).unwrap().data);
        let difference = Difference::between(&got, &want);
        difference.assert_within(&format!("accumulated grad.{name}"), 1e-6);
        if difference.relative > worst.0 {
            worst = (difference.relative, name.clone());
        }
    }
    println!("\nmicro-steps: gradients within {:.1e}, worst {}", worst.0, worst.1);
    // Running statistics move once a pass.
    let mean = |backend: &CpuBackend| backend.read("bn1.running_mean").unwrap().data;
    let expected: Vec<f32> = mean(&whole).iter().map(|mean| 1.9 * mean).collect();
    Difference::between(&mean(&cut), &expected).assert_within("running mean of two passes", 1e-6);
}

#[test]
fn bad_weights_are_named_and_nothing_changes() {
    let batch = formula::batch("tiny32", 4, 32, RESNET_TINY.classes);
    let names = [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "layer1.0.downsample.0.weight",
        "layer1.1.bn3.weight",
        "layer2.0.conv2.weight",
        "fc.weight",
        "fc.bias",
    ];
    for (name, value) in names.into_iter().flat_map(|name| [(name, f32::NAN), (name, f32::INFINITY)]) {
        let mut backend = backend(RESNET_TINY, 32, 2, Isa::available()[0]);
        train(&mut backend, &batch, SGD, 0.1);
        let before = backend.state().unwrap();
        let mut bad = before.clone();
        let data = &mut bad.get_mut(name).unwrap().data;
        let middle = data.len() / 2;
        data[middle] = value;
        let error = backend.load_state(&bad).unwrap_err();
        assert!(error.message.starts_with(&format!("{name} has {value} at index {middle}")), "{error}");
        assert_same_bits(name, &backend.state().unwrap(), &before);
    }
}

/// Finite weights and logits, and a gradient that overflows. Features 0 and 1 are the constant 1, because the
/// convolutions that feed them are 0; the classifier's weights of 1e38 on one cancel those on the other; on the way back
/// they meet the last batch norm's scale of 1000 / sqrt(1e-5).
#[test]
fn bad_gradients_are_named_and_nothing_changes() {
    let batch = formula::batch("tiny32.sgd.0", 4, 32, RESNET_TINY.classes);
    assert!(
        batch.labels.iter().any(|label| *label != batch.labels[0]),
        "the gradients of equal labels cancel"
    );
    let mut backend = backend(RESNET_TINY, 32, 2, Isa::available()[0]);
    let mut state = backend.state().unwrap();
    let mut set = |name: &str, at: std::ops::Range<usize>, value: f32| {
        state.get_mut(name).unwrap().data[at].fill(value);
    };
    set("layer2.0.conv3.weight", 0..2 * 32, 0.0);
    set("layer2.0.bn3.weight", 0..2, 1000.0);
    set("layer2.0.bn3.bias", 0..2, 0.25);
    set("layer2.0.downsample.0.weight", 0..2 * 64, 0.0);
    set("layer2.0.downsample.1.weight", 0..2, 0.0);
    set("layer2.0.downsample.1.bias", 0..2, 0.75);
    for class in 0..RESNET_TINY.classes {
        let sign = if class as u32 == batch.labels[0] { -1.0 } else { 1.0 };
        set("fc.weight", class * 128..class * 128 + 1, sign * 1e38);
        set("fc.weight", class * 128 + 1..class * 128 + 2, -sign * 1e38);
    }
    backend.load_state(&state).unwrap();
    let before = backend.state().unwrap();
    let outcome = train(&mut backend, &batch, SGD, 0.1);
    assert!(outcome.score.loss < 100.0, "the weights of 1e38 do not cancel: {}", outcome.score.loss);
    let want = "the gradient of layer2.0.conv3.weight is not finite";
    assert_eq!(outcome.fault.as_deref(), Some(want));
    assert_same_bits("state", &backend.state().unwrap(), &before);
}

/// A fault in the second micro-step takes back what the first one did to the running statistics.
#[test]
fn a_fault_in_a_later_micro_step_changes_nothing() {
    let mut backend = backend(RESNET_TINY, 32, 2, Isa::available()[0]);
    let batch = formula::batch("tiny32", 4, 32, RESNET_TINY.classes);
    train(&mut backend, &batch, SGD, 0.1);
    let before = backend.state().unwrap();
    for (index, label_smoothing) in [0.1, f32::NAN].into_iter().enumerate() {
        backend.submit(&batch, &Step::plain(index, 2, SGD, label_smoothing)).unwrap();
        assert_eq!(backend.poll().unwrap().unwrap().fault.is_some(), index == 1);
    }
    assert_same_bits("state", &backend.state().unwrap(), &before);
    // The next optimiser step begins anew.
    assert_eq!(train(&mut backend, &batch, SGD, 0.1).fault, None);
}
