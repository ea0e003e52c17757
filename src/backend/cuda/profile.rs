//! A profile of the real step: every launch with its time between two events, its bytes from the plan, and its floor, and the
//! same summed by kind. `engine bench step --profile` prints it; `bench/peers/step_profile.py` sorts PyTorch's kernels into the
//! same kinds, and `engine plan --shares` takes the shares of their floors from it.

use super::bench::{Work, describe, fill, renew};
use super::device::card::Card;
use super::machine::{Machine, Prepared};
use super::plan::node::{Call, Node, Pass};
use super::{CudaBackend, bench};
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Passes, of which the median counts for each launch.
const PASSES: usize = 9;

/// What a launch is for. The names are those of `bench/peers/step_profile.py`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Input,
    ConvForward,
    ConvDgrad,
    ConvWgrad,
    /// Batch norm, residual sum and ReLU.
    NormForward,
    NormBackward,
    Pool,
    /// Classifier and loss.
    Loss,
    /// From the finite check to the averages.
    Update,
    /// What ranks exchange.
    Ranks,
    /// What a form moves about.
    Other,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Input,
        Self::ConvForward,
        Self::ConvDgrad,
        Self::ConvWgrad,
        Self::NormForward,
        Self::NormBackward,
        Self::Pool,
        Self::Loss,
        Self::Update,
        Self::Ranks,
        Self::Other,
    ];

    pub fn of(node: &Node) -> Self {
        match &node.call {
            Call::Convolution(conv) => match conv.pass {
                Pass::Forward => Self::ConvForward,
                Pass::Dgrad => Self::ConvDgrad,
                Pass::Wgrad => Self::ConvWgrad,
            },
            Call::Linear(_) => Self::Loss,
            Call::Kernel(launch) => Self::of_kernel(&launch.kernel),
            Call::Collective(_) => Self::Ranks,
        }
    }

    /// Of one of our own kernels, by its name.
    fn of_kernel(kernel: &str) -> Self {
        const BEGINNINGS: [(&str, Kind); 22] = [
            ("input", Kind::Input),
            ("drop_path", Kind::Input),
            ("conv1x1", Kind::ConvForward),
            ("bn_backward", Kind::NormBackward),
            ("gradient_add", Kind::NormBackward),
            ("bn_", Kind::NormForward),
            ("max_pool", Kind::Pool),
            ("avg_pool", Kind::Pool),
            ("softmax", Kind::Loss),
            ("bce", Kind::Loss),
            ("loss", Kind::Loss),
            ("bias", Kind::Loss),
            ("accumulate", Kind::Update),
            ("finite", Kind::Update),
            ("gradient_squares", Kind::Update),
            ("clip", Kind::Update),
            ("update", Kind::Update),
            ("sgd", Kind::Update),
            ("lamb", Kind::Update),
            ("lars", Kind::Update),
            ("ema", Kind::Update),
            ("end_pass", Kind::Update),
        ];
        let found = BEGINNINGS.iter().find(|(beginning, _)| kernel.starts_with(beginning));
        found.map_or(Self::Other, |&(_, kind)| kind)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::ConvForward => "conv-forward",
            Self::ConvDgrad => "conv-dgrad",
            Self::ConvWgrad => "conv-wgrad",
            Self::NormForward => "norm-forward",
            Self::NormBackward => "norm-backward",
            Self::Pool => "pool",
            Self::Loss => "loss",
            Self::Update => "update",
            Self::Ranks => "ranks",
            Self::Other => "other",
        }
    }
}

/// One launch of a step.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub node: String,
    pub kind: Kind,
    pub call: String,
    pub microseconds: f64,
    pub floor_microseconds: f64,
    /// Of its time.
    pub share_of_floor: f64,
    pub megabytes: f64,
    pub gigaflop: f64,
    /// The floor is that of the operations.
    pub bound_by_operations: bool,
    /// The operands fit the card's cache, where the launch before may have left them: it can be below its floor.
    pub cached: bool,
}

/// All launches of a kind.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Sum {
    pub kind: Kind,
    pub launches: usize,
    pub milliseconds: f64,
    pub floor_milliseconds: f64,
    pub megabytes: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Profile {
    pub what: String,
    pub device: String,
    pub copy_gigabytes_per_second: f64,
    pub product_teraflop_per_second: f64,
    pub cache_megabytes: f64,
    /// Between two events with nothing between: a part of every time below.
    pub mark_microseconds: f64,
    /// The step as one graph, as it trains.
    pub step_milliseconds: f64,
    pub images_per_second: f64,
    /// Launches one after another.
    pub sum_milliseconds: f64,
    pub floor_milliseconds: f64,
    /// The most time above their floor first.
    pub kinds: Vec<Sum>,
    pub launches: Vec<Line>,
}

/// What floors are computed from.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Bytes a second, read and written together.
    pub copy: f64,
    /// Operations a second.
    pub product: f64,
    pub cache: u64,
}

/// Profiles a step of `job` on a card that is open, after passes that fill what it reads.
pub fn profile(job: &bench::Job, card: Card) -> Result<Profile> {
    let device = card.identity().to_owned();
    let rates = Rates { copy: card.copy_rate()?, product: card.product_rate()?, cache: card.cache()? };
    let mut backend = CudaBackend::new(bench::cuda_options(job), card, job.batch, 1)?;
    fill(&mut backend, job)?;
    let profile = of_step(backend.machine(), Prepared(0), rates)?;
    Ok(Profile { what: job.to_string(), device, ..profile })
}

/// Of a prepared training pass whose operands hold what they hold in a training.
pub fn of_step(card: &mut Card, step: Prepared, rates: Rates) -> Result<Profile> {
    renew(card, step)?;
    let whole = card.time_pass(step)?;
    renew(card, step)?;
    let (seconds, mark) = card.time_nodes(step, PASSES)?;
    let plan = card.plan(step);
    let lines = plan.nodes.iter().zip(seconds).map(|(node, seconds)| {
        let call = describe(&node.call, |conv| card.routine(conv).unwrap_or("?").to_owned());
        line(node, Work::of(node, &plan.staging), call, seconds, rates)
    });
    let batch = plan.options.batch as f64;
    let profile = Profile::new(lines.collect());
    Ok(Profile {
        copy_gigabytes_per_second: rates.copy / 1e9,
        product_teraflop_per_second: rates.product / 1e12,
        cache_megabytes: rates.cache as f64 / 1e6,
        mark_microseconds: 1e6 * mark,
        step_milliseconds: 1e3 * whole,
        images_per_second: batch / whole,
        ..profile
    })
}

fn line(node: &Node, work: Work, call: String, seconds: f64, rates: Rates) -> Line {
    let floor = work.floor(rates.copy, rates.product);
    Line {
        node: node.name.clone(),
        kind: Kind::of(node),
        call,
        microseconds: 1e6 * seconds,
        floor_microseconds: 1e6 * floor,
        share_of_floor: floor / seconds,
        megabytes: work.bytes as f64 / 1e6,
        gigaflop: work.operations as f64 / 1e9,
        bound_by_operations: work.operations as f64 / rates.product > work.bytes as f64 / rates.copy,
        cached: work.bytes < rates.cache,
    }
}

impl Line {
    fn above(&self) -> f64 {
        self.microseconds - self.floor_microseconds
    }
}

impl Sum {
    fn above(&self) -> f64 {
        self.milliseconds - self.floor_milliseconds
    }
}

impl Profile {
    /// Sorts the launches and adds them up; what is measured otherwise is left at zero.
    fn new(mut launches: Vec<Line>) -> Self {
        launches.sort_by(|a, b| b.above().total_cmp(&a.above()));
        let mut by_kind: BTreeMap<Kind, Sum> = BTreeMap::new();
        for line in &launches {
            let none = Sum {
                kind: line.kind,
                launches: 0,
                milliseconds: 0.0,
                floor_milliseconds: 0.0,
                megabytes: 0.0,
            };
            let sum = by_kind.entry(line.kind).or_insert(none);
            sum.launches += 1;
            sum.milliseconds += line.microseconds / 1e3;
            sum.floor_milliseconds += line.floor_microseconds / 1e3;
            sum.megabytes += line.megabytes;
        }
        let mut kinds: Vec<Sum> = by_kind.into_values().collect();
        kinds.sort_by(|a, b| b.above().total_cmp(&a.above()));
        Self {
            what: String::new(),
            device: String::new(),
            copy_gigabytes_per_second: 0.0,
            product_teraflop_per_second: 0.0,
            cache_megabytes: 0.0,
            mark_microseconds: 0.0,
            step_milliseconds: 0.0,
            images_per_second: 0.0,
            sum_milliseconds: kinds.iter().map(|sum| sum.milliseconds).sum(),
            floor_milliseconds: kinds.iter().map(|sum| sum.floor_milliseconds).sum(),
            kinds,
            launches,
        }
    }

    /// Milliseconds above their floors of the launches that `wanted` names.
    pub fn above(&self, wanted: impl Fn(&Line) -> bool) -> f64 {
        self.launches.iter().filter(|line| wanted(line)).map(|line| line.above().max(0.0)).sum::<f64>() / 1e3
    }

    fn write_kinds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "launches        ms    floor  above   share        MB  kind")?;
        for sum in &self.kinds {
            let share = 100.0 * sum.floor_milliseconds / sum.milliseconds;
            writeln!(
                f,
                "{:>8} {:>9.3} {:>8.3} {:>6.3} {share:>5.0} % {:>9.1}  {}",
                sum.launches,
                sum.milliseconds,
                sum.floor_milliseconds,
                sum.above(),
                sum.megabytes,
                sum.kind.name()
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.device, self.what)?;
        writeln!(
            f,
            "copy {:.0} GB/s, matrix product {:.1} TFLOP/s; {:.1} us between two events with nothing between, a part of every time",
            self.copy_gigabytes_per_second, self.product_teraflop_per_second, self.mark_microseconds
        )?;
        self.write_kinds(f)?;
        writeln!(f, "\n      us    floor   above   share        MB TFLOP/s  launch: call")?;
        for line in &self.launches {
            writeln!(
                f,
                "{:>8.1} {:>8.1} {:>7.1} {:>5.0} %{} {:>8.1} {:>7.1}{} {}: {}",
                line.microseconds,
                line.floor_microseconds,
                line.above(),
                100.0 * line.share_of_floor,
                if line.cached { "*" } else { " " },
                line.megabytes,
                1e3 * line.gigaflop / line.microseconds,
                if line.bound_by_operations { "!" } else { " " },
                line.node,
                line.call
            )?;
        }
        write!(
            f,
            "* fits the cache of {:.0} MB, where it may beat its floor; ! its floor is that of its operations\n\
             {} launches one after another {:.2} ms, floors {:.2} ms ({:.0} %); the step as one graph {:.2} ms, {:.0} images/s",
            self.cache_megabytes,
            self.launches.len(),
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
    use super::super::plan::{Loss, Plan, PlanOptions, Purpose, Recipe, Rule, ScalePolicy};
    use super::super::storage::Storage;
    use super::*;
    use crate::config::{Decay, Form, Residual, Stem};
    use crate::model::spec::RESNET_TINY;

    /// What a form or a recipe adds is of a kind that PyTorch has as well, but for what moves the stem's filters.
    #[test]
    fn every_launch_of_every_recipe_has_a_kind() {
        let all = Recipe { averages: true, clip: true, drop_path: true, erase: true, ..Recipe::PLAIN };
        let moved = Form { stem: Stem::SpaceToDepth, residual: Residual::Added, ..Form::BASE };
        for (rule, loss) in [
            (Rule::Sgd, Loss::SoftmaxCrossEntropy),
            (Rule::Lamb, Loss::BinaryCrossEntropy),
            (Rule::Lars, Loss::SoftmaxCrossEntropy),
        ] {
            for purpose in [Purpose::Finish { sum: false }, Purpose::Accumulate] {
                let options = PlanOptions {
                    spec: RESNET_TINY,
                    resolution: 32,
                    batch: 2,
                    storage: Storage::F16,
                    purpose,
                    form: moved,
                    decay: Decay::Weights,
                    recipe: Recipe { rule, loss, ..all },
                    scale: ScalePolicy::FP16,
                    keep: false,
                    without: vec![],
                };
                let plan = Plan::new(&options).unwrap();
                for node in plan.nodes.iter().filter(|node| !node.name.starts_with("stem.")) {
                    assert_ne!(Kind::of(node), Kind::Other, "{}", node.name);
                }
            }
        }
    }

    #[test]
    fn what_loses_most_stands_first() {
        let line = |node: &str, kind, microseconds, floor_microseconds| Line {
            node: node.into(),
            kind,
            call: "call".into(),
            microseconds,
            floor_microseconds,
            share_of_floor: floor_microseconds / microseconds,
            megabytes: 1.0,
            gigaflop: 0.0,
            bound_by_operations: false,
            cached: false,
        };
        let profile = Profile::new(vec![
            line("a", Kind::Pool, 10.0, 9.0),
            line("b", Kind::ConvForward, 30.0, 20.0),
            line("c", Kind::Pool, 20.0, 15.0),
        ]);
        let names: Vec<&str> = profile.launches.iter().map(|line| line.node.as_str()).collect();
        assert_eq!(names, ["b", "c", "a"]);
        assert_eq!(
            profile.kinds.iter().map(|sum| sum.kind).collect::<Vec<_>>(),
            [Kind::ConvForward, Kind::Pool]
        );
        assert!((profile.sum_milliseconds - 0.06).abs() < 1e-12, "{profile}");
        assert!((profile.above(|line| line.kind == Kind::Pool) - 0.006).abs() < 1e-12);
        let text = profile.to_string();
        assert!(text.contains("conv-forward") && text.lines().count() == 3 + 2 + 2 + 3 + 2, "{text}");
        // What is written into JSON is what is printed.
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
