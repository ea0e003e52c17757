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
use engine::backend::{Backend, Outcome, Step};
use engine::config::Decay;
use engine::data::Batch;
use engine::model::graph::lower;
use engine::model::spec::{RESNET_TINY, RESNET50, ResNetSpec};
use engine::optim::sgd::Sgd;
use engine::rng::{Purpose, Rng};
use engine::simd::isa::Isa;

#[derive(Clone, Copy)]
struct Case {
    spec: ResNetSpec,
    resolution: usize,
    batch: usize,
    storage: Storage,
}

const TINY: Case = Case { spec: RESNET_TINY, resolution: 32, batch: 4, storage: Storage::F32 };

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
            scale: if self.storage == Storage::F16 { ScalePolicy::FP16 } else { ScalePolicy::NONE },
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

/// Two optimiser steps of `of` passes on both; every gradient of the last, and the whole state after it.
fn compare_steps(case: Case, of: usize, seed: u64, tolerance: f64) {
    let Some(host) = Host::kernels() else { return };
    let (mut card, mut cpu) = (case.host(host, seed, of), case.cpu());
    for number in 0..2 {
        for index in 0..of {
            let batch = case.batch(10 * number + index as u64);
            let (got, want) =
                (pass(&mut card, &batch, &step(index, of)), pass(&mut cpu, &batch, &step(index, of)));
            assert_eq!((got.fault, got.skipped), (None, false));
            assert_eq!((got.score.count, got.score.top5 <= got.score.count), (want.score.count, true));
            let error = (got.score.loss - want.score.loss).abs() / want.score.loss;
            assert!(error <= tolerance, "loss {} against {}: {error:.1e}", got.score.loss, want.score.loss);
        }
    }
    let mut worst = (0.0, String::new());
    let mut check = |name: &str, got: &[f32], want: &[f32]| {
        // Shifts and means near zero have no scale of their own.
        if want.iter().any(|value| value.abs() > 1e-6) {
            let norm = close_in_norm(name, got, want, tolerance);
            if norm > worst.0 {
                worst = (norm, name.to_owned());
            }
        }
    };
    let want = cpu.state().unwrap();
    for param in &lower(&case.spec, case.resolution).unwrap().params {
        let name = format!("grad.{}", param.name);
        check(&name, &card.read(&name).unwrap().data, &cpu.read(&name).unwrap().data);
    }
    for (name, tensor) in card.state().unwrap() {
        if name != SCALE_STATE {
            check(&name, &tensor.data, &want[&name].data);
        }
    }
    println!("{} {:?}, {of} passes a step: worst {:.1e} ({})", case.spec.name, case.storage, worst.0, worst.1);
}

/// In f32 only the order of sums differs: a few hundred roundings of 6e-8 through some twenty layers.
#[test]
fn tiny_f32_is_the_cpu_backend_in_every_order() {
    for seed in 0..5 {
        compare_steps(TINY, 1, seed, 1e-4);
    }
}

#[test]
fn tiny_f32_with_micro_steps() {
    compare_steps(TINY, 3, 1, 1e-4);
}
