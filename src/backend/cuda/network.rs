//! The backend: a network on a machine that runs plans.

mod slot;
mod state;

use super::abi::{self, Hyper};
use super::guarded::Guarded;
use super::machine::{Machine, Prepared, too_large};
use super::plan::node::Pattern;
use super::plan::params::ParamLayout;
use super::plan::region::{Arena, Region};
use super::plan::{Plan, PlanOptions, Purpose, Recipe, STAGING_SLOTS, ScalePolicy};
use super::replay;
use super::storage::Storage;
pub use super::storage::{from_stored, to_stored};
use crate::backend::fault::BadOutput;
use crate::backend::{
    Backend, DropPath, ELSEWHERE, NO_AVERAGES, NamedTensors, Outcome, Score, Step, Weights, check_batch,
};
use crate::config::{Decay, Form};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::graph::{Graph, lower};
use crate::model::spec::ResNetSpec;
use crate::tensor::{HostTensor, first_non_finite};
use half::f16;
use std::collections::{BTreeMap, VecDeque};

pub use slot::item;
use slot::{fill_slot, hyper, supported};
pub use state::SCALE_STATE;

/// The fault of every pass after one that had a fault.
const HALTED: &str = "an earlier pass stopped the run";

/// What a network on a card is made from.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    pub spec: ResNetSpec,
    /// Side of a training image.
    pub resolution: usize,
    pub seed: u64,
    pub zero_gamma: bool,
    /// Which parameters weight decay applies to.
    pub decay: Decay,
    /// Rule, loss and averages; their constants come with each step.
    pub recipe: Recipe,
    pub storage: Storage,
    pub scale: ScalePolicy,
    pub form: Form,
    /// Every activation and gradient of a pass can be read after it; costs memory.
    pub keep: bool,
}

/// A network on `M`.
pub struct CudaBackend<M: Machine> {
    options: CudaOptions,
    /// At the training resolution, for names and shapes.
    graph: Graph,
    layout: ParamLayout,
    machine: Guarded<M>,
    prepared: BTreeMap<Pass, Prepared>,
    /// What the machine has no routine for.
    without: Vec<Pattern>,
    /// Passes submitted since the state was loaded; also the card's own count.
    passes: u64,
    /// Outcomes that were waited for and not polled yet.
    ready: VecDeque<Outcome>,
    /// Passes whose outcome has not come, oldest first.
    underway: VecDeque<Underway>,
    /// A fault has been found: the machine changes nothing any more, and later passes have no news.
    halted: bool,
    /// The pass whose buffers `read` looks into.
    last: Option<Prepared>,
}

/// What a plan is prepared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pass {
    resolution: usize,
    batch: usize,
    purpose: Purpose,
    /// Which weights an evaluation is of.
    weights: Weights,
}

impl Pass {
    fn live(resolution: usize, batch: usize, purpose: Purpose) -> Self {
        Self { resolution, batch, purpose, weights: Weights::Live }
    }
}

/// A pass whose batch is still in its slot: `submit` takes in its outcome before the slot is filled again.
#[derive(Debug, Clone, Copy)]
struct Underway {
    prepared: Prepared,
    slot: usize,
}

impl<M: Machine> CudaBackend<M> {
    /// Freshly initialised; the machine's memory for `batch` images a pass is taken now, so that too large a batch
    /// fails before any data is read.
    pub fn new(mut options: CudaOptions, machine: M, batch: usize, micro_steps: usize) -> Result<Self> {
        options.form = options.form.on(machine.chip()?);
        let graph = lower(&options.spec, options.resolution)?;
        let layout = ParamLayout::new(&graph, options.form.stem.pixel(), options.recipe.freeze);
        let mut backend = Self {
            options,
            graph,
            layout,
            machine: Guarded::new(machine),
            prepared: BTreeMap::new(),
            without: vec![],
            passes: 0,
            ready: VecDeque::new(),
            underway: VecDeque::new(),
            halted: false,
            last: None,
        };
        for purpose in purposes(micro_steps) {
            backend.prepare(Pass::live(backend.options.resolution, batch, purpose))?;
        }
        let initial = backend.initial_state();
        backend.load_state(&initial)?;
        Ok(backend)
    }

    /// What runs the passes, for measuring it.
    pub fn machine(&mut self) -> &mut M {
        self.machine.inner_mut()
    }

    /// The machine and its plan for such a pass, where one is ready: for checks that look into single nodes.
    pub fn look(
        &self,
        resolution: usize,
        batch: usize,
        purpose: Purpose,
        weights: Weights,
    ) -> Option<(&M, &Plan)> {
        let prepared = self.prepared.get(&Pass { resolution, batch, purpose, weights })?;
        Some((self.machine.inner(), self.machine.plan(*prepared)))
    }

    fn plan_options(&self, pass: Pass) -> PlanOptions {
        let Pass { resolution, batch, purpose, weights } = pass;
        let CudaOptions { spec, storage, scale, form, decay, mut recipe, keep, .. } = self.options;
        // Where averages are kept, a plan for evaluations is of them.
        recipe.averages &= purpose != Purpose::Evaluate || weights == Weights::Averaged;
        let without = self.without.clone();
        PlanOptions { spec, resolution, batch, storage, purpose, form, decay, recipe, scale, keep, without }
    }

    /// A plan of what the machine has routines for.
    fn plan(&mut self, pass: Pass) -> Result<Plan> {
        loop {
            let plan = Plan::new(&self.plan_options(pass))?;
            let missing = self.machine.without_engine(&plan)?;
            if missing.is_empty() {
                return Ok(plan);
            }
            self.without.extend(missing);
        }
    }

    fn prepare(&mut self, pass: Pass) -> Result<Prepared> {
        if let Some(&prepared) = self.prepared.get(&pass) {
            return Ok(prepared);
        }
        let plan = self.plan(pass)?;
        if plan.bytes() > self.machine.capacity(&plan)? {
            return Err(too_large(&plan, &|plan| self.machine.capacity(plan)));
        }
        let prepared = self.machine.prepare(plan)?;
        self.prepared.insert(pass, prepared);
        Ok(prepared)
    }

    /// Puts the next outcome into the queue; with `wait`, waits for it.
    fn take_outcome(&mut self, wait: bool) -> Result<()> {
        let Some(outcome) = self.machine.outcome(wait)? else { return Ok(()) };
        let pass = self.underway.pop_front().expect("the machine has as many outcomes as passes");
        let outcome = self.explain(&outcome, pass)?;
        self.ready.push_back(outcome);
        Ok(())
    }

    fn explain(&mut self, outcome: &abi::Outcome, pass: Underway) -> Result<Outcome> {
        let score = Score {
            loss: outcome.loss,
            top1: u64::from(outcome.top1),
            top5: u64::from(outcome.top5),
            count: u64::from(outcome.count),
        };
        let halted = outcome.flags & abi::HALTED != 0;
        let fault = match (outcome.flags & abi::LOSS_NOT_FINITE != 0, halted) {
            (false, false) => None,
            _ if self.halted => Some(HALTED.to_owned()),
            (true, _) => Some(self.bad_loss(pass)?),
            (false, true) => Some(self.bad_gradient(outcome)),
        };
        self.halted |= halted;
        let skipped = outcome.flags & abi::SKIPPED != 0 && fault.is_none();
        Ok(Outcome { score, fault, skipped, loss_scale: outcome.scale })
    }

    /// Weights first: what they make follows from them. Then the outputs, of the same batch run forward again.
    fn bad_loss(&mut self, pass: Underway) -> Result<String> {
        for (index, param) in self.graph.params.iter().enumerate() {
            let values = self.read_f32(self.layout.in_f32(Arena::Master, index))?;
            if first_non_finite(&values).is_some() {
                return Ok(format!("the weights {} are not finite", param.name));
            }
            let beyond =
                |value: &f32| self.options.storage == Storage::F16 && f16::from_f32(*value).is_infinite();
            if param.shape.len() > 1 && values.iter().any(beyond) {
                return Ok(format!("the weights {} are beyond fp16's largest number, 65504", param.name));
            }
        }
        let unknown = "all weights are finite: an activation left the range of its type";
        Ok(match self.replay(pass) {
            Ok(Some(bad)) => bad.to_string(),
            Ok(None) if self.options.recipe.ranks.is_some_and(|ranks| ranks > 1) => ELSEWHERE.to_owned(),
            Ok(None) => "all weights are finite, and so are all outputs when the same batch is run again: the card's memory \
                         or an algorithm that is not deterministic is at fault"
                .to_owned(),
            // What is known is worth more than why no more is known.
            Err(error) => format!("{unknown}; which one, a second run of the batch could not tell: {error}"),
        })
    }

    fn replay(&mut self, pass: Underway) -> Result<Option<BadOutput>> {
        let training = self.machine.plan(pass.prepared);
        let (plan, bytes) = (replay::plan(&training.options)?, training.staging.slot_bytes);
        let (wanted, capacity) = (plan.bytes(), self.machine.capacity(&plan)?);
        if wanted > capacity {
            return Err(Error::usage(format!("it wants {wanted} bytes on the card, {capacity} are free")));
        }
        let mut staged = vec![0; bytes as usize];
        self.machine.read(Region::new(Arena::Staging, pass.slot as u64 * bytes, bytes), &mut staged)?;
        replay::first_bad_output(&mut self.machine, plan, &staged)
    }

    fn bad_gradient(&self, outcome: &abi::Outcome) -> String {
        let index = (outcome.bad as usize).checked_sub(1);
        match index.and_then(|index| self.layout.param_at(index)) {
            Some(param) => {
                let name = &self.graph.params[param].name;
                format!("the gradient of {name} is not finite, at the smallest loss scale {}", outcome.scale)
            }
            None => HALTED.to_owned(),
        }
    }

    fn read_f32(&self, region: Region) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; region.bytes as usize / 4];
        self.machine.read(region, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    fn read_stored(&self, region: Region) -> Result<Vec<f32>> {
        let mut bytes = vec![0; region.bytes as usize];
        self.machine.read(region, &mut bytes)?;
        Ok(from_stored(self.options.storage, &bytes))
    }

    /// A vector or matrix of the parameter space, in the outside's layout.
    fn read_param(&self, arena: Arena, index: usize) -> Result<HostTensor> {
        let slot = &self.layout.slots[index];
        let data = slot.unpack(&self.read_f32(self.layout.in_f32(arena, index))?);
        Ok(HostTensor { shape: slot.shape.clone(), data })
    }

    /// A running statistic, or its average.
    fn read_running(&self, arena: Arena, index: usize) -> Result<HostTensor> {
        let buffer = &self.graph.buffers[index];
        let region = self.layout.running(index, buffer.channels, buffer.name.ends_with("running_var"));
        let data = self.read_f32(Region { arena, ..region })?;
        Ok(HostTensor { shape: vec![buffer.channels], data })
    }

    /// The gradient of the last optimiser step's mean loss, without the loss scale.
    fn read_gradient(&self, index: usize) -> Result<HostTensor> {
        let slot = &self.layout.slots[index];
        let summed = self
            .last
            .is_some_and(|last| self.machine.plan(last).options.purpose != (Purpose::Finish { sum: false }));
        let region = self.layout.gradient(self.options.storage, index);
        let mut values = match region.arena {
            _ if summed => self.read_f32(self.layout.in_f32(Arena::GradientSum, index))?,
            Arena::GradientVectors => self.read_f32(region)?,
            _ => self.read_stored(region)?,
        };
        let unscale = self.device_state()?.unscale;
        values.iter_mut().for_each(|value| *value *= unscale);
        Ok(HostTensor { shape: slot.shape.clone(), data: slot.unpack(&values) })
    }

    fn device_state(&self) -> Result<abi::State> {
        let mut state = abi::State::default();
        self.machine.read(state_region(), bytemuck::bytes_of_mut(&mut state))?;
        Ok(state)
    }

    /// An activation or its gradient (`grad.layer1.0.conv1`, with the loss scale) of the last pass, NHWC.
    fn read_activation(&self, name: &str) -> Result<Option<HostTensor>> {
        let Some(last) = self.last.filter(|_| self.options.keep) else { return Ok(None) };
        let plan = self.machine.plan(last);
        let tensor = name.strip_prefix("grad.").unwrap_or(name);
        let info = plan.graph.tensors.iter().find(|info| info.name == tensor);
        let (Some(region), Some(info)) = (plan.buffer(name), info) else { return Ok(None) };
        let data = self.read_stored(region)?;
        let (h, w) = (info.h, info.w);
        let n = plan.options.batch;
        Ok(Some(HostTensor { shape: vec![n, h, w, data.len() / (n * h * w)], data }))
    }
}

impl<M: Machine> Backend for CudaBackend<M> {
    fn submit(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        check_batch(batch, self.options.spec.classes)?;
        supported(&self.options.recipe, batch, step)?;
        let purpose = match (step.index + 1 == step.of, step.of) {
            (true, of) => Purpose::Finish { sum: of > 1 },
            (false, _) => Purpose::Accumulate,
        };
        let prepared = self.prepare(Pass::live(batch.resolution, batch.labels.len(), purpose))?;
        let staging = self.machine.plan(prepared).staging;
        // The slot's last pass has to end before the slot is filled; its outcome is there then. Slots of another size
        // overlap in other ways.
        let other_slots = self.last.is_some_and(|last| self.machine.plan(last).staging != staging);
        while self.underway.len() >= STAGING_SLOTS || (other_slots && !self.underway.is_empty()) {
            self.take_outcome(true)?;
        }
        if self.halted {
            let (score, fault) = (Score::default(), Some(HALTED.to_owned()));
            self.ready.push_back(Outcome { score, fault, skipped: false, loss_scale: 1.0 });
            return Ok(());
        }
        let slot = (self.passes % STAGING_SLOTS as u64) as usize;
        let hyper = hyper(batch, step);
        let mut fill = |bytes: &mut [u8]| fill_slot(bytes, &staging, batch, hyper, step.drop_path);
        self.machine.submit(prepared, slot, &mut fill)?;
        self.passes += 1;
        self.underway.push_back(Underway { prepared, slot });
        self.last = Some(prepared);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Outcome>> {
        // One at a time: what happens after a fault must not hide it.
        if self.ready.is_empty() && !self.underway.is_empty() {
            self.take_outcome(false)?;
        }
        Ok(self.ready.pop_front())
    }

    fn wait(&mut self) -> Result<Option<Outcome>> {
        if self.ready.is_empty() && !self.underway.is_empty() {
            self.take_outcome(true)?;
        }
        Ok(self.ready.pop_front())
    }

    fn eval_batch(&mut self, batch: &Batch, weights: Weights) -> Result<HostTensor> {
        check_batch(batch, self.options.spec.classes)?;
        if weights == Weights::Averaged && !self.options.recipe.averages {
            return Err(Error::usage(NO_AVERAGES));
        }
        let (resolution, n) = (batch.resolution, batch.labels.len());
        let prepared = self.prepare(Pass { resolution, batch: n, purpose: Purpose::Evaluate, weights })?;
        let staging = self.machine.plan(prepared).staging;
        let shape = vec![batch.labels.len(), self.options.spec.classes];
        let mut logits = vec![0.0; shape[0] * shape[1]];
        let mut fill = |bytes: &mut [u8]| fill_slot(bytes, &staging, batch, Hyper::default(), DropPath::OFF);
        self.machine.evaluate(prepared, &mut fill, &mut logits)?;
        HostTensor::new("logits", shape, logits)
    }

    fn state(&self) -> Result<NamedTensors> {
        self.named_state()
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        while !self.underway.is_empty() {
            self.take_outcome(true)?;
        }
        self.load_named_state(state)?;
        self.passes = 0;
        self.halted = false;
        self.ready.clear();
        Ok(())
    }

    fn read(&self, name: &str) -> Result<HostTensor> {
        let named = |name: &str| self.graph.params.iter().position(|param| param.name == name);
        if let Some(index) = named(name) {
            return self.read_param(Arena::Master, index);
        }
        let trained = |&index: &usize| self.layout.is_trained(&self.layout.slots[index]);
        if let Some(index) = name.strip_prefix("grad.").and_then(named).filter(trained) {
            return self.read_gradient(index);
        }
        if let Some(index) = self.graph.buffers.iter().position(|buffer| buffer.name == name) {
            return self.read_running(Arena::Running, index);
        }
        self.read_activation(name)?.ok_or_else(|| {
            let hint =
                "expected a parameter, a running statistic, grad.<parameter> of one that is trained, or an activation that is kept";
            Error::usage(format!("{}: no tensor {name}; {hint}", self.options.spec.name))
        })
    }

    fn choices(&self) -> BTreeMap<String, String> {
        self.machine.choices()
    }

    fn set_choices(&mut self, choices: &BTreeMap<String, String>) {
        if self.machine.choices() != *choices && !choices.is_empty() {
            self.machine.set_choices(choices);
            self.prepared.clear();
            self.last = None;
        }
    }
}

/// The passes of an optimiser step of `micro_steps`.
fn purposes(micro_steps: usize) -> Vec<Purpose> {
    match micro_steps {
        0 | 1 => vec![Purpose::Finish { sum: false }],
        _ => vec![Purpose::Accumulate, Purpose::Finish { sum: true }],
    }
}

fn state_region() -> Region {
    Region::new(Arena::State, 0, size_of::<abi::State>() as u64)
}
