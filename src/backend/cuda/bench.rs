//! Every call of a training step on the card, each against its floor: what its bytes take at the rate of a large copy, or
//! its operations at the rate of a large matrix product, whichever is more. `engine bench kernels` and `cargo bench` print it.

use super::abi::{Outcome, State};
use super::device::algorithms::said;
use super::device::card::{Card, CardOptions};
use super::device::driver::Context;
use super::device::libraries::Library;
use super::device::measure::copy_rate;
use super::machine::{Machine, Prepared};
use super::plan::node::{Arg, Call, Convolution, Node};
use super::plan::pointwise::operations;
use super::plan::region::{Access, Arena, Region};
use super::plan::{Plan, Recipe, ScalePolicy, StagingLayout};
use super::storage::Storage;
use super::{CudaBackend, CudaOptions};
use crate::backend::{Backend, Step};
use crate::config::{Decay, Form};
use crate::data::Batch;
use crate::error::Result;
use crate::model::spec::ResNetSpec;
use crate::optim::sgd::Sgd;
use crate::rng::{Purpose, Rng};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub spec: ResNetSpec,
    pub ordinal: usize,
    pub storage: Storage,
    pub tf32: bool,
    pub batch: usize,
    pub resolution: usize,
    pub form: Form,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spec, storage, tf32, batch, resolution, form, .. } = self;
        let precision = if *tf32 { "tf32" } else { storage.suffix() };
        write!(f, "{} at {resolution} px, batch {batch}, {precision}", spec.name)?;
        if *form == Form::BASE { Ok(()) } else { write!(f, ", {form}") }
    }
}

/// What a call has to do at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Of device memory, each operand once; twice what is updated in place.
    pub bytes: u64,
    /// Multiplications and additions of the libraries' products; our kernels are bound by bytes.
    pub operations: u64,
}

impl Work {
    pub fn of(node: &Node, staging: &StagingLayout) -> Self {
        let times = |access| if matches!(access, Access::Update | Access::Scratch) { 2 } else { 1 };
        let of = |(region, access, bytes)| times(access) * touched(node, region, bytes, staging);
        let bytes = node.call.traffic().into_iter().map(of).sum();
        let operations = match &node.call {
            Call::Kernel(launch) => operations(launch),
            Call::Collective(_) => 0,
            Call::Convolution(conv) => 2 * (conv.shape.macs() * conv.n) as u64,
            Call::Linear(linear) => 2 * (linear.n * linear.features * linear.classes) as u64,
        };
        Self { bytes, operations }
    }

    /// Seconds.
    pub fn floor(&self, copy_rate: f64, product_rate: f64) -> f64 {
        (self.bytes as f64 / copy_rate).max(self.operations as f64 / product_rate)
    }
}

/// What a call touches of a region. Kernels get all staging slots and the whole ring of outcomes, and use one: of a slot,
/// `input` alone reads the images.
fn touched(node: &Node, region: Region, bytes: u64, staging: &StagingLayout) -> u64 {
    let reads_images = matches!(&node.call, Call::Kernel(launch) if launch.kernel.starts_with("input_"));
    match region.arena {
        Arena::Staging if reads_images => staging.images_bytes,
        Arena::Staging => staging.slot_bytes - staging.items_offset,
        Arena::Outcomes => size_of::<Outcome>() as u64,
        _ => bytes,
    }
}

/// Calls that differ in nothing but where their operands lie.
#[derive(Debug)]
pub struct Group {
    /// The first of them.
    pub id: usize,
    pub count: usize,
}

/// In the order of their first calls.
pub fn groups(plan: &Plan) -> Vec<Group> {
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let mut groups: Vec<Group> = vec![];
    for (id, node) in plan.nodes.iter().enumerate() {
        let mut call = node.call.clone();
        call.regions_mut().into_iter().for_each(|region| region.offset = 0);
        let index = *known.entry(format!("{call:?}")).or_insert_with(|| {
            groups.push(Group { id, count: 0 });
            groups.len() - 1
        });
        groups[index].count += 1;
    }
    groups
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub call: String,
    /// The first node of the plan that does this.
    pub node: String,
    /// Calls in a step.
    pub count: usize,
    /// Of one call.
    pub microseconds: f64,
    pub floor_microseconds: f64,
    pub megabytes: f64,
    pub gigaflop: f64,
    /// The operands fit the card's cache, so that a repeated call can be below its floor.
    pub cached: bool,
}

/// The table, and what it is measured against.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub what: String,
    pub device: String,
    pub copy_gigabytes_per_second: f64,
    pub product_teraflop_per_second: f64,
    pub cache_megabytes: f64,
    /// Those that lose most against their floor first.
    pub rows: Vec<Row>,
    /// All calls of a step, each measured alone.
    pub sum_milliseconds: f64,
    pub floor_milliseconds: f64,
    /// The step itself, as one graph.
    pub step_milliseconds: f64,
    pub images_per_second: f64,
}

/// Measures a step of the training plan, call by call.
pub fn kernels(job: &Job) -> Result<Report> {
    let Job { ordinal, storage, tf32, batch, .. } = *job;
    let card = Card::open(CardOptions::new(ordinal, storage, tf32))?;
    let device = card.identity().to_owned();
    let (copied, multiplied, cache) = (card.copy_rate()?, card.product_rate()?, card.cache()?);
    let mut backend = CudaBackend::new(cuda_options(job), card, batch, 1)?;
    fill(&mut backend, job)?;
    let (card, plan) = (backend.machine(), Prepared(0));
    renew(card, plan)?;
    let step = card.time_pass(plan)?;
    let mut rows = vec![];
    for Group { id, count } in groups(card.plan(plan)) {
        renew(card, plan)?;
        let seconds = card.time_node(plan, id)?;
        let node = &card.plan(plan).nodes[id];
        let work = Work::of(node, &card.plan(plan).staging);
        rows.push(Row {
            call: describe(&node.call, |conv| card.routine(conv).unwrap_or("?").to_owned()),
            node: node.name.clone(),
            count,
            microseconds: 1e6 * seconds,
            floor_microseconds: 1e6 * work.floor(copied, multiplied),
            megabytes: work.bytes as f64 / 1e6,
            gigaflop: work.operations as f64 / 1e9,
            cached: work.bytes < cache,
        });
    }
    Ok(Report {
        copy_gigabytes_per_second: copied / 1e9,
        product_teraflop_per_second: multiplied / 1e12,
        cache_megabytes: cache as f64 / 1e6,
        step_milliseconds: 1e3 * step,
        images_per_second: batch as f64 / step,
        ..Report::new(job.to_string(), device, rows)
    })
}

/// Makes operands what they are in a training. A call that is repeated alone leaves numbers that are none, and a state that
/// makes later calls do nothing.
pub(super) fn renew(card: &mut Card, plan: Prepared) -> Result<()> {
    let state = State { scale: 1.0, unscale: 1.0, ..State::default() };
    card.write(Region::new(Arena::State, 0, size_of::<State>() as u64), bytemuck::bytes_of(&state))?;
    card.run_pass(plan)
}

/// Name of the card, and the rate of a large copy in bytes a second, read and written together. Needs the driver alone.
pub fn copy(ordinal: usize) -> Result<(String, f64)> {
    Library::Driver.find()?;
    let context = Context::open(ordinal)?;
    Ok((context.name.clone(), copy_rate(&context)?))
}

pub(super) fn cuda_options(job: &Job) -> CudaOptions {
    CudaOptions {
        spec: job.spec,
        resolution: job.resolution,
        seed: 0,
        zero_gamma: true,
        decay: Decay::Weights,
        recipe: Recipe::default(),
        storage: job.storage,
        // A scale would make the first passes of fresh weights overflow and skip their update.
        scale: ScalePolicy::NONE,
        form: job.form,
        keep: false,
    }
}

/// A pass for each staging slot, so that what is measured works on values like those of a training: power, and with it
/// the clock, depends on them. The weights stay as they are.
pub(super) fn fill(backend: &mut CudaBackend<Card>, job: &Job) -> Result<()> {
    let mut rng = Rng::new(0, 0, 0, Purpose::Synth);
    let batch = Batch {
        images: (0..job.batch * job.resolution * job.resolution * 3).map(|_| rng.next_u64() as u8).collect(),
        labels: (0..job.batch).map(|_| rng.below(job.spec.classes as u64) as u32).collect(),
        samples: (0..job.batch as u32).collect(),
        resolution: job.resolution,
        ..Batch::default()
    };
    let sgd = Sgd { lr: 0.0, momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
    for _ in 0..super::plan::STAGING_SLOTS {
        backend.submit(&batch, &Step::plain(0, 1, sgd, 0.1))?;
    }
    while backend.wait()?.is_some() {}
    Ok(())
}

/// `bn_apply_f16 102.8 MB` (its largest operand), `forward 56x56x64 k64 3x3 s1: cudnn algorithm 1 math 1 workspace 0`.
pub(super) fn describe(call: &Call, routine: impl Fn(&Convolution) -> String) -> String {
    match call {
        Call::Kernel(launch) => {
            let largest = launch.args.iter().filter_map(|arg| match arg {
                Arg::Region(region, _) | Arg::Part(region, ..) => Some(region.bytes),
                _ => None,
            });
            format!("{} {:.1} MB", launch.kernel, largest.max().unwrap_or(0) as f64 / 1e6)
        }
        Call::Convolution(conv) => {
            let (shape, routine) = (conv.shape, routine(conv));
            let add = if conv.accumulate { " +=" } else { said(&conv.fused) };
            format!(
                "{} {}x{}x{} k{} {}x{} s{}{add}: {routine}",
                conv.pass.name(),
                shape.h,
                shape.w,
                shape.c,
                shape.k,
                shape.r,
                shape.s,
                shape.stride
            )
        }
        Call::Linear(linear) => {
            format!("{} {} -> {}: cublas", linear.pass.name(), linear.features, linear.classes)
        }
        Call::Collective(collective) => {
            format!("{:?} {:.1} MB: nccl", collective.kind, collective.to.bytes as f64 / 1e6)
        }
    }
}

impl Row {
    /// Seconds over the floor, all calls together.
    fn lost(&self) -> f64 {
        self.count as f64 * (self.microseconds - self.floor_microseconds)
    }

    /// Of the floor.
    pub fn share(&self) -> f64 {
        self.floor_microseconds / self.microseconds
    }
}

impl Report {
    /// Sorts the rows and adds them up; what is measured otherwise is left at zero.
    fn new(what: String, device: String, mut rows: Vec<Row>) -> Self {
        rows.sort_by(|a, b| b.lost().total_cmp(&a.lost()));
        let sum = |of: fn(&Row) -> f64| rows.iter().map(|row| row.count as f64 * of(row)).sum::<f64>() / 1e3;
        Self {
            sum_milliseconds: sum(|row| row.microseconds),
            floor_milliseconds: sum(|row| row.floor_microseconds),
            what,
            device,
            rows,
            copy_gigabytes_per_second: 0.0,
            product_teraflop_per_second: 0.0,
            cache_megabytes: 0.0,
            step_milliseconds: 0.0,
            images_per_second: 0.0,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.device, self.what)?;
        writeln!(
            f,
            "copy {:.0} GB/s, matrix product {:.1} TFLOP/s; * fits the cache of {:.0} MB, where it may beat its floor",
            self.copy_gigabytes_per_second, self.product_teraflop_per_second, self.cache_megabytes
        )?;
        writeln!(f, "times    us each    floor   share       MB   GB/s TFLOP/s  call (first of them)")?;
        for row in &self.rows {
            writeln!(
                f,
                "{:>5} {:>10.1} {:>8.1} {:>5.0} %{} {:>8.1} {:>6.0} {:>7.1}  {} ({})",
                row.count,
                row.microseconds,
                row.floor_microseconds,
                100.0 * row.share(),
                if row.cached { "*" } else { " " },
                row.megabytes,
                1e3 * row.megabytes / row.microseconds,
                1e3 * row.gigaflop / row.microseconds,
                row.call,
                row.node
            )?;
        }
        write!(
            f,
            "all calls one by one {:.2} ms, floors {:.2} ms ({:.0} %); the step as one graph {:.2} ms, {:.0} images/s",
            self.sum_milliseconds,
            self.floor_milliseconds,
            100.0 * self.floor_milliseconds / self.sum_milliseconds,
            self.step_milliseconds,
            self.images_per_second
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{PlanOptions, Purpose as Aim};
    use super::*;
    use crate::model::spec::RESNET50;

    fn plan(batch: usize) -> Plan {
        let options = PlanOptions {
            spec: RESNET50,
            resolution: 224,
            batch,
            storage: Storage::F16,
            purpose: Aim::Finish { sum: false },
            form: Form::BASE,
            decay: Decay::Weights,
            recipe: Recipe::default(),
            scale: ScalePolicy::FP16,
            keep: false,
            without: vec![],
        };
        Plan::new(&options).unwrap()
    }

    fn work(plan: &Plan) -> (f64, f64) {
        let all = plan.nodes.iter().map(|node| Work::of(node, &plan.staging));
        all.fold((0.0, 0.0), |(bytes, operations), work| {
            (bytes + work.bytes as f64, operations + work.operations as f64)
        })
    }

    /// The floor model of the design counts 347 MB and 24.30 GFLOP an image for this level of fusion. Here the stem's
    /// padding channel is counted too (its two products: 0.16 GFLOP), and shortcuts share one pass with the block's sum.
    #[test]
    fn a_step_has_the_bytes_and_operations_that_the_network_has() {
        let ((few, _), (many, operations)) = (work(&plan(4)), work(&plan(12)));
        // What does not grow with the batch, weights and optimiser, cancels out.
        let an_image = (many - few) / 8.0 / 1e6;
        assert!((300.0..380.0).contains(&an_image), "{an_image} MB an image");
        let operations = operations / 12.0 / 1e9;
        assert!((24.30..24.50).contains(&operations), "{operations} GFLOP an image");
        // Master and momentum in and out, gradients twice, weights once or more: at least 20 bytes of 25.6 M.
        let fixed = few - 4.0 * 1e6 * an_image;
        assert!(fixed > 511e6 && fixed < 1.2e9, "{fixed} bytes a step");
    }

    #[test]
    fn calls_that_differ_in_place_alone_are_measured_once() {
        let plan = plan(2);
        let groups = groups(&plan);
        assert_eq!(groups.iter().map(|group| group.count).sum::<usize>(), plan.nodes.len());
        assert!(groups.len() < plan.nodes.len() / 2, "{} of {}", groups.len(), plan.nodes.len());
        let convolutions =
            groups.iter().filter(|group| matches!(plan.nodes[group.id].call, Call::Convolution(_)));
        // 53 forward, 52 dgrad, 53 wgrad.
        assert_eq!(convolutions.map(|group| group.count).sum::<usize>(), 158);
    }

    #[test]
    fn the_row_that_loses_most_stands_first_and_sums_are_over_the_step() {
        let row = |call: &str, count, microseconds, floor_microseconds| Row {
            call: call.into(),
            node: "x".into(),
            count,
            microseconds,
            floor_microseconds,
            megabytes: 1.0,
            gigaflop: 0.0,
            cached: false,
        };
        let rows = vec![row("a", 1, 100.0, 90.0), row("b", 4, 20.0, 15.0), row("c", 1, 10.0, 12.0)];
        let report = Report::new("w".into(), "d".into(), rows);
        let names: Vec<&str> = report.rows.iter().map(|row| row.call.as_str()).collect();
        assert_eq!(names, ["b", "a", "c"]);
        assert!(
            (report.sum_milliseconds - 0.19).abs() < 1e-12
                && (report.floor_milliseconds - 0.162).abs() < 1e-12
        );
        let text = report.to_string();
        assert_eq!(text.lines().count(), 3 + 3 + 1, "{text}");
        assert!(text.lines().nth(3).unwrap().contains("75 %"), "{text}");
    }
}
