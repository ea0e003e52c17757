//! One network at one resolution: walks its units forward (`forward`), backward (`backward`), or forward for evaluation; names
//! what is not finite (`fault`).

mod backward;
mod fault;
mod forward;

use super::batch_norm::{self, Statistics};
use super::memory::{Buffer, Buffers};
use super::params::Params;
use super::pooling::PoolShape;
use super::{Cpu, Engine, input, ranks};
use crate::backend::loss::Target;
use crate::backend::{DropPath, Outcome, Step};
use crate::data::Batch;
use crate::error::Result;
use crate::model::freeze::{Demand, Freeze};
use crate::model::graph::{ConvShape, Graph, TensorId};
use crate::model::units::{ConvUnit, Unit, units};
use crate::tensor::HostTensor;

pub struct Walk {
    pub graph: Graph,
    units: Vec<Unit>,
    /// What trains, and whose gradients are wanted.
    demand: Demand,
    /// The unit that reads a tensor last, forward.
    last_reader: Vec<usize>,
    /// Whether the backward pass reads a tensor that units have read, once it is made.
    read_again: Vec<bool>,
    /// Which residual block a unit closes, in their order.
    block: Vec<Option<usize>>,
    blocks: usize,
    memory: Memory,
    /// Batch of the last pass.
    n: usize,
}

/// Activations and gradients by tensor, absent where not (or no longer) needed.
struct Memory {
    buffers: Buffers,
    /// Nothing is released before the next pass begins.
    keep: bool,
    activation: Vec<Option<Buffer>>,
    gradient: Vec<Option<Buffer>>,
    /// A batch norm's statistics, by its unit.
    statistics: Vec<Statistics>,
    /// What a unit's normalised output is multiplied by before its residual is added, image by image; empty: 1.
    factors: Vec<Vec<f32>>,
    /// Where each of the max-pool's outputs came from.
    pool_index: Vec<u8>,
}

impl Memory {
    fn activation(&self, tensor: TensorId) -> &[f32] {
        self.activation[tensor].as_deref().expect("a unit runs after its inputs")
    }

    fn release(slot: &mut Option<Buffer>, buffers: &mut Buffers) {
        if let Some(buffer) = slot.take() {
            buffers.give(buffer);
        }
    }

    fn release_activation(&mut self, tensor: TensorId) {
        if !self.keep {
            Self::release(&mut self.activation[tensor], &mut self.buffers);
        }
    }
}

impl Engine {
    fn cpu(&self) -> Cpu<'_> {
        Cpu { pool: &self.pool, isa: self.isa }
    }
}

impl Walk {
    /// With `keep`, the activations of a pass stay until the next one, for `read`.
    pub fn new(graph: Graph, freeze: Freeze, keep: bool) -> Self {
        let units = units(&graph);
        let demand = Demand::new(&graph, &units, freeze);
        let read_again = read_again(&graph, &units, &demand);
        let mut last_reader = vec![usize::MAX; graph.tensors.len()];
        for (index, unit) in units.iter().enumerate() {
            unit.inputs().into_iter().for_each(|x| last_reader[x] = index);
        }
        let tensors = graph.tensors.len();
        let memory = Memory {
            buffers: Buffers::default(),
            keep,
            activation: (0..tensors).map(|_| None).collect(),
            gradient: (0..tensors).map(|_| None).collect(),
            statistics: vec![Statistics::default(); units.len()],
            factors: vec![vec![]; units.len()],
            pool_index: vec![],
        };
        let mut blocks = 0;
        let mut block = |unit: &Unit| {
            let closes = matches!(unit, Unit::Conv(unit) if unit.residual.is_some());
            blocks += usize::from(closes);
            closes.then(|| blocks - 1)
        };
        let block = units.iter().map(&mut block).collect();
        Self { graph, units, demand, last_reader, read_again, block, blocks, memory, n: 0 }
    }

    /// Forward, loss, backward; the last pass of an optimiser step updates the weights.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        params: &mut Params,
        batch: &Batch,
        step: &Step,
    ) -> Result<Outcome> {
        if step.index == 0 {
            params.begin_step();
        }
        self.load(engine, batch);
        self.draw_factors(&step.drop_path);
        for index in 0..self.units.len() {
            self.forward(engine, params, index, Mode::Training)?;
            self.release_inputs(index, |walk, x| !walk.read_again[x]);
        }
        let images = batch.labels.len() * step.passes();
        let mut gradient = self.memory.buffers.take(batch.labels.len() * self.graph.spec.classes);
        let logits = self.memory.activation(self.graph.logits);
        let scale = 1.0 / images as f32;
        let score = step.loss.of(logits, &Target::all(batch), scale, Some(&mut gradient));
        self.memory.gradient[self.graph.logits] = Some(gradient);
        let fault = (!score.loss.is_finite()).then(|| self.first_bad_value(params));
        let fault = match ranks::first_fault(&engine.ranks, "loss", fault)? {
            None => self.finish(engine, params, step)?,
            fault => fault,
        };
        if fault.is_some() {
            params.undo_step();
        }
        self.end_pass();
        Ok(Outcome { score, fault, skipped: false, loss_scale: 1.0 })
    }

    /// Backward and, at the last pass, the update; a non-finite gradient stops it before anything is changed.
    fn finish(&mut self, engine: &mut Engine, params: &mut Params, step: &Step) -> Result<Option<String>> {
        let wanted = |index: &usize| self.demand.wants(self.units[*index].output());
        for index in (0..self.units.len()).rev().filter(wanted).collect::<Vec<_>>() {
            self.backward(engine, params, index, step.index > 0)?;
        }
        let bad = |params: &Params| {
            let name = params.first_bad_gradient(engine.cpu(), &self.graph);
            name.map(|name| format!("the gradient of {name} is not finite"))
        };
        if let Some(fault) = ranks::first_fault(&engine.ranks, "gradients", bad(params))? {
            return Ok(Some(fault));
        }
        self.update_running(engine, params)?;
        if step.index + 1 == step.of {
            ranks::add_up(&engine.ranks, &mut params.gradient)?;
            // Sums leave the range of f32 on all ranks alike.
            if let Some(fault) = bad(params).filter(|_| step.ranks > 1) {
                return Ok(Some(fault));
            }
            params.update(engine.cpu(), &self.graph, step);
        }
        Ok(None)
    }

    /// Running statistics take in the batch's; those of other ranks in their order, as if one rank had seen all batches.
    fn update_running(&self, engine: &Engine, params: &mut Params) -> Result<()> {
        // Synchronised, all ranks have the same ones.
        if engine.sync_norms || engine.ranks.size() == 1 {
            self.take_in(params, self.norms().map(|(_, found)| found));
            return Ok(());
        }
        let batches = ranks::gather_statistics(&engine.ranks, self.norms().map(|(_, found)| found))?;
        batches.iter().for_each(|batch| self.take_in(params, batch.iter()));
        Ok(())
    }

    fn take_in<'s>(&self, params: &mut Params, batch: impl Iterator<Item = &'s Statistics>) {
        for ((unit, _), statistics) in self.norms().zip(batch) {
            let [mean, var] = params.running.get_disjoint_mut([unit.mean, unit.var]).expect("two buffers");
            batch_norm::update_running(statistics, mean, var);
        }
    }

    /// Batch norms that take the batch's statistics, with those of the last pass.
    fn norms(&self) -> impl Iterator<Item = (&ConvUnit, &Statistics)> {
        let units = self.units.iter().zip(&self.demand.trains).zip(&self.memory.statistics);
        units.filter_map(|((unit, &trains), statistics)| match unit {
            Unit::Conv(unit) if trains => Some((unit, statistics)),
            _ => None,
        })
    }

    /// Logits [n, classes] with the running statistics.
    pub fn evaluate(&mut self, engine: &mut Engine, params: &Params, batch: &Batch) -> Result<Vec<f32>> {
        self.load(engine, batch);
        for index in 0..self.units.len() {
            self.forward(engine, params, index, Mode::Evaluation)?;
            self.release_inputs(index, |_, _| true);
        }
        let logits = self.memory.activation(self.graph.logits).to_vec();
        self.end_pass();
        Ok(logits)
    }

    /// Gives up what unit `index` was the last to read, forward.
    fn release_inputs(&mut self, index: usize, done: impl Fn(&Self, TensorId) -> bool) {
        for x in self.units[index].inputs() {
            if self.last_reader[x] == index && done(self, x) {
                self.memory.release_activation(x);
            }
        }
    }

    /// An activation of the last pass that is still there.
    pub fn read(&self, name: &str) -> Option<HostTensor> {
        let tensor = self.graph.tensors.iter().position(|tensor| tensor.name == name)?;
        let info = &self.graph.tensors[tensor];
        let data = self.memory.activation[tensor].as_deref()?.to_vec();
        Some(HostTensor { shape: vec![self.n, info.h, info.w, info.c], data })
    }

    fn load(&mut self, engine: &Engine, batch: &Batch) {
        self.release_all();
        self.n = batch.labels.len();
        let mut x = self.memory.buffers.take(batch.images.len());
        let buffers = &mut self.memory.buffers;
        if let Some(mixed) = input::load(engine.cpu(), batch, &mut x, || buffers.take(batch.images.len())) {
            buffers.give(std::mem::replace(&mut x, mixed));
        }
        self.memory.activation[self.graph.input] = Some(x);
    }

    /// What each residual block of a training pass is multiplied by.
    fn draw_factors(&mut self, drop_path: &DropPath) {
        for (factors, block) in self.memory.factors.iter_mut().zip(&self.block) {
            factors.clear();
            if let Some(block) = *block
                && drop_path.rate_of(block, self.blocks) > 0.0
            {
                factors.extend((0..self.n).map(|image| drop_path.factor(image, block, self.blocks)));
            }
        }
    }

    fn take(&mut self, tensor: TensorId) -> Buffer {
        self.memory.buffers.take(self.n * self.graph.tensors[tensor].elements())
    }

    fn end_pass(&mut self) {
        if !self.memory.keep {
            self.release_all();
        }
    }

    fn release_all(&mut self) {
        let Memory { buffers, activation, gradient, .. } = &mut self.memory;
        activation.iter_mut().chain(gradient).for_each(|slot| Memory::release(slot, buffers));
    }

    fn pool_shape(&self, x: TensorId) -> PoolShape {
        let info = &self.graph.tensors[x];
        PoolShape { h: info.h, w: info.w, c: info.c }
    }

    /// The classifier as a 1x1 convolution over one row of n pixels.
    fn linear_shape(&self, x: TensorId, y: TensorId) -> ConvShape {
        let (c, k) = (self.graph.tensors[x].c, self.graph.tensors[y].c);
        ConvShape { h: 1, w: self.n, c, k, r: 1, s: 1, stride: 1, pad: 0 }
    }
}

/// Which tensors the backward pass reads, of those that units read: the inputs of what has weight gradients, and what gates
/// gradients by its own values.
fn read_again(graph: &Graph, units: &[Unit], demand: &Demand) -> Vec<bool> {
    let mut again = vec![false; graph.tensors.len()];
    for (unit, &trains) in units.iter().zip(&demand.trains) {
        match unit {
            Unit::Conv(ConvUnit { x, .. }) | Unit::Linear { x, .. } if trains => again[*x] = true,
            _ => {}
        }
        if let Unit::Conv(ConvUnit { y, residual: Some(_), .. }) = unit {
            again[*y] |= demand.wants(*y);
        }
    }
    again
}

/// Which statistics normalise.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Training,
    Evaluation,
}
