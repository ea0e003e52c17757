//! What outlives a pass, on the card and in a checkpoint: weights, velocities, running statistics, the loss scale, and what
//! LAMB and moving averages keep.

use super::{CudaBackend, Machine, state_region, to_stored};
use crate::backend::cuda::abi;
use crate::backend::cuda::plan::Rule;
use crate::backend::cuda::plan::chunks::Chunks;
use crate::backend::cuda::plan::region::{Arena, Region};
use crate::backend::{EMA_PREFIX, MOMENTUM_PREFIX, NamedTensors, SECOND_MOMENT_PREFIX, find};
use crate::error::Result;
use crate::model::params::Param;
use crate::tensor::HostTensor;

/// Name of the loss scale's state in a checkpoint: f32 [4] = scale, clean steps since it changed, updates, skipped.
pub const SCALE_STATE: &str = "optim.loss_scale";

impl<M: Machine> CudaBackend<M> {
    pub(super) fn initial_state(&self) -> NamedTensors {
        let (seed, zero_gamma) = (self.options.seed, self.options.zero_gamma);
        let values = |(index, param): (usize, &Param)| {
            let data = param.initial_values(seed, index, zero_gamma);
            (param.name.clone(), HostTensor { shape: param.shape.clone(), data })
        };
        let mut state: NamedTensors = self.graph.params.iter().enumerate().map(values).collect();
        for buffer in &self.graph.buffers {
            let data = vec![buffer.initial; buffer.channels];
            state.insert(buffer.name.clone(), HostTensor { shape: vec![buffer.channels], data });
        }
        state
    }

    pub(super) fn named_state(&self) -> Result<NamedTensors> {
        let mut state = NamedTensors::new();
        for (index, param) in self.graph.params.iter().enumerate() {
            state.insert(param.name.clone(), self.read_param(Arena::Master, index)?);
            if self.layout.is_trained(&self.layout.slots[index]) {
                let momentum = format!("{MOMENTUM_PREFIX}{}", param.name);
                state.insert(momentum, self.read_param(Arena::Momentum, index)?);
            }
        }
        for (index, buffer) in self.graph.buffers.iter().enumerate() {
            state.insert(buffer.name.clone(), self.read_running(Arena::Running, index)?);
        }
        let device = self.device_state()?;
        let data = vec![device.scale, device.clean as f32, device.updates as f32, device.skipped as f32];
        state.insert(SCALE_STATE.to_owned(), HostTensor { shape: vec![4], data });
        self.add_recipe_state(&mut state)?;
        Ok(state)
    }

    pub(super) fn load_named_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.load_weights(state)?;
        let momentum = match state.keys().any(|name| name.starts_with(MOMENTUM_PREFIX)) {
            true => self.flat(state, MOMENTUM_PREFIX, self.layout.trained)?,
            false => vec![0.0; self.layout.trained],
        };
        self.machine.write(self.layout.all_f32(Arena::Momentum), bytemuck::cast_slice(&momentum))?;
        self.write_running(state, "", Arena::Running)?;
        self.load_recipe_state(state)?;
        self.load_scale(state)
    }

    /// The first `elements` of the parameter space from tensors by name: those that are trained, or all.
    fn flat(&self, state: &NamedTensors, prefix: &str, elements: usize) -> Result<Vec<f32>> {
        let mut flat = vec![0.0; elements];
        let slots = self.graph.params.iter().zip(&self.layout.slots);
        for (param, slot) in slots.filter(|(_, slot)| slot.offset < elements) {
            let packed = slot.pack(find(state, &format!("{prefix}{}", param.name), &param.shape)?);
            flat[slot.offset..slot.offset + packed.len()].copy_from_slice(&packed);
        }
        Ok(flat)
    }

    fn load_weights(&mut self, state: &NamedTensors) -> Result<()> {
        let master = self.flat(state, "", self.layout.total)?;
        self.machine.write(self.layout.all_f32(Arena::Master), bytemuck::cast_slice(&master))?;
        let copy = to_stored(self.options.storage, &master);
        self.machine.write(self.layout.all_weights(self.options.storage), &copy)
    }

    /// All running statistics, or their averages, from tensors by name.
    fn write_running(&mut self, state: &NamedTensors, prefix: &str, arena: Arena) -> Result<()> {
        let mut running = vec![0.0; 2 * self.layout.channels];
        for (index, buffer) in self.graph.buffers.iter().enumerate() {
            let of_variance = buffer.name.ends_with("running_var");
            let first = self.layout.running(index, buffer.channels, of_variance).offset as usize / 4;
            let values = find(state, &format!("{prefix}{}", buffer.name), &[buffer.channels])?;
            running[first..first + buffer.channels].copy_from_slice(values);
        }
        let region = Region::new(arena, 0, 4 * running.len() as u64);
        self.machine.write(region, bytemuck::cast_slice(&running))
    }

    fn load_scale(&mut self, state: &NamedTensors) -> Result<()> {
        let initial = [self.options.scale.initial, 0.0, 0.0, 0.0];
        let values = match state.contains_key(SCALE_STATE) {
            true => find(state, SCALE_STATE, &[4])?,
            false => &initial,
        };
        let state = abi::State {
            scale: values[0],
            unscale: 1.0 / values[0],
            clean: values[1] as u32,
            updates: values[2] as u32,
            skipped: values[3] as u32,
            ..abi::State::default()
        };
        self.machine.write(state_region(), bytemuck::bytes_of(&state))
    }

    fn uses_lamb(&self) -> bool {
        self.options.recipe.rule == Rule::Lamb
    }

    /// Adds what the recipe keeps beyond weights, velocities and running statistics.
    fn add_recipe_state(&self, state: &mut NamedTensors) -> Result<()> {
        let averages = self.options.recipe.averages;
        for (index, param) in self.graph.params.iter().enumerate() {
            if self.uses_lamb() && self.layout.is_trained(&self.layout.slots[index]) {
                let name = format!("{SECOND_MOMENT_PREFIX}{}", param.name);
                state.insert(name, self.read_param(Arena::SecondMoment, index)?);
            }
            if averages {
                let name = format!("{EMA_PREFIX}{}", param.name);
                state.insert(name, self.read_param(Arena::Ema, index)?);
            }
        }
        for (index, buffer) in self.graph.buffers.iter().enumerate().filter(|_| averages) {
            let name = format!("{EMA_PREFIX}{}", buffer.name);
            state.insert(name, self.read_running(Arena::RunningEma, index)?);
        }
        Ok(())
    }

    /// Second moments start at zero, averages at what they are averages of.
    fn load_recipe_state(&mut self, state: &NamedTensors) -> Result<()> {
        let has = |prefix: &str| state.keys().any(|name| name.starts_with(prefix));
        if self.uses_lamb() {
            let second = match has(SECOND_MOMENT_PREFIX) {
                true => self.flat(state, SECOND_MOMENT_PREFIX, self.layout.trained)?,
                false => vec![0.0; self.layout.trained],
            };
            let region = self.layout.all_f32(Arena::SecondMoment);
            self.machine.write(region, bytemuck::cast_slice(&second))?;
        }
        if self.options.recipe.needs_chunks() {
            let table = Chunks::new(&self.layout, self.options.decay);
            let [mut region, ranges] = table.regions();
            region.bytes += ranges.bytes;
            self.machine.write(region, &table.bytes())?;
        }
        if self.options.recipe.averages {
            let prefix = if has(EMA_PREFIX) { EMA_PREFIX } else { "" };
            let averages = self.flat(state, prefix, self.layout.total)?;
            self.machine.write(self.layout.all_f32(Arena::Ema), bytemuck::cast_slice(&averages))?;
            self.write_running(state, prefix, Arena::RunningEma)?;
        }
        Ok(())
    }
}
