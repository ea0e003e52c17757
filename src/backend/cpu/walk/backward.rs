//! Backward, unit by unit.

use super::Walk;
use crate::backend::cpu::batch_norm::{self, Affine, BackwardApply, Gate, ParamGradients, Statistics};
use crate::backend::cpu::memory::Buffer;
use crate::backend::cpu::params::Params;
use crate::backend::cpu::{Engine, pooling, ranks};
use crate::error::Result;
use crate::model::graph::TensorId;
use crate::model::units::{ConvUnit, Unit};
use crate::simd::conv;
use std::borrow::Cow;

impl Walk {
    pub(super) fn backward(
        &mut self,
        engine: &mut Engine,
        params: &mut Params,
        index: usize,
        accumulate: bool,
    ) -> Result<()> {
        match self.units[index].clone() {
            Unit::Conv(unit) => self.backward_conv(engine, params, index, &unit, accumulate)?,
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
                let shape = self.linear_shape(x, y);
                let Engine { pool, isa, scratch, .. } = engine;
                if self.demand.trains[index] {
                    let from = self.memory.activation(x);
                    let dw = &mut params.gradient[weight];
                    conv::wgrad(pool, *isa, &shape, 1, from, &dy, dw, accumulate, scratch);
                    put(&mut params.gradient[bias], &column_sums(&dy, shape.k), accumulate);
                }
                if self.demand.wants(x) {
                    let (mut dx, w) = (self.take(x), &params.weight[weight]);
                    conv::dgrad(pool, *isa, &shape, 1, &dy, w, &mut dx, false, scratch);
                    self.memory.gradient[x] = Some(dx);
                }
                self.memory.buffers.give(dy);
            }
        }
        Ok(())
    }

    fn backward_conv(
        &mut self,
        engine: &mut Engine,
        params: &mut Params,
        index: usize,
        unit: &ConvUnit,
        accumulate: bool,
    ) -> Result<()> {
        let draw = self.backward_norm(engine, params, index, unit, accumulate)?;
        let Engine { pool, isa, scratch, .. } = engine;
        if self.demand.trains[index] {
            let x = self.memory.activation(unit.x);
            let dw = &mut params.gradient[unit.weight];
            conv::wgrad(pool, *isa, &unit.shape, self.n, x, &draw, dw, accumulate, scratch);
        }
        if self.demand.wants(unit.x) {
            let joins = self.memory.gradient[unit.x].take();
            let second = joins.is_some();
            let mut dx = joins.unwrap_or_else(|| self.take(unit.x));
            let w = &params.weight[unit.weight];
            conv::dgrad(pool, *isa, &unit.shape, self.n, &draw, w, &mut dx, second, scratch);
            self.memory.gradient[unit.x] = Some(dx);
        }
        self.memory.buffers.give(draw);
        Ok(())
    }

    /// The gradient of a unit's convolution output; the residual gets its own on the way.
    fn backward_norm(
        &mut self,
        engine: &Engine,
        params: &mut Params,
        index: usize,
        unit: &ConvUnit,
        accumulate: bool,
    ) -> Result<Buffer> {
        let cpu = engine.cpu();
        if !self.memory.factors[index].is_empty() {
            return self.backward_norm_scaled(engine, params, index, unit, accumulate);
        }
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
        let trains = self.demand.trains[index];
        let found = trains.then(|| batch_norm::backward_reduce(cpu, statistics, raw, gate, &mut dy));
        if !trains {
            batch_norm::pass_output_gate(cpu, gate, &mut dy);
        }
        let apply = backward_apply(engine, statistics, gamma, found.as_ref())?;
        match &mut separate {
            Some(draw) => apply.run(cpu, raw, &dy, draw),
            None => apply.run_gated(cpu, forward, raw, &mut dy),
        }
        self.end_norm(params, unit, found.as_ref(), accumulate);
        let Some(draw) = separate else { return Ok(dy) };
        match unit.residual {
            // The sum hands the same gradient to both of its terms.
            Some(residual) if self.demand.wants(residual) => self.memory.gradient[residual] = Some(dy),
            _ => self.memory.buffers.give(dy),
        }
        Ok(draw)
    }

    /// The same where the normalised output was multiplied by a factor for each image: the residual's gradient is that behind
    /// the ReLU, the batch norm's is that times the factor.
    fn backward_norm_scaled(
        &mut self,
        engine: &Engine,
        params: &mut Params,
        index: usize,
        unit: &ConvUnit,
        accumulate: bool,
    ) -> Result<Buffer> {
        let cpu = engine.cpu();
        let mut dy = self.take_gradient(unit.y);
        let (mut scaled, mut draw) = (self.take(unit.raw), self.take(unit.raw));
        let memory = &self.memory;
        let (statistics, raw) = (&memory.statistics[index], memory.activation(unit.raw));
        let y = memory.activation(unit.y);
        let stride = y.len() / memory.factors[index].len();
        let images = dy.chunks_mut(stride).zip(y.chunks(stride)).zip(scaled.chunks_mut(stride));
        let items = images.zip(&memory.factors[index]).collect();
        cpu.pool.for_each(items, |(((dy, y), scaled), &factor)| {
            for ((dy, &y), scaled) in dy.iter_mut().zip(y).zip(scaled) {
                *dy = if y > 0.0 || !unit.relu { *dy } else { 0.0 };
                *scaled = *dy * factor;
            }
        });
        let trains = self.demand.trains[index];
        let found =
            trains.then(|| batch_norm::backward_reduce(cpu, statistics, raw, Gate::Open, &mut scaled));
        backward_apply(engine, statistics, &params.weight[unit.gamma], found.as_ref())?
            .run(cpu, raw, &scaled, &mut draw);
        self.end_norm(params, unit, found.as_ref(), accumulate);
        self.memory.buffers.give(scaled);
        let residual = unit.residual.expect("a factor is that of a block, which ends in a sum");
        match self.demand.wants(residual) {
            true => self.memory.gradient[residual] = Some(dy),
            false => self.memory.buffers.give(dy),
        }
        Ok(draw)
    }

    /// Hands on what a unit's batch norm has found, and gives up what it has read.
    fn end_norm(
        &mut self,
        params: &mut Params,
        unit: &ConvUnit,
        found: Option<&ParamGradients>,
        accumulate: bool,
    ) {
        if let Some(found) = found {
            put(&mut params.gradient[unit.gamma], &found.gamma, accumulate);
            put(&mut params.gradient[unit.beta], &found.beta, accumulate);
        }
        self.memory.release_activation(unit.y);
        self.memory.release_activation(unit.raw);
    }

    fn take_gradient(&mut self, tensor: TensorId) -> Buffer {
        self.memory.gradient[tensor]
            .take()
            .expect("a unit's output has its gradient before the unit runs backward")
    }
}

/// The parameters' own gradients are added up over ranks with all others, at the end of the step; what the input's gradient
/// is made of are sums over what the statistics are over. `found` is `None` where the batch norm is frozen.
fn backward_apply(
    engine: &Engine,
    statistics: &Statistics,
    gamma: &[f32],
    found: Option<&ParamGradients>,
) -> Result<BackwardApply> {
    let Some(own) = found else { return Ok(BackwardApply::fixed(statistics, gamma)) };
    let all = match engine.sync_norms {
        true => Cow::Owned(ranks::join_sums(&engine.ranks, own)?),
        false => Cow::Borrowed(own),
    };
    Ok(BackwardApply::new(statistics, gamma, &all))
}

/// dy [rows][k] -> [k]
fn column_sums(dy: &[f32], k: usize) -> Vec<f32> {
    let mut sums = vec![0.0; k];
    for row in dy.chunks_exact(k) {
        sums.iter_mut().zip(row).for_each(|(sum, dy)| *sum += dy);
    }
    sums
}

fn put(into: &mut [f32], values: &[f32], accumulate: bool) {
    if accumulate {
        into.iter_mut().zip(values).for_each(|(into, value)| *into += value);
    } else {
        into.copy_from_slice(values);
    }
}
