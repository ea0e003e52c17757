//! Frozen parts, against timm's `freeze`, and what of a state moves at all.

use super::formula::{self, signed};
use super::record::{self, Summaries};
use super::report::{BACKWARD_LIMIT, FORWARD_LIMIT, Report};
use engine::backend::cpu::{CpuBackend, CpuOptions};
use engine::backend::{
    Backend, DropPath, EMA_PREFIX, Extras, Loss, MOMENTUM_PREFIX, NamedTensors, SECOND_MOMENT_PREFIX, Step,
};
use engine::config::{Config, Decay, RuleKind};
use engine::model::freeze::{Freeze, Part};
use engine::model::graph::{Graph, lower};
use engine::model::spec::RESNET_TINY;
use engine::optim::Rule;
use engine::optim::lamb::Lamb;
use engine::optim::lars::Lars;
use engine::optim::sgd::Sgd;
use engine::simd::isa::Isa;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Steps>,
}

#[derive(Deserialize)]
struct Steps {
    freeze: String,
    case: String,
    resolution: usize,
    batch: usize,
    lr: Vec<f32>,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
    label_smoothing: f32,
    losses: Vec<f64>,
    losses_f32: Vec<f64>,
    parameters: Summaries,
    momenta: Summaries,
    buffers: Summaries,
}

fn freeze(text: &str) -> Freeze {
    let mut config = Config::default();
    config.model.arch = RESNET_TINY.name.into();
    config.optim.freeze = text.into();
    config.freeze()
}

fn backend(extras: Extras, isa: Isa) -> CpuBackend {
    let (seed, zero_gamma, decay, threads) = (0, false, Decay::Weights, 2);
    let (spec, resolution) = (RESNET_TINY, 32);
    CpuBackend::new(&CpuOptions { spec, resolution, seed, zero_gamma, decay, extras, threads, isa }).unwrap()
}

/// The formula's weights, with running statistics as of a training that went before (freeze.py).
fn state(graph: &Graph) -> NamedTensors {
    let mut state = formula::state(graph);
    for buffer in &graph.buffers {
        let is_variance = buffer.name.ends_with("running_var");
        let value = |x: f32| if is_variance { (1.0 + f64::from(x) / 2.0) as f32 } else { x / 4.0 };
        let values = signed(&buffer.name, buffer.channels).into_iter().map(value).collect();
        state.get_mut(&buffer.name).unwrap().data = values;
    }
    state
}

#[test]
fn steps_are_timms() {
    let recorded: Recorded = record::read("tiny32_freeze");
    for (run, isa) in
        recorded.cases.iter().flat_map(|run| Isa::available().into_iter().map(move |i| (run, i)))
    {
        let frozen = freeze(&run.freeze);
        let graph = lower(&RESNET_TINY, run.resolution).unwrap();
        let mut backend = backend(Extras { freeze: frozen, ..Extras::default() }, isa);
        backend.load_state(&state(&graph)).unwrap();
        let mut report = Report::new(format!("{} frozen, {}", run.freeze, isa.name()));
        for (t, (&want, &f32)) in run.losses.iter().zip(&run.losses_f32).enumerate() {
            let Steps { momentum, nesterov, weight_decay, .. } = *run;
            let sgd = Sgd { lr: run.lr[t], momentum, nesterov, weight_decay };
            let batch = formula::batch(&format!("{}.{t}", run.case), run.batch, run.resolution, 10);
            backend.submit(&batch, &Step::plain(0, 1, sgd, run.label_smoothing)).unwrap();
            let outcome = backend.poll().unwrap().unwrap();
            assert_eq!(outcome.fault, None);
            let loss = (outcome.score.loss / run.batch as f64) as f32;
            report.values(&format!("loss {t}"), &[loss], &[want], f32, FORWARD_LIMIT);
        }
        let got = backend.state().unwrap();
        let named = |prefix: &'static str| {
            let got = &got;
            move |name: &str| got.get(&format!("{prefix}{name}")).map(|tensor| tensor.data.clone())
        };
        let trained = graph.params.iter().filter(|param| !frozen.has(param.part)).count();
        let compared = report.tensors("weights", &run.parameters, BACKWARD_LIMIT, named(""));
        assert_eq!((compared, run.parameters.len()), (trained, trained));
        let compared = report.tensors("velocities", &run.momenta, BACKWARD_LIMIT, named(MOMENTUM_PREFIX));
        assert_eq!(compared, trained);
        let compared = report.tensors("running statistics", &run.buffers, FORWARD_LIMIT, named(""));
        assert_eq!(compared, graph.buffers.len());
        report.finish();
    }
}

fn rules() -> [Rule; 3] {
    let (lr, momentum, nesterov, weight_decay) = (0.05, 0.9, true, 0.02);
    [
        Rule::Sgd(Sgd { lr, momentum, nesterov, weight_decay }),
        Rule::Lamb(Lamb { lr, beta1: 0.9, beta2: 0.999, epsilon: 1e-6, weight_decay }),
        Rule::Lars(Lars { lr, momentum, nesterov, weight_decay, trust: 0.001, epsilon: 1e-8 }),
    ]
}

/// Two optimiser steps of two passes each, with everything that could reach a frozen tensor.
fn steps(backend: &mut CpuBackend, rule: Rule) {
    for pass in 0..4 {
        let step = Step {
            ranks: 1,
            index: pass % 2,
            of: 2,
            rule,
            loss: Loss::default(),
            clip_norm: 0.5,
            ema_decay: (pass % 2 == 1).then_some(0.9),
            drop_path: DropPath { rate: 0.5, key: pass as u64 },
        };
        backend.submit(&formula::batch(&format!("frozen.{pass}"), 4, 32, 10), &step).unwrap();
        assert_eq!(backend.poll().unwrap().unwrap().fault, None);
    }
}

#[test]
fn nothing_frozen_moves_and_everything_else_does() {
    let graph = lower(&RESNET_TINY, 32).unwrap();
    let part = |name: &str| {
        let param = graph.params.iter().find(|param| param.name == name).map(|param| param.part);
        param.or_else(|| graph.buffers.iter().find(|buffer| buffer.name == name).map(|buffer| buffer.part))
    };
    for (text, rule) in
        ["stem..layer1", "layer1", "fc", "stem..layer2"].iter().flat_map(|t| rules().map(|r| (t, r)))
    {
        let extras = Extras { rule: rule.kind(), averages: true, freeze: freeze(text) };
        let mut backend = backend(extras, Isa::current());
        backend.load_state(&state(&graph)).unwrap();
        let before = backend.state().unwrap();
        steps(&mut backend, rule);
        let after = backend.state().unwrap();
        for (name, tensor) in &after {
            let bare = [EMA_PREFIX, MOMENTUM_PREFIX, SECOND_MOMENT_PREFIX]
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))
                .unwrap_or(name);
            let Some(part) = part(bare) else { continue };
            let frozen = extras.freeze.has(part);
            assert!(!frozen || !name.starts_with("optim."), "{text}: {name} is kept");
            assert_eq!(tensor == &before[name], frozen, "{text}, {:?}: {name}", rule.kind());
        }
        let absent = |prefix: &str| {
            graph.params.iter().all(|param| {
                after.contains_key(&format!("{prefix}{}", param.name)) != extras.freeze.has(param.part)
            })
        };
        assert!(absent(MOMENTUM_PREFIX), "{text}: velocities are those of what trains");
        assert!(rule.kind() != RuleKind::Lamb || absent(SECOND_MOMENT_PREFIX), "{text}");
        // What `state` gave is what `load_state` takes, to the bit.
        let mut again = self::backend(extras, Isa::current());
        again.load_state(&after).unwrap();
        assert_eq!(again.state().unwrap(), after);
    }
}

/// Above the cut gradients are those of a step that goes on below it: the same arithmetic.
#[test]
fn leaving_work_out_changes_no_bit_above_it() {
    let graph = lower(&RESNET_TINY, 32).unwrap();
    let batch = formula::batch("frozen.cut", 4, 32, 10);
    // Where the stem trains, gradients go through frozen layers down to it; where it is frozen too, they stop above those.
    let [through, cut] = ["layer1", "stem..layer1"].map(|text| {
        let mut backend = backend(Extras { freeze: freeze(text), ..Extras::default() }, Isa::current());
        backend.load_state(&state(&graph)).unwrap();
        backend
    });
    let (mut through, mut cut) = (through, cut);
    // The stem's batch norm takes the batch's statistics in one and the running ones in the other: these are made the same.
    let mut same = state(&graph);
    for (name, values) in stem_statistics(&batch) {
        same.get_mut(name).unwrap().data = values;
    }
    cut.load_state(&same).unwrap();
    let still = Sgd { lr: 0.0, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    for backend in [&mut through, &mut cut] {
        backend.submit(&batch, &Step::plain(0, 1, still, 0.1)).unwrap();
        assert_eq!(backend.poll().unwrap().unwrap().fault, None);
    }
    let above = |param: &&engine::model::params::Param| matches!(param.part, Part::Layer(2) | Part::Fc);
    for param in graph.params.iter().filter(above) {
        let gradient = |backend: &CpuBackend| backend.read(&format!("grad.{}", param.name)).unwrap().data;
        let (got, want) = (gradient(&cut), gradient(&through));
        let largest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // The statistics are rounded to f32 on the way into a state: 2^-24 of a value, through a dozen layers.
        assert!(apart <= 2e-5 * largest, "{}: {apart:e} of {largest:e}", param.name);
    }
    assert!(cut.read("grad.conv1.weight").unwrap_err().message.contains("one that is trained"));
}

/// Mean and biased variance of the stem's convolution over a batch.
fn stem_statistics(batch: &engine::data::Batch) -> [(&'static str, Vec<f32>); 2] {
    let mut backend = backend(Extras::default(), Isa::current());
    backend.load_state(&formula::state(&lower(&RESNET_TINY, 32).unwrap())).unwrap();
    backend.keep_activations();
    let still = Sgd { lr: 0.0, momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    backend.submit(batch, &Step::plain(0, 1, still, 0.1)).unwrap();
    let raw = backend.read("conv1").unwrap();
    let channels = raw.shape[3];
    let rows = (raw.data.len() / channels) as f64;
    let column = |c: usize| raw.data[c..].iter().step_by(channels).map(|&x| f64::from(x));
    let mean = |c: usize| column(c).sum::<f64>() / rows;
    let variance = |c: usize| column(c).map(|x| (x - mean(c)).powi(2)).sum::<f64>() / rows;
    let of = |value: &dyn Fn(usize) -> f64| (0..channels).map(|c| value(c) as f32).collect();
    [("bn1.running_mean", of(&mean)), ("bn1.running_var", of(&variance))]
}

/// A frozen network has neither gradients nor velocities in memory, and its plan's part of a card's is smaller.
#[cfg(feature = "cuda")]
#[test]
fn a_plan_leaves_out_what_is_frozen() {
    use engine::backend::cuda::plan::{
        Plan, PlanOptions, Purpose, Recipe, ScalePolicy, node::Call, region::Arena,
    };
    use engine::backend::cuda::storage::Storage;
    use engine::model::spec::RESNET50;
    let plan = |freeze| {
        Plan::new(&PlanOptions {
            spec: RESNET50,
            resolution: 224,
            batch: 64,
            storage: Storage::F16,
            purpose: Purpose::Finish { sum: false },
            form: engine::config::Form::BASE,
            decay: Decay::Weights,
            recipe: Recipe { freeze, ..Recipe::PLAIN },
            scale: ScalePolicy::FP16,
            keep: false,
            without: vec![],
        })
        .unwrap()
    };
    let (all, cut) = (plan(Freeze::NONE), plan(Freeze::up_to(3)));
    let products =
        |plan: &Plan| plan.nodes.iter().filter(|node| matches!(node.call, Call::Convolution(_))).count();
    // 53 forward; of layer4's ten convolutions 10 weight gradients, and 8 input gradients: its first block's input has none.
    assert_eq!((products(&all), products(&cut)), (158, 71));
    assert!(cut.bytes() * 2 < all.bytes(), "{} of {} bytes", cut.bytes(), all.bytes());
    let velocities = |plan: &Plan| plan.arenas[&Arena::Momentum];
    println!(
        "{} nodes and {:.2} GiB frozen up to layer3, {} and {:.2} without",
        cut.nodes.len(),
        cut.bytes() as f64 / 2f64.powi(30),
        all.nodes.len(),
        all.bytes() as f64 / 2f64.powi(30)
    );
    // layer4 and the classifier: 14,964,736 and 2,049,000 parameters.
    assert!((4 * 17_013_736..4 * 17_100_000).contains(&velocities(&cut)), "{}", velocities(&cut));
}
