//! Whole steps with each rule, loss and with moving averages, from the card's own launch lists. The CPU backend has none of
//! these: the card's own gradients through the rule's oracle, and the losses in f64, are what is compared with.

use crate::compare::close;
use crate::harness::Host;
use crate::machine::HostMachine;
use engine::backend::cuda::network::SCALE_STATE;
use engine::backend::cuda::plan::order::races;
use engine::backend::cuda::plan::{Loss, Plan, PlanOptions, Purpose, Recipe, Rule, ScalePolicy};
use engine::backend::cuda::storage::Storage;
use engine::backend::cuda::{CudaBackend, CudaOptions};
use engine::backend::{
    Backend, EMA_PREFIX, MOMENTUM_PREFIX, NamedTensors, Outcome, SECOND_MOMENT_PREFIX, Weights,
};
use engine::check::{CLIP_NORM, Case, EMA_DECAY, EXTRAS, FORMS, LAMB, LARS, SGD};
use engine::config::{Decay, Form};
use engine::model::graph::{Graph, lower};
use engine::model::spec::RESNET_TINY;
use engine::model::units::Unit;
use engine::optim::clip::divisor;
use engine::optim::lamb::{Lamb, Moments};
use engine::optim::lars::Lars;
use engine::optim::sgd::Sgd;

const CASE: Case = Case {
    spec: RESNET_TINY,
    resolution: 32,
    batch: 4,
    storage: Storage::F32,
    steps: 1,
    of: 1,
    recipe: Recipe::PLAIN,
    form: Form::BASE,
};

/// Where gradients overflow in half.
const TOO_LARGE: ScalePolicy = ScalePolicy { initial: 16_777_216.0, ..ScalePolicy::FP16 };

type Card = CudaBackend<HostMachine>;

fn card(case: &Case, options: CudaOptions, seed: u64) -> Option<Card> {
    let machine = HostMachine::new(Host::kernels()?, seed);
    Some(CudaBackend::new(options, machine, case.batch, case.of).unwrap())
}

fn with(case: &Case, recipe: Recipe) -> CudaOptions {
    CudaOptions { recipe, ..case.cuda_options() }
}

/// All passes of an optimiser step; their summed loss, the last outcome.
fn take_step(card: &mut Card, case: &Case, recipe: Recipe, seed: u64) -> (f64, Outcome) {
    let (case, mut loss, mut last) = (Case { recipe, ..*case }, 0.0, None);
    for index in 0..case.of {
        let batch = case.batch(seed + index as u64);
        let outcome = engine::check::pass(card, &batch, &case.step(index)).unwrap();
        loss += outcome.score.loss;
        last = Some(outcome);
    }
    (loss, last.expect("a step has a pass"))
}

fn graph() -> Graph {
    lower(&CASE.spec, CASE.resolution).unwrap()
}

// ---- rules --------------------------------------------------------------------------------------------------------

/// The recipe's step on tensors by name.
fn oracle_step(state: &mut NamedTensors, gradients: &[Vec<f32>], recipe: Recipe, decay: Decay, update: u32) {
    let clip = divisor(gradients.iter().map(Vec::as_slice), if recipe.clip { CLIP_NORM } else { 0.0 });
    for (param, gradient) in graph().params.iter().zip(gradients) {
        let decays = decay.applies_to(param.role);
        let decay_of = |weight_decay: f32| if decays { weight_decay } else { 0.0 };
        let mut take = |prefix: &str| state.remove(&format!("{prefix}{}", param.name)).unwrap();
        let mut tensors = vec![("", take("")), (MOMENTUM_PREFIX, take(MOMENTUM_PREFIX))];
        match recipe.rule {
            Rule::Sgd => {
                let shorter: Vec<f32> = gradient.iter().map(|g| g / clip).collect();
                let rule = Sgd { weight_decay: decay_of(SGD.weight_decay), ..SGD };
                let [(_, w), (_, v)] = &mut tensors[..] else { unreachable!() };
                rule.step(&mut w.data, &mut v.data, &shorter);
            }
            Rule::Lars => {
                let rule = Lars { weight_decay: decay_of(LARS.weight_decay), ..LARS };
                let [(_, w), (_, v)] = &mut tensors[..] else { unreachable!() };
                rule.step(clip, &mut w.data, &mut v.data, gradient);
            }
            Rule::Lamb => {
                tensors.push((SECOND_MOMENT_PREFIX, take(SECOND_MOMENT_PREFIX)));
                let rule = Lamb { weight_decay: decay_of(LAMB.weight_decay), ..LAMB };
                let [(_, w), (_, m), (_, v)] = &mut tensors[..] else { unreachable!() };
                let of = &mut Moments { first: &mut m.data, second: &mut v.data };
                rule.step(&rule.corrections(clip, update), &mut w.data, of, gradient);
            }
        }
        for (prefix, tensor) in tensors {
            state.insert(format!("{prefix}{}", param.name), tensor);
        }
    }
}

/// Clip and ratio are off by a few roundings of f32 (`kernels/lamb.rs`), the rest is the oracle's to the bit; three steps
/// add theirs up.
#[test]
fn rules_take_steps_in_every_storage_type() {
    let kinds = [(1, Decay::Weights), (2, Decay::Weights), (1, Decay::All), (2, Decay::Unnormalised)];
    let rules =
        [(Rule::Lamb, true), (Rule::Lamb, false), (Rule::Lars, true), (Rule::Lars, false), (Rule::Sgd, true)];
    let all = Storage::ALL.into_iter().flat_map(|s| rules.map(|rule| (s, rule)));
    for ((storage, (rule, clip)), (of, decay)) in all.zip(kinds.into_iter().cycle()) {
        let case = Case { storage, of, ..CASE };
        let recipe = Recipe { rule, clip, ..Recipe::default() };
        let options = CudaOptions { decay, ..with(&case, recipe) };
        let Some(mut card) = card(&case, options, 3) else { return };
        let mut want = card.state().unwrap();
        for update in 1..=3 {
            let (_, outcome) = take_step(&mut card, &case, recipe, 10 * u64::from(update));
            assert!(outcome.fault.is_none() && !outcome.skipped, "{outcome:?}");
            let gradient = |name: &str| card.read(&format!("grad.{name}")).unwrap().data;
            let gradients: Vec<_> = graph().params.iter().map(|param| gradient(&param.name)).collect();
            oracle_step(&mut want, &gradients, recipe, decay, update);
        }
        let got = card.state().unwrap();
        for (name, tensor) in
            want.iter().filter(|(name, _)| !name.contains("running") && *name != SCALE_STATE)
        {
            let name = format!("{storage:?} {rule:?} clip {clip} {of} passes {decay:?} {name}");
            let got = &got[name.rsplit(' ').next().unwrap()];
            close(&name, &got.data, &tensor.data, 1e-5);
        }
        assert_eq!(got[SCALE_STATE].data[2], 3.0, "updates");
    }
}

// ---- moving averages ----------------------------------------------------------------------------------------------

#[test]
fn averages_follow_weights_and_running_statistics() {
    let decay = EMA_DECAY;
    for (storage, of) in [(Storage::F32, 1), (Storage::F16, 2)] {
        let case = Case { storage, of, ..CASE };
        let recipe = Recipe { averages: true, ..Recipe::default() };
        let Some(mut card) = card(&case, with(&case, recipe), 4) else { return };
        let names: Vec<String> = card
            .state()
            .unwrap()
            .keys()
            .filter_map(|n| n.strip_prefix(EMA_PREFIX))
            .map(str::to_owned)
            .collect();
        assert_eq!(names.len(), graph().params.len() + graph().buffers.len());
        for round in 0..2 {
            let before = card.state().unwrap();
            take_step(&mut card, &case, recipe, 10 * round);
            let after = card.state().unwrap();
            for name in &names {
                let average = format!("{EMA_PREFIX}{name}");
                let (old, new) = (&before[&average].data, &after[name].data);
                let want: Vec<f32> =
                    old.iter().zip(new).map(|(old, new)| decay * old + (1.0 - decay) * new).collect();
                close(&average, &after[&average].data, &want, 1e-6);
            }
        }
    }
}

/// A network that has the averages for weights gives the very logits.
#[test]
fn evaluations_are_of_the_averages() {
    for storage in Storage::ALL {
        let case = Case { storage, ..CASE };
        let recipe = Recipe { averages: true, ..Recipe::default() };
        let Some(mut averaged) = card(&case, with(&case, recipe), 5) else { return };
        let mut plain = card(&case, case.cuda_options(), 6).unwrap();
        take_step(&mut averaged, &case, recipe, 1);
        let state = averaged.state().unwrap();
        let images = Case { resolution: 48, batch: 3, ..case }.images(2);
        plain.load_state(&state).unwrap();
        let without = plain.eval_batch(&images, Weights::Live).unwrap();
        let averages =
            state.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(EMA_PREFIX)?, tensor)));
        plain
            .load_state(&averages.map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect())
            .unwrap();
        let (got, want) = (
            averaged.eval_batch(&images, Weights::Averaged).unwrap(),
            plain.eval_batch(&images, Weights::Live).unwrap(),
        );
        assert_eq!(got, want, "{storage:?}");
        assert_ne!(got, without, "{storage:?}: the weights themselves give others");
        assert_eq!(averaged.eval_batch(&images, Weights::Live).unwrap(), without, "{storage:?}");
    }
}

// ---- binary cross-entropy -----------------------------------------------------------------------------------------

/// Loss and the classifier's gradients from the features that the card has, in f64.
#[test]
fn binary_cross_entropy_is_timms() {
    for of in [1, 2] {
        let case = Case { of, ..CASE };
        let recipe = Recipe { loss: Loss::BinaryCrossEntropy, ..Recipe::default() };
        let options = CudaOptions { keep: true, ..with(&case, recipe) };
        let Some(mut card) = card(&case, options, 7) else { return };
        let state = card.state().unwrap();
        let (weight, bias) = (&state["fc.weight"], &state["fc.bias"]);
        let [classes, features] = weight.shape[..] else { unreachable!() };
        let (mut dw, mut db) = (vec![0.0f64; classes * features], vec![0.0f64; classes]);
        for index in 0..of {
            let (images, step) = (case.images(index as u64), Case { recipe, ..case }.step(index));
            let outcome = engine::check::pass(&mut card, &images, &step).unwrap();
            let pooled = card.read("avgpool").unwrap().data;
            let smoothing = f64::from(step.loss.label_smoothing);
            let share = 1.0 / (classes * case.batch * of) as f64;
            let mut loss = 0.0;
            for (x, &label) in pooled.chunks(features).zip(&images.labels) {
                for k in 0..classes {
                    let row = weight.data[k * features..][..features].iter().zip(x);
                    let z = f64::from(bias.data[k])
                        + row.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>();
                    let target =
                        smoothing / classes as f64 + if k == label as usize { 1.0 - smoothing } else { 0.0 };
                    let p = 1.0 / (1.0 + (-z).exp());
                    loss -= (target * p.ln() + (1.0 - target) * (1.0 - p).ln()) / classes as f64;
                    db[k] += (p - target) * share;
                    (0..features)
                        .for_each(|c| dw[k * features + c] += (p - target) * share * f64::from(x[c]));
                }
            }
            let got = outcome.score.loss;
            assert!((got - loss).abs() < 1e-5 * loss, "{of} passes: the loss is {got}, wanted {loss}");
        }
        for (name, want) in [("grad.fc.weight", dw), ("grad.fc.bias", db)] {
            let want: Vec<f32> = want.iter().map(|&value| value as f32).collect();
            close(name, &card.read(name).unwrap().data, &want, 2e-5);
        }
    }
}

/// Along its own gradient the mean loss changes by the gradient's length: central differences, which a ReLU's kink and the
/// third derivative spoil by a few thousandths. Mixed images in every case.
#[test]
fn all_gradients_are_the_slope_of_the_loss() {
    for recipe in [
        Recipe { loss: Loss::BinaryCrossEntropy, ..Recipe::default() },
        Recipe { drop_path: true, ..Recipe::default() },
        Recipe { erase: true, ..Recipe::default() },
    ] {
        let Some(mut card) = card(&CASE, with(&CASE, recipe), 8) else { return };
        let start = card.state().unwrap();
        take_step(&mut card, &CASE, recipe, 1);
        let gradient = |name: &str| card.read(&format!("grad.{name}")).unwrap().data;
        let gradients: Vec<_> = graph().params.iter().map(|param| gradient(&param.name)).collect();
        let length = gradients.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        let mut mean_loss = |along: f64| {
            let mut state = start.clone();
            for (param, gradient) in graph().params.iter().zip(&gradients) {
                let weights = &mut state.get_mut(&param.name).unwrap().data;
                let by = |g: f32| (along / length * f64::from(g)) as f32;
                weights.iter_mut().zip(gradient).for_each(|(w, &g)| *w += by(g));
            }
            card.load_state(&state).unwrap();
            take_step(&mut card, &CASE, recipe, 1).0 / CASE.batch as f64
        };
        let by = 2e-3;
        let slope = (mean_loss(by) - mean_loss(-by)) / (2.0 * by);
        let apart = (slope - length).abs();
        assert!(apart < 0.02 * length, "{recipe:?}: the slope is {slope}, the gradient {length} long");
    }
}

/// An image that skips every branch is what its shortcuts make of it.
#[test]
fn a_dropped_branch_adds_nothing() {
    let recipe = Recipe { drop_path: true, ..Recipe::default() };
    let options = CudaOptions { keep: true, ..with(&CASE, recipe) };
    let Some(mut card) = card(&CASE, options, 12) else { return };
    let case = Case { recipe, ..CASE };
    let mut step = case.step(0);
    // The last block's rate is 1: all images skip its branch.
    step.drop_path.rate = 1.0;
    engine::check::pass(&mut card, &case.batch(1), &step).unwrap();
    let units = engine::model::units::units(&graph());
    let sums: Vec<_> = units
        .iter()
        .filter_map(|unit| match unit {
            Unit::Conv(unit) if unit.residual.is_some() => Some(unit),
            _ => None,
        })
        .collect();
    let last = sums.last().unwrap();
    let gradient = card.read(&format!("grad.{}", graph().params[last.gamma].name)).unwrap();
    assert!(gradient.data.iter().all(|&g| g == 0.0), "nothing comes to the branch");
    let first = card.read(&format!("grad.{}", graph().params[sums[0].gamma].name)).unwrap();
    assert!(first.data.iter().any(|&g| g != 0.0), "the first block is never skipped");
}

// ---- everything at once -------------------------------------------------------------------------------------------

#[test]
fn a_resume_with_every_extra_goes_on_the_same() {
    for recipe in EXTRAS {
        let case = Case { storage: Storage::F16, ..CASE };
        let cards = [9, 10].map(|seed| card(&case, with(&case, recipe), seed));
        let [Some(mut whole), Some(mut cut)] = cards else { return };
        take_step(&mut whole, &case, recipe, 1);
        cut.load_state(&whole.state().unwrap()).unwrap();
        for seed in 2..4 {
            let outcomes = [&mut whole, &mut cut].map(|card| take_step(card, &case, recipe, seed));
            assert_eq!(outcomes[0], outcomes[1]);
        }
        let (whole, cut) = (whole.state().unwrap(), cut.state().unwrap());
        assert_eq!(whole, cut, "{recipe:?}: in other orders of nodes, blocks and threads");
    }
}

#[test]
fn an_overflow_leaves_moments_and_averages_alone() {
    for (of, recipe) in [1, 2].into_iter().flat_map(|of| EXTRAS.map(|recipe| (of, recipe))) {
        let case = Case { storage: Storage::F16, of, ..CASE };
        let options = CudaOptions { scale: TOO_LARGE, ..with(&case, recipe) };
        let Some(mut card) = card(&case, options, 11) else { return };
        let before = card.state().unwrap();
        let (_, outcome) = take_step(&mut card, &case, recipe, 1);
        assert!(outcome.skipped && outcome.fault.is_none(), "{recipe:?}: {outcome:?}");
        let after = card.state().unwrap();
        let lasting = |name: &str| !name.contains("running") || name.starts_with(EMA_PREFIX);
        for (name, tensor) in before.iter().filter(|(name, _)| lasting(name) && *name != SCALE_STATE) {
            assert_eq!(tensor, &after[name], "{recipe:?}: {name} moved in a skipped step");
        }
        assert_eq!(after[SCALE_STATE].data[2..], [0.0, 1.0], "updates, skipped");
    }
}

/// What a step asks for and no plan was made for is refused.
#[test]
fn a_step_of_another_recipe_is_refused() {
    let Some(mut card) = card(&CASE, CASE.cuda_options(), 13) else { return };
    for recipe in EXTRAS {
        let other = Case { recipe, ..CASE };
        let error = card.submit(&other.batch(1), &other.step(0)).unwrap_err();
        assert!(error.message.contains("for a network opened for"), "{error}");
    }
    take_step(&mut card, &CASE, Recipe::PLAIN, 1);
}

#[test]
fn plans_with_every_extra_have_no_race() {
    let purposes = [
        Purpose::Accumulate,
        Purpose::Finish { sum: false },
        Purpose::Finish { sum: true },
        Purpose::Evaluate,
        Purpose::Replay,
    ];
    let forms = FORMS.into_iter().chain([Form::BASE]);
    let all = forms.flat_map(|form| EXTRAS.map(|recipe| (form, recipe)));
    for (purpose, (form, recipe)) in all.flat_map(|of| purposes.map(|purpose| (purpose, of))) {
        let options = PlanOptions {
            spec: CASE.spec,
            resolution: CASE.resolution,
            batch: CASE.batch,
            storage: Storage::F16,
            purpose,
            form,
            decay: Decay::Weights,
            recipe,
            scale: ScalePolicy::FP16,
            keep: false,
            without: vec![],
        };
        let plan = Plan::new(&options).unwrap();
        assert_eq!(races(&plan.nodes), [], "{purpose:?} {form} {recipe:?}");
    }
}
