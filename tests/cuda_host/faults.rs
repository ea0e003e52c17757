//! Which layer and which place a fault names, and that it is the batch at fault that is run again.

use crate::harness::Host;
use crate::hooked::{Call, Hooked};
use crate::machine::HostMachine;
use engine::backend::cuda::CudaBackend;
use engine::backend::cuda::machine::Machine;
use engine::backend::cuda::plan::region::Arena;
use engine::backend::cuda::plan::{Plan, PlanOptions, Purpose, Recipe};
use engine::backend::cuda::replay;
use engine::backend::cuda::storage::Storage;
use engine::backend::{Backend, NamedTensors, Outcome};
use engine::check::{Case, SGD, step};
use engine::config::Form;
use engine::data::Batch;
use engine::error::Error;
use engine::model::spec::{RESNET_TINY, RESNET50};
use engine::optim::Rule;
use engine::optim::sgd::Sgd;

const TINY: Case = Case {
    spec: RESNET_TINY,
    resolution: 32,
    batch: 16,
    storage: Storage::F16,
    steps: 1,
    of: 1,
    recipe: Recipe::PLAIN,
    form: Form::BASE,
};

/// The layer whose weights are made large: behind two blocks, before one.
const LAYER: &str = "layer2.0.conv1";
/// What rounds to infinity in half: 65504 and half of the distance to the next number that it would have.
const OVERFLOW: f32 = 65520.0;
/// The image that is unlike the others of its batch.
const ODD: usize = 11;

/// Grey images with a little noise in a corner; in an odd batch, one image has a corner of strong noise, whose values
/// batch norm makes large against those of all others.
fn images(seed: u64, odd: bool) -> Batch {
    let mut batch = TINY.images(seed);
    let side = TINY.resolution;
    for (index, value) in batch.images.iter_mut().enumerate() {
        let (image, row, column) = (index / 3 / side / side, index / 3 / side % side, index / 3 % side);
        let strong = odd && image == ODD && row < 6 && column < 6;
        *value = if strong {
            *value
        } else if odd {
            120 + *value % 2
        } else {
            *value
        };
    }
    batch
}

/// The layer's output on the CPU, which divides by nothing that overflows.
fn output(state: &NamedTensors, batch: &Batch) -> Vec<f32> {
    let mut cpu = TINY.cpu().unwrap();
    cpu.keep_activations();
    cpu.load_state(state).unwrap();
    engine::check::pass(&mut cpu, batch, &step(0, 1)).unwrap();
    cpu.read(LAYER).unwrap().data
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| value.abs().max(largest))
}

/// A state in which `LAYER` overflows half on the odd batch alone, and its output there, as far as f32 goes.
fn planted() -> (NamedTensors, Vec<f32>) {
    let mut state = TINY.cpu().unwrap().state().unwrap();
    state.retain(|name, _| !name.starts_with("optim."));
    let (plain, odd) = (output(&state, &images(1, false)), output(&state, &images(2, true)));
    let (plain, most) = (largest(&plain), largest(&odd));
    println!("{LAYER}: at most {plain} in a plain batch, {most} in the odd one");
    assert!(most > 2.5 * plain, "the odd batch must stand out");
    // Between the two: the plain one stays below, the odd one goes above.
    let factor = OVERFLOW / (most * plain).sqrt();
    let weight = &mut state.get_mut(&format!("{LAYER}.weight")).unwrap().data;
    weight.iter_mut().for_each(|weight| *weight *= factor);
    let odd = output(&state, &images(2, true));
    (state, odd)
}

fn numbers(text: &str) -> Vec<usize> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Checks the sentence against the CPU's values, which differ from the card's by roundings.
fn names_the_place(fault: &str, want: &[f32]) {
    let place =
        fault.strip_prefix(&format!("{LAYER}'s output is not finite (")).unwrap_or_else(|| panic!("{fault}"));
    let [count, of, image, row, column, channel] = numbers(place)[..] else { panic!("{fault}") };
    let channels = 32;
    let side = (want.len() / TINY.batch / channels).isqrt();
    assert_eq!((of, image), (want.len(), ODD), "{fault}");
    let first = ((image * side + row) * side + column) * channels + channel;
    let above = |factor: f32| want.iter().filter(|value| value.abs() > factor * OVERFLOW).count();
    assert!((above(1.05)..=above(0.95)).contains(&count), "{fault}: {} to {}", above(1.05), above(0.95));
    assert!(want[first].abs() > 0.95 * OVERFLOW, "{fault}: {}", want[first]);
    assert!(largest(&want[..first]) < 1.05 * OVERFLOW, "{fault}");
}

fn card<M: Machine>(machine: M, of: usize, state: &NamedTensors) -> CudaBackend<M> {
    let mut card = CudaBackend::new(TINY.cuda_options(), machine, TINY.batch, of).unwrap();
    card.load_state(state).unwrap();
    card
}

/// Hands over `of` passes of one step after another, the odd batch at number `odd`, asking in between or not; the
/// number of the faulty outcome, and its fault.
fn train(card: &mut dyn Backend, odd: usize, of: usize, polls: bool) -> (usize, Outcome) {
    let (mut outcomes, mut number) = (0, 0);
    loop {
        assert!(number < 12, "no fault");
        let mut step = step(number % of, of);
        // The weights stay as they are planted, in each step that comes before.
        step.rule = Rule::Sgd(Sgd { lr: 0.0, ..SGD });
        let batch = images(if number == odd { 2 } else { 1 }, number == odd);
        card.submit(&batch, &step).unwrap();
        number += 1;
        if !polls && number % 6 != 0 {
            continue;
        }
        while let Some(outcome) = if polls { card.poll() } else { card.wait() }.unwrap() {
            if outcome.fault.is_some() {
                return (outcomes, outcome);
            }
            outcomes += 1;
        }
    }
}

#[test]
fn the_layer_that_overflows_is_named_from_the_batch_at_fault() {
    let Some(host) = Host::kernels() else { return };
    let (state, want) = planted();
    for (odd, of, polls) in [(0, 1, true), (1, 1, true), (1, 1, false), (2, 1, false), (2, 1, true)] {
        let mut card = card(HostMachine::new(host, 3), of, &state);
        let (number, outcome) = train(&mut card, odd, of, polls);
        println!("{odd} {polls}: {outcome:?}");
        assert_eq!(number, odd);
        names_the_place(&outcome.fault.unwrap(), &want);
        let weight = format!("{LAYER}.weight");
        assert_eq!(
            card.read(&weight).unwrap(),
            state[&weight],
            "the weights are those that the pass has read"
        );
        while let Some(later) = card.wait().unwrap() {
            assert!(later.fault.is_none_or(|fault| fault.contains("earlier")), "one fault is told once");
        }
    }
}

#[test]
fn a_micro_step_at_fault_is_named_too() {
    let Some(host) = Host::kernels() else { return };
    let (state, want) = planted();
    for odd in [3, 4, 5] {
        let mut card = card(HostMachine::new(host, 4), 3, &state);
        let (number, outcome) = train(&mut card, odd, 3, true);
        assert_eq!(number, odd);
        names_the_place(&outcome.fault.unwrap(), &want);
    }
}

/// Too little memory for the second run, or a card that fails in it: the fault is still told.
#[test]
fn no_memory_to_look_closer_does_not_hide_the_fault() {
    let Some(host) = Host::kernels() else { return };
    let (state, _) = planted();
    let errors: [fn() -> Error; 2] = [
        || Error::usage("taking device memory: the card has too little free memory"),
        || Error::device("the card failed at taking device memory"),
    ];
    for error in errors {
        let mut prepared = 0;
        let hook = move |call: Call| {
            prepared += u32::from(call == Call::Prepare);
            if call == Call::Prepare && prepared > 1 { Err(error()) } else { Ok(()) }
        };
        let mut card = card(Hooked::new(HostMachine::new(host, 5), hook), 1, &state);
        let fault = train(&mut card, 1, 1, true).1.fault.unwrap();
        for part in ["all weights are finite: an activation left the range of its type", &error().message] {
            assert!(fault.contains(part), "{part:?} in {fault}");
        }
    }
}

#[test]
fn weights_beyond_half_are_named() {
    let Some(host) = Host::kernels() else { return };
    let mut state = TINY.cpu().unwrap().state().unwrap();
    state.get_mut("layer1.1.conv2.weight").unwrap().data[7] = 70000.0;
    let fault = train(&mut card(HostMachine::new(host, 6), 1, &state), 12, 1, true).1.fault.unwrap();
    assert!(fault.contains("layer1.1.conv2.weight") && fault.contains("65504"), "{fault}");
}

/// Where training fits, so does the second look: what it keeps is what the backward pass needs.
#[test]
fn the_second_run_takes_no_more_memory_than_training() {
    for batch in [32, 256] {
        let training = PlanOptions {
            spec: RESNET50,
            resolution: 224,
            batch,
            storage: Storage::F16,
            purpose: Purpose::Finish { sum: false },
            form: Form::BASE,
            decay: TINY.cuda_options().decay,
            recipe: Recipe::default(),
            scale: TINY.cuda_options().scale,
            keep: false,
            without: vec![],
        };
        let activations = |plan: &Plan| plan.arenas[&Arena::Activations];
        let (first, second) = (Plan::new(&training).unwrap(), replay::plan(&training).unwrap());
        println!(
            "batch {batch}: {} MiB, replay {} MiB",
            activations(&first) >> 20,
            activations(&second) >> 20
        );
        assert!(activations(&second) <= activations(&first));
        assert!(second.bytes() <= first.bytes());
    }
}
