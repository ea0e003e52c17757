//! Several ranks, each a thread with a host machine of its own, from the launch lists that cards get.

use crate::harness::Host;
use crate::machine::{HostMachine, Plant};
use engine::backend::cuda::network::SCALE_STATE;
use engine::backend::cuda::plan::node::{Call, Exchange};
use engine::backend::cuda::plan::order::{Order, races};
use engine::backend::cuda::plan::{Plan, Recipe};
use engine::backend::cuda::storage::Storage;
use engine::backend::cuda::{CudaBackend, CudaOptions};
use engine::backend::{Backend, ELSEWHERE, NamedTensors, Outcome, Step, Weights};
use engine::check::{Case, pass, step};
use engine::comm::loopback::Loopback;
use engine::config::{Form, Pointwise, Slabs};
use engine::data::Batch;
use engine::model::spec::{RESNET_TINY, RESNET50};
use engine::tensor::Difference;
use std::rc::Rc;
use std::thread;

const TINY: Case = Case {
    spec: RESNET_TINY,
    resolution: 32,
    batch: 8,
    storage: Storage::F32,
    steps: 2,
    of: 1,
    recipe: Recipe::PLAIN,
    form: Form::BASE,
};

/// The passes of two optimiser steps that fall to one of `ranks` ranks, of `of` passes in all.
fn train(
    case: &Case,
    of: usize,
    (rank, ranks): (usize, usize),
    backend: &mut dyn Backend,
) -> (Vec<Outcome>, NamedTensors) {
    let mut outcomes = vec![];
    for number in 0..case.steps {
        for index in 0..of / ranks {
            let batch = images(case, number, index * ranks + rank);
            let step = Step { ranks, ..step(index, of / ranks) };
            outcomes.push(pass(backend, &batch, &step).unwrap());
        }
    }
    (outcomes, backend.state().unwrap())
}

/// Those of a pass, counted over all ranks.
fn images(case: &Case, number: usize, pass: usize) -> Batch {
    case.images((10 * number + pass) as u64)
}

/// A network whose plans exchange with those of `ranks` ranks.
fn network(case: &Case, of: usize, ranks: Option<usize>, machine: HostMachine) -> CudaBackend<HostMachine> {
    let options = case.cuda_options();
    let options = CudaOptions { recipe: Recipe { ranks, ..options.recipe }, ..options };
    CudaBackend::new(options, machine, case.batch, of / ranks.unwrap_or(1)).unwrap()
}

/// Trains on `ranks` ranks of two threads; `plant` is rank 1's.
fn among(
    case: &Case,
    of: usize,
    ranks: usize,
    host: &'static Host,
    plant: Option<&Plant>,
) -> Vec<(Vec<Outcome>, NamedTensors)> {
    thread::scope(|scope| {
        let start = |(rank, end): (usize, Loopback)| {
            scope.spawn(move || {
                let mut machine = HostMachine::new(host, 20 + rank as u64);
                machine.ranks = Rc::new(end);
                machine.plant = plant.filter(|_| rank == 1).cloned();
                train(case, of, (rank, ranks), &mut network(case, of, Some(ranks), machine))
            })
        };
        let threads: Vec<_> = Loopback::group(ranks).into_iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn alone(case: &Case, of: usize, host: &'static Host) -> (Vec<Outcome>, NamedTensors) {
    train(case, of, (0, 1), &mut network(case, of, None, HostMachine::new(host, 1)))
}

/// The largest difference in norm, with its tensor.
fn apart(got: &NamedTensors, want: &NamedTensors) -> (f64, String) {
    let norm = |(name, tensor): (&String, &engine::tensor::HostTensor)| {
        (Difference::between(&tensor.data, &want[name].data).norm, name.clone())
    };
    got.iter().map(norm).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// One pass a rank: the sum of two f32 is the same whichever machine adds them, and running statistics take in the batches
/// in the same order.
#[test]
fn two_ranks_are_one_that_accumulates_to_the_bit() {
    let Some(host) = Host::kernels() else { return };
    let (outcomes, want) = alone(&TINY, 2, host);
    let ranks = among(&TINY, 2, 2, host, None);
    for (rank, (own, state)) in ranks.iter().enumerate() {
        assert_eq!(*state, want, "rank {rank}");
        for (step, outcome) in own.iter().enumerate() {
            assert_eq!(outcome.score, outcomes[2 * step + rank].score, "rank {rank}, step {step}");
        }
    }
}

/// fp16 gradients are added up as fp16, where one rank's accumulation keeps f32: half a unit in the last place, 2^-11, of
/// each sum; bf16 2^-8. Velocities are sums of such gradients after the first step.
#[test]
fn sums_of_half_precision_round_once() {
    let Some(host) = Host::kernels() else { return };
    for storage in [Storage::F16, Storage::Bf16] {
        let case = Case { storage, steps: 1, ..TINY };
        let (_, want) = alone(&case, 2, host);
        let ranks = among(&case, 2, 2, host, None);
        assert_eq!(ranks[0].1, ranks[1].1, "ranks agree to the bit");
        let (apart, name) = apart(&ranks[0].1, &want);
        println!("{storage:?}: {apart:.1e} apart in norm, {name}; allowed {:.1e}", storage.roundoff());
        assert!(apart <= storage.roundoff(), "{name}: {apart}");
    }
}

/// Two passes a rank are added up on the rank first: (g0 + g2) + (g1 + g3), three roundings in another order.
#[test]
fn passes_of_a_rank_are_added_before_those_of_ranks() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { steps: 1, ..TINY };
    let (_, want) = alone(&case, 4, host);
    let ranks = among(&case, 4, 2, host, None);
    assert_eq!(ranks[0].1, ranks[1].1, "ranks agree to the bit");
    let (apart, name) = apart(&ranks[0].1, &want);
    println!("{apart:.1e} apart in norm, {name}");
    // Terms may be larger than their sum.
    assert!(apart < 64.0 * 2f64.powi(-24), "{name}: {apart}");
}

/// The exchanges of a single rank change nothing.
#[test]
fn one_rank_that_exchanges_is_one_that_does_not() {
    let Some(host) = Host::kernels() else { return };
    for (storage, of) in [(Storage::F16, 1), (Storage::F16, 2), (Storage::F32, 1)] {
        let case = Case { storage, ..TINY };
        let want = alone(&case, of, host);
        let got = among(&case, of, 1, host, None).pop().unwrap();
        assert_eq!(got, want, "{storage:?}, steps of {of}");
    }
}

#[test]
fn an_overflow_at_one_rank_is_skipped_by_all() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { storage: Storage::F16, steps: 1, ..TINY };
    let spoil = |_: Storage, bytes: &mut [u8]| bytes[10..12].copy_from_slice(&0x7c00u16.to_le_bytes());
    let plant = Plant { node: "fc.wgrad".into(), region: 0, spoil };
    let ranks = among(&case, 2, 2, host, Some(&plant));
    for (outcomes, state) in &ranks {
        assert!(outcomes[0].skipped && outcomes[0].fault.is_none(), "{outcomes:?}");
        assert_eq!(state[SCALE_STATE].data[0], outcomes[0].loss_scale / 2.0);
    }
    assert_eq!(ranks[0].1, ranks[1].1);
}

/// The rank at fault names the layer; the other knows that it is not its own.
#[test]
fn a_bad_loss_at_one_rank_stops_all() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { steps: 1, ..TINY };
    let spoil = |_: Storage, bytes: &mut [u8]| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let plant = Plant { node: "fc.forward".into(), region: 0, spoil };
    let ranks = among(&case, 2, 2, host, Some(&plant));
    let faults: Vec<&str> =
        ranks.iter().map(|(outcomes, _)| outcomes[0].fault.as_deref().expect("a fault")).collect();
    println!("{faults:?}");
    assert_eq!(faults[0], ELSEWHERE);
    assert!(faults[1].contains("fc"), "{faults:?}");
}

#[test]
fn evaluations_exchange_nothing() {
    let Some(host) = Host::kernels() else { return };
    let mut network = network(&TINY, 2, Some(2), HostMachine::new(host, 1));
    network.eval_batch(&TINY.images(1), Weights::Live).unwrap();
}

fn plan(case: &Case, ranks: usize, sum: bool) -> Plan {
    use engine::backend::cuda::plan::{PlanOptions, Purpose};
    let CudaOptions { spec, resolution, storage, scale, form, decay, recipe, keep, .. } = case.cuda_options();
    Plan::new(&PlanOptions {
        spec,
        resolution,
        batch: case.batch,
        storage,
        purpose: Purpose::Finish { sum },
        form,
        decay,
        recipe: Recipe { ranks: Some(ranks), ..recipe },
        scale,
        keep,
        without: vec![],
    })
    .unwrap()
}

/// The real network: no race, and buckets that leave while the backward pass goes on.
#[test]
fn buckets_leave_before_the_backward_pass_has_ended() {
    let case = Case { spec: RESNET50, resolution: 224, batch: 256, storage: Storage::F16, ..TINY };
    for sum in [false, true] {
        let mut plan = plan(&case, 8, sum);
        assert_eq!(races(&plan.nodes), [], "sum {sum}");
        let find = |name: &str| {
            plan.nodes.iter().position(|node| node.name == name).unwrap_or_else(|| panic!("{name}"))
        };
        let order = Order::of(&plan.nodes);
        let (first, stem) = (find("all_reduce.bucket 1"), find("conv1.wgrad"));
        assert!(first < stem && !order.before(stem, first), "the first bucket waits for the last gradient");
        // Nor does the critical path wait for it before the finite check.
        let check = find("finite_check");
        let waits = (0..check).filter(|&id| plan.nodes[id].stream == 0 && order.before(first, id)).count();
        assert!(order.before(first, check));
        println!("sum {sum}: {waits} nodes of the critical path wait for the first bucket before the check");
        let exchanges: Vec<(&str, u64)> = plan
            .nodes
            .iter()
            .filter_map(|node| match &node.call {
                Call::Collective(collective) => Some((node.name.as_str(), collective.from.bytes)),
                _ => None,
            })
            .collect();
        println!("{exchanges:?}");
        assert_eq!(waits, 0, "{waits} nodes of the critical path wait for the first bucket");
        // What an exchange needs is seen by the static check.
        plan.nodes.iter_mut().filter(|node| node.stream == 2).for_each(|node| node.waits.clear());
        assert_ne!(races(&plan.nodes), []);
    }
}

const SYNCED: Recipe = Recipe { sync_norms: true, ..Recipe::PLAIN };

/// Of one rank, which has in each pass what two have beside each other; `turn` says which image comes first.
fn together(case: &Case, of: usize, turn: usize, host: &'static Host) -> (Vec<Outcome>, NamedTensors) {
    let whole = Case { batch: 2 * case.batch, ..*case };
    let mut network = network(&whole, of / 2, None, HostMachine::new(host, 1));
    let mut outcomes = vec![];
    for number in 0..case.steps {
        for index in 0..of / 2 {
            let mut batch = images(case, number, 2 * index);
            let other = images(case, number, 2 * index + 1);
            batch.images.extend(other.images);
            batch.labels.extend(other.labels);
            batch.samples = (0..whole.batch as u32).collect();
            let image = batch.images.len() / whole.batch;
            batch.images.rotate_left(turn * image);
            batch.labels.rotate_left(turn);
            outcomes.push(pass(&mut network, &batch, &step(index, of / 2)).unwrap());
        }
    }
    (outcomes, network.state().unwrap())
}

/// Batch norm over the images of both ranks is that of one rank that has them all, but for the order in which numbers are added
/// and, where gradients are stored in half precision, the rounding of their sum. How far the order goes is seen on one rank
/// whose images come in another one; four times that is allowed.
#[test]
fn batch_norm_of_two_ranks_is_that_of_the_whole_batch() {
    let Some(host) = Host::kernels() else { return };
    let fused = Form { pointwise: Pointwise::Fused, ..Form::BASE };
    for (storage, of, steps, form) in [
        (Storage::F32, 2, 2, Form::BASE),
        (Storage::F32, 4, 2, Form::BASE),
        (Storage::F16, 2, 1, Form::BASE),
        (Storage::F16, 2, 1, fused),
    ] {
        let case = Case { storage, steps, form, recipe: SYNCED, ..TINY };
        let (whole, want) = together(&case, of, 0, host);
        let turned: Vec<_> = [3, 8].map(|turn| apart(&together(&case, of, turn, host).1, &want)).to_vec();
        let order = turned.iter().map(|(apart, _)| *apart).fold(0.0, f64::max);
        let allowed = 4.0 * order + storage.roundoff();
        let ranks = among(&case, of, 2, host, None);
        assert_eq!(ranks[0].1, ranks[1].1, "ranks agree to the bit");
        let (got, name) = apart(&ranks[0].1, &want);
        let (lone, _) = apart(&among(&Case { recipe: Recipe::PLAIN, ..case }, of, 2, host, None)[0].1, &want);
        println!(
            "{storage:?}, {of} passes: {got:.1e} apart in norm, {name}; allowed {allowed:.1e}; rank by rank {lone:.1e}"
        );
        assert!(got <= allowed, "{name}: {got}, allowed {allowed}");
        assert!(lone > 2.0 * allowed, "batch norm by rank is something else: {lone}");
        for (index, outcome) in whole.iter().enumerate() {
            let sum: f64 = ranks.iter().map(|(outcomes, _)| outcomes[index].score.loss).sum();
            let apart = (sum / outcome.score.loss - 1.0).abs();
            assert!(apart <= allowed, "pass {index}: losses {sum} and {}", outcome.score.loss);
        }
    }
}

/// What is not finite at one rank reaches the statistics of all; the rank that it comes from names the layer.
#[test]
fn a_bad_output_under_synced_norms_is_found_where_it_comes_from() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { steps: 1, recipe: SYNCED, ..TINY };
    let spoil = |_: Storage, bytes: &mut [u8]| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let plant = Plant { node: "layer2.0.conv2.forward".into(), region: 0, spoil };
    let ranks = among(&case, 2, 2, host, Some(&plant));
    let faults: Vec<&str> =
        ranks.iter().map(|(outcomes, _)| outcomes[0].fault.as_deref().expect("a fault")).collect();
    println!("{faults:?}");
    assert_eq!(faults[0], ELSEWHERE);
    assert!(faults[1].contains("layer2.0.conv2"), "{faults:?}");
}

/// The real network, also in a form that would finish batch norms within a kernel: each of 53 exchanges both ways, no race, and
/// evaluations and a single rank are as they are without.
#[test]
fn synced_norms_of_the_real_network_exchange_both_ways() {
    let slabs = Form { slabs: Slabs { cache_kb: 50 << 10, launch_kb: 0 }, ..Form::BASE };
    for form in [Form::BASE, slabs] {
        let case = Case {
            spec: RESNET50,
            resolution: 224,
            batch: 64,
            storage: Storage::F16,
            form,
            recipe: SYNCED,
            ..TINY
        };
        let plan = plan(&case, 8, true);
        assert_eq!(races(&plan.nodes), []);
        let gathers = plan
            .nodes
            .iter()
            .filter(|node| matches!(&node.call, Call::Collective(one) if one.kind == Exchange::Gather))
            .count();
        assert_eq!(gathers, 2 * 53);
        let one = |recipe| self::plan(&Case { recipe, ..case }, 1, true).nodes;
        assert_eq!(one(SYNCED), one(Recipe::PLAIN));
    }
}
