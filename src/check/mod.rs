//! Whether a CUDA backend computes what the CPU backend computes. Tests run it on the host, `engine check` on a card.
//!
//! | file | compares |
//! |---|---|
//! | this one | whole steps from the same weights and batches |
//! | [`layers`] | every node of a pass with CPU code on the node's own inputs |
//! | `input`, `stem`, `forward`, `loss`, `backward`, `update`, `norms`, `lamb`, `lars` | what each of them should give |
//! | `oracle` | the CPU's operations behind that |
//! | [`trajectory`] | some steps in two forms |
//! | `seen` | a card's memory by the names of the graph |
//! | [`compare`] | two results, under a derived tolerance |

mod backward;
pub mod compare;
mod forward;
mod fused;
mod input;
mod lamb;
mod lars;
pub mod layers;
mod loss;
mod norms;
mod oracle;
mod seen;
mod stem;
pub mod trajectory;
mod update;

use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::network::SCALE_STATE;
use crate::backend::cuda::plan::{Loss, Recipe, Rule, ScalePolicy};
use crate::backend::cuda::storage::Storage;
use crate::backend::cuda::{CudaBackend, CudaOptions};
use crate::backend::{self, Backend, DropPath, Extras, NamedTensors, Objective, Outcome, Step};
use crate::config::{Chip, Decay, Form, Fusion, Norm, Pointwise, Reduction, Residual, Slabs, Stem, Wgrad};
use crate::data::{Batch, Blend, Erase, Fill, Mix, Rect};
use crate::error::{Error, Result};
use crate::model::freeze::Freeze;
use crate::model::graph::lower;
use crate::model::spec::ResNetSpec;
use crate::optim;
use crate::optim::lamb::Lamb;
use crate::optim::lars::Lars;
use crate::optim::sgd::Sgd;
use crate::rng::{Purpose, Rng};
use crate::simd::isa::Isa;
use crate::tensor::Difference;

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub spec: ResNetSpec,
    pub resolution: usize,
    /// Images of a pass.
    pub batch: usize,
    pub storage: Storage,
    pub steps: usize,
    /// Passes of an optimiser step.
    pub of: usize,
    pub recipe: Recipe,
    pub form: Form,
}

/// What has, between them, every node that a step of plain SGD lacks.
pub const EXTRAS: [Recipe; 4] = [
    Recipe {
        rule: Rule::Lamb,
        loss: Loss::BinaryCrossEntropy,
        averages: true,
        clip: true,
        drop_path: false,
        erase: false,
        freeze: Freeze::NONE,
        ranks: None,
        sync_norms: false,
    },
    Recipe {
        rule: Rule::Lars,
        loss: Loss::BinaryCrossEntropy,
        averages: false,
        clip: false,
        drop_path: true,
        erase: true,
        freeze: Freeze::NONE,
        ranks: None,
        sync_norms: false,
    },
    Recipe { clip: true, drop_path: true, averages: true, ..Recipe::PLAIN },
    Recipe { averages: true, freeze: Freeze::up_to(1), ..Recipe::PLAIN },
];

/// What has, between them, every node and order that the base form lacks.
pub const FORMS: [Form; 7] = [
    Form { stem: Stem::SpaceToDepth, wgrad: Wgrad::Behind, residual: Residual::Added, ..Form::BASE },
    Form { stem: Stem::Padded8, wgrad: Wgrad::Inline, ..Form::BASE },
    Form { pointwise: Pointwise::Fused, ..Form::BASE },
    // So small that the tiny network's batch norms have a slab or two.
    Form { slabs: Slabs { cache_kb: 140, launch_kb: 0 }, ..Form::BASE },
    Form { fusion: Fusion::Statistics, ..Form::BASE },
    Form { fusion: Fusion::Norm, wgrad: Wgrad::Behind, ..Form::BASE },
    // Two blocks, which share a column of some layers and have columns of their own in others.
    Form {
        norm: Norm::OnePass,
        chip: Chip { multiprocessors: 2, shared_kib: 20, pause_kb: 1 },
        ..Form::BASE
    },
];

/// Constants of the rules of a check.
pub const SGD: Sgd = Sgd { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 1e-4 };
pub const LAMB: Lamb = Lamb { lr: 0.1, beta1: 0.9, beta2: 0.999, epsilon: 1e-6, weight_decay: 1e-4 };
pub const LARS: Lars =
    Lars { lr: 0.1, momentum: 0.9, nesterov: false, weight_decay: 1e-4, trust: 0.001, epsilon: 1e-8 };
/// Of all gradients together; those of fresh weights are longer.
pub const CLIP_NORM: f32 = 1.0;
pub const EMA_DECAY: f32 = 0.9;

/// How far two answers may be apart: this many times what the CPU backend's own answer moves when each of its weights
/// moves by one rounding of the storage type. The card rounds every activation and gradient on the way as well.
const FACTOR: f64 = 3.0;
/// And at least this, where nothing moves.
const LEAST: f64 = 1e-5;

/// Fresh networks without zeroed gammas overflow at the usual first scale, and skip a few steps.
const CAUTIOUS: ScalePolicy = ScalePolicy { initial: 1024.0, ..ScalePolicy::FP16 };

/// How one comparison ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// The tensor that used most of what it is allowed.
    pub name: String,
    /// Its difference, in norm.
    pub apart: f64,
    pub allowed: f64,
}

impl Report {
    pub fn passes(&self) -> bool {
        self.apart <= self.allowed
    }
}

impl Case {
    pub fn cuda_options(&self) -> CudaOptions {
        CudaOptions {
            spec: self.spec,
            resolution: self.resolution,
            seed: 3,
            // With gammas of zero most gradients are zero: nothing would be compared.
            zero_gamma: false,
            decay: Decay::Weights,
            recipe: self.recipe,
            storage: self.storage,
            scale: if self.storage == Storage::F16 { CAUTIOUS } else { ScalePolicy::NONE },
            form: self.form,
            keep: false,
        }
    }

    /// Where batch norms are applied by the library their scales and biases are rounded to halves, which moves all values of a
    /// channel together: twice [`FACTOR`].
    fn factor(&self) -> f64 {
        let rounds = self.form.fusion == Fusion::Norm && self.storage == Storage::F16;
        if rounds { 2.0 * FACTOR } else { FACTOR }
    }

    /// The network on `machine`.
    pub fn cuda<M: Machine>(&self, machine: M) -> Result<CudaBackend<M>> {
        CudaBackend::new(self.cuda_options(), machine, self.batch, self.of)
    }

    /// The same network on the CPU.
    pub fn cpu(&self) -> Result<CpuBackend> {
        CpuBackend::new(&CpuOptions {
            spec: self.spec,
            resolution: self.resolution,
            seed: 3,
            zero_gamma: false,
            decay: Decay::Weights,
            extras: Extras {
                rule: self.step(0).rule.kind(),
                averages: self.recipe.averages,
                freeze: self.recipe.freeze,
            },
            threads: 0,
            isa: Isa::current(),
        })
    }

    /// Pass `index` of an optimiser step.
    pub fn step(&self, index: usize) -> Step {
        let mut step = step(index, self.of);
        match self.recipe.rule {
            Rule::Sgd => {}
            Rule::Lamb => step.rule = optim::Rule::Lamb(LAMB),
            Rule::Lars => step.rule = optim::Rule::Lars(LARS),
        }
        if self.recipe.loss == Loss::BinaryCrossEntropy {
            // Each of its two forms with one of the rules.
            let objective = match self.recipe.rule {
                Rule::Lars => {
                    Objective::BinaryCrossEntropy { threshold: Some(0.2), reduction: Reduction::Sum }
                }
                _ => Objective::BinaryCrossEntropy { threshold: None, reduction: Reduction::Mean },
            };
            step.loss = backend::Loss { objective, ..step.loss };
        }
        if self.recipe.clip {
            step.clip_norm = CLIP_NORM;
        }
        if self.recipe.drop_path {
            step.drop_path = DropPath { rate: 0.5, key: 7 + index as u64 };
        }
        step.ema_decay = self.recipe.averages.then_some(EMA_DECAY);
        step
    }

    /// Both orders, each with some of the recipes.
    fn blend(&self) -> Blend {
        if self.recipe.averages { Blend::Bytes } else { Blend::Values }
    }

    /// The seed of the first pass's batch. Of batch 1 mixed as bytes, one element of layer1.0's sum is 6e-8 on a card and 0 on
    /// the CPU, where the largest is 8: a gate that is open here and shut there moves `layer1.0.bn3.bias` by 8e-4.
    fn first_batch(&self) -> u64 {
        if self.recipe != Recipe::PLAIN && self.blend() == Blend::Bytes { 2 } else { 0 }
    }

    /// A batch for training; but with the plain recipe its images are mixed, and erased where the recipe says so.
    pub fn batch(&self, seed: u64) -> Batch {
        let mut batch = self.images(seed);
        if self.recipe == Recipe::PLAIN {
            return batch;
        }
        batch.blend = self.blend();
        let (n, side) = (self.batch, self.resolution);
        let rect = Rect { top: side / 8, left: side / 4, height: side / 2, width: side / 3 };
        let area = (rect.height * rect.width) as f32 / (side * side) as f32;
        let mix = |index: usize| {
            let partner = ((index + 1) % n) as u32;
            match index % 3 {
                0 => Mix::none(index),
                1 => Mix { partner, lambda: 0.3, region: None },
                _ => Mix { partner, lambda: 1.0 - area, region: Some(rect) },
            }
        };
        batch.mixes = (0..n).map(mix).collect();
        let erased = |index: usize| {
            let rect = Rect { top: index % 5, ..rect };
            let fill = if index.is_multiple_of(2) {
                Fill::Noise(seed + index as u64)
            } else {
                Fill::Colour([0.5, 0.0, -1.5])
            };
            (index % 4 != 3).then_some(Erase { rect, fill })
        };
        if self.recipe.erase {
            batch.erased = (0..n).map(erased).collect();
        }
        batch
    }

    pub fn images(&self, seed: u64) -> Batch {
        Self::noise(&self.spec, self.resolution, self.batch, seed)
    }

    /// Images of noise, every byte by itself, with labels by chance.
    pub fn noise(spec: &ResNetSpec, resolution: usize, batch: usize, seed: u64) -> Batch {
        let mut rng = Rng::new(seed, 0, 0, Purpose::Init);
        let bytes = batch * resolution * resolution * 3;
        Batch {
            images: (0..bytes).map(|_| rng.below(256) as u8).collect(),
            labels: (0..batch).map(|_| rng.below(spec.classes as u64) as u32).collect(),
            samples: (0..batch as u32).collect(),
            resolution,
            ..Batch::default()
        }
    }

    /// The steps on both from the same state; every gradient of the last, and the whole state after it. Where values
    /// are rounded to half one step is as far as it goes: after an update other gates open, and the two go their own ways.
    pub fn compare(&self, card: &mut dyn Backend) -> Result<Report> {
        let (mut cpu, mut moved) = (self.cpu()?, self.cpu()?);
        moved.load_state(&nudged(&cpu.state()?, self.storage.roundoff()))?;
        let (got, want, other) = (self.run(card)?, self.run(&mut cpu)?, self.run(&mut moved)?);
        let factor = self.factor();
        let apart = |a: &Ran| (a.loss - want.loss).abs() / want.loss;
        let mut worst = Report {
            name: "loss".to_owned(),
            apart: apart(&got),
            allowed: factor * apart(&other) + LEAST + self.storage.roundoff(),
        };
        for (name, tensor) in &got.tensors {
            let norm = |other: &[f32]| Difference::between(other, &want.tensors[name].data).norm;
            let allowed = factor * norm(&other.tensors[name].data) + LEAST;
            let apart = norm(&tensor.data);
            // In the total order, in which NaN is the worst of all.
            if (apart / allowed).total_cmp(&(worst.apart / worst.allowed)).is_gt() {
                worst = Report { name: name.clone(), apart, allowed };
            }
        }
        Ok(worst)
    }

    fn run(&self, backend: &mut dyn Backend) -> Result<Ran> {
        let mut loss = 0.0;
        for (number, index) in
            (0..self.steps).flat_map(|number| (0..self.of).map(move |index| (number, index)))
        {
            let seed = self.first_batch() + (10 * number + index) as u64;
            let outcome = pass(backend, &self.batch(seed), &self.step(index))?;
            if outcome.fault.is_some() || outcome.skipped || outcome.score.count != self.batch as u64 {
                return Err(Error::failed(format!("a step from fresh weights ended in {outcome:?}")));
            }
            loss += outcome.score.loss;
        }
        let mut tensors = backend.state()?;
        tensors.remove(SCALE_STATE);
        let graph = lower(&self.spec, self.resolution)?;
        for param in graph.params.iter().filter(|param| !self.recipe.freeze.has(param.part)) {
            let name = format!("grad.{}", param.name);
            let gradient = backend.read(&name)?;
            tensors.insert(name, gradient);
        }
        Ok(Ran { tensors, loss })
    }
}

/// What is left after the steps.
struct Ran {
    /// State and last gradients.
    tensors: NamedTensors,
    loss: f64,
}

/// Pass `index` of an optimiser step of `of`, of the plain recipe.
pub fn step(index: usize, of: usize) -> Step {
    Step::plain(index, of, SGD, 0.1)
}

/// One pass, to its end.
pub fn pass(backend: &mut dyn Backend, batch: &Batch, step: &Step) -> Result<Outcome> {
    backend.submit(batch, step)?;
    let mut last = None;
    while let Some(outcome) = backend.wait()? {
        last = Some(outcome);
    }
    last.ok_or_else(|| Error::failed("a submitted pass has no outcome"))
}

/// Weights moved by up to one rounding, at random.
fn nudged(state: &NamedTensors, roundoff: f64) -> NamedTensors {
    let mut rng = Rng::new(99, 0, 0, Purpose::Init);
    let mut nudged = state.clone();
    for (_, tensor) in nudged.iter_mut().filter(|(name, _)| !name.contains("running")) {
        tensor.data.iter_mut().for_each(|value| *value *= 1.0 + rng.range(-roundoff, roundoff) as f32);
    }
    nudged
}
