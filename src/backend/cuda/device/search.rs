//! The search for each convolution's routine: cuDNN's algorithms, the engines of its graph API, and cuBLAS where the convolution is
//! a matrix product.

use super::algorithms::{self, Candidate, Rule, is_product};
use super::card::{Card, Lane};
use super::cublas::{Layer, Product};
use super::cublaslt::{self, Workspace};
use super::cudnn::{Algorithm, Convolution as Descriptors, Operands};
use super::cudnn_engine::{Engine, Execution};
use super::cudnn_graph::{Graph, Target};
use super::trace::{Class, traced};
use crate::backend::cuda::plan::Plan;
use crate::backend::cuda::plan::node::{Call, Convolution, Node, Pattern};
use crate::config::Routines;
use crate::error::{Error, Result};
use crate::terminal::message;
use std::rc::Rc;

/// Samples of a candidate's time, of which the median counts.
const SAMPLES: usize = 9;

/// What the state has for what is fused where no engine computes it.
const NO_ENGINE: &str = "no engine for what is fused, so each is done by itself";

/// An engine and its plan.
pub(super) type Planned = (Engine, Rc<Execution>);

/// A candidate, ready to be called.
pub(super) enum Routine {
    Cudnn(Algorithm),
    Graph(Rc<Execution>),
    Cublas,
    CublasLt(cublaslt::Algorithm),
}

impl From<Candidate> for Option<Routine> {
    /// An engine wants a plan first.
    fn from(candidate: Candidate) -> Self {
        match candidate {
            Candidate::Cudnn(algorithm) => Some(Routine::Cudnn(algorithm)),
            Candidate::Graph(_) => None,
            Candidate::Cublas => Some(Routine::Cublas),
            Candidate::CublasLt(algorithm) => Some(Routine::CublasLt(algorithm)),
        }
    }
}

impl Card {
    pub(super) fn rule(&self) -> Rule {
        Rule {
            storage: self.options.storage,
            tf32: self.options.tf32,
            has_tf32: self.context.capability >= (8, 0),
            deterministic: self.options.deterministic,
            workspace: self.options.search.workspace_bytes(),
            routines: self.options.search.routines,
            graph: self.options.search.cudnn_graph,
        }
    }

    /// What was chosen before, or the fastest that is found now, timed as the run will call it. Overwrites the
    /// convolution's result, which lives for one pass: no pass may be under way.
    pub(super) fn choose(
        &mut self,
        node: &Node,
        conv: &Convolution,
        descriptors: &Descriptors,
    ) -> Result<Routine> {
        let rule = self.rule();
        let key = algorithms::key(conv, &rule);
        let earlier = self.choices.get(&key).and_then(|text| text.parse().ok());
        if let Some(candidate) = earlier.filter(|candidate| rule.allows(candidate, conv))
            && let Some(routine) = self.again(node, conv, candidate)?
        {
            return Ok(routine);
        }
        let candidates = self.candidates(node, conv, descriptors)?;
        let lane = &self.lanes[node.stream];
        let (mut timed, mut routines, mut refused) = (vec![], vec![], None);
        for (candidate, routine) in candidates {
            match self.seconds(lane, conv, descriptors, &routine) {
                Ok(seconds) => {
                    timed.push((candidate, seconds));
                    routines.push(routine);
                }
                // A library may refuse what it has offered; where the card is lost, so are all others.
                Err(error) => refused = Some(error),
            }
        }
        let chosen = algorithms::fastest(&timed).ok_or_else(|| {
            refused.unwrap_or_else(|| {
                let kind = if rule.deterministic { "deterministic " } else { "" };
                Error::device(format!(
                    "cuDNN offers no {kind}algorithm for {key} within {} MiB; device.deterministic = false may help",
                    self.options.search.workspace
                ))
            })
        })?;
        let index = timed.iter().position(|(candidate, _)| *candidate == chosen).expect("one of them");
        self.choices.insert(key, chosen.to_string());
        Ok(routines.swap_remove(index))
    }

    /// What a routine takes. The step is one CUDA graph: an engine that cannot be recorded is none for it.
    fn seconds(
        &self,
        lane: &Lane,
        conv: &Convolution,
        descriptors: &Descriptors,
        routine: &Routine,
    ) -> Result<f64> {
        let run = || self.convolve(lane, conv, descriptors, routine);
        let seconds = self.time(&lane.stream, SAMPLES, &run)?;
        if matches!(routine, Routine::Graph(_)) {
            lane.stream.capture(run)?;
        }
        Ok(seconds)
    }

    /// An earlier choice; `None` where it is an engine that cuDNN has no longer.
    fn again(&mut self, node: &Node, conv: &Convolution, candidate: Candidate) -> Result<Option<Routine>> {
        let Candidate::Graph(engine) = candidate else { return Ok(candidate.into()) };
        let rule = self.rule();
        let key = (node.stream, algorithms::key(conv, &rule));
        if let Some((_, planned)) =
            self.planned.get(&key).and_then(|all| all.iter().find(|one| one.0 == engine))
        {
            return Ok(Some(Routine::Graph(Rc::clone(planned))));
        }
        let Some(graph) = self.graph(node, conv)? else { return Ok(None) };
        let Some(execution) = graph.execution(&engine, &rule)?.map(Rc::new) else { return Ok(None) };
        self.planned.insert(key, vec![(engine, Rc::clone(&execution))]);
        Ok(Some(Routine::Graph(execution)))
    }

    /// All that is timed for a convolution.
    fn candidates(
        &mut self,
        node: &Node,
        conv: &Convolution,
        descriptors: &Descriptors,
    ) -> Result<Vec<(Candidate, Routine)>> {
        let rule = self.rule();
        let lane = &self.lanes[node.stream];
        let mut plain = vec![];
        if !conv.fused.any() {
            let found = descriptors.find(&lane.cudnn, conv.pass, &self.operands(lane, conv))?;
            plain.extend(rule.shortlist(&found).into_iter().map(Candidate::Cudnn));
            if is_product(conv) && rule.routines != Routines::Cudnn {
                plain.push(Candidate::Cublas);
            }
            if let Some(lt) = lane.lt.as_ref().filter(|_| is_product(conv)) {
                // A product that its heuristic knows nothing of is one that it is not tried for.
                let offers = lt.offers(&self.product(conv), rule.workspace as usize).unwrap_or_default();
                plain.extend(offers.into_iter().map(Candidate::CublasLt));
            }
        }
        let ready = |candidate: Candidate| {
            let routine: Option<Routine> = candidate.clone().into();
            routine.map(|routine| (candidate, routine))
        };
        let mut all: Vec<_> = plain.into_iter().filter_map(ready).collect();
        if rule.graph || conv.fused.any() {
            let engine = |(engine, execution)| (Candidate::Graph(engine), Routine::Graph(execution));
            all.extend(self.engines(node, conv)?.into_iter().map(engine));
        }
        Ok(all)
    }

    /// The convolution's graph on the handle that runs it; `None` where cuDNN takes none such.
    fn graph(&self, node: &Node, conv: &Convolution) -> Result<Option<Rc<Graph>>> {
        let target = Target::Card(&self.lanes[node.stream].cudnn);
        Ok(Graph::new(&target, conv, self.options.storage)?.map(Rc::new))
    }

    /// The engines that may compute it, planned once for each shape.
    fn engines(&mut self, node: &Node, conv: &Convolution) -> Result<Vec<Planned>> {
        let rule = self.rule();
        let key = (node.stream, algorithms::key(conv, &rule));
        if let Some(planned) = self.planned.get(&key) {
            return Ok(planned.clone());
        }
        let found = self.graph(node, conv)?.map_or(Ok(vec![]), |graph| graph.executions(&rule))?;
        let planned: Vec<_> = found.into_iter().map(|(engine, plan)| (engine, Rc::new(plan))).collect();
        self.planned.insert(key, planned.clone());
        Ok(planned)
    }

    /// An earlier run's answer stands.
    fn has_engine(&mut self, node: &Node, conv: &Convolution, key: &str) -> Result<bool> {
        let known = self.choices.get(key).map(String::as_str);
        if known == Some(NO_ENGINE) {
            return Ok(false);
        }
        let rule = self.rule();
        let earlier = known.and_then(|text| text.parse().ok()).filter(|earlier| rule.allows(earlier, conv));
        if let Some(earlier) = earlier
            && self.again(node, conv, earlier)?.is_some()
        {
            return Ok(true);
        }
        Ok(!self.engines(node, conv)?.is_empty())
    }

    /// What of a plan is fused and has no engine here: the run's state then says so, and a plan is wanted without it.
    pub(super) fn without_engine(&mut self, plan: &Plan) -> Result<Vec<Pattern>> {
        let (rule, mut missing, mut keys) = (self.rule(), vec![], vec![]);
        for node in &plan.nodes {
            let Call::Convolution(conv) = &node.call else { continue };
            let Some(pattern) = conv.pattern().filter(|pattern| !missing.contains(pattern)) else { continue };
            let key = algorithms::key(conv, &rule);
            if !self.has_engine(node, conv, &key).map_err(|error| error.within(&node.name))? {
                missing.push(pattern);
                keys.push(key);
            }
        }
        if let Some(first) = keys.first() {
            let others = if keys.len() > 1 { format!(" and {} more", keys.len() - 1) } else { String::new() };
            traced(NO_ENGINE, Class::Spans, 0, || message(format!("cuDNN has {NO_ENGINE}: {first}{others}")));
        }
        self.choices.extend(keys.into_iter().map(|key| (key, NO_ENGINE.to_owned())));
        Ok(missing)
    }

    fn operands(&self, lane: &Lane, conv: &Convolution) -> Operands {
        let [x, w, y] = [conv.x, conv.w, conv.y].map(|region| self.at(region));
        let bytes = self.options.search.workspace_bytes();
        let [norm, sums] =
            [conv.fused.norm, conv.fused.sums].map(|region| region.map(|region| self.at(region)));
        let workspace = lane.workspace.at(0, bytes);
        Operands { x, w, y, norm, sums, workspace, workspace_bytes: bytes as usize }
    }

    /// Sends a convolution to a lane's stream.
    pub(super) fn convolve(
        &self,
        lane: &Lane,
        conv: &Convolution,
        descriptors: &Descriptors,
        by: &Routine,
    ) -> Result<()> {
        let operands = self.operands(lane, conv);
        match by {
            Routine::Graph(execution) => execution.run(&lane.cudnn, &operands),
            Routine::Cudnn(algorithm) => {
                descriptors.run(&lane.cudnn, conv.pass, algorithm, &operands, conv.accumulate)
            }
            Routine::Cublas => lane.cublas.run(&self.product(conv)),
            Routine::CublasLt(algorithm) => {
                let lt = lane.lt.as_ref().ok_or_else(|| {
                    Error::failed(
                        "an algorithm of cuBLASLt's where it is not searched; this is a bug in engine",
                    )
                })?;
                let workspace = Workspace { at: operands.workspace, bytes: operands.workspace_bytes };
                lt.run(&self.product(conv), algorithm, workspace, &lane.stream)
            }
        }
    }

    /// A 1x1 convolution without stride as a matrix product.
    fn product(&self, conv: &Convolution) -> Product {
        let [x, w, y] = [conv.x, conv.w, conv.y].map(|region| self.at(region));
        let (rows, inputs, outputs) = (conv.n * conv.shape.h * conv.shape.w, conv.shape.c, conv.shape.k);
        let layer = Layer { pass: conv.pass, rows, inputs, outputs, x, w, y };
        layer.product(self.options.storage, conv.accumulate)
    }
}
