//! Who computes an operation graph of cuDNN's: heuristics rank the engines that can; an [`Engine`] with its knobs, by number, names
//! one of them for good, and becomes an [`Execution`].

use super::algorithms::Rule;
use super::cudnn::{Cudnn, Operands};
use super::cudnn_graph::{For, Graph};
use super::graph_api::*;
use crate::error::{Error, Result};
use std::ffi::c_int;
use std::fmt;
use std::rc::Rc;
use std::str::FromStr;

/// Engines that are timed.
const MOST: usize = 8;
/// Of those that are compiled when the plan is made, where there are no others: each takes a second or two.
const MOST_COMPILED: usize = 2;
/// Knobs that an engine can have: `CUDNN_KNOB_TYPE_COUNTS` of cuDNN 9.28 is 46.
const MOST_KNOBS: usize = 64;
const MOST_NOTES: usize = 32;
/// One of cuDNN's engines for a graph, with its knobs: the same engine and knobs give the same bits with the same cuDNN on the
/// same kind of card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Engine {
    pub index: i64,
    /// Which knob, and what it is set to.
    pub knobs: Vec<(i32, i64)>,
    /// In bytes.
    pub workspace: usize,
    /// Whether it gives the same bits every time.
    pub deterministic: bool,
}

/// `cudnn-graph engine 22 knobs 2=0,13=0,14=3 workspace 0`; `-` where there are no knobs.
impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let knobs: Vec<String> = self.knobs.iter().map(|(knob, value)| format!("{knob}={value}")).collect();
        let knobs = if knobs.is_empty() { "-".to_owned() } else { knobs.join(",") };
        write!(f, "cudnn-graph engine {} knobs {knobs} workspace {}", self.index, self.workspace)?;
        if self.deterministic { Ok(()) } else { write!(f, " {NONDETERMINISTIC}") }
    }
}

const NONDETERMINISTIC: &str = "nondeterministic";

impl FromStr for Engine {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (text, deterministic) = match text.strip_suffix(NONDETERMINISTIC) {
            Some(text) => (text.trim_end(), false),
            None => (text, true),
        };
        let words: Vec<&str> = text.split(' ').collect();
        let ["cudnn-graph", "engine", index, "knobs", knobs, "workspace", workspace] = words[..] else {
            return Err(());
        };
        let knob = |text: &str| {
            let (knob, value) = text.split_once('=').ok_or(())?;
            Ok((knob.parse().map_err(drop)?, value.parse().map_err(drop)?))
        };
        let knobs =
            if knobs == "-" { vec![] } else { knobs.split(',').map(knob).collect::<Result<_, ()>>()? };
        let (index, workspace) = (index.parse().map_err(drop)?, workspace.parse().map_err(drop)?);
        Ok(Self { index, knobs, workspace, deterministic })
    }
}

/// What cuDNN says of an engine: `cudnnBackendNumericalNote_t` and `cudnnBackendBehaviorNote_t`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    pub numerical: Vec<c_int>,
    pub behaviour: Vec<c_int>,
}

impl Notes {
    pub fn deterministic(&self) -> bool {
        !self.numerical.contains(&CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
    }

    pub fn compiled_late(&self) -> bool {
        self.behaviour.contains(&CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION)
    }

    /// Operands as they are, products summed one by one in f32: no transform, no other type on the way. Filters in another
    /// order are nobody's here.
    pub fn plain_sums(&self) -> bool {
        const OTHER: [c_int; 7] = [
            CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
            CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
            CUDNN_NUMERICAL_NOTE_FFT,
            CUDNN_NUMERICAL_NOTE_WINOGRAD,
            CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4,
            CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6,
            CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13,
        ];
        const REORDERED: [c_int; 2] = [
            CUDNN_BEHAVIOR_NOTE_REQUIRES_FILTER_INT8x32_REORDER,
            CUDNN_BEHAVIOR_NOTE_REQUIRES_BIAS_INT8x32_REORDER,
        ];
        let has = |all: &[c_int], note: &c_int| all.contains(note);
        !self.numerical.iter().any(|note| has(&OTHER, note))
            && !self.behaviour.iter().any(|note| has(&REORDERED, note))
    }

    pub fn tensor_cores(&self) -> bool {
        self.numerical.contains(&CUDNN_NUMERICAL_NOTE_TENSOR_CORE)
    }
}

/// An engine that is ready to run; the graph lives as long as it does.
pub struct Execution {
    plan: Descriptor,
    _config: Config,
    graph: Rc<Graph>,
}

/// An engine's configuration, and what it is made of.
struct Config {
    config: Descriptor,
    _knobs: Vec<Descriptor>,
    engine: Descriptor,
}

impl Config {
    /// An engine by its number, with its knobs.
    fn new(graph: &Graph, index: i64, knobs: &[(i32, i64)]) -> Result<Self, Refused> {
        let engine = Descriptor::new(CUDNN_BACKEND_ENGINE_DESCRIPTOR)?;
        engine.set_descriptors(CUDNN_ATTR_ENGINE_OPERATION_GRAPH, &[&graph.graph])?;
        engine.set(CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, &[index])?;
        if let For::Device(device) = &graph.target {
            engine.set_descriptors(CUDNN_ATTR_ENGINE_DEVICEPROP, &[device])?;
        }
        let engine = engine.finalize()?;
        let choice = |&(knob, value): &(i32, i64)| {
            let choice = Descriptor::new(CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR)?;
            choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, &[knob])?;
            choice.set(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, &[value])?;
            choice.finalize()
        };
        let knobs = knobs.iter().map(choice).collect::<Result<Vec<_>, _>>()?;
        let config = Descriptor::new(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?;
        config.set_descriptors(CUDNN_ATTR_ENGINECFG_ENGINE, &[&engine])?;
        if !knobs.is_empty() {
            config.set_descriptors(CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, &knobs.iter().collect::<Vec<_>>())?;
        }
        Ok(Self { config: config.finalize()?, _knobs: knobs, engine })
    }
}

/// What the heuristics offer: an engine's number and its knobs.
type Offer = (i64, Vec<(i32, i64)>);

fn notes(engine: &Descriptor) -> Result<Notes, Refused> {
    let numerical = (CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE);
    let behaviour = (CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE);
    let all = |(name, kind): (c_int, c_int)| engine.get(name, kind, MOST_NOTES, 0);
    Ok(Notes { numerical: all(numerical)?, behaviour: all(behaviour)? })
}

fn offer(config: &Descriptor) -> Result<Offer, Refused> {
    let engine = config.get_descriptors(CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1)?;
    let index = engine.first().ok_or(Refused::NotSupported(0))?.get_one(
        CUDNN_ATTR_ENGINE_GLOBAL_INDEX,
        CUDNN_TYPE_INT64,
        -1i64,
    )?;
    let (name, kind) = (CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR);
    let knob = |choice: &Descriptor| {
        let knob = choice.get_one(CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 0)?;
        Ok((knob, choice.get_one(CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 0i64)?))
    };
    let choices = config.get_descriptors(name, kind, MOST_KNOBS)?;
    Ok((index, choices.iter().map(knob).collect::<Result<_, Refused>>()?))
}

impl Graph {
    /// What one of the heuristics offers, in its order; nothing where it has nothing to say.
    fn heuristic(&self, mode: c_int) -> Result<Vec<Offer>> {
        let offers = || {
            let heuristic = Descriptor::new(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
            heuristic.set_descriptors(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[&self.graph])?;
            heuristic.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, &[mode])?;
            if let For::Device(device) = &self.target {
                heuristic.set_descriptors(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, &[device])?;
            }
            let heuristic = heuristic.finalize()?;
            let name = CUDNN_ATTR_ENGINEHEUR_RESULTS;
            let count = heuristic.count(name, CUDNN_TYPE_BACKEND_DESCRIPTOR)?;
            let all = heuristic.get_descriptors(name, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, count)?;
            all.iter().map(offer).collect::<Result<Vec<_>, Refused>>()
        };
        match offers() {
            Ok(offers) => Ok(offers),
            Err(Refused::NotSupported(_)) => Ok(vec![]),
            Err(Refused::Failed(error)) => Err(error.within("cuDNN's heuristics")),
        }
    }

    /// Modes A and B in turn, each in its order, then what works and promises no speed.
    fn offers(&self) -> Result<Vec<Offer>> {
        let [a, b] = [self.heuristic(CUDNN_HEUR_MODE_A)?, self.heuristic(CUDNN_HEUR_MODE_B)?];
        let ranks = a.len().max(b.len());
        let ranked = (0..ranks).flat_map(|rank| [a.get(rank), b.get(rank)]).flatten().cloned();
        let mut all: Vec<Offer> = vec![];
        for offer in ranked.chain(self.heuristic(CUDNN_HEUR_MODE_FALLBACK)?) {
            if !all.contains(&offer) {
                all.push(offer);
            }
        }
        Ok(all)
    }

    /// Makes a plan of an engine. `None` where cuDNN does not take it, or the rule forbids it.
    fn plan(
        self: &Rc<Self>,
        (index, knobs): &Offer,
        rule: &Rule,
        late: bool,
    ) -> Result<Option<(Engine, Execution)>> {
        let planned = || {
            let config = Config::new(self, *index, knobs)?;
            let notes = notes(&config.engine)?;
            if !rule.allows_notes(&notes) || notes.compiled_late() != late {
                return Ok(None);
            }
            let plan = Descriptor::new(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
            match &self.target {
                For::Handle(handle) => {
                    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, &[*handle])?;
                }
                For::Device(device) => {
                    plan.set_descriptors(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, &[device])?;
                }
            }
            plan.set_descriptors(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[&config.config])?;
            let plan = plan.finalize()?;
            let workspace: i64 =
                plan.get_one(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 0)?;
            let (workspace, deterministic) = (workspace.max(0) as usize, notes.deterministic());
            let engine = Engine { index: *index, knobs: knobs.clone(), workspace, deterministic };
            let execution = Execution { plan, _config: config, graph: Rc::clone(self) };
            Ok((workspace as u64 <= rule.workspace).then_some((engine, execution)))
        };
        match planned() {
            Ok(planned) => Ok(planned),
            // An engine that does not take the shape after all, or fails to compile, is one that is not tried.
            Err(Refused::NotSupported(_) | Refused::Failed(_)) => Ok(None),
        }
    }

    /// The engines that a run may use, those that the heuristics hold for the fastest first. What is fused may have engines
    /// that are compiled here and now, where there are no others.
    pub fn executions(self: &Rc<Self>, rule: &Rule) -> Result<Vec<(Engine, Execution)>> {
        let offers = self.offers()?;
        let planned = |late: bool, most: usize| -> Result<Vec<(Engine, Execution)>> {
            let all = offers.iter().filter_map(|offer| self.plan(offer, rule, late).transpose());
            all.take(most).collect()
        };
        let ready = planned(false, MOST)?;
        if ready.is_empty() && self.fused { planned(true, MOST_COMPILED) } else { Ok(ready) }
    }

    /// The same engine as an earlier run's; `None` where this cuDNN has it no longer, or the rule forbids it.
    pub fn execution(self: &Rc<Self>, engine: &Engine, rule: &Rule) -> Result<Option<Execution>> {
        let offer = (engine.index, engine.knobs.clone());
        for late in [false, true] {
            if let Some((found, execution)) = self.plan(&offer, rule, late)? {
                return Ok((found == *engine).then_some(execution));
            }
        }
        Ok(None)
    }
}

impl Execution {
    /// Sends the plan to the handle's stream.
    pub fn run(&self, cudnn: &Cudnn, at: &Operands) -> Result<()> {
        let pack = self.graph.variant_pack(at)?;
        execute(cudnn.raw(), &self.plan, &pack)
    }

    /// cuDNN's own description of the plan, for telling whether two are the same.
    pub fn json(&self) -> Result<String> {
        let (name, kind) = (CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR);
        let text = || {
            let count = self.plan.count(name, kind)?;
            self.plan.get(name, kind, count, 0u8)
        };
        let text = text().map_err(|refused| Error::device(format!("a plan's description: {refused}")))?;
        Ok(String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_read_back() {
        let one = Engine { index: 22, knobs: vec![(2, 0), (12, -1)], workspace: 4096, deterministic: true };
        assert_eq!(one.to_string(), "cudnn-graph engine 22 knobs 2=0,12=-1 workspace 4096");
        let none = Engine { knobs: vec![], deterministic: false, ..one.clone() };
        assert_eq!(none.to_string(), "cudnn-graph engine 22 knobs - workspace 4096 nondeterministic");
        for engine in [one, none] {
            assert_eq!(engine.to_string().parse(), Ok(engine));
        }
        for other in ["cudnn-graph", "cudnn-graph engine 1 knobs 2 workspace 0", "cublas", ""] {
            assert_eq!(other.parse::<Engine>(), Err(()), "{other}");
        }
    }
}
