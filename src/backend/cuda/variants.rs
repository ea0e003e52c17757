//! The ways to lay out and to search a step that a card should try, and what each is expected to gain before one has.
//! `engine bench step --variants` times them in turn; `--predict CARD` prints what is expected and needs no card.
//!
//! Two figures are predicted. How the floor moves: bytes and operations of the two launch lists, at the card's rates. And what
//! a variant could win back at most: what the base loses above its floor in the launches that the variant replaces, which
//! only a profile of the base says.

use super::bench::Work;
use super::plan::node::{Call, Pass};
use super::plan::one_pass::waits;
use super::plan::{Plan, PlanOptions};
use super::profile::{Kind, Line, Profile, Rates};
use crate::config::{Chip, Form, Fusion, Norm, Pointwise, Residual, Routines, Search, Slabs, Stem, Wgrad};
use crate::error::Result;
use serde::Serialize;

/// One way.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    pub name: &'static str,
    /// Why it may pay.
    pub why: &'static str,
    pub form: Form,
    pub search: Search,
    pub deterministic: bool,
    /// The least compute capability of cards that have it.
    pub capability: (i32, i32),
    /// Which launches of the base it replaces.
    replaces: fn(&Line) -> bool,
}

/// The default.
pub const BASE: Variant = Variant {
    name: "base",
    why: "the default",
    form: Form::BASE,
    search: Search::BASE,
    deterministic: true,
    capability: (7, 0),
    replaces: |_| false,
};

/// Cards for which cuDNN fuses anything with a convolution: Ampere and later (`tests/cuda_driver/real_cudnn.rs` asks it).
const FUSES: (i32, i32) = (8, 0);

/// In the order in which a card with little time should try them.
pub const VARIANTS: [Variant; 18] = [
    Variant {
        name: "norm-one-pass",
        why: "batch norm reads once: what it has read stays on the multiprocessors until its sums are known",
        form: Form { norm: Norm::OnePass, ..Form::BASE },
        replaces: is_norm,
        ..BASE
    },
    Variant {
        name: "norm-one-pass-inline",
        why: "the same, whose launches want all multiprocessors at once, with no weight gradients beside them",
        form: Form { norm: Norm::OnePass, wgrad: Wgrad::Inline, ..Form::BASE },
        replaces: is_norm,
        ..BASE
    },
    Variant {
        name: "wgrad-behind",
        why: "weight gradients, bound by operations, beside batch norm, bound by bytes",
        form: Form { wgrad: Wgrad::Behind, ..Form::BASE },
        replaces: |line| line.kind == Kind::ConvWgrad,
        ..BASE
    },
    Variant {
        name: "wgrad-inline",
        why: "two large kernels at a time share caches and bandwidth: is one at a time better?",
        form: Form { wgrad: Wgrad::Inline, ..Form::BASE },
        ..BASE
    },
    Variant {
        name: "cublaslt",
        why: "every algorithm that cuBLASLt offers for a 1x1, not its first choice alone",
        search: Search { routines: Routines::CublasLt, ..Search::BASE },
        replaces: |line| is_convolution(line) && line.call.contains(" 1x1 s1"),
        ..BASE
    },
    Variant {
        name: "cudnn-graph",
        why: "the engines of cuDNN's graph API, which the older functions do not all have",
        search: Search { cudnn_graph: true, ..Search::BASE },
        replaces: is_convolution,
        ..BASE
    },
    Variant {
        name: "fusion-statistics",
        why: "cuDNN's convolutions leave their output's sums, which nobody reads it for then",
        form: Form { fusion: Fusion::Statistics, ..Form::BASE },
        capability: FUSES,
        replaces: |line| matches!(line.kind, Kind::NormForward | Kind::ConvForward),
        ..BASE
    },
    Variant {
        name: "fusion-norm",
        why: "and take their input through the batch norm before them, whose output is never stored",
        form: Form { fusion: Fusion::Norm, ..Form::BASE },
        capability: FUSES,
        replaces: |line| matches!(line.kind, Kind::NormForward | Kind::ConvForward | Kind::ConvWgrad),
        ..BASE
    },
    Variant {
        name: "stem-space-to-depth",
        why: "16 channels fill a tensor core's operand where 4 leave most of it empty",
        form: Form { stem: Stem::SpaceToDepth, ..Form::BASE },
        replaces: is_stem,
        ..BASE
    },
    Variant {
        name: "stem-padded-8",
        why: "8 channels are one 16-byte access, at twice the operations",
        form: Form { stem: Stem::Padded8, ..Form::BASE },
        replaces: is_stem,
        ..BASE
    },
    Variant {
        name: "residual-added",
        why: "routines that cannot add to their result may be faster than those that can",
        form: Form { residual: Residual::Added, ..Form::BASE },
        replaces: |line| line.kind == Kind::ConvDgrad && line.call.contains(" +="),
        ..BASE
    },
    Variant {
        name: "pointwise-fused",
        why: "1x1 convolutions that are bound by bytes leave their output's statistics, which nobody reads it for then",
        form: Form { pointwise: Pointwise::Fused, ..Form::BASE },
        replaces: |line| {
            line.kind == Kind::NormForward || is_convolution(line) && line.call.contains(" 1x1 s1")
        },
        ..BASE
    },
    Variant {
        name: "norm-slabs-25",
        why: "batch norm finds its input in the cache the second time: slabs that take 25 MB, of 5 MB and more",
        form: Form { slabs: Slabs { cache_kb: 25_000, launch_kb: 5_000 }, ..Form::BASE },
        replaces: is_norm,
        ..BASE
    },
    Variant {
        name: "norm-slabs-50",
        why: "the same with all of a cache of 50 MB",
        form: Form { slabs: Slabs { cache_kb: 50_000, launch_kb: 10_000 }, ..Form::BASE },
        replaces: is_norm,
        ..BASE
    },
    Variant {
        name: "workspace-1024",
        why: "routines that want more workspace than 256 MiB",
        search: Search { workspace: 1024, ..Search::BASE },
        replaces: is_convolution,
        ..BASE
    },
    Variant {
        name: "workspace-32",
        why: "what a card loses whose memory the batch fills",
        search: Search { workspace: 32, ..Search::BASE },
        replaces: |_| false,
        ..BASE
    },
    Variant {
        name: "cudnn-alone",
        why: "what cuBLAS has won for the 1x1",
        search: Search { routines: Routines::Cudnn, ..Search::BASE },
        replaces: |_| false,
        ..BASE
    },
    Variant {
        name: "free",
        why: "device.deterministic = false: what the same bits cost",
        deterministic: false,
        replaces: is_convolution,
        ..BASE
    },
];

fn is_convolution(line: &Line) -> bool {
    matches!(line.kind, Kind::ConvForward | Kind::ConvDgrad | Kind::ConvWgrad)
}

fn is_norm(line: &Line) -> bool {
    matches!(line.kind, Kind::NormForward | Kind::NormBackward)
}

/// `input`, the first convolution, and its gradient.
fn is_stem(line: &Line) -> bool {
    line.node == "input" || line.node.starts_with("conv1.") && is_convolution(line)
}

/// Of a whole step; less than zero is a gain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Prediction {
    /// What the floors of all launches, one after another, change by.
    pub floor_microseconds: f64,
    pub megabytes_an_image: f64,
    pub gigaflop_an_image: f64,
    pub launches: i64,
    /// Of all blocks of a launch for each other, one after another.
    pub waits: i64,
    /// What launches and waits add, at [`Chip::PAUSE`] each: no floor has them.
    pub pauses_microseconds: f64,
    /// What could be won at most: `None` where no profile of the base says it.
    pub at_most_microseconds: Option<f64>,
}

/// Bytes, operations and floors of all launches.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    bytes: f64,
    operations: f64,
    floor: f64,
    /// Of the floors, what the launches' two limits, each kept busy all the time, would not take.
    slack: f64,
    launches: usize,
    waits: u64,
}

impl Totals {
    fn of(plan: &Plan, rates: Rates) -> Self {
        let mut totals = Self { launches: plan.nodes.len(), ..Self::default() };
        for node in &plan.nodes {
            let work = Work::of(node, &plan.staging);
            totals.bytes += work.bytes as f64;
            totals.operations += work.operations as f64;
            totals.floor += work.floor(rates.copy, rates.product);
            totals.waits += waits(&node.call);
        }
        // Weight gradients alone run beside others.
        let wgrad = plan
            .nodes
            .iter()
            .filter(|node| matches!(&node.call, Call::Convolution(conv) if conv.pass == Pass::Wgrad));
        let beside: f64 =
            wgrad.map(|node| Work::of(node, &plan.staging).floor(rates.copy, rates.product)).sum();
        let least = (totals.bytes / rates.copy).max(totals.operations / rates.product);
        totals.slack = (totals.floor - least).clamp(0.0, beside);
        totals
    }
}

/// What `variant` changes of the step of `options`, whose form is the base's, on a card of that chip.
pub fn predict(
    variant: &Variant,
    options: &PlanOptions,
    rates: Rates,
    chip: Chip,
    base: Option<&Profile>,
) -> Result<Prediction> {
    let plan = |form: Form| Plan::new(&PlanOptions { form: form.on(chip), ..options.clone() });
    let totals = |form| Ok::<_, crate::error::Error>(Totals::of(&plan(form)?, rates));
    let (before, after) = (totals(Form::BASE)?, totals(variant.form)?);
    let images = options.batch as f64;
    // Where streams differ the floors are the same, and what overlap could hide is the most that there is to win.
    let overlap = (variant.form.wgrad == Wgrad::Behind).then_some(1e6 * before.slack);
    let above = base.map(|base| 1e3 * base.above(variant.replaces)).filter(|&above| above > 0.0);
    let launches = after.launches as i64 - before.launches as i64;
    let waits = after.waits as i64 - before.waits as i64;
    Ok(Prediction {
        waits,
        pauses_microseconds: 1e6 * Chip::PAUSE * (launches + waits) as f64,
        floor_microseconds: 1e6 * (after.floor - before.floor),
        megabytes_an_image: (after.bytes - before.bytes) / images / 1e6,
        gigaflop_an_image: (after.operations - before.operations) / images / 1e9,
        launches,
        at_most_microseconds: overlap.or(above).map(|most| 0.0 - most),
    })
}

#[cfg(test)]
mod tests {
    use super::super::cards::CARDS;
    use super::super::plan::{Purpose, Recipe, ScalePolicy};
    use super::super::storage::Storage;
    use super::*;
    use crate::config::Decay;
    use crate::model::spec::RESNET50;

    fn predicted(name: &str) -> Prediction {
        predicted_of(name, 32)
    }

    fn options(batch: usize) -> PlanOptions {
        PlanOptions {
            spec: RESNET50,
            resolution: 224,
            batch,
            storage: Storage::F16,
            purpose: Purpose::Finish { sum: false },
            form: Form::BASE,
            decay: Decay::Weights,
            recipe: Recipe::PLAIN,
            scale: ScalePolicy::FP16,
            keep: false,
            without: vec![],
        }
    }

    fn predicted_of(name: &str, batch: usize) -> Prediction {
        predicted_on("v100", name, batch)
    }

    fn predicted_on(card: &str, name: &str, batch: usize) -> Prediction {
        let options = options(batch);
        let card = CARDS.iter().find(|of| of.name == card).unwrap();
        let rates = Rates { copy: card.bandwidth, product: card.half, cache: 0 };
        let variant = VARIANTS.iter().find(|variant| variant.name == name).unwrap();
        predict(variant, &options, rates, card.chip, None).unwrap()
    }

    #[test]
    fn names_are_unique_and_every_variant_differs_from_the_base() {
        for (index, one) in VARIANTS.iter().enumerate() {
            assert!(VARIANTS[..index].iter().all(|other| other.name != one.name), "{}", one.name);
            let differs = (one.form, one.search, one.deterministic);
            assert_ne!(differs, (BASE.form, BASE.search, BASE.deterministic), "{}", one.name);
        }
    }

    /// By hand, an image: the image in memory is 401,408 bytes in 4 channels, 802,816 in 8 and 423,200 blocked; it is written
    /// once and read twice. A second convolution output of a block's input is written, read and added: two more passes over it.
    #[test]
    fn bytes_are_those_of_the_arithmetic() {
        let eight = predicted("stem-padded-8");
        // Filters and optimiser are the batch's, not an image's: 64 x 49 x 4 elements.
        assert!((eight.megabytes_an_image - 3.0 * 0.401408).abs() < 0.02, "{eight:?}");
        assert!(
            (eight.gigaflop_an_image - 2.0 * 2.0 * 64.0 * 49.0 * 4.0 * 12544.0 / 1e9).abs() < 1e-3,
            "{eight:?}"
        );
        let blocked = predicted("stem-space-to-depth");
        assert!((blocked.megabytes_an_image - 3.0 * (0.4232 - 0.401408)).abs() < 0.01, "{blocked:?}");
        assert_eq!(blocked.launches, 2);
        // Blocks' inputs: 56x56 of 64 once and of 256 three times, 28x28 of 512 four times, 14x14 of 1024 six times, 7x7 of
        // 2048 twice.
        let inputs = 56 * 56 * (64 + 3 * 256) + 28 * 28 * 4 * 512 + 14 * 14 * 6 * 1024 + 7 * 7 * 2 * 2048;
        let added = predicted("residual-added");
        assert!((added.megabytes_an_image - 2.0 * 2.0 * inputs as f64 / 1e6).abs() < 0.01, "{added:?}");
        assert_eq!(added.launches, 16);
        assert!(added.floor_microseconds > 0.0);
    }

    /// By hand: 53 outputs are not read for their statistics; and 32 inputs of convolutions within blocks are neither written by a
    /// batch norm nor read by the convolution, which reads what the batch norm would have read. The partial sums of the kernels
    /// that read are 3 MB or so a layer.
    #[test]
    fn fused_convolutions_read_less() {
        let graph = crate::model::graph::lower(&RESNET50, 224).unwrap();
        let units = crate::model::units::units(&graph);
        let convs: Vec<_> = units
            .iter()
            .filter_map(|unit| match unit {
                crate::model::units::Unit::Conv(unit) => Some(unit),
                _ => None,
            })
            .collect();
        let bytes = |tensor: usize| 2.0 * graph.tensors[tensor].elements() as f64 / 1e6;
        let outputs: f64 = convs.iter().map(|unit| bytes(unit.raw)).sum();
        let within =
            convs.iter().filter(|unit| convs.iter().any(|norm| norm.y == unit.x && norm.residual.is_none()));
        let inputs: f64 = within.map(|unit| bytes(unit.x)).sum();
        let statistics = predicted_of("fusion-statistics", 256);
        println!("{statistics:?}");
        assert!((statistics.megabytes_an_image + outputs).abs() < 0.7, "{outputs}: {statistics:?}");
        assert_eq!(statistics.launches, -53);
        let norm = predicted_of("fusion-norm", 256);
        println!("{norm:?}");
        assert!((norm.megabytes_an_image + outputs + 2.0 * inputs).abs() < 0.7, "{inputs}: {norm:?}");
        assert_eq!(norm.launches, -53 - 32);
        assert!(norm.floor_microseconds < statistics.floor_microseconds);
    }

    /// The outputs of 32 batch norms, 6.6 MB an image, are not there; gradients that lay in their bytes want others, so that the
    /// arena shrinks by a third of that.
    #[test]
    fn what_is_not_stored_takes_no_memory() {
        let activations = |fusion| {
            let form = Form { fusion, ..Form::BASE };
            let plan = Plan::new(&PlanOptions { form, ..options(64) }).unwrap();
            plan.arenas[&super::super::plan::region::Arena::Activations] as f64 / 64e6
        };
        let [none, norm] = [Fusion::None, Fusion::Norm].map(activations);
        println!("{none:.1} MB an image, with batch norms fused {norm:.1}");
        assert!(norm < none - 2.0, "{none} {norm}");
    }

    /// By hand: outputs of 15 products that are not read for their statistics, and inputs of 7 that are not read after the
    /// batch norm has written them. A launch is saved for each of the two.
    #[test]
    fn fused_products_read_less() {
        let outputs = 56 * 56 * (64 * 3 + 256 * 4 + 128) + 28 * 28 * (128 * 3 + 512 * 4);
        let inputs = 56 * 56 * 64 * 3 + 28 * 28 * 128 * 4;
        let fused = predicted_of("pointwise-fused", 256);
        println!("{fused:?}");
        // Fewer partials, by 3 MB or so a layer of all images.
        assert!((fused.megabytes_an_image + 2.0 * (outputs + inputs) as f64 / 1e6).abs() < 0.3, "{fused:?}");
        assert_eq!(fused.launches, -15 - 7);
        assert!(fused.floor_microseconds < 0.0);
    }

    /// At batch 256 (the figures of kernels/README.md), and what is left at least of what one reading of everything costs.
    #[test]
    fn slabs_read_less() {
        for name in ["norm-slabs-25", "norm-slabs-50"] {
            let slabs = predicted_of(name, 256);
            println!("{name}: {slabs:?}");
            assert!(slabs.megabytes_an_image < -3.0 && slabs.megabytes_an_image > -67.0, "{slabs:?}");
            assert!(slabs.launches > 0 && slabs.launches < 1000, "{slabs:?}");
        }
    }

    /// On no card more than a second reading of everything, by hand 66.5 MB an image with the masks (the figures of
    /// kernels/README.md), and on each a gain, launches and waits counted; the more the smaller the batch.
    #[test]
    fn one_pass_reads_less_on_every_card() {
        for card in CARDS {
            let saved = [64, 256].map(|batch| {
                let one_pass = predicted_on(card.name, "norm-one-pass", batch);
                println!("{} {batch}: {one_pass:?}", card.name);
                let change = one_pass.floor_microseconds + one_pass.pauses_microseconds;
                assert!(change < 0.0 && one_pass.launches < 0 && one_pass.waits > 0, "{one_pass:?}");
                -one_pass.megabytes_an_image
            });
            assert!(saved[0] > saved[1] && saved[1] > 15.0 && saved[0] < 69.0, "{}: {saved:?}", card.name);
        }
    }

    #[test]
    fn streams_change_no_floor_and_have_a_bound() {
        let behind = predicted("wgrad-behind");
        assert_eq!((behind.floor_microseconds, behind.launches), (0.0, 0));
        assert!(behind.at_most_microseconds.is_some_and(|most| most < 0.0), "{behind:?}");
        assert_eq!(predicted("free").at_most_microseconds, None);
    }
}
