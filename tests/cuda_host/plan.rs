//! Whole steps from the card's own launch lists, against the CPU backend.

use crate::compare::close_in_norm;
use crate::harness::Host;
use crate::machine::HostMachine;
use engine::backend::cpu::{CpuBackend, CpuOptions};
use engine::backend::cuda::network::SCALE_STATE;
use engine::backend::cuda::plan::order::races;
use engine::backend::cuda::plan::{Plan, ScalePolicy};
use engine::backend::cuda::storage::Storage;
use engine::backend::cuda::{CudaBackend, CudaOptions};
use engine::backend::{Backend, NamedTensors, Outcome, Step};
use engine::config::Decay;
use engine::data::Batch;
use engine::model::graph::lower;
use engine::model::spec::{RESNET_TINY, RESNET50, ResNetSpec};
use engine::optim::sgd::Sgd;
use engine::rng::{Purpose, Rng};
use engine::simd::isa::Isa;
use engine::tensor::Difference;

#[derive(Clone, Copy)]
struct Case {
    spec: ResNetSpec,
    resolution: usize,
    batch: usize,
    storage: Storage,
}

const TINY: Case = Case { spec: RESNET_TINY, resolution: 32, batch: 4, storage: Storage::F32 };

/// Fresh networks without zeroed gammas overflow at the usual first scale, and skip a few steps.
const CAUTIOUS: ScalePolicy = ScalePolicy { initial: 1024.0, ..ScalePolicy::FP16 };

impl Case {
    fn options(&self) -> CudaOptions {
        CudaOptions {
            spec: self.spec,
            resolution: self.resolution,
            seed: 3,
            // With gammas of zero most gradients are zero: nothing would be compared.
            zero_gamma: false,
            decay: Decay::Weights,
            storage: self.storage,
            scale: if self.storage == Storage::F16 { CAUTIOUS } else { ScalePolicy::NONE },
            input_channels: 4,
            keep: false,
        }
    }

    fn host(&self, host: &'static Host, seed: u64, of: usize) -> CudaBackend<HostMachine> {
        CudaBackend::new(self.options(), HostMachine::new(host, seed), self.batch, of).unwrap()
    }

    fn cpu(&self) -> CpuBackend {
        CpuBackend::new(&CpuOptions {
            spec: self.spec,
            resolution: self.resolution,
            seed: 3,
            zero_gamma: false,
            decay: Decay::Weights,
            threads: 0,
            isa: Isa::current(),
        })
        .unwrap()
    }

    fn batch(&self, seed: u64) -> Batch {
        let mut rng = Rng::new(seed, 0, 0, Purpose::Init);
        let bytes = self.batch * self.resolution * self.resolution * 3;
        Batch {
            images: (0..bytes).map(|_| rng.below(256) as u8).collect(),
            labels: (0..self.batch).map(|_| rng.below(self.spec.classes as u64) as u32).collect(),
            samples: (0..self.batch as u32).collect(),
            resolution: self.resolution,
        }
    }
}

fn step(index: usize, of: usize) -> Step {
    let sgd = Sgd { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 1e-4 };
    Step { index, of, sgd, label_smoothing: 0.1 }
}

fn pass(backend: &mut dyn Backend, batch: &Batch, step: &Step) -> Outcome {
    backend.submit(batch, step).unwrap();
    let mut last = None;
    while let Some(outcome) = backend.wait().unwrap() {
        last = Some(outcome);
    }
    last.expect("a pass has an outcome")
}

/// How far two answers may be apart: this many times what the CPU backend's own answer moves when each of its weights
/// moves by one rounding of the storage type. The card rounds every activation and gradient on the way as well.
const FACTOR: f64 = 3.0;
/// And at least this, where nothing moves.
const LEAST: f64 = 1e-5;

/// Weights moved by up to one rounding, at random.
fn nudged(state: &NamedTensors, roundoff: f64) -> NamedTensors {
    let mut rng = Rng::new(99, 0, 0, Purpose::Init);
    let mut nudged = state.clone();
    for (_, tensor) in nudged.iter_mut().filter(|(name, _)| !name.contains("running")) {
        tensor.data.iter_mut().for_each(|value| *value *= 1.0 + rng.range(-roundoff, roundoff) as f32);
    }
    nudged
}

/// How far a comparison goes.
#[derive(Clone, Copy)]
struct Course {
    steps: usize,
    /// Passes of an optimiser step.
    of: usize,
    seed: u64,
}

/// The state and the last gradients after some optimiser steps, and the summed losses.
fn run_steps(backend: &mut dyn Backend, case: Case, course: Course) -> (NamedTensors, f64) {
    let (of, mut loss) = (course.of, 0.0);
    for number in 0..course.steps {
        for index in 0..of {
            let outcome = pass(backend, &case.batch((10 * number + index) as u64), &step(index, of));
            assert_eq!((outcome.fault, outcome.skipped), (None, false));
            assert_eq!(outcome.score.count, case.batch as u64);
            loss += outcome.score.loss;
        }
    }
    let mut all = backend.state().unwrap();
    all.remove(SCALE_STATE);
    for param in &lower(&case.spec, case.resolution).unwrap().params {
        let name = format!("grad.{}", param.name);
        all.insert(name.clone(), backend.read(&name).unwrap());
    }
    (all, loss)
}

/// Some optimiser steps on both, from the same state; every gradient of the last, and the whole state after it. Where
/// values are rounded to half the course is one step: after an update other gates open, and the two go their own ways.
fn compare_steps(case: Case, course: Course) {
    let Some(host) = Host::kernels() else { return };
    let (mut card, mut cpu, mut moved) = (case.host(host, course.seed, course.of), case.cpu(), case.cpu());
    moved.load_state(&nudged(&cpu.state().unwrap(), case.storage.roundoff())).unwrap();
    let (got, got_loss) = run_steps(&mut card, case, course);
    let (want, want_loss) = run_steps(&mut cpu, case, course);
    let (other, other_loss) = run_steps(&mut moved, case, course);
    let error = |a: f64| (a - want_loss).abs() / want_loss;
    let tolerance = FACTOR * error(other_loss) + LEAST + case.storage.roundoff();
    assert!(error(got_loss) <= tolerance, "loss {got_loss}, wanted {want_loss}");
    let (mut worst, mut most) = (0.0, 0.0);
    for (name, got) in &got {
        let own = Difference::between(&other[name].data, &want[name].data).norm;
        let tolerance = FACTOR * own + LEAST;
        let norm = close_in_norm(name, &got.data, &want[name].data, tolerance);
        worst = f64::max(worst, norm / tolerance);
        most = f64::max(most, norm);
    }
    let (Case { spec, storage, .. }, Course { steps, of, .. }) = (case, course);
    let name = spec.name;
    println!(
        "{name} {storage:?}, {steps} steps of {of}: at most {most:.1e} apart, {worst:.2} of what is allowed"
    );
}

#[test]
fn tiny_f32_is_the_cpu_backend_in_every_order() {
    for seed in 0..5 {
        compare_steps(TINY, Course { steps: 2, of: 1, seed });
    }
}

#[test]
fn tiny_f32_with_micro_steps() {
    compare_steps(TINY, Course { steps: 2, of: 3, seed: 1 });
}

#[test]
fn tiny_in_half_precision_is_near_the_cpu_backend() {
    for storage in [Storage::F16, Storage::Bf16] {
        compare_steps(Case { storage, batch: 16, ..TINY }, Course { steps: 1, of: 1, seed: 2 });
        compare_steps(Case { storage, batch: 16, ..TINY }, Course { steps: 1, of: 2, seed: 3 });
    }
}

/// Odd sides: windows and tails that do not fill.
#[test]
fn tiny_at_odd_sizes() {
    compare_steps(Case { resolution: 37, batch: 3, ..TINY }, Course { steps: 2, of: 1, seed: 4 });
}

#[test]
fn resnet50_takes_steps() {
    for storage in [Storage::F32, Storage::F16] {
        let case = Case { spec: RESNET50, resolution: 64, batch: 8, storage };
        compare_steps(case, Course { steps: 1, of: 1, seed: 5 });
    }
}

#[test]
fn evaluation_is_the_cpu_backends() {
    let Some(host) = Host::kernels() else { return };
    for (storage, tolerance) in [(Storage::F32, 1e-5), (Storage::F16, 1e-2)] {
        let case = Case { storage, ..TINY };
        let (mut card, mut cpu) = (case.host(host, 6, 1), case.cpu());
        // Running statistics other than the initial ones.
        pass(&mut cpu, &case.batch(1), &step(0, 1));
        card.load_state(&cpu.state().unwrap()).unwrap();
        // Another resolution and batch than training's.
        let batch = Case { resolution: 48, batch: 3, ..case }.batch(2);
        let (got, want) = (card.eval_batch(&batch).unwrap(), cpu.eval_batch(&batch).unwrap());
        close_in_norm("logits", &got.data, &want.data, tolerance);
    }
}

#[test]
fn state_comes_back_bit_for_bit_and_training_goes_on_the_same() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { storage: Storage::F16, ..TINY };
    let (mut whole, mut cut) = (case.host(host, 7, 1), case.host(host, 8, 1));
    pass(&mut whole, &case.batch(1), &step(0, 1));
    cut.load_state(&whole.state().unwrap()).unwrap();
    assert_eq!(whole.state().unwrap(), cut.state().unwrap());
    for seed in 2..4 {
        let (a, b) = (
            pass(&mut whole, &case.batch(seed), &step(0, 1)),
            pass(&mut cut, &case.batch(seed), &step(0, 1)),
        );
        assert_eq!(a, b);
    }
    assert_eq!(whole.state().unwrap(), cut.state().unwrap(), "in other orders of nodes and threads");
}

/// A scale that makes half overflow is halved, step by step, and nothing else changes; at the floor the run stops.
#[test]
fn overflow_skips_the_update_and_halves_the_scale() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { storage: Storage::F16, ..TINY };
    let scale = ScalePolicy { initial: 16_777_216.0, ..ScalePolicy::FP16 };
    let machine = HostMachine::new(host, 1);
    let mut card = CudaBackend::new(CudaOptions { scale, ..case.options() }, machine, case.batch, 1).unwrap();
    let before = card.state().unwrap();
    let outcome = pass(&mut card, &case.batch(1), &step(0, 1));
    assert!(outcome.skipped && outcome.fault.is_none() && outcome.loss_scale == 16_777_216.0, "{outcome:?}");
    let after = card.state().unwrap();
    for (name, tensor) in before.iter().filter(|(name, _)| !name.contains("running") && *name != SCALE_STATE)
    {
        assert_eq!(tensor, &after[name], "{name} moved in a skipped step");
    }
    assert_eq!(after[SCALE_STATE].data, [8_388_608.0, 0.0, 0.0, 1.0]);

    let scale = ScalePolicy { floor: 16_777_216.0, ..scale };
    let machine = HostMachine::new(host, 1);
    let mut card = CudaBackend::new(CudaOptions { scale, ..case.options() }, machine, case.batch, 1).unwrap();
    let fault = pass(&mut card, &case.batch(1), &step(0, 1)).fault.expect("the scale is at its floor");
    assert!(fault.contains("gradient of") && fault.contains("smallest loss scale"), "{fault}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let Some(host) = Host::kernels() else { return };
    let mut card = TINY.host(host, 1, 1);
    let mut state = card.state().unwrap();
    state.get_mut("layer1.0.conv2.weight").unwrap().data[5] = f32::NAN;
    let error = card.load_state(&state).unwrap_err();
    assert!(error.message.contains("layer1.0.conv2.weight"), "{error}");
}

#[test]
fn too_large_a_batch_is_answered_with_one_that_fits() {
    let Some(host) = Host::kernels() else { return };
    let mut machine = HostMachine::new(host, 1);
    machine.capacity = 8 << 20;
    let error = CudaBackend::new(TINY.options(), machine, 1000, 1).map(|_| ()).unwrap_err();
    let fits = error.message.split("at most ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let fits: usize = fits.parse().unwrap_or_else(|_| panic!("{error}"));
    let mut machine = HostMachine::new(host, 1);
    machine.capacity = 8 << 20;
    assert!(CudaBackend::new(TINY.options(), machine, fits, 1).is_ok(), "{error}");
}

// ---- planted faults -----------------------------------------------------------------------------------------------

/// Runs a step of a tampered plan in several orders; true when any of them is not the CPU backend's.
fn is_caught(tamper: fn(&mut Plan)) -> bool {
    let Some(host) = Host::kernels() else { return true };
    let mut cpu = TINY.cpu();
    pass(&mut cpu, &TINY.batch(1), &step(0, 1));
    let want = cpu.state().unwrap();
    (0..8).any(|seed| {
        let mut machine = HostMachine::new(host, seed);
        machine.tamper = Some(tamper);
        let mut card = CudaBackend::new(TINY.options(), machine, TINY.batch, 1).unwrap();
        let outcome = pass(&mut card, &TINY.batch(1), &step(0, 1));
        let got = card.state().unwrap();
        let differs = |name: &&String| {
            let (got, want) = (&got[*name].data, &want[*name].data);
            let difference = Difference::between(got, want);
            !(difference.norm < 1e-3) && want.iter().any(|value| value.abs() > 1e-6)
        };
        outcome.fault.is_some() || want.keys().any(|name| differs(&name))
    })
}

#[test]
fn an_untouched_plan_is_right() {
    assert!(Host::kernels().is_none() || !is_caught(|_| {}));
}

/// Two buffers that live at the same time are given the same place.
#[test]
fn a_planted_lifetime_overlap_is_caught() {
    assert!(is_caught(|plan| {
        let region = |name: &str| plan.buffer(name).unwrap_or_else(|| panic!("{name}"));
        let (from, to) = (region("layer1.0.relu1"), region("layer1.1.relu1"));
        assert_eq!(from.bytes, to.bytes);
        for node in &mut plan.nodes {
            node.call
                .regions_mut()
                .into_iter()
                .filter(|region| **region == from)
                .for_each(|region| *region = to);
        }
    }));
}

/// Weight gradients no longer wait for what they are made of, nor is anybody waiting for them.
#[test]
fn missing_edges_between_streams_are_caught() {
    fn tamper(plan: &mut Plan) {
        plan.nodes.iter_mut().for_each(|node| node.waits.clear());
    }
    assert!(is_caught(tamper));
    let mut plan = plan_of(TINY);
    assert_eq!(races(&plan.nodes), []);
    tamper(&mut plan);
    assert_ne!(races(&plan.nodes), [], "the static check sees it as well");
}

fn plan_of(case: Case) -> Plan {
    use engine::backend::cuda::plan::{PlanOptions, Purpose};
    let CudaOptions { spec, resolution, storage, scale, input_channels, decay, keep, .. } = case.options();
    let purpose = Purpose::Finish { sum: false };
    Plan::new(&PlanOptions {
        spec,
        resolution,
        batch: case.batch,
        storage,
        purpose,
        input_channels,
        decay,
        scale,
        keep,
    })
    .unwrap()
}

#[test]
fn resnet50_at_its_real_size_has_no_race_and_shares_memory() {
    let case = Case { spec: RESNET50, resolution: 224, batch: 256, storage: Storage::F16 };
    let plan = plan_of(case);
    assert_eq!(races(&plan.nodes), []);
    let kinds = |wanted: fn(&engine::backend::cuda::plan::node::Call) -> bool| {
        plan.nodes.iter().filter(|node| wanted(&node.call)).count()
    };
    use engine::backend::cuda::plan::node::Call;
    // 53 forward, 53 weight gradients, 52 input gradients: the image has none.
    assert_eq!(kinds(|call| matches!(call, Call::Convolution(_))), 158);
    let separate: u64 = plan.buffers.iter().map(|buffer| buffer.region.bytes).sum();
    let shared = plan.arenas[&engine::backend::cuda::plan::region::Arena::Activations];
    let gib = |bytes: u64| bytes as f64 / 2f64.powi(30);
    println!(
        "{} nodes, {:.2} GiB of activations, {:.2} without sharing",
        plan.nodes.len(),
        gib(shared),
        gib(separate)
    );
    // What the backward pass reads must lie somewhere: outputs of convolutions and of units.
    assert!(gib(shared) < 12.5, "a card of 16 GB takes batch 256");
    assert!(shared * 3 < separate * 2);
}
