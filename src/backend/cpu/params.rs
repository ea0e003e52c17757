//! Weights, velocities, gradients and running statistics, in this backend's layouts.
//!
//! Convolution and classifier weights are RSCK ([r][s][c][k]) here and KCRS outside; everything else is a vector.

use super::{Cpu, CpuOptions};
use crate::backend::{EMA_PREFIX, MOMENTUM_PREFIX, NamedTensors, SECOND_MOMENT_PREFIX, UPDATES, find};
use crate::config::{Decay, RuleKind};
use crate::error::Result;
use crate::model::freeze::Freeze;
use crate::model::graph::{ConvShape, Graph, ParamId};
use crate::model::params::{Buffer, Param, Role};
use crate::simd::conv;
use crate::tensor::{HostTensor, all_finite};

/// One vector a parameter, in the order of the graph; of a frozen one, empty but for its weights.
pub struct Params {
    pub weight: Vec<Vec<f32>>,
    /// Velocities, or LAMB's first moments.
    pub velocity: Vec<Vec<f32>>,
    /// LAMB's second moments; none for other rules.
    pub second: Vec<Vec<f32>>,
    pub gradient: Vec<Vec<f32>>,
    /// One vector a running statistic, in the order of the graph.
    pub running: Vec<Vec<f32>>,
    /// `running` before the current optimiser step, whose passes each move them.
    running_before: Vec<Vec<f32>>,
    pub averages: Option<Averages>,
    /// Updates done.
    pub updates: u32,
    pub decay: Decay,
    pub freeze: Freeze,
}

/// Moving averages, in the order of what they are averages of.
pub struct Averages {
    pub weight: Vec<Vec<f32>>,
    pub running: Vec<Vec<f32>>,
}

impl Params {
    pub fn new(graph: &Graph, options: &CpuOptions) -> Self {
        let initial = |(index, param): (usize, &Param)| {
            to_internal(param, &param.initial_values(options.seed, index, options.zero_gamma))
        };
        let freeze = options.extras.freeze;
        let zeros = || graph.params.iter().map(|param| zeros(param, freeze)).collect();
        let weight: Vec<Vec<f32>> = graph.params.iter().enumerate().map(initial).collect();
        let running: Vec<Vec<f32>> =
            graph.buffers.iter().map(|buffer| vec![buffer.initial; buffer.channels]).collect();
        let averages = Averages { weight: weight.clone(), running: running.clone() };
        Self {
            velocity: zeros(),
            second: if options.extras.rule == RuleKind::Lamb { zeros() } else { vec![] },
            gradient: zeros(),
            averages: options.extras.averages.then_some(averages),
            weight,
            running,
            running_before: vec![],
            updates: 0,
            decay: options.decay,
            freeze,
        }
    }

    /// Runs `body` with the averages, where there are any, in place of weights and running statistics.
    pub fn with_averages<R>(&mut self, body: impl FnOnce(&Self) -> R) -> Option<R> {
        let mut averages = self.averages.take()?;
        let mut exchange = |params: &mut Self| {
            std::mem::swap(&mut averages.weight, &mut params.weight);
            std::mem::swap(&mut averages.running, &mut params.running);
        };
        exchange(self);
        let result = body(self);
        exchange(self);
        self.averages = Some(averages);
        Some(result)
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

    pub fn state(&self, graph: &Graph) -> NamedTensors {
        let mut state = NamedTensors::new();
        put_weights(&mut state, graph, "", &self.weight);
        self.put_trained(&mut state, graph, MOMENTUM_PREFIX, &self.velocity);
        put_running(&mut state, graph, "", &self.running);
        if !self.second.is_empty() {
            self.put_trained(&mut state, graph, SECOND_MOMENT_PREFIX, &self.second);
            // Exact up to 2^24 updates, thirteen epochs of ImageNet one image at a time.
            state.insert(UPDATES.to_owned(), HostTensor { shape: vec![1], data: vec![self.updates as f32] });
        }
        if let Some(averages) = &self.averages {
            put_weights(&mut state, graph, EMA_PREFIX, &averages.weight);
            put_running(&mut state, graph, EMA_PREFIX, &averages.running);
        }
        state
    }

    /// Adds what only a trained parameter has.
    fn put_trained(&self, state: &mut NamedTensors, graph: &Graph, prefix: &str, vectors: &[Vec<f32>]) {
        put(state, graph, prefix, vectors, |param| !self.freeze.has(param.part));
    }

    /// Weights alone, without any velocity, start with velocities and moments of zero, and averages that are copies.
    pub fn load_state(&mut self, graph: &Graph, state: &NamedTensors) -> Result<()> {
        let has = |prefix: &str| state.keys().any(|name| name.starts_with(prefix));
        let moments = |prefix: &str| match has(prefix) {
            true => take(state, graph, prefix, |param| !self.freeze.has(param.part)),
            false => Ok(graph.params.iter().map(|param| zeros(param, self.freeze)).collect()),
        };
        let weight = take_weights(state, graph, "")?;
        let running = take_running(state, graph, "")?;
        let velocity = moments(MOMENTUM_PREFIX)?;
        if !self.second.is_empty() {
            self.second = moments(SECOND_MOMENT_PREFIX)?;
            let updates = if state.contains_key(UPDATES) { find(state, UPDATES, &[1])?[0] } else { 0.0 };
            self.updates = updates as u32;
        }
        if let Some(averages) = &mut self.averages {
            let prefix = if has(EMA_PREFIX) { EMA_PREFIX } else { "" };
            averages.weight = take_weights(state, graph, prefix)?;
            averages.running = take_running(state, graph, prefix)?;
        }
        (self.weight, self.running, self.velocity) = (weight, running, velocity);
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
            let is_trained = !self.freeze.has(graph.params[index].part);
            return is_trained.then(|| tensor(index, &self.gradient[index]));
        }
        let index = graph.buffers.iter().position(|buffer| buffer.name == name)?;
        Some(HostTensor { shape: vec![graph.buffers[index].channels], data: self.running[index].clone() })
    }
}

/// A vector for a parameter that is trained.
fn zeros(param: &Param, freeze: Freeze) -> Vec<f32> {
    vec![0.0; if freeze.has(param.part) { 0 } else { param.elements() }]
}

fn put_weights(state: &mut NamedTensors, graph: &Graph, prefix: &str, vectors: &[Vec<f32>]) {
    put(state, graph, prefix, vectors, |_| true);
}

/// Adds vectors of the parameter space, in the outside's layouts, of the parameters that are `wanted`.
fn put(
    state: &mut NamedTensors,
    graph: &Graph,
    prefix: &str,
    vectors: &[Vec<f32>],
    wanted: impl Fn(&Param) -> bool,
) {
    for (param, values) in graph.params.iter().zip(vectors).filter(|(param, _)| wanted(param)) {
        let tensor = HostTensor { shape: param.shape.clone(), data: to_external(param, values) };
        state.insert(format!("{prefix}{}", param.name), tensor);
    }
}

fn put_running(state: &mut NamedTensors, graph: &Graph, prefix: &str, vectors: &[Vec<f32>]) {
    for (buffer, values) in graph.buffers.iter().zip(vectors) {
        let tensor = HostTensor { shape: vec![buffer.channels], data: values.clone() };
        state.insert(format!("{prefix}{}", buffer.name), tensor);
    }
}

fn take_weights(state: &NamedTensors, graph: &Graph, prefix: &str) -> Result<Vec<Vec<f32>>> {
    take(state, graph, prefix, |_| true)
}

/// Of a parameter that is not `wanted`, nothing.
fn take(
    state: &NamedTensors,
    graph: &Graph,
    prefix: &str,
    wanted: impl Fn(&Param) -> bool,
) -> Result<Vec<Vec<f32>>> {
    let take = |param: &Param| {
        if !wanted(param) {
            return Ok(vec![]);
        }
        let values = find(state, &format!("{prefix}{}", param.name), &param.shape)?;
        Ok(to_internal(param, values))
    };
    graph.params.iter().map(take).collect()
}

fn take_running(state: &NamedTensors, graph: &Graph, prefix: &str) -> Result<Vec<Vec<f32>>> {
    let take =
        |buffer: &Buffer| Ok(find(state, &format!("{prefix}{}", buffer.name), &[buffer.channels])?.to_vec());
    graph.buffers.iter().map(take).collect()
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
