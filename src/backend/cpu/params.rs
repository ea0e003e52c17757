//! Weights, velocities, gradients and running statistics, in this backend's layouts.
//!
//! Convolution and classifier weights are RSCK ([r][s][c][k]) here and KCRS outside; everything else is a vector.

use super::{Cpu, CpuOptions};
use crate::backend::{MOMENTUM_PREFIX, NamedTensors, find};
use crate::config::Decay;
use crate::error::Result;
use crate::model::graph::{ConvShape, Graph, ParamId};
use crate::model::params::{Param, Role};
use crate::optim::Rule;
use crate::optim::sgd::Sgd;
use crate::simd::conv;
use crate::simd::dispatch::multiversion;
use crate::tensor::{HostTensor, all_finite};

/// One vector a parameter, in the order of the graph.
pub struct Params {
    pub weight: Vec<Vec<f32>>,
    pub velocity: Vec<Vec<f32>>,
    pub gradient: Vec<Vec<f32>>,
    /// One vector a running statistic, in the order of the graph.
    pub running: Vec<Vec<f32>>,
    /// `running` before the current optimiser step, whose passes each move them.
    running_before: Vec<Vec<f32>>,
    decay: Decay,
}

impl Params {
    pub fn new(graph: &Graph, options: &CpuOptions) -> Self {
        let initial = |(index, param): (usize, &Param)| {
            to_internal(param, &param.initial_values(options.seed, index, options.zero_gamma))
        };
        let zeros = || graph.params.iter().map(|param| vec![0.0; param.elements()]).collect();
        Self {
            weight: graph.params.iter().enumerate().map(initial).collect(),
            velocity: zeros(),
            gradient: zeros(),
            running: graph.buffers.iter().map(|buffer| vec![buffer.initial; buffer.channels]).collect(),
            running_before: vec![],
            decay: options.decay,
        }
    }

    pub fn begin_step(&mut self) {
        self.running_before.clone_from(&self.running);
    }

    /// Takes back what the passes since `begin_step` changed; for a step that has not updated the weights.
    pub fn undo_step(&mut self) {
        self.running.clone_from(&self.running_before);
    }

    /// Name of the parameter whose gradient was the first, on the way back from the loss, to have a value that is not
    /// finite: what lies below it is not finite either.
    pub fn first_bad_gradient<'g>(&self, cpu: Cpu, graph: &'g Graph) -> Option<&'g str> {
        let bad = cpu.pool.map(self.gradient.iter().collect(), |gradient| !all_finite(gradient));
        bad.iter().rposition(|&bad| bad).map(|index| graph.params[index].name.as_str())
    }

    /// One optimiser step over all parameters.
    pub fn update(&mut self, cpu: Cpu, graph: &Graph, rule: &Rule) {
        let Rule::Sgd(sgd) = rule else { unreachable!("the backend takes no other rule") };
        const CHUNK: usize = 64 * 1024;
        let mut items = vec![];
        let slices = self.weight.iter_mut().zip(&mut self.velocity).zip(&self.gradient);
        for (param, ((weight, velocity), gradient)) in graph.params.iter().zip(slices) {
            let weight_decay = if self.decay.applies_to(param.role) { sgd.weight_decay } else { 0.0 };
            let rule = Sgd { weight_decay, ..*sgd };
            let chunks = weight.chunks_mut(CHUNK).zip(velocity.chunks_mut(CHUNK)).zip(gradient.chunks(CHUNK));
            items.extend(chunks.map(|((weight, velocity), gradient)| (rule, weight, velocity, gradient)));
        }
        cpu.pool.for_each(items, |(rule, weight, velocity, gradient)| {
            step(cpu.isa, &rule, weight, velocity, gradient);
        });
    }

    pub fn state(&self, graph: &Graph) -> NamedTensors {
        let mut state = NamedTensors::new();
        for (index, param) in graph.params.iter().enumerate() {
            let tensor =
                |values: &[f32]| HostTensor { shape: param.shape.clone(), data: to_external(param, values) };
            state.insert(param.name.clone(), tensor(&self.weight[index]));
            state.insert(format!("{MOMENTUM_PREFIX}{}", param.name), tensor(&self.velocity[index]));
        }
        for (buffer, values) in graph.buffers.iter().zip(&self.running) {
            state.insert(
                buffer.name.clone(),
                HostTensor { shape: vec![buffer.channels], data: values.clone() },
            );
        }
        state
    }

    /// Weights alone, without any velocity, start with velocities of zero.
    pub fn load_state(&mut self, graph: &Graph, state: &NamedTensors) -> Result<()> {
        let has_velocity = state.keys().any(|name| name.starts_with(MOMENTUM_PREFIX));
        for (index, param) in graph.params.iter().enumerate() {
            self.weight[index] = to_internal(param, find(state, &param.name, &param.shape)?);
            if has_velocity {
                let velocity = format!("{MOMENTUM_PREFIX}{}", param.name);
                self.velocity[index] = to_internal(param, find(state, &velocity, &param.shape)?);
            } else {
                self.velocity[index].fill(0.0);
            }
        }
        for (buffer, values) in graph.buffers.iter().zip(&mut self.running) {
            values.copy_from_slice(find(state, &buffer.name, &[buffer.channels])?);
        }
        Ok(())
    }

    pub fn read(&self, graph: &Graph, name: &str) -> Option<HostTensor> {
        let named = |name: &str| graph.params.iter().position(|param| param.name == name);
        let tensor = |index: ParamId, values: &[f32]| {
            let param = &graph.params[index];
            HostTensor { shape: param.shape.clone(), data: to_external(param, values) }
        };
        if let Some(index) = named(name) {
            return Some(tensor(index, &self.weight[index]));
        }
        if let Some(index) = name.strip_prefix("grad.").and_then(named) {
            return Some(tensor(index, &self.gradient[index]));
        }
        let index = graph.buffers.iter().position(|buffer| buffer.name == name)?;
        Some(HostTensor { shape: vec![graph.buffers[index].channels], data: self.running[index].clone() })
    }
}

multiversion! {
    fn step(rule: &Sgd, weight: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        rule.step(weight, velocity, gradient);
    }
}

/// K, C, R and S of a weight that is stored RSCK, as a convolution of a single pixel; none for vectors.
fn weight_shape(param: &Param) -> Option<ConvShape> {
    let (k, c, r, s) = match (param.role, &param.shape[..]) {
        (Role::ConvWeight, &[k, c, r, s]) => (k, c, r, s),
        (Role::LinearWeight, &[k, c]) => (k, c, 1, 1),
        _ => return None,
    };
    Some(ConvShape { h: 1, w: 1, c, k, r, s, stride: 1, pad: 0 })
}

fn to_internal(param: &Param, kcrs: &[f32]) -> Vec<f32> {
    let Some(shape) = weight_shape(param) else { return kcrs.to_vec() };
    let mut rsck = vec![0.0; kcrs.len()];
    conv::rsck_from_kcrs(&shape, kcrs, &mut rsck);
    rsck
}

fn to_external(param: &Param, rsck: &[f32]) -> Vec<f32> {
    let Some(shape) = weight_shape(param) else { return rsck.to_vec() };
    let mut kcrs = vec![0.0; rsck.len()];
    conv::kcrs_from_rsck(&shape, rsck, &mut kcrs);
    kcrs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{graph::lower, spec::RESNET_TINY};

    #[test]
    fn layouts_are_inverse() {
        let graph = lower(&RESNET_TINY, 32).unwrap();
        for (index, param) in graph.params.iter().enumerate() {
            let values = param.initial_values(1, index, false);
            assert_eq!(to_external(param, &to_internal(param, &values)), values, "{}", param.name);
        }
    }
}
