//! One network at one resolution: walks its units forward, backward, or forward for evaluation.

use super::batch_norm::{self, Affine, BackwardApply, Epilogue, Gate, Statistics};
use super::memory::{Buffer, Buffers};
use super::params::Params;
use super::pooling::{self, PoolShape};
use super::{Cpu, Engine, input};
use crate::backend::fault::BadOutput;
use crate::backend::loss::{LossOptions, softmax_cross_entropy};
use crate::backend::{Outcome, Step};
use crate::data::Batch;
use crate::model::graph::{ConvShape, Graph, ParamId, TensorId, TensorInfo};
use crate::model::units::{ConvUnit, Unit, units};
use crate::simd::conv;
use crate::tensor::{HostTensor, all_finite, first_non_finite};

pub struct Walk {
    pub graph: Graph,
    units: Vec<Unit>,
    /// The unit that reads a tensor last, forward.
    last_reader: Vec<usize>,
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
    pub fn new(graph: Graph, keep: bool) -> Self {
        let units = units(&graph);
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
            pool_index: vec![],
        };
        Self { graph, units, last_reader, memory, n: 0 }
    }

    /// Forward, loss, backward; the last pass of an optimiser step updates the weights.
    pub fn step(&mut self, engine: &mut Engine, params: &mut Params, batch: &Batch, step: &Step) -> Outcome {
        if step.index == 0 {
            params.begin_step();
        }
        self.load(engine, batch);
        for index in 0..self.units.len() {
            self.forward(engine, params, index, Mode::Training);
        }
        let images = batch.labels.len() * step.of;
        let options = LossOptions { label_smoothing: step.label_smoothing, scale: 1.0 / images as f32 };
        let mut gradient = self.memory.buffers.take(batch.labels.len() * self.graph.spec.classes);
        let logits = self.memory.activation(self.graph.logits);
        let score = softmax_cross_entropy(logits, &batch.labels, options, Some(&mut gradient));
        self.memory.gradient[self.graph.logits] = Some(gradient);
        let fault = if score.loss.is_finite() {
            self.finish(engine, params, step)
        } else {
            Some(self.first_bad_value(params))
        };
        if fault.is_some() {
            params.undo_step();
        }
        self.end_pass();
        Outcome { score, fault, skipped: false, loss_scale: 1.0 }
    }

    /// Backward and, at the last pass, the update; a non-finite gradient stops it before anything is changed.
    fn finish(&mut self, engine: &mut Engine, params: &mut Params, step: &Step) -> Option<String> {
        for index in (0..self.units.len()).rev() {
            self.backward(engine, params, index, step.index > 0);
        }
        if let Some(name) = params.first_bad_gradient(engine.cpu(), &self.graph) {
            return Some(format!("the gradient of {name} is not finite"));
        }
        for (unit, statistics) in self.units.iter().zip(&self.memory.statistics) {
            if let Unit::Conv(unit) = unit {
                let [mean, var] =
                    params.running.get_disjoint_mut([unit.mean, unit.var]).expect("two buffers");
                batch_norm::update_running(statistics, mean, var);
            }
        }
        if step.index + 1 == step.of {
            params.update(engine.cpu(), &self.graph, &step.sgd);
        }
        None
    }

    /// Logits [n, classes] with the running statistics.
    pub fn evaluate(&mut self, engine: &mut Engine, params: &Params, batch: &Batch) -> Vec<f32> {
        self.load(engine, batch);
        for index in 0..self.units.len() {
            self.forward(engine, params, index, Mode::Evaluation);
            for x in self.units[index].inputs() {
                if self.last_reader[x] == index {
                    self.memory.release_activation(x);
                }
            }
        }
        let logits = self.memory.activation(self.graph.logits).to_vec();
        self.end_pass();
        logits
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
        input::normalise(engine.cpu(), &batch.images, &mut x);
        input::erase(&batch.erased, batch.resolution, &mut x);
        self.memory.activation[self.graph.input] = Some(x);
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

/// Which statistics normalise.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Training,
    Evaluation,
}

// Forward.
impl Walk {
    fn forward(&mut self, engine: &mut Engine, params: &Params, index: usize, mode: Mode) {
        match self.units[index].clone() {
            Unit::Conv(unit) => self.forward_conv(engine, params, index, &unit, mode),
            Unit::MaxPool { x, y } => {
                let mut out = self.take(y);
                let shape = self.pool_shape(x);
                self.memory.pool_index.resize(out.len(), 0);
                let memory = &mut self.memory;
                let from = memory.activation[x].as_deref().expect("a unit runs after its inputs");
                pooling::max_forward(engine.cpu(), shape, from, &mut out, &mut memory.pool_index);
                memory.activation[y] = Some(out);
            }
            Unit::AvgPool { x, y } => {
                let mut out = self.take(y);
                pooling::average_forward(
                    engine.cpu(),
                    self.pool_shape(x),
                    self.memory.activation(x),
                    &mut out,
                );
                self.memory.activation[y] = Some(out);
            }
            Unit::Linear { x, y, weight, bias } => {
                let mut out = self.take(y);
                let shape = self.linear_shape(x, y);
                let Engine { pool, isa, scratch } = engine;
                let from = self.memory.activation(x);
                conv::forward(pool, *isa, &shape, 1, from, &params.weight[weight], &mut out, scratch);
                let bias = &params.weight[bias];
                out.chunks_exact_mut(bias.len())
                    .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
                self.memory.activation[y] = Some(out);
            }
        }
    }

    fn forward_conv(
        &mut self,
        engine: &mut Engine,
        params: &Params,
        index: usize,
        unit: &ConvUnit,
        mode: Mode,
    ) {
        let mut raw = self.take(unit.raw);
        let mut y = self.take(unit.y);
        let Engine { pool, isa, scratch } = engine;
        let x = self.memory.activation(unit.x);
        conv::forward(pool, *isa, &unit.shape, self.n, x, &params.weight[unit.weight], &mut raw, scratch);
        let cpu = engine.cpu();
        let statistics = match mode {
            Mode::Training => batch_norm::statistics(cpu, &raw, unit.shape.k),
            Mode::Evaluation => Statistics::running(&params.running[unit.mean], &params.running[unit.var]),
        };
        let (gamma, beta) = (&params.weight[unit.gamma], &params.weight[unit.beta]);
        let scale = statistics.scale(gamma);
        let affine = Affine { mean: &statistics.mean, scale: &scale, shift: beta };
        let residual = unit.residual.map(|tensor| self.memory.activation(tensor));
        batch_norm::apply(cpu, affine, Epilogue { residual, relu: unit.relu }, &raw, &mut y);
        self.memory.activation[unit.y] = Some(y);
        match mode {
            Mode::Training => {
                self.memory.statistics[index] = statistics;
                self.memory.activation[unit.raw] = Some(raw);
                // Behind a shortcut's batch norm stands no ReLU, so its output is needed for the sum alone.
                if let Some(residual) = unit.residual.filter(|&tensor| self.last_reader[tensor] == index) {
                    let made_without_relu =
                        |unit: &Unit| matches!(unit, Unit::Conv(u) if u.y == residual && !u.relu);
                    if self.units.iter().any(made_without_relu) {
                        self.memory.release_activation(residual);
                    }
                }
            }
            Mode::Evaluation if self.memory.keep => self.memory.activation[unit.raw] = Some(raw),
            Mode::Evaluation => self.memory.buffers.give(raw),
        }
    }
}

// Backward.
impl Walk {
    fn backward(&mut self, engine: &mut Engine, params: &mut Params, index: usize, accumulate: bool) {
        match self.units[index].clone() {
            Unit::Conv(unit) => self.backward_conv(engine, params, index, &unit, accumulate),
            Unit::MaxPool { x, y } => {
                let dy = self.take_gradient(y);
                let mut dx = self.take(x);
                pooling::max_backward(
                    engine.cpu(),
                    self.pool_shape(x),
                    &dy,
                    &self.memory.pool_index,
                    &mut dx,
                );
                self.memory.buffers.give(dy);
                self.memory.gradient[x] = Some(dx);
                self.memory.release_activation(y);
            }
            Unit::AvgPool { x, y } => {
                let dy = self.take_gradient(y);
                let mut dx = self.take(x);
                pooling::average_backward(engine.cpu(), self.pool_shape(x), &dy, &mut dx);
                self.memory.buffers.give(dy);
                self.memory.gradient[x] = Some(dx);
            }
            Unit::Linear { x, y, weight, bias } => {
                let dy = self.take_gradient(y);
                let mut dx = self.take(x);
                let shape = self.linear_shape(x, y);
                let Engine { pool, isa, scratch } = engine;
                let from = self.memory.activation(x);
                conv::wgrad(
                    pool,
                    *isa,
                    &shape,
                    1,
                    from,
                    &dy,
                    &mut params.gradient[weight],
                    accumulate,
                    scratch,
                );
                conv::dgrad(pool, *isa, &shape, 1, &dy, &params.weight[weight], &mut dx, false, scratch);
                let mut sums = vec![0.0; shape.k];
                for row in dy.chunks_exact(shape.k) {
                    sums.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
                }
                put(&mut params.gradient[bias], &sums, accumulate);
                self.memory.buffers.give(dy);
                self.memory.gradient[x] = Some(dx);
            }
        }
    }

    fn backward_conv(
        &mut self,
        engine: &mut Engine,
        params: &mut Params,
        index: usize,
        unit: &ConvUnit,
        accumulate: bool,
    ) {
        let draw = self.backward_norm(engine.cpu(), params, index, unit, accumulate);
        let Engine { pool, isa, scratch } = engine;
        let x = self.memory.activation(unit.x);
        let dw = &mut params.gradient[unit.weight];
        conv::wgrad(pool, *isa, &unit.shape, self.n, x, &draw, dw, accumulate, scratch);
        if unit.x != self.graph.input {
            let joins = self.memory.gradient[unit.x].take();
            let second = joins.is_some();
            let mut dx = joins.unwrap_or_else(|| self.take(unit.x));
            let weight: ParamId = unit.weight;
            conv::dgrad(
                pool,
                *isa,
                &unit.shape,
                self.n,
                &draw,
                &params.weight[weight],
                &mut dx,
                second,
                scratch,
            );
            self.memory.gradient[unit.x] = Some(dx);
        }
        self.memory.buffers.give(draw);
    }

    /// The gradient of a unit's convolution output; the residual gets its own on the way.
    fn backward_norm(
        &mut self,
        cpu: Cpu,
        params: &mut Params,
        index: usize,
        unit: &ConvUnit,
        accumulate: bool,
    ) -> Buffer {
        let mut dy = self.take_gradient(unit.y);
        // Behind a gate that is recomputed, the gradient is turned into the convolution's in place.
        let mut separate = (unit.residual.is_some() || !unit.relu).then(|| self.take(unit.raw));
        let memory = &self.memory;
        let (statistics, raw) = (&memory.statistics[index], memory.activation(unit.raw));
        let (gamma, beta) = (&params.weight[unit.gamma], &params.weight[unit.beta]);
        let scale = statistics.scale(gamma);
        let forward = Affine { mean: &statistics.mean, scale: &scale, shift: beta };
        let gate = match (unit.relu, unit.residual) {
            (false, _) => Gate::Open,
            (true, Some(_)) => Gate::Output(memory.activation(unit.y)),
            (true, None) => Gate::Recomputed(forward),
        };
        let gradients = batch_norm::backward_reduce(cpu, statistics, raw, gate, &mut dy);
        let apply = BackwardApply::new(statistics, gamma, &gradients);
        match &mut separate {
            Some(draw) => apply.run(cpu, raw, &dy, draw),
            None => apply.run_gated(cpu, forward, raw, &mut dy),
        }
        put(&mut params.gradient[unit.gamma], &gradients.gamma, accumulate);
        put(&mut params.gradient[unit.beta], &gradients.beta, accumulate);
        self.memory.release_activation(unit.y);
        self.memory.release_activation(unit.raw);
        let Some(draw) = separate else { return dy };
        match unit.residual {
            // The sum hands the same gradient to both of its terms.
            Some(residual) => self.memory.gradient[residual] = Some(dy),
            None => self.memory.buffers.give(dy),
        }
        draw
    }

    fn take_gradient(&mut self, tensor: TensorId) -> Buffer {
        self.memory.gradient[tensor]
            .take()
            .expect("a unit's output has its gradient before the unit runs backward")
    }
}

fn put(into: &mut [f32], values: &[f32], accumulate: bool) {
    if accumulate {
        into.iter_mut().zip(values).for_each(|(into, value)| *into += value);
    } else {
        into.copy_from_slice(values);
    }
}

// Faults.
impl Walk {
    /// Called when the loss is not finite: the first place in forward order where a value is not.
    fn first_bad_value(&self, params: &Params) -> String {
        for unit in &self.units {
            let (reads, makes): (Vec<ParamId>, Vec<TensorId>) = match unit {
                Unit::Conv(unit) => (vec![unit.weight, unit.gamma, unit.beta], vec![unit.raw, unit.y]),
                Unit::Linear { y, weight, bias, .. } => (vec![*weight, *bias], vec![*y]),
                Unit::MaxPool { y, .. } | Unit::AvgPool { y, .. } => (vec![], vec![*y]),
            };
            if let Some(&param) = reads.iter().find(|&&param| !all_finite(&params.weight[param])) {
                return format!("the weights {} are not finite", self.graph.params[param].name);
            }
            if let Some(bad) = makes.iter().find_map(|&tensor| self.bad_output(tensor)) {
                return bad.to_string();
            }
        }
        "the loss alone is not finite".to_owned()
    }

    fn bad_output(&self, tensor: TensorId) -> Option<BadOutput> {
        let values = self.memory.activation[tensor].as_deref()?;
        let first = first_non_finite(values)?;
        let count = values.iter().filter(|value| !value.is_finite()).count();
        let TensorInfo { name, h, w, c } = self.graph.tensors[tensor].clone();
        Some(BadOutput { layer: name, count, of: values.len(), first, h, w, c })
    }
}
