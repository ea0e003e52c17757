//! Whole steps from the card's own launch lists, against the CPU backend.

use crate::compare::{close, close_in_norm};
use crate::harness::Host;
use crate::layers::SMALL;
use crate::machine::{HostMachine, Plant};
use engine::backend::cuda::network::{SCALE_STATE, from_stored, to_stored};
use engine::backend::cuda::plan::node::{Call, Convolution, Node, Pass};
use engine::backend::cuda::plan::order::races;
use engine::backend::cuda::plan::region::Arena;
use engine::backend::cuda::plan::{Plan, PlanOptions, Purpose, Recipe, Rule, ScalePolicy};
use engine::backend::cuda::storage::Storage;
use engine::backend::cuda::{CudaBackend, CudaOptions};
use engine::backend::{Backend, Outcome, Weights};
use engine::check::trajectory::Trajectory;
use engine::check::{Case, EXTRAS, FORMS, step};
use engine::config::{Chip, Form, Norm, Pointwise, Slabs, Wgrad};
use engine::data::{Batch, Blend};
use engine::model::freeze::{Freeze, Part};
use engine::model::spec::{RESNET_TINY, RESNET50};
use engine::tensor::Difference;

const TINY: Case = Case {
    spec: RESNET_TINY,
    resolution: 32,
    batch: 4,
    storage: Storage::F32,
    steps: 2,
    of: 1,
    recipe: Recipe::PLAIN,
    form: Form::BASE,
};

fn host_backend(case: &Case, host: &'static Host, seed: u64) -> CudaBackend<HostMachine> {
    case.cuda(HostMachine::new(host, seed)).unwrap()
}

fn pass(backend: &mut dyn Backend, batch: &Batch) -> Outcome {
    engine::check::pass(backend, batch, &step(0, 1)).unwrap()
}

/// `seed` chooses the order of nodes and threads.
fn compare_steps(case: Case, seed: u64) {
    let Some(host) = Host::kernels() else { return };
    let report = case.compare(&mut host_backend(&case, host, seed)).unwrap();
    let (name, storage, of) = (case.spec.name, case.storage, case.of);
    println!("{name} {storage:?}, {} steps of {of}: {report:?}", case.steps);
    assert!(report.passes(), "{report:?}");
}

#[test]
fn tiny_f32_is_the_cpu_backend_in_every_order() {
    for seed in 0..5 {
        compare_steps(TINY, seed);
    }
}

#[test]
fn tiny_f32_with_micro_steps() {
    compare_steps(Case { of: 3, ..TINY }, 1);
}

#[test]
fn tiny_in_half_precision_is_near_the_cpu_backend() {
    for storage in [Storage::F16, Storage::Bf16] {
        let case = Case { storage, batch: 16, steps: 1, ..TINY };
        compare_steps(case, 2);
        compare_steps(Case { of: 2, ..case }, 3);
    }
}

/// LARS, clipped SGD, losses, averages, drop path, mixed and erased images: the whole state after a step. LAMB divides a
/// gradient by its own size, so that one near zero moves its weight by what rounding is of it: its nodes are compared one by
/// one (`layers`), and its steps with the rule's (`recipe`).
#[test]
fn tiny_of_other_recipes_is_the_cpu_backend() {
    let recipes = EXTRAS.into_iter().filter(|recipe| recipe.rule != Rule::Lamb);
    for (recipe, of) in recipes.flat_map(|recipe| [(recipe, 1), (recipe, 2)]) {
        compare_steps(Case { recipe, of, batch: 16, steps: 1, ..TINY }, 6);
    }
}

#[test]
fn tiny_in_other_forms_is_the_cpu_backend() {
    for form in FORMS {
        compare_steps(Case { form, ..TINY }, 1);
        compare_steps(Case { form, of: 2, resolution: 37, batch: 3, ..TINY }, 2);
        compare_steps(Case { form, storage: Storage::F16, batch: 16, steps: 1, ..TINY }, 3);
    }
}

/// `engine bench step --variants` compares so: other forms train as the base does, and one whose filters' gradient is half as
/// large again in one layer does not.
#[test]
fn a_form_that_trains_otherwise_is_told_from_those_that_do_not() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { storage: Storage::F16, batch: 8, ..TINY };
    let batches = [case.images(1), case.images(2)];
    let run = |case: Case, plant: Option<Plant>| {
        let mut machine = HostMachine::new(host, 1);
        machine.plant = plant;
        Trajectory::run(&mut case.cuda(machine).unwrap(), &batches, 4).unwrap()
    };
    let base = run(case, None);
    let mut other = host_backend(&case, host, 1);
    let moved = Trajectory::nudged(&mut other, &batches, 4, Storage::F16.roundoff()).unwrap();
    for form in FORMS {
        let report = base.compare(&run(Case { form, ..case }, None), &moved);
        println!("{form}: {report:?}");
        assert!(report.passes(), "{form}: {report:?}");
    }
    let spoil = |storage, bytes: &mut [u8]| {
        let values: Vec<f32> = from_stored(storage, bytes).iter().map(|value| 1.5 * value).collect();
        bytes.copy_from_slice(&to_stored(storage, &values));
    };
    let plant = Plant { node: "layer1.0.conv2.wgrad".to_owned(), region: 0, spoil };
    let report = base.compare(&run(case, Some(plant)), &moved);
    assert!(!report.passes() && report.name == "gradient of layer1.0.conv2.weight", "{report:?}");
}

/// No form has a race, and none leaves anything in a checkpoint that another could not go on from.
#[test]
fn forms_have_no_races_and_share_their_checkpoints() {
    let Some(host) = Host::kernels() else { return };
    let mut base = host_backend(&TINY, host, 1);
    pass(&mut base, &TINY.images(1));
    let state = base.state().unwrap();
    for form in FORMS {
        let case = Case { form, ..TINY };
        assert_eq!(races(&plan_of(case).nodes), [], "{form}");
        let mut other = host_backend(&case, host, 2);
        other.load_state(&state).unwrap();
        assert_eq!(other.state().unwrap(), state, "{form}");
    }
}

/// Mixed bytes give the CPU's activations, whichever the batch: up to roundings, which open a gate here and there (batch 1 has
/// one) that is shut on the other side, so that gradients are compared where none is. Ten convolutions in a row add up at most
/// 288 products each: 10 sqrt(288) 6e-8.
#[test]
fn activations_of_mixed_bytes_are_the_cpu_backends() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { recipe: EXTRAS[2], batch: 16, ..TINY };
    for seed in [1, 2, 7] {
        let batch = case.batch(seed);
        assert_eq!(batch.blend, Blend::Bytes);
        let options = CudaOptions { keep: true, ..case.cuda_options() };
        let mut card = CudaBackend::new(options, HostMachine::new(host, 6), case.batch, 1).unwrap();
        let mut cpu = case.cpu().unwrap();
        cpu.keep_activations();
        engine::check::pass(&mut card, &batch, &case.step(0)).unwrap();
        engine::check::pass(&mut cpu, &batch, &case.step(0)).unwrap();
        for name in ["relu", "layer1.0.relu", "layer1.1.relu", "layer2.0.relu", "avgpool"] {
            let [got, want] = [&card as &dyn Backend, &cpu].map(|backend| backend.read(name).unwrap().data);
            close(&format!("batch {seed}, {name}"), &got, &want, 1e-5);
        }
    }
}

/// The stem and the first stage are frozen, or a stage between others that train. Their batch norms take running statistics in
/// every form: nothing of theirs is summed, in slabs or otherwise, and nobody waits for a gradient that is not there.
#[test]
fn frozen_parts_in_every_form_are_the_cpu_backend() {
    let all = Form { wgrad: Wgrad::Behind, pointwise: Pointwise::Fused, ..FORMS[3] };
    let cuts =
        [(Freeze::up_to(1), ["conv1", "layer1"]), (Freeze::only(Part::Layer(1)), ["layer1", "layer1"])];
    for (form, (freeze, frozen)) in
        FORMS.into_iter().chain([all]).flat_map(|form| cuts.map(|cut| (form, cut)))
    {
        let recipe = Recipe { freeze, averages: true, ..Recipe::PLAIN };
        let case = Case { recipe, form, storage: Storage::F16, batch: 16, steps: 1, ..TINY };
        let plan = plan_of(case);
        assert_eq!(races(&plan.nodes), [], "{form} {freeze:?}");
        let sums = [
            "bn_stats",
            "bn_slab",
            "bn_one_pass",
            "bn_finalize",
            "forward_stats",
            "bn_backward_slab",
            "bn_backward_reduce",
            "bn_backward_one_pass",
        ];
        for node in plan.nodes.iter().filter(|node| sums.iter().any(|sum| node.name.contains(sum))) {
            let is_frozen = frozen.iter().any(|part| node.name.split('.').next() == Some(part));
            assert!(!is_frozen, "{form} {freeze:?}: {} sums over what is frozen", node.name);
        }
        let has = |what: &str| plan.nodes.iter().any(|node| node.name.contains(what));
        assert_eq!(
            has("forward_stats"),
            form.pointwise == Pointwise::Fused,
            "{form}: nothing is left to fuse"
        );
        assert_eq!(has("one_pass"), form.norm == Norm::OnePass, "{form}: nothing is left to do in one pass");
        assert_eq!(has("bn_slab"), form.slabs != Slabs::default(), "{form}: nothing is left to cut");
        compare_steps(case, 1);
        compare_steps(Case { storage: Storage::F32, of: 2, ..case }, 2);
    }
}

/// Odd sides: windows and tails that do not fill.
#[test]
fn tiny_at_odd_sizes() {
    compare_steps(Case { resolution: 37, batch: 3, ..TINY }, 4);
}

#[test]
fn resnet50_takes_steps() {
    for storage in [Storage::F32, Storage::F16] {
        compare_steps(
            Case {
                spec: RESNET50,
                resolution: 64,
                batch: 8,
                storage,
                steps: 1,
                of: 1,
                recipe: Recipe::PLAIN,
                form: Form::BASE,
            },
            5,
        );
    }
}

/// Several slabs in the widest batch norms, one in the narrow ones.
#[test]
fn resnet50_takes_a_step_in_slabs() {
    let form = Form { slabs: Slabs { cache_kb: 1000, launch_kb: 0 }, ..Form::BASE };
    let case =
        Case { spec: RESNET50, resolution: 64, batch: 8, storage: Storage::F16, steps: 1, form, ..TINY };
    let slabs = |name: &str| plan_of(case).nodes.iter().filter(|node| node.name.starts_with(name)).count();
    assert_eq!(slabs("layer1.0.conv3.bn_slab"), 4, "three slabs");
    assert_eq!(slabs("layer4.0.conv1.bn_slab"), 2, "one slab");
    compare_steps(case, 5);
}

/// All batch norms but those of shortcuts forward, and all backward, in one pass; some of them read rows again.
#[test]
fn resnet50_takes_a_step_in_one_pass() {
    let form = Form { norm: Norm::OnePass, chip: SMALL, ..Form::BASE };
    let case =
        Case { spec: RESNET50, resolution: 64, batch: 8, storage: Storage::F16, steps: 1, form, ..TINY };
    let plan = plan_of(case);
    let count = |end: &str| plan.nodes.iter().filter(|node| node.name.ends_with(end)).count();
    assert_eq!((count(".bn_one_pass"), count(".bn_backward_one_pass")), (49, 53));
    assert_eq!((count(".bn_apply"), count(".bn_stats"), count(".bn_backward_reduce")), (0, 4, 0));
    assert_eq!(races(&plan.nodes), []);
    let waiting =
        plan.nodes.iter().filter(|node| matches!(&node.call, Call::Kernel(l) if l.geometry.cooperative));
    assert!(waiting.clone().count() == 102 && waiting.clone().all(|node| node.stream == 0), "one stream");
    compare_steps(case, 5);
}

/// Other blocks add in another order, and give the base form's step up to that.
#[test]
fn one_pass_is_the_base_form_whatever_the_chip() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { storage: Storage::F16, ..TINY };
    let step = |form: Form| {
        let mut card = host_backend(&Case { form, ..case }, host, 1);
        let outcome = pass(&mut card, &case.images(1));
        (outcome.score.loss, card.read("grad.layer1.0.conv3.weight").unwrap().data)
    };
    let (loss, gradient) = step(Form::BASE);
    for multiprocessors in [1, 3, 8] {
        let chip = Chip { multiprocessors, ..SMALL };
        let (other, moved) = step(Form { norm: Norm::OnePass, chip, ..Form::BASE });
        println!("{multiprocessors}: loss {loss} and {other}");
        assert!((loss - other).abs() < 1e-4 * loss, "{multiprocessors}: {loss} and {other}");
        let apart = close_in_norm("gradient", &moved, &gradient, 2e-2);
        println!("{multiprocessors}: {apart:.1e} in norm");
    }
}

/// 15 convolutions by our own kernel, each with its output's statistics; seven apply the batch norm before them.
#[test]
fn resnet50_takes_a_step_with_fused_products() {
    let case = Case {
        spec: RESNET50,
        resolution: 64,
        batch: 8,
        storage: Storage::F16,
        steps: 1,
        form: FORMS[2],
        ..TINY
    };
    let plan = plan_of(case);
    let of = |kernel: &str| {
        let is = |call: &Call| matches!(call, Call::Kernel(launch) if launch.kernel == kernel);
        plan.nodes.iter().filter(|node| is(&node.call)).count()
    };
    assert_eq!((of("conv1x1_stats_f16"), of("conv1x1_norm_stats_f16")), (8, 7));
    assert_eq!(races(&plan.nodes), []);
    compare_steps(case, 5);
}

/// All 53 convolutions leave their output's sums; the two batch norms within each of 16 blocks are the next convolution's, forward
/// and for its filters' gradient. Where there is no engine for that gradient both are done by themselves.
#[test]
fn resnet50_has_32_batch_norms_that_convolutions_apply() {
    let case =
        Case { spec: RESNET50, resolution: 64, batch: 8, storage: Storage::F16, form: FORMS[5], ..TINY };
    let count = |plan: &Plan, wanted: fn(&Convolution) -> bool| {
        let is = |node: &&Node| matches!(&node.call, Call::Convolution(conv) if wanted(conv));
        plan.nodes.iter().filter(is).count()
    };
    let counts = |plan: &Plan| {
        assert_eq!(races(&plan.nodes), []);
        [
            count(plan, |conv| conv.fused.sums.is_some()),
            count(plan, |conv| conv.fused.norm.is_some() && conv.pass == Pass::Forward),
            count(plan, |conv| conv.fused.norm.is_some() && conv.pass == Pass::Wgrad),
            plan.nodes.iter().filter(|node| node.name.ends_with("bn_apply")).count(),
        ]
    };
    let plan = plan_of(case);
    assert_eq!(counts(&plan), [53, 32, 32, 17]);
    let found = plan.nodes.iter().find_map(|node| match &node.call {
        Call::Convolution(conv) if conv.pass == Pass::Wgrad && conv.shape.r == 3 => conv.pattern(),
        _ => None,
    });
    let missing = found.expect("a gradient through a batch norm");
    let without = PlanOptions { without: vec![missing], ..plan.options.clone() };
    let same = plan
        .nodes
        .iter()
        .filter(|node| matches!(&node.call, Call::Convolution(conv) if conv.pattern() == Some(missing)));
    let less = same.count();
    assert_eq!(counts(&Plan::new(&without).unwrap()), [53, 32 - less, 32 - less, 17 + less]);
    // Of f32 nothing is fused, of bf16 the sums.
    assert_eq!(counts(&plan_of(Case { storage: Storage::F32, ..case })), [0, 0, 0, 49]);
    assert_eq!(counts(&plan_of(Case { storage: Storage::Bf16, ..case })), [53, 0, 0, 49]);
}

#[test]
fn evaluation_is_the_cpu_backends() {
    let Some(host) = Host::kernels() else { return };
    for (storage, tolerance) in [(Storage::F32, 1e-5), (Storage::F16, 1e-2)] {
        let case = Case { storage, ..TINY };
        let (mut card, mut cpu) = (host_backend(&case, host, 6), case.cpu().unwrap());
        // Running statistics other than the initial ones.
        pass(&mut cpu, &case.images(1));
        card.load_state(&cpu.state().unwrap()).unwrap();
        // Another resolution and batch than training's.
        let batch = Case { resolution: 48, batch: 3, ..case }.images(2);
        let (got, want) =
            (card.eval_batch(&batch, Weights::Live).unwrap(), cpu.eval_batch(&batch, Weights::Live).unwrap());
        close_in_norm("logits", &got.data, &want.data, tolerance);
    }
}

#[test]
fn state_comes_back_bit_for_bit_and_training_goes_on_the_same() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { storage: Storage::F16, ..TINY };
    let (mut whole, mut cut) = (host_backend(&case, host, 7), host_backend(&case, host, 8));
    pass(&mut whole, &case.images(1));
    cut.load_state(&whole.state().unwrap()).unwrap();
    assert_eq!(whole.state().unwrap(), cut.state().unwrap());
    for seed in 2..4 {
        let (a, b) = (pass(&mut whole, &case.images(seed)), pass(&mut cut, &case.images(seed)));
        assert_eq!(a, b);
    }
    assert_eq!(whole.state().unwrap(), cut.state().unwrap(), "in other orders of nodes and threads");
}

/// A scale that makes half overflow is halved, step by step, and nothing else changes; at the floor the run stops.
#[test]
fn overflow_skips_the_update_and_halves_the_scale() {
    let Some(host) = Host::kernels() else { return };
    let case = Case { storage: Storage::F16, ..TINY };
    let scale = ScalePolicy { initial: 16_777_216.0, ..ScalePolicy::FP16 };
    let machine = HostMachine::new(host, 1);
    let mut card =
        CudaBackend::new(CudaOptions { scale, ..case.cuda_options() }, machine, case.batch, 1).unwrap();
    let before = card.state().unwrap();
    let outcome = pass(&mut card, &case.images(1));
    assert!(outcome.skipped && outcome.fault.is_none() && outcome.loss_scale == 16_777_216.0, "{outcome:?}");
    let after = card.state().unwrap();
    for (name, tensor) in before.iter().filter(|(name, _)| !name.contains("running") && *name != SCALE_STATE)
    {
        assert_eq!(tensor, &after[name], "{name} moved in a skipped step");
    }
    assert_eq!(after[SCALE_STATE].data, [8_388_608.0, 0.0, 0.0, 1.0]);

    let scale = ScalePolicy { floor: 16_777_216.0, ..scale };
    let machine = HostMachine::new(host, 1);
    let mut card =
        CudaBackend::new(CudaOptions { scale, ..case.cuda_options() }, machine, case.batch, 1).unwrap();
    let fault = pass(&mut card, &case.images(1)).fault.expect("the scale is at its floor");
    assert!(fault.contains("gradient of") && fault.contains("smallest loss scale"), "{fault}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let Some(host) = Host::kernels() else { return };
    let mut card = host_backend(&TINY, host, 1);
    let mut state = card.state().unwrap();
    state.get_mut("layer1.0.conv2.weight").unwrap().data[5] = f32::NAN;
    let error = card.load_state(&state).unwrap_err();
    assert!(error.message.contains("layer1.0.conv2.weight"), "{error}");
}

#[test]
fn too_large_a_batch_is_answered_with_one_that_fits() {
    let Some(host) = Host::kernels() else { return };
    let mut machine = HostMachine::new(host, 1);
    machine.capacity = 8 << 20;
    let error = CudaBackend::new(TINY.cuda_options(), machine, 1000, 1).map(|_| ()).unwrap_err();
    let fits = error.message.split("at most ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let fits: usize = fits.parse().unwrap_or_else(|_| panic!("{error}"));
    let mut machine = HostMachine::new(host, 1);
    machine.capacity = 8 << 20;
    assert!(CudaBackend::new(TINY.cuda_options(), machine, fits, 1).is_ok(), "{error}");
}

// ---- planted faults -----------------------------------------------------------------------------------------------

/// Runs a step of a tampered plan in several orders; true when any of them is not the CPU backend's.
fn is_caught(tamper: fn(&mut Plan)) -> bool {
    is_caught_in(Form::BASE, tamper)
}

fn is_caught_in(form: Form, tamper: fn(&mut Plan)) -> bool {
    let Some(host) = Host::kernels() else { return true };
    let case = Case { form, ..TINY };
    let mut cpu = TINY.cpu().unwrap();
    pass(&mut cpu, &TINY.images(1));
    let want = cpu.state().unwrap();
    (0..8).any(|seed| {
        let mut machine = HostMachine::new(host, seed);
        machine.tamper = Some(tamper);
        let mut card = CudaBackend::new(case.cuda_options(), machine, case.batch, 1).unwrap();
        let outcome = pass(&mut card, &TINY.images(1));
        let got = card.state().unwrap();
        let differs = |name: &&String| {
            let (got, want) = (&got[*name].data, &want[*name].data);
            let difference = Difference::between(got, want);
            (difference.norm.is_nan() || difference.norm > 1e-3)
                && want.iter().any(|value| value.abs() > 1e-6)
        };
        outcome.fault.is_some() || want.keys().any(|name| differs(&name))
    })
}

#[test]
fn an_untouched_plan_is_right() {
    assert!(Host::kernels().is_none() || !is_caught(|_| {}));
}

/// Two buffers that live at the same time are given the same place.
#[test]
fn a_planted_lifetime_overlap_is_caught() {
    assert!(is_caught(|plan| {
        let region = |name: &str| plan.buffer(name).unwrap_or_else(|| panic!("{name}"));
        let (from, to) = (region("layer1.0.relu1"), region("layer1.1.relu1"));
        assert_eq!(from.bytes, to.bytes);
        for node in &mut plan.nodes {
            node.call
                .regions_mut()
                .into_iter()
                .filter(|region| **region == from)
                .for_each(|region| *region = to);
        }
    }));
}

/// Weight gradients no longer wait for what they are made of, nor is anybody waiting for them.
#[test]
fn missing_edges_between_streams_are_caught() {
    fn tamper(plan: &mut Plan) {
        plan.nodes.iter_mut().for_each(|node| node.waits.clear());
    }
    assert!(is_caught(tamper));
    let mut plan = plan_of(TINY);
    assert_eq!(races(&plan.nodes), []);
    tamper(&mut plan);
    assert_ne!(races(&plan.nodes), [], "the static check sees it as well");
}

/// Each slab is applied in the launch before the one that sums it.
#[test]
fn a_slab_that_is_applied_before_it_is_summed_is_caught() {
    fn tamper(plan: &mut Plan) {
        let at = |name: &str| plan.nodes.iter().position(|node| node.name.ends_with(name));
        let launches =
            [at("conv3.bn_slab0"), at("conv3.bn_slab1")].map(|id| id.expect("a block's sum has a slab"));
        let [first, second] = launches.map(|id| plan.nodes[id].call.clone());
        plan.nodes[launches[0]].call = second;
        plan.nodes[launches[1]].call = first;
    }
    assert!(is_caught_in(FORMS[3], tamper));
}

fn plan_of(case: Case) -> Plan {
    let CudaOptions { spec, resolution, storage, scale, form, decay, recipe, keep, .. } = case.cuda_options();
    let purpose = Purpose::Finish { sum: false };
    Plan::new(&PlanOptions {
        spec,
        resolution,
        batch: case.batch,
        storage,
        purpose,
        form,
        decay,
        recipe,
        scale,
        keep,
        without: vec![],
    })
    .unwrap()
}

#[test]
fn resnet50_at_its_real_size_has_no_race_and_shares_memory() {
    let case = Case { spec: RESNET50, resolution: 224, batch: 256, storage: Storage::F16, ..TINY };
    let plan = plan_of(case);
    assert_eq!(races(&plan.nodes), []);
    let kinds = |wanted: fn(&Call) -> bool| plan.nodes.iter().filter(|node| wanted(&node.call)).count();
    // 53 forward, 53 weight gradients, 52 input gradients: the image has none.
    assert_eq!(kinds(|call| matches!(call, Call::Convolution(_))), 158);
    let separate: u64 = plan.buffers.iter().map(|buffer| buffer.region.bytes).sum();
    let shared = plan.arenas[&Arena::Activations];
    let gib = |bytes: u64| bytes as f64 / 2f64.powi(30);
    println!(
        "{} nodes, {:.2} GiB of activations, {:.2} without sharing",
        plan.nodes.len(),
        gib(shared),
        gib(separate)
    );
    // What the backward pass reads must lie somewhere: outputs of convolutions and of units.
    assert!(gib(shared) < 12.5, "a card of 16 GB takes batch 256");
    assert!(shared * 3 < separate * 2);
}
