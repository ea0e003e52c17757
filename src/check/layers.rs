//! Every node of a pass against CPU code on the node's own inputs: what the card read, by name, goes into the CPU's
//! operation, and what comes out is compared with what the card wrote. Errors do not add up from layer to layer, so each
//! tolerance follows from one operation's roundings ([`super::compare`]).
//!
//! One training step with every buffer kept, one evaluation, and, where there is a loss scale, one step that overflows.
//! A node of the plan that no comparison covers is itself a finding.

use super::Case;
use super::compare::{Finding, Want, compare};
use super::oracle::Oracle;
use super::pass;
use super::seen::{Before, Seen};
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::network::SCALE_STATE;
use crate::backend::cuda::plan::params::Statistic;
use crate::backend::cuda::plan::{Plan, Purpose};
use crate::backend::cuda::storage::Storage;
use crate::backend::cuda::{CudaBackend, CudaOptions};
use crate::backend::{Backend, EMA_PREFIX, NamedTensors, Outcome, Step, Weights};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::model::freeze::Demand;
use crate::model::units::{Unit, units};
use crate::tensor::HostTensor;

/// A loss scale with which gradients of fresh weights leave half's range.
const TOO_LARGE: f32 = 16_777_216.0;

/// The comparisons of one pass.
pub struct Layers<'a, M> {
    pub seen: Seen<'a, M>,
    pub oracle: &'a mut Oracle,
    pub units: Vec<Unit>,
    /// What trains, and whose gradients are wanted.
    pub demand: Demand,
    pub findings: Vec<Finding>,
}

/// What the host sent with a pass, and what came back.
pub struct Sent<'a> {
    pub batch: &'a Batch,
    pub step: &'a Step,
    pub outcome: &'a Outcome,
}

impl<'a, M: Machine> Layers<'a, M> {
    fn new(seen: Seen<'a, M>, oracle: &'a mut Oracle) -> Self {
        let units = units(&seen.plan.graph);
        let demand = Demand::new(&seen.plan.graph, &units, seen.plan.options.recipe.freeze);
        Self { seen, oracle, units, demand, findings: vec![] }
    }

    /// Compares a result that `nodes` made.
    pub fn note(&mut self, kind: &'static str, nodes: &[String], what: &str, got: &[f64], want: &Want) {
        self.findings.push(compare(kind, nodes, what, got, want));
    }

    /// Ends with a finding for every node that nothing was compared for.
    fn finish(mut self) -> Vec<Finding> {
        let covered = |name: &String| self.findings.iter().any(|finding| finding.nodes.contains(name));
        let missed: Vec<String> =
            self.seen.plan.nodes.iter().map(|node| node.name.clone()).filter(|name| !covered(name)).collect();
        for name in missed {
            let node = std::slice::from_ref(&name);
            self.note("nodes without a check", node, &name, &[0.0], &Want::exactly(&[1.0]));
        }
        self.findings
    }
}

/// The network of `case` on `machine`; findings of every node of its passes.
pub fn examine<M: Machine>(case: &Case, machine: M) -> Result<Vec<Finding>> {
    let options = CudaOptions { keep: true, ..case.cuda_options() };
    let mut network = CudaBackend::new(options, machine, case.batch, case.of)?;
    let mut oracle = Oracle::new();
    let (initial, mut findings) = (network.state()?, vec![]);
    for index in 0..case.of {
        findings.extend(training(case, &mut network, &mut oracle, index)?);
    }
    network.load_state(&to_evaluate(case, &network, initial)?)?;
    findings.extend(evaluation(case, &mut network, &mut oracle)?);
    if case.storage == Storage::F16 && case.of == 1 {
        findings.extend(overflow(case, &mut network, &mut oracle)?);
    }
    Ok(findings)
}

fn purpose(index: usize, of: usize) -> Purpose {
    if index + 1 < of { Purpose::Accumulate } else { Purpose::Finish { sum: of > 1 } }
}

/// Which weights a pass is of: evaluations are of the averages where there are any.
fn weights(case: &Case, purpose: Purpose) -> Weights {
    if case.recipe.averages && purpose == Purpose::Evaluate { Weights::Averaged } else { Weights::Live }
}

/// What a pass for `purpose` finds before it runs.
fn before<M: Machine>(case: &Case, network: &CudaBackend<M>, purpose: Purpose) -> Result<Before> {
    let (machine, plan) = look(case, network, purpose)?;
    Before::read(machine, plan)
}

fn look<'a, M: Machine>(
    case: &Case,
    network: &'a CudaBackend<M>,
    purpose: Purpose,
) -> Result<(&'a M, &'a Plan)> {
    network
        .look(case.resolution, case.batch, purpose, weights(case, purpose))
        .ok_or_else(|| Error::failed(format!("no plan for {purpose:?} is ready")))
}

fn training<M: Machine>(
    case: &Case,
    network: &mut CudaBackend<M>,
    oracle: &mut Oracle,
    index: usize,
) -> Result<Vec<Finding>> {
    let purpose = purpose(index, case.of);
    let (batch, step) = (case.batch(index as u64), case.step(index));
    let before = before(case, network, purpose)?;
    let outcome = pass(network, &batch, &step)?;
    let (machine, plan) = look(case, network, purpose)?;
    let sent = Sent { batch: &batch, step: &step, outcome: &outcome };
    let mut layers = Layers::new(Seen { machine, plan, before: &before }, oracle);
    layers.input(&batch)?;
    layers.drop_path(&sent)?;
    layers.fold()?;
    layers.forward()?;
    layers.loss(&sent)?;
    layers.backward()?;
    layers.update(&sent)?;
    Ok(layers.finish())
}

/// The initial state with the averages that the steps have left, which are no longer the weights, and with the last
/// pass's statistics.
fn to_evaluate<M: Machine>(
    case: &Case,
    network: &CudaBackend<M>,
    initial: NamedTensors,
) -> Result<NamedTensors> {
    let averages = network.state()?.into_iter().filter(|(name, _)| name.starts_with(EMA_PREFIX));
    let mut state: NamedTensors = initial.into_iter().chain(averages).collect();
    for (name, statistic) in batch_statistics(case, network)? {
        if case.recipe.averages {
            state.insert(format!("{EMA_PREFIX}{name}"), statistic.clone());
        }
        state.insert(name, statistic);
    }
    Ok(state)
}

/// The last pass's statistics as running ones: with the initial ones an evaluation of fresh weights leaves half's range.
fn batch_statistics<M: Machine>(case: &Case, network: &CudaBackend<M>) -> Result<NamedTensors> {
    let (machine, plan) = look(case, network, purpose(case.of - 1, case.of))?;
    let before = Before::read(machine, plan)?;
    let seen = Seen { machine, plan, before: &before };
    let mut statistics = NamedTensors::new();
    for unit in units(&plan.graph) {
        let Unit::Conv(unit) = unit else { continue };
        // Frozen ones take no statistics.
        if case.recipe.freeze.has(plan.graph.params[unit.gamma].part) {
            continue;
        }
        for (buffer, kind) in [(unit.mean, Statistic::Mean), (unit.var, Statistic::Variance)] {
            let data = seen.statistic(&unit, kind)?;
            let name = plan.graph.buffers[buffer].name.clone();
            statistics.insert(name, HostTensor { shape: vec![data.len()], data });
        }
    }
    Ok(statistics)
}

fn evaluation<M: Machine>(
    case: &Case,
    network: &mut CudaBackend<M>,
    oracle: &mut Oracle,
) -> Result<Vec<Finding>> {
    let batch = case.images(50);
    network.eval_batch(&batch, weights(case, Purpose::Evaluate))?;
    let before = before(case, network, Purpose::Evaluate)?;
    let (machine, plan) = look(case, network, Purpose::Evaluate)?;
    let mut layers = Layers::new(Seen { machine, plan, before: &before }, oracle);
    layers.input(&batch)?;
    layers.averages()?;
    layers.fold()?;
    layers.forward()?;
    Ok(layers.finish())
}

/// Whether a step whose gradients overflow leaves the weights alone and lowers the scale.
fn overflow<M: Machine>(
    case: &Case,
    network: &mut CudaBackend<M>,
    oracle: &mut Oracle,
) -> Result<Vec<Finding>> {
    let mut state = network.state()?;
    let scale = state.get_mut(SCALE_STATE).expect("a part of every state");
    scale.data[0] = TOO_LARGE;
    network.load_state(&state)?;
    let purpose = purpose(0, 1);
    let (batch, step) = (case.batch(60), case.step(0));
    let before = before(case, network, purpose)?;
    let outcome = pass(network, &batch, &step)?;
    let (machine, plan) = look(case, network, purpose)?;
    let sent = Sent { batch: &batch, step: &step, outcome: &outcome };
    let mut layers = Layers::new(Seen { machine, plan, before: &before }, oracle);
    layers.update(&sent)?;
    let skipped = f64::from(u8::from(outcome.skipped));
    let nodes = ["finite_check".to_owned(), "update_scale".to_owned()];
    layers.note("overflow", &nodes, "outcome.skipped", &[skipped], &Want::exactly(&[1.0]));
    layers.findings.iter_mut().for_each(|finding| finding.kind = "overflow");
    Ok(layers.findings)
}
