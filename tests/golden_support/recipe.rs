//! What timm's and torchvision's recipes add to plain SGD.

use super::formula::{self, fnv1a64, labels, signed};
use super::ops::{ROUNDING, check};
use super::record::{self, Summaries};
use super::report::{BACKWARD_LIMIT, FORWARD_LIMIT, Report};
use engine::backend::cpu::{CpuBackend, CpuOptions};
use engine::backend::loss::Target;
use engine::backend::{
    Backend, DropPath, EMA_PREFIX, Extras, Loss, MOMENTUM_PREFIX, NamedTensors, Objective,
    SECOND_MOMENT_PREFIX, Step, Weights,
};
use engine::config::{Config, Decay, Ema, EmaForm, MixForm, Reduction, RuleKind};
use engine::data::mix::cut;
use engine::data::{Batch, Erase, Fill, Mix, Rect};
use engine::model::graph::lower;
use engine::model::spec::RESNET_TINY;
use engine::optim::Rule;
use engine::optim::clip::divisor;
use engine::optim::ema::Averages;
use engine::optim::lamb::{Lamb, Moments};
use engine::optim::lars::Lars;
use engine::simd::isa::Isa;
use serde::Deserialize;
use std::collections::BTreeMap;

type Named<T> = BTreeMap<String, T>;

#[derive(Deserialize)]
struct Recorded {
    lamb: Named<LambSteps>,
    lars: Named<LarsSteps>,
    bce: Named<Binary>,
    averages: Named<Moving>,
    cuts: Vec<Cut>,
}

fn recorded() -> Recorded {
    record::read("recipe")
}

// ---- rules --------------------------------------------------------------------------------------------------------

/// Elements of the parameter that decays and of the one that does not.
const SIZES: [usize; 2] = [30, 7];

#[derive(Deserialize)]
struct LambSteps {
    steps: usize,
    clip_norm: f32,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f32,
    lr: Vec<f32>,
    after: Vec<AfterLamb>,
}

#[derive(Deserialize)]
struct AfterLamb {
    p: [Vec<f64>; 2],
    exp_avg: [Vec<f64>; 2],
    exp_avg_sq: [Vec<f64>; 2],
}

#[derive(Deserialize)]
struct LarsSteps {
    steps: usize,
    momentum: f32,
    nesterov: bool,
    trust: f32,
    epsilon: f32,
    weight_decay: f32,
    lr: Vec<f32>,
    after: Vec<AfterLars>,
}

#[derive(Deserialize)]
struct AfterLars {
    p: [Vec<f64>; 2],
    momentum_buffer: [Vec<f64>; 2],
}

fn of_both(name: &str) -> [Vec<f32>; 2] {
    [0, 1].map(|i| signed(&format!("{name}{i}"), SIZES[i]))
}

/// Two dozen operations and rounded constants a step.
fn rule_tolerance(t: usize) -> f64 {
    24.0 * (t + 1) as f64 * ROUNDING
}

#[test]
fn lamb_is_timms() {
    println!("\nLAMB: error of allowed");
    for (name, case) in &recorded().lamb {
        let LambSteps { clip_norm, beta1, beta2, epsilon, .. } = *case;
        let (mut p, mut m, mut v) =
            (of_both(&format!("{name}.p")), SIZES.map(|n| vec![0.0; n]), SIZES.map(|n| vec![0.0; n]));
        for t in 0..case.steps {
            let gradients = of_both(&format!("{name}.g{t}."));
            let clip = divisor(gradients.iter().map(Vec::as_slice), clip_norm);
            for (i, weight_decay) in [case.weight_decay, 0.0].into_iter().enumerate() {
                let rule = Lamb { lr: case.lr[t], beta1, beta2, epsilon, weight_decay };
                let by = rule.corrections(clip, t as u32 + 1);
                let of = &mut Moments { first: &mut m[i], second: &mut v[i] };
                rule.step(&by, &mut p[i], of, &gradients[i]);
                let after = &case.after[t];
                check(&format!("{name} {t} parameter {i}"), &p[i], &after.p[i], rule_tolerance(t));
                check(&format!("{name} {t} mean {i}"), &m[i], &after.exp_avg[i], rule_tolerance(t));
                check(&format!("{name} {t} square {i}"), &v[i], &after.exp_avg_sq[i], rule_tolerance(t));
            }
        }
    }
}

#[test]
fn lars_is_timms() {
    println!("\nLARS: error of allowed");
    for (name, case) in &recorded().lars {
        let LarsSteps { momentum, nesterov, trust, epsilon, .. } = *case;
        let (mut p, mut velocity) = (of_both(&format!("{name}.p")), SIZES.map(|n| vec![0.0; n]));
        for t in 0..case.steps {
            let gradients = of_both(&format!("{name}.g{t}."));
            for (i, weight_decay) in [case.weight_decay, 0.0].into_iter().enumerate() {
                let rule = Lars { lr: case.lr[t], momentum, nesterov, weight_decay, trust, epsilon };
                rule.step(1.0, &mut p[i], &mut velocity[i], &gradients[i]);
                let (after, tolerance) = (&case.after[t], rule_tolerance(t));
                check(&format!("{name} {t} parameter {i}"), &p[i], &after.p[i], tolerance);
                check(
                    &format!("{name} {t} velocity {i}"),
                    &velocity[i],
                    &after.momentum_buffer[i],
                    tolerance,
                );
            }
        }
    }
}

// ---- losses -------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Binary {
    n: usize,
    classes: usize,
    scale: f32,
    label_smoothing: f32,
    threshold: Option<f32>,
    sum: bool,
    mix: Option<f32>,
    labels: Vec<u32>,
    loss: f64,
    dlogits: Vec<f64>,
}

#[test]
fn binary_cross_entropies_are_timms() {
    println!("\nbinary cross entropy: error of allowed");
    for (name, case) in &recorded().bce {
        let Binary { n, classes, scale, label_smoothing, threshold, sum, .. } = *case;
        let logits: Vec<f32> =
            signed(&format!("{name}.logits"), n * classes).iter().map(|x| x * scale).collect();
        assert_eq!(labels(&format!("{name}.labels"), n, classes), case.labels);
        let target = |i: usize| match case.mix {
            None => Target::of(case.labels[i]),
            Some(lambda) => Target { label: case.labels[i], partner: case.labels[n - 1 - i], lambda },
        };
        let targets: Vec<Target> = (0..n).map(target).collect();
        let reduction = if sum { Reduction::Sum } else { Reduction::Mean };
        let objective = Objective::BinaryCrossEntropy { threshold, reduction };
        let mut gradient = vec![f32::NAN; logits.len()];
        let loss = Loss { objective, label_smoothing };
        let score = loss.of(&logits, &targets, 1.0 / n as f32, Some(&mut gradient));
        // f64 but for smoothing, lambda and scale, which are f32, timm's own targets, which are, and the result's rounding.
        check(&format!("{name} loss"), &[(score.loss / n as f64) as f32], &[case.loss], 4.0 * ROUNDING);
        check(&format!("{name} dlogits"), &gradient, &case.dlogits, 4.0 * ROUNDING);
    }
}

// ---- averages, boxes ----------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Moving {
    decay: f64,
    every: usize,
    batch: usize,
    epochs: usize,
    warmup: f64,
    steps: usize,
    average: Vec<f64>,
}

/// The weight after optimiser step t is t * t % 97.
#[test]
fn averages_are_torchvisions() {
    for (name, case) in &recorded().averages {
        let mut config = Config { epochs: case.epochs, ..Config::default() };
        config.data.batch = case.batch;
        config.schedule.warmup_epochs = case.warmup;
        config.ema = Ema { decay: case.decay, every: case.every, form: EmaForm::Torchvision };
        let averages = Averages::new(&config).unwrap();
        let mut average = f64::NAN;
        for (t, &want) in case.average.iter().enumerate() {
            if let Some(decay) = averages.decay_at(t / case.steps, t % case.steps) {
                let weight = (t * t % 97) as f64;
                average = if decay == 0.0 { weight } else { decay * average + (1.0 - decay) * weight };
            }
            assert!((average - want).abs() < 1e-11, "{name}, step {t}: {average}, wanted {want}");
        }
    }
}

#[derive(Deserialize)]
struct Cut {
    form: MixForm,
    side: usize,
    drawn: f64,
    row: usize,
    column: usize,
    rect: [usize; 4],
    corrected: f64,
}

#[test]
fn boxes_are_the_originals() {
    for (index, case) in recorded().cuts.iter().enumerate() {
        let Rect { top, left, height, width } = cut(case.form, case.side, case.drawn, case.row, case.column);
        assert_eq!([top, left, height, width], case.rect, "case {index}, {:?}", case.form);
        let own = 1.0 - (height * width) as f64 / (case.side * case.side) as f64;
        assert!((own - case.corrected).abs() < 1e-15, "case {index}: {own}, wanted {}", case.corrected);
    }
}

// ---- everything at once -------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct Run {
    case: String,
    resolution: usize,
    batch: usize,
    lr: Vec<f32>,
    clip_norm: f32,
    weight_decay: f32,
    ema: f32,
    drop_path: f32,
    label_smoothing: f32,
    threshold: f32,
    losses: Vec<f64>,
    losses_f32: Vec<f64>,
    parameters: Summaries,
    first: Summaries,
    second: Summaries,
    averages: Summaries,
}

impl Run {
    /// Step 0: mixup of 0.3. Step 1: an erased square, then cutmix of a box of 12 x 10. Step 2: neither.
    fn batch(&self, t: usize) -> Batch {
        let n = self.batch;
        let mut batch = formula::batch(&format!("{}.{t}", self.case), n, self.resolution, 10);
        let reversed = |lambda: f32, region: Option<Rect>| {
            (0..n).map(|i| Mix { partner: (n - 1 - i) as u32, lambda, region }).collect()
        };
        match t {
            0 => batch.mixes = reversed(0.3, None),
            1 => {
                let cut = Rect { top: 5, left: 3, height: 12, width: 10 };
                batch.mixes = reversed(1.0 - 120.0 / 1024.0, Some(cut));
                batch.erased = vec![None; n];
                let rect = Rect { top: 4, left: 20, height: 10, width: 9 };
                batch.erased[1] = Some(Erase { rect, fill: Fill::ZERO });
            }
            _ => (),
        }
        batch
    }

    fn step(&self, t: usize) -> Step {
        let objective =
            Objective::BinaryCrossEntropy { threshold: Some(self.threshold), reduction: Reduction::Mean };
        Step {
            index: 0,
            of: 1,
            ranks: 1,
            rule: Rule::Lamb(Lamb {
                lr: self.lr[t],
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-6,
                weight_decay: self.weight_decay,
            }),
            loss: Loss { objective, label_smoothing: self.label_smoothing },
            clip_norm: self.clip_norm,
            ema_decay: Some(self.ema),
            drop_path: DropPath { rate: self.drop_path, key: fnv1a64(&format!("{}.{t}.drop", self.case)) },
        }
    }
}

fn backend(extras: Extras, isa: Isa) -> CpuBackend {
    let (seed, zero_gamma, decay, threads) = (0, false, Decay::Weights, 2);
    let (spec, resolution) = (RESNET_TINY, 32);
    CpuBackend::new(&CpuOptions { spec, resolution, seed, zero_gamma, decay, extras, threads, isa }).unwrap()
}

#[test]
fn tiny32_recipe() {
    let run: Run = record::read("tiny32_recipe");
    for isa in Isa::available() {
        let mut backend = backend(Extras { rule: RuleKind::Lamb, averages: true, ..Extras::default() }, isa);
        backend.load_state(&formula::state(&lower(&RESNET_TINY, run.resolution).unwrap())).unwrap();
        let mut report = Report::new(format!("tiny32_recipe, {}", isa.name()));
        for (t, (&want, &f32)) in run.losses.iter().zip(&run.losses_f32).enumerate() {
            backend.submit(&run.batch(t), &run.step(t)).unwrap();
            let outcome = backend.poll().unwrap().unwrap();
            assert_eq!(outcome.fault, None);
            let loss = (outcome.score.loss / run.batch as f64) as f32;
            report.values(&format!("loss {t}"), &[loss], &[want], f32, FORWARD_LIMIT);
        }
        let state = backend.state().unwrap();
        let named = |prefix: &'static str| {
            let state = &state;
            move |name: &str| Some(state[&format!("{prefix}{name}")].data.clone())
        };
        report.tensors("weights", &run.parameters, BACKWARD_LIMIT, named(""));
        report.tensors("first moments", &run.first, BACKWARD_LIMIT, named(MOMENTUM_PREFIX));
        report.tensors("second moments", &run.second, BACKWARD_LIMIT, named(SECOND_MOMENT_PREFIX));
        report.tensors("averages", &run.averages, BACKWARD_LIMIT, named(EMA_PREFIX));
        report.finish();
        averages_evaluate(&mut backend, &state, isa);
    }
}

/// A network that has the averages for weights gives the very logits.
fn averages_evaluate(averaging: &mut CpuBackend, state: &NamedTensors, isa: Isa) {
    let batch = formula::batch("tiny32.recipe.eval", 3, 32, 10);
    let averaged = averaging.eval_batch(&batch, Weights::Averaged).unwrap();
    let live = averaging.eval_batch(&batch, Weights::Live).unwrap();
    assert_ne!(averaged, live);
    let averages = state.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(EMA_PREFIX)?, tensor)));
    let averages = averages.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect();
    let mut plain = backend(Extras::default(), isa);
    plain.load_state(&averages).unwrap();
    assert_eq!(plain.eval_batch(&batch, Weights::Live).unwrap(), averaged);
    assert!(plain.eval_batch(&batch, Weights::Averaged).is_err(), "it keeps none");
}
