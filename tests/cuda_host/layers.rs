//! Every node of a pass against CPU code on its own inputs; and that a single wrong element of any node is noticed.

use crate::harness::Host;
use crate::machine::{HostMachine, Plant, written};
use engine::backend::Weights;
use engine::backend::cuda::abi::{Outcome, State};
use engine::backend::cuda::network::{from_stored, to_stored};
use engine::backend::cuda::plan::node::{Call, Node};
use engine::backend::cuda::plan::region::{Arena, Region};
use engine::backend::cuda::plan::{Plan, PlanOptions, Purpose, Recipe};
use engine::backend::cuda::storage::Storage;
use engine::check::compare::{Finding, by_kind};
use engine::check::layers::examine;
use engine::check::{Case, EXTRAS, FORMS};
use engine::config::{Chip, Form, Norm, Pointwise, Slabs};
use engine::model::spec::{RESNET_TINY, RESNET50};
use std::collections::BTreeSet;

const TINY: Case = Case {
    spec: RESNET_TINY,
    resolution: 32,
    batch: 8,
    storage: Storage::F16,
    steps: 1,
    of: 1,
    recipe: Recipe::PLAIN,
    form: Form::BASE,
};

/// Holds a few thousand rows of 32 channels.
pub const SMALL: Chip = Chip { multiprocessors: 3, shared_kib: 20, pause_kb: 1 };

fn print(case: &Case, findings: &[Finding]) {
    println!("{} {:?}", case.spec.name, case.storage);
    for (count, worst) in by_kind(findings) {
        let Finding { kind, what, apart, allowed, index, .. } = worst;
        println!("{kind:<28} {count:>4}  {apart:.1e} of {allowed:.1e}  {what}[{index}]");
    }
}

fn passes(case: Case) {
    let Some(host) = Host::kernels() else { return };
    let findings = examine(&case, HostMachine::new(host, 3)).unwrap();
    print(&case, &findings);
    let failed: Vec<String> =
        findings.iter().filter(|finding| !finding.passes()).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{case:?}:\n{}", failed.join("\n"));
}

#[test]
fn every_node_of_the_tiny_network_is_the_cpus() {
    for storage in Storage::ALL {
        passes(Case { storage, ..TINY });
        passes(Case { storage, of: 2, ..TINY });
    }
    // Odd sides: windows and tails that do not fill.
    passes(Case { resolution: 37, batch: 3, storage: Storage::F32, ..TINY });
}

#[test]
fn every_node_of_every_recipe_is_the_cpus() {
    for (storage, recipe) in Storage::ALL.into_iter().flat_map(|s| EXTRAS.map(|recipe| (s, recipe))) {
        for of in [1, 2] {
            passes(Case { storage, of, recipe, ..TINY });
        }
    }
    // Odd sides, and rows of images that end within a thread's.
    for recipe in EXTRAS {
        passes(Case { resolution: 37, batch: 5, storage: Storage::F32, recipe, ..TINY });
    }
}

#[test]
fn every_node_of_every_form_is_the_cpus() {
    for (storage, form) in Storage::ALL.into_iter().flat_map(|s| FORMS.map(|form| (s, form))) {
        passes(Case { storage, form, ..TINY });
    }
    // Odd sides; images that are mixed and erased, evaluations of averages, several passes.
    for (form, recipe) in FORMS.into_iter().flat_map(|form| EXTRAS.map(|recipe| (form, recipe))) {
        passes(Case { resolution: 37, batch: 5, storage: Storage::F32, form, recipe, of: 2, ..TINY });
    }
}

/// Each storage type once, each with other batch norms: the plain ones, several slabs in the widest and one in the narrow, and
/// fused products, with slabs where nothing is fused, one pass that cannot hold all rows, and what a fused product has left of it. All forms in all types are the tiny network's.
#[test]
fn every_node_of_resnet50_is_the_cpus() {
    let slabs = Form { slabs: Slabs { cache_kb: 1000, launch_kb: 0 }, ..Form::BASE };
    let fused = Form { pointwise: Pointwise::Fused, ..slabs };
    let one_pass = Form { norm: Norm::OnePass, chip: SMALL, ..Form::BASE };
    let forms = [
        (Storage::F32, Form::BASE),
        (Storage::Bf16, slabs),
        (Storage::F16, fused),
        (Storage::Bf16, one_pass),
        (Storage::F16, Form { pointwise: Pointwise::Fused, ..one_pass }),
    ];
    for (storage, form) in forms {
        passes(Case { spec: RESNET50, resolution: 64, storage, form, ..TINY });
    }
}

fn plan(case: &Case, purpose: Purpose) -> Plan {
    let backend = case.cuda(HostMachine::new(Host::kernels().expect("the caller has asked"), 1)).unwrap();
    let made = if case.of > 1 { Purpose::Accumulate } else { Purpose::Finish { sum: false } };
    let (_, plan) =
        backend.look(case.resolution, case.batch, made, Weights::Live).expect("`new` has made it");
    Plan::new(&PlanOptions { purpose, ..plan.options.clone() }).unwrap()
}

/// What a node does, with what it does it to: one node of each kind is spoiled.
fn kind(node: &Node) -> String {
    let (layer, what) = node.name.rsplit_once('.').unwrap_or(("", &node.name));
    let layer = ["maxpool", "avgpool", "fc", "loss"].into_iter().find(|&only| only == layer).unwrap_or("*");
    let accumulates = matches!(node.call, Call::Convolution(conv) if conv.accumulate);
    format!(
        "{layer}.{what}, {} results{}",
        written(&node.call).len(),
        if accumulates { ", adds" } else { "" }
    )
}

/// The middle element becomes wrong by a tenth of the largest.
fn spoil_value(storage: Storage, bytes: &mut [u8]) {
    let mut values = from_stored(storage, bytes);
    let largest = values.iter().filter(|v| v.is_finite()).fold(0.0f32, |most, v| most.max(v.abs()));
    let middle = values.len() / 2;
    values[middle] += 0.1 * largest + 1e-3;
    bytes.copy_from_slice(&to_stored(storage, &values));
}

fn spoil_f32(_: Storage, bytes: &mut [u8]) {
    spoil_value(Storage::F32, bytes);
}

/// One bit of a mask, one place of a maximum.
fn spoil_byte(_: Storage, bytes: &mut [u8]) {
    bytes[bytes.len() / 2] ^= 1;
}

/// A counter of the state.
fn spoil_state(_: Storage, bytes: &mut [u8]) {
    bytes[std::mem::offset_of!(State, clean)] ^= 1;
}

/// The first passes' outcomes.
fn spoil_outcomes(_: Storage, bytes: &mut [u8]) {
    bytes[..2 * size_of::<Outcome>()].iter_mut().for_each(|byte| *byte ^= 0x10);
}

/// How an element of a region is made wrong.
fn spoil(plan: &Plan, region: Region) -> fn(Storage, &mut [u8]) {
    let buffer = plan.buffers.iter().find(|buffer| buffer.region == region);
    let name = buffer.map_or("", |buffer| &buffer.name);
    let tensor = name.strip_prefix("grad.").unwrap_or(name);
    match region.arena {
        Arena::State => spoil_state,
        Arena::Outcomes => spoil_outcomes,
        Arena::Weights | Arena::GradientMatrices => spoil_value,
        Arena::Activations if name.ends_with(".mask") || name.ends_with(".index") => spoil_byte,
        Arena::Activations
            if name == "ema.weights"
                || name.starts_with("stem.")
                || name.ends_with(".part")
                || name.ends_with(".map") =>
        {
            spoil_value
        }
        Arena::Activations if plan.graph.tensors.iter().any(|info| info.name == tensor) => spoil_value,
        _ => spoil_f32,
    }
}

/// Plants a wrong element in each result of one node of each kind; a finding must name the node each time.
fn planted(case: Case, purpose: Purpose) {
    planted_in(case, purpose, |_| true);
}

/// The same, in the nodes that are wanted.
fn planted_in(case: Case, purpose: Purpose, wanted: fn(&Node) -> bool) {
    let Some(host) = Host::kernels() else { return };
    let plan = plan(&case, purpose);
    let mut kinds = BTreeSet::new();
    for node in plan.nodes.iter().filter(|node| wanted(node) && kinds.insert(kind(node))) {
        for (result, region) in written(&node.call).into_iter().enumerate() {
            let mut machine = HostMachine::new(host, 1);
            machine.plant =
                Some(Plant { node: node.name.clone(), region: result, spoil: spoil(&plan, region) });
            let findings = examine(&case, machine).unwrap();
            let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.passes()).collect();
            assert!(
                failed.iter().any(|finding| finding.nodes.contains(&node.name)),
                "a wrong element of {}'s {region:?} was not noticed there, but in {failed:?}",
                node.name,
            );
        }
    }
    println!("{purpose:?}: {kinds:?}");
}

#[test]
fn a_wrong_element_of_any_node_is_noticed() {
    planted(TINY, Purpose::Finish { sum: false });
    planted(Case { storage: Storage::F32, batch: 4, ..TINY }, Purpose::Finish { sum: false });
    planted(TINY, Purpose::Evaluate);
}

#[test]
fn a_wrong_element_of_what_other_recipes_have_is_noticed() {
    for recipe in EXTRAS {
        let extras = Case { recipe, ..TINY };
        planted_in(extras, Purpose::Finish { sum: false }, is_extra);
        planted_in(Case { of: 2, ..extras }, Purpose::Finish { sum: true }, is_extra);
    }
    planted_in(Case { recipe: EXTRAS[0], ..TINY }, Purpose::Evaluate, is_extra);
}

/// What the plain recipe has not.
fn is_extra(node: &Node) -> bool {
    let begins = ["lamb.", "lars.", "clip", "ema", "loss", "drop_path", "input", "sgd"];
    let drops = matches!(&node.call, Call::Kernel(launch) if launch.kernel.contains("_drop_"));
    drops || begins.iter().any(|part| node.name.starts_with(part))
}

#[test]
fn a_wrong_element_of_what_other_forms_have_is_noticed() {
    let wanted = |node: &Node| {
        let of_form = ["stem.", "input", "conv1.wgrad"].iter().any(|part| node.name.starts_with(part));
        of_form || node.name.ends_with(".gradient_add") || node.name.ends_with(".dgrad")
    };
    for purpose in [Purpose::Finish { sum: false }, Purpose::Evaluate] {
        planted_in(Case { form: FORMS[0], ..TINY }, purpose, wanted);
    }
    let in_slabs = |node: &Node| node.name.contains("_slab");
    planted_in(Case { form: FORMS[3], ..TINY }, Purpose::Finish { sum: false }, in_slabs);
    let one_pass = |node: &Node| node.name.ends_with("_one_pass");
    planted_in(Case { form: FORMS[4], ..TINY }, Purpose::Finish { sum: false }, one_pass);
    let fused = |node: &Node| node.name.ends_with(".forward_stats");
    planted_in(Case { form: FORMS[2], ..TINY }, Purpose::Finish { sum: false }, fused);
    let by_library = |node: &Node| match &node.call {
        Call::Convolution(conv) => conv.fused.any(),
        Call::Kernel(launch) => launch.kernel == "bn_finalize_sums",
        _ => false,
    };
    planted_in(Case { form: FORMS[5], ..TINY }, Purpose::Finish { sum: false }, by_library);
}

#[test]
fn a_wrong_element_of_a_sum_is_noticed() {
    planted(Case { of: 2, ..TINY }, Purpose::Accumulate);
    planted(Case { of: 2, ..TINY }, Purpose::Finish { sum: true });
}
