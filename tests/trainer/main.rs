//! The trainer on backends that lag, skip, fail and fall silent. None of them needs a card: they stand around the CPU's.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/training.rs"]
mod training;

mod failing;
mod lagging;

use engine::backend::cpu::{CpuBackend, CpuOptions};
use engine::config::Config;
use engine::model::spec::RESNET_TINY;
use engine::simd::isa::Isa;

/// A fresh network on the CPU, as `config` describes it.
fn cpu(config: &Config) -> CpuBackend {
    CpuBackend::new(&CpuOptions {
        spec: RESNET_TINY,
        resolution: config.data.resolution,
        seed: config.seed,
        zero_gamma: config.model.zero_gamma,
        decay: config.optim.decay,
        extras: engine::train::passes::extras(config),
        threads: 1,
        isa: Isa::current(),
    })
    .unwrap()
}
