//! `engine bench step`: the training step on a GPU, launch by launch, and in the forms that may be faster.

use super::bench_race::{Race, Trial, predictions};
use super::device::{self, Device};
use crate::backend::cuda::bench::Job;
use crate::backend::cuda::device::algorithms::File;
use crate::backend::cuda::device::card::{Card, CardOptions};
use crate::backend::cuda::machine::{Machine, Prepared};
use crate::backend::cuda::profile;
use crate::config::{self, Config, Overrides, Precision};
use crate::error::{Error, Result};
use crate::model::spec::ResNetSpec;
use crate::terminal::answer;
use clap::Args;
use serde::Serialize;
use std::fmt;

/// The training step on a GPU: its rate; with --profile every launch against its floor; with --variants the forms that may be
/// faster, in turn, with the losses and gradients of each beside the base's
#[derive(Debug, Args)]
pub struct StepArgs {
    #[arg(long, default_value = "resnet50")]
    arch: String,
    #[arg(long, default_value_t = 256)]
    batch: usize,
    #[arg(long, default_value_t = 224)]
    resolution: usize,
    /// auto, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: Device,
    /// auto (fp16), fp32, tf32, fp16 or bf16
    #[arg(long, default_value = "auto", value_parser = device::precision)]
    precision: Precision,
    /// A key of [device] as a configuration has it: --set device.form.wgrad=behind (repeatable)
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "variants")]
    set: Vec<String>,
    /// Every launch of the step, the most time above its floor first, and the same by kind
    #[arg(long, conflicts_with = "variants")]
    profile: bool,
    /// Times every variant, one after another in this process
    #[arg(long)]
    variants: bool,
    /// Of the variants, these
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', requires = "variants")]
    only: Vec<String>,
    /// Steps whose losses are compared with the base's
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Seconds for all variants: those that would end later are left out, and said to be
    #[arg(long, default_value_t = 300.0)]
    seconds: f64,
    /// Nothing is run: what each variant is expected to change on this card (v100, t4, a100, h100, h200). Needs no GPU
    #[arg(long, value_name = "CARD", requires = "variants")]
    predict: Option<String>,
    #[arg(long)]
    json: bool,
}

pub fn run(args: &StepArgs) -> Result<()> {
    let config = args.config()?;
    let job = args.job(&config)?;
    if args.batch == 0 || args.steps == 0 {
        return Err(Error::usage("--batch and --steps: a step needs an image, a comparison a step"));
    }
    match (&args.predict, args.variants, args.profile) {
        (Some(card), ..) => print(&predictions(&job, &args.only, card)?, args.json),
        (_, true, _) => print(&Race::new(job, &args.only, args.steps, args.seconds)?.run()?, args.json),
        (_, _, true) => print(&profile::profile(&job, card(&job, &config)?)?, args.json),
        _ => print(&rate(&job, card(&job, &config)?)?, args.json),
    }
}

fn print<T: Serialize + fmt::Display>(report: &T, json: bool) -> Result<()> {
    if json { answer(serde_json::to_string(report).expect("plain fields")) } else { answer(report) }
}

fn card(job: &Job, config: &Config) -> Result<Card> {
    Card::open(CardOptions {
        deterministic: config.device.deterministic,
        search: config.device.search,
        algorithms: config.device.algorithms.strip_prefix("file:").map(|path| File(path.into())),
        ..CardOptions::new(job.ordinal, job.storage, job.tf32)
    })
}

impl StepArgs {
    fn config(&self) -> Result<Config> {
        let overrides = Overrides { set: self.set.clone(), ..Overrides::default() };
        config::load(None, &overrides)
    }

    fn job(&self, config: &Config) -> Result<Job> {
        let spec = ResNetSpec::named(&self.arch)
            .ok_or_else(|| Error::usage(format!("--arch {}: no such network; resnet50 is one", self.arch)))?;
        let ordinal =
            self.device.ordinal("engine bench step measures a GPU; engine bench train also a CPU")?;
        let (storage, tf32) = device::storage(self.precision);
        let (batch, resolution, form) = (self.batch, self.resolution, config.device.form);
        Ok(Job { spec, ordinal, storage, tf32, batch, resolution, form })
    }
}

/// The step and nothing else.
#[derive(Debug, Serialize)]
struct Rate {
    what: String,
    device: String,
    images_per_second: f64,
    step_milliseconds: f64,
    /// What the plan takes on the card, workspaces left out.
    plan_gibibytes: f64,
}

fn rate(job: &Job, card: Card) -> Result<Rate> {
    let device = card.identity().to_owned();
    let mut trial = Trial::new(job, card)?;
    let seconds = trial.seconds()?;
    Ok(Rate {
        what: job.to_string(),
        device,
        images_per_second: job.batch as f64 / seconds,
        step_milliseconds: 1e3 * seconds,
        plan_gibibytes: trial.backend.machine().plan(Prepared(0)).bytes() as f64 / 2f64.powi(30),
    })
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, device, images_per_second, step_milliseconds, plan_gibibytes } = self;
        write!(
            f,
            "{device}: {what}: {images_per_second:.0} images/s, {step_milliseconds:.3} ms a step, {plan_gibibytes:.2} GiB"
        )
    }
}
