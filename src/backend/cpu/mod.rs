//! The CPU backend: f32, NHWC, the oracle for every other backend and the default on a machine without a GPU.
//!
//! What is walked forward and backward are the units of [`crate::model::units`]; `batch_norm`, `pooling` and
//! `input` are the memory-bound operations, `simd::conv` the convolutions; `memory` hands out buffers; `walk` runs a
//! step. All reductions are in an order that the shapes fix, so results do not depend on the number of threads.

pub mod batch_norm;
pub mod input;
mod memory;
pub mod pooling;
mod params;
mod ranks;
mod update;
mod walk;

use super::{Backend, Extras, NO_AVERAGES, NamedTensors, Outcome, Step, Weights, check_batch};
use crate::comm::{Ranks, alone};
use crate::config::Decay;
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::graph::{Graph, lower};
use crate::model::spec::ResNetSpec;
use crate::simd::conv::Scratch;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;
use crate::tensor::HostTensor;
use params::Params;
use std::collections::VecDeque;
use walk::Walk;

/// What a CPU backend is made from.
#[derive(Debug, Clone)]
pub struct CpuOptions {
    pub spec: ResNetSpec,
    /// Side of a training image.
    pub resolution: usize,
    pub seed: u64,
    pub zero_gamma: bool,
    /// Which parameters weight decay applies to.
    pub decay: Decay,
    pub extras: Extras,
    /// 0 means one a core.
    pub threads: usize,
    pub isa: Isa,
}

/// A network with its optimiser state in main memory.
pub struct CpuBackend {
    spec: ResNetSpec,
    extras: Extras,
    engine: Engine,
    params: Params,
    training: Walk,
    /// For evaluation at another resolution than training's.
    evaluation: Option<Walk>,
    outcomes: VecDeque<Outcome>,
    keep: bool,
}

/// What computes, and who else does.
struct Engine {
    pool: Pool,
    isa: Isa,
    scratch: Scratch,
    ranks: Ranks,
    /// Batch norm sees the images of all ranks.
    sync_norms: bool,
}

/// Threads and instructions, handed down to every memory-bound operation.
#[derive(Clone, Copy)]
pub struct Cpu<'a> {
    pub pool: &'a Pool,
    pub isa: Isa,
}

impl CpuBackend {
    /// Freshly initialised.
    pub fn new(options: &CpuOptions) -> Result<Self> {
        let graph = lower(&options.spec, options.resolution)?;
        let params = Params::new(&graph, options);
        let engine = Engine {
            pool: Pool::new(options.threads),
            isa: options.isa,
            scratch: Scratch::default(),
            ranks: alone(),
            sync_norms: false,
        };
        let training = Walk::new(graph, options.extras.freeze, false);
        Ok(Self {
            spec: options.spec,
            extras: options.extras,
            engine,
            params,
            training,
            evaluation: None,
            outcomes: VecDeque::new(),
            keep: false,
        })
    }

    /// From now on steps are those of all ranks together; with `sync_norms` batch norm's statistics are as well. Every rank
    /// calls `submit` for as many images, and is told of the fault of any.
    pub fn join(&mut self, ranks: Ranks, sync_norms: bool) {
        self.engine.sync_norms = sync_norms && ranks.size() > 1;
        self.engine.ranks = ranks;
    }

    /// For comparing backends layer by layer: from now on every activation that a pass makes stays until the next one,
    /// so that `read` finds it. A batch norm or sum that runs into its ReLU makes none of its own.
    pub fn keep_activations(&mut self) {
        self.keep = true;
        self.training = self.walk(self.training.graph.clone());
        self.evaluation = None;
    }

    fn walk(&self, graph: Graph) -> Walk {
        Walk::new(graph, self.extras.freeze, self.keep)
    }

    /// With the weights and running statistics of `tensors`, for evaluation at `resolution`.
    pub fn for_inference(
        spec: &ResNetSpec,
        tensors: &NamedTensors,
        resolution: usize,
        threads: usize,
    ) -> Result<Self> {
        let (seed, zero_gamma, decay, isa) = (0, false, Decay::Weights, Isa::current());
        let (spec, extras) = (*spec, Extras::default());
        let mut backend =
            Self::new(&CpuOptions { spec, resolution, seed, zero_gamma, decay, extras, threads, isa })?;
        backend.load_state(tensors)?;
        Ok(backend)
    }
}

impl Backend for CpuBackend {
    fn submit(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        check_batch(batch, self.spec.classes)?;
        self.extras.check(step)?;
        if batch.resolution != self.training.graph.resolution {
            self.training = self.walk(lower(&self.spec, batch.resolution)?);
        }
        if step.ranks != self.engine.ranks.size() {
            let (step, joined) = (step.ranks, self.engine.ranks.size());
            return Err(Error::failed(format!("a step of {step} ranks for a network of {joined}")));
        }
        let outcome = self.training.step(&mut self.engine, &mut self.params, batch, step)?;
        self.outcomes.push_back(outcome);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Outcome>> {
        Ok(self.outcomes.pop_front())
    }

    fn wait(&mut self) -> Result<Option<Outcome>> {
        self.poll()
    }

    fn eval_batch(&mut self, batch: &Batch, weights: Weights) -> Result<HostTensor> {
        check_batch(batch, self.spec.classes)?;
        let walk = if batch.resolution == self.training.graph.resolution {
            &mut self.training
        } else {
            if self.evaluation.as_ref().is_none_or(|walk| walk.graph.resolution != batch.resolution) {
                self.evaluation = Some(self.walk(lower(&self.spec, batch.resolution)?));
            }
            self.evaluation.as_mut().expect("made above")
        };
        let engine = &mut self.engine;
        let logits = match weights {
            Weights::Live => walk.evaluate(engine, &self.params, batch)?,
            Weights::Averaged => self
                .params
                .with_averages(|params| walk.evaluate(engine, params, batch))
                .ok_or_else(|| Error::usage(NO_AVERAGES))??,
        };
        HostTensor::new("logits", vec![batch.labels.len(), self.spec.classes], logits)
    }

    fn state(&self) -> Result<NamedTensors> {
        Ok(self.params.state(&self.training.graph))
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.params.load_state(&self.training.graph, state)
    }

    fn read(&self, name: &str) -> Result<HostTensor> {
        if let Some(found) = self.params.read(&self.training.graph, name) {
            return Ok(found);
        }
        self.training.read(name).ok_or_else(|| {
            let hint =
                "expected a parameter, a running statistic, grad.<parameter> of one that is trained, or an activation that is kept";
            Error::usage(format!("{}: no tensor {name}; {hint}", self.spec.name))
        })
    }
}
