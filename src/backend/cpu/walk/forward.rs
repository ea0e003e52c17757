//! Forward, unit by unit.

use super::{Mode, Walk};
use crate::backend::cpu::batch_norm::{self, Affine, Epilogue, Statistics};
use crate::backend::cpu::params::Params;
use crate::backend::cpu::ranks;
use crate::backend::cpu::{Cpu, Engine, pooling};
use crate::error::Result;
use crate::model::units::{ConvUnit, Unit};
use crate::simd::conv;

impl Walk {
    pub(super) fn forward(
        &mut self,
        engine: &mut Engine,
        params: &Params,
        index: usize,
        mode: Mode,
    ) -> Result<()> {
        match self.units[index].clone() {
            Unit::Conv(unit) => self.forward_conv(engine, params, index, &unit, mode)?,
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
                let Engine { pool, isa, scratch, .. } = engine;
                let from = self.memory.activation(x);
                conv::forward(pool, *isa, &shape, 1, from, &params.weight[weight], &mut out, scratch);
                let bias = &params.weight[bias];
                out.chunks_exact_mut(bias.len())
                    .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
                self.memory.activation[y] = Some(out);
            }
        }
        Ok(())
    }

    fn forward_conv(
        &mut self,
        engine: &mut Engine,
        params: &Params,
        index: usize,
        unit: &ConvUnit,
        mode: Mode,
    ) -> Result<()> {
        let mut raw = self.take(unit.raw);
        let mut y = self.take(unit.y);
        let Engine { pool, isa, scratch, .. } = engine;
        let x = self.memory.activation(unit.x);
        conv::forward(pool, *isa, &unit.shape, self.n, x, &params.weight[unit.weight], &mut raw, scratch);
        let cpu = engine.cpu();
        let statistics = match mode {
            Mode::Training if self.demand.trains[index] => {
                let own = batch_norm::statistics(cpu, &raw, unit.shape.k);
                if engine.sync_norms { ranks::join_statistics(&engine.ranks, &own)? } else { own }
            }
            _ => Statistics::running(&params.running[unit.mean], &params.running[unit.var]),
        };
        let (gamma, beta) = (&params.weight[unit.gamma], &params.weight[unit.beta]);
        let scale = statistics.scale(gamma);
        let affine = Affine { mean: &statistics.mean, scale: &scale, shift: beta };
        let residual = unit.residual.map(|tensor| self.memory.activation(tensor));
        let epilogue = Epilogue { residual, relu: unit.relu };
        match &self.memory.factors[index][..] {
            factors if mode == Mode::Training && !factors.is_empty() => {
                apply_scaled(cpu, affine, epilogue, factors, &raw, &mut y);
            }
            _ => batch_norm::apply(cpu, affine, epilogue, &raw, &mut y),
        }
        self.memory.activation[unit.y] = Some(y);
        match mode {
            Mode::Training if self.demand.wants(unit.y) => {
                self.memory.statistics[index] = statistics;
                self.memory.activation[unit.raw] = Some(raw);
            }
            _ if self.memory.keep => self.memory.activation[unit.raw] = Some(raw),
            _ => self.memory.buffers.give(raw),
        }
        Ok(())
    }
}

/// [`batch_norm::apply`] with each image's normalised values multiplied by its factor, before the residual is added.
fn apply_scaled(cpu: Cpu, affine: Affine, epilogue: Epilogue, factors: &[f32], x: &[f32], y: &mut [f32]) {
    let stride = x.len() / factors.len();
    for (image, &factor) in factors.iter().enumerate() {
        let of = image * stride..(image + 1) * stride;
        let by = |values: &[f32]| -> Vec<f32> { values.iter().map(|value| value * factor).collect() };
        let (scale, shift) = (by(affine.scale), by(affine.shift));
        let affine = Affine { scale: &scale, shift: &shift, ..affine };
        let residual = epilogue.residual.map(|residual| &residual[of.clone()]);
        batch_norm::apply(cpu, affine, Epilogue { residual, ..epilogue }, &x[of.clone()], &mut y[of]);
    }
}
