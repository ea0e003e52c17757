//! The variants of a training step in turn: how long each takes, and whether it trains as the base does.

use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::bench::Job;
use crate::backend::cuda::cards::{CARDS, CardModel};
use crate::backend::cuda::device::card::{Card, CardOptions};
use crate::backend::cuda::machine::{Machine, Prepared};
use crate::backend::cuda::plan::{PlanOptions, Purpose, Recipe, ScalePolicy};
use crate::backend::cuda::profile::{self, Profile, Rates};
use crate::backend::cuda::variants::{BASE, Prediction, VARIANTS, Variant, predict};
use crate::backend::{Backend, Step};
use crate::check::trajectory::Trajectory;
use crate::check::{Case, Report as Apart, pass};
use crate::config::{self, Chip, Decay, Form};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::optim::sgd::Sgd;
use crate::terminal::message;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

/// A network on a card in one variant, and the batches that all variants train on.
pub struct Trial {
    pub backend: CudaBackend<Card>,
    pub batches: [Batch; 2],
}

impl Trial {
    pub fn new(job: &Job, card: Card) -> Result<Self> {
        let case = Case {
            spec: job.spec,
            resolution: job.resolution,
            batch: job.batch,
            storage: job.storage,
            steps: 1,
            of: 1,
            recipe: Recipe::PLAIN,
            form: job.form,
        };
        Ok(Self { backend: case.cuda(card)?, batches: [case.images(1), case.images(2)] })
    }

    pub fn train(&mut self, steps: usize) -> Result<Trajectory> {
        Trajectory::run(&mut self.backend, &self.batches, steps)
    }

    /// Of a step as one graph, the best of three medians. The steps before it put images into both staging slots, with a rate
    /// that leaves the weights as they are.
    pub fn seconds(&mut self) -> Result<f64> {
        let still = Sgd { lr: 0.0, momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
        for batch in &self.batches {
            pass(&mut self.backend, batch, &Step::plain(0, 1, still, 0.1))?;
        }
        let card = self.backend.machine();
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            best = best.min(card.time_pass(Prepared(0))?);
        }
        Ok(best)
    }
}

fn plan_options(job: &Job) -> PlanOptions {
    PlanOptions {
        spec: job.spec,
        resolution: job.resolution,
        batch: job.batch,
        storage: job.storage,
        purpose: Purpose::Finish { sum: false },
        form: Form::BASE,
        decay: Decay::Weights,
        recipe: Recipe::PLAIN,
        scale: ScalePolicy::FP16,
        keep: false,
        without: vec![],
    }
}

/// One variant's line. `bench/gpu_speed.sh` reads the object in this order: a name, then its verdict.
#[derive(Debug, Clone, Serialize)]
struct Row {
    name: &'static str,
    why: &'static str,
    /// What a configuration would say.
    set: String,
    predicted: Prediction,
    measured: Option<Measured>,
    /// Why nothing was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Measured {
    step_milliseconds: f64,
    images_per_second: f64,
    /// Less than zero is a gain.
    change_microseconds: f64,
    /// What of the first gradients and the losses is farthest from the base's, for what it may be.
    farthest: String,
    apart: f64,
    allowed: f64,
    verdict: &'static str,
}

#[derive(Debug, Clone, Serialize)]
pub struct Table {
    what: String,
    device: String,
    /// Of the base.
    step_milliseconds: Option<f64>,
    images_per_second: Option<f64>,
    /// How far the base is from itself when it is measured again at the end.
    noise_microseconds: Option<f64>,
    steps: usize,
    rows: Vec<Row>,
}

/// The variants that are asked for.
fn chosen(only: &[String]) -> Result<Vec<Variant>> {
    let known = || VARIANTS.map(|variant| variant.name).join(", ");
    match only.iter().find(|name| VARIANTS.iter().all(|variant| variant.name != **name)) {
        Some(name) => Err(Error::usage(format!("--only {name}: no such variant; known are {}", known()))),
        None => {
            let wanted = |variant: &&Variant| only.is_empty() || only.iter().any(|name| name == variant.name);
            Ok(VARIANTS.iter().filter(wanted).copied().collect())
        }
    }
}

/// What a configuration says for a variant.
fn set(variant: &Variant) -> String {
    let base = config::Search::BASE;
    let mut set = vec![variant.form.to_string()];
    if variant.search.routines != base.routines {
        let name = serde_json::to_value(variant.search.routines).expect("a name");
        set.push(format!("device.search.routines={}", name.as_str().unwrap_or_default()));
    }
    if variant.search.cudnn_graph {
        set.push("device.search.cudnn_graph=true".to_owned());
    }
    if variant.search.workspace != base.workspace {
        set.push(format!("device.search.workspace={}", variant.search.workspace));
    }
    if !variant.deterministic {
        set.push("device.deterministic=false".to_owned());
    }
    set.retain(|key| !key.is_empty());
    set.join(" ")
}

/// What is expected of the variants that are named, or of all, on a card that is not at hand.
pub fn predictions(job: &Job, only: &[String], name: &str) -> Result<Table> {
    let card: &CardModel = CARDS.iter().find(|card| card.name == name).ok_or_else(|| {
        Error::usage(format!("--predict {name}: known are {}", CARDS.map(|card| card.name).join(", ")))
    })?;
    let rates = Rates { copy: card.bandwidth, product: card.half, cache: 0 };
    let (has, lacks): (Vec<_>, Vec<_>) =
        chosen(only)?.into_iter().partition(|variant| variant.capability <= card.capability);
    for variant in lacks {
        message(not_on(&variant, card.kind, card.capability));
    }
    let rows =
        has.iter().map(|variant| row(variant, job, (rates, card.chip), None)).collect::<Result<_>>()?;
    Ok(Table {
        what: job.to_string(),
        device: format!("{}, by its data sheet", card.kind),
        step_milliseconds: None,
        images_per_second: None,
        noise_microseconds: None,
        steps: 0,
        rows,
    })
}

/// Why a card is not asked for a variant.
fn not_on(variant: &Variant, card: &str, capability: (i32, i32)) -> String {
    let dotted = |(major, minor): (i32, i32)| format!("{major}.{minor}");
    let (wanted, has) = (dotted(variant.capability), dotted(capability));
    format!("{}: not on {card} (compute capability {has}), wants {wanted} or later", variant.name)
}

fn row(variant: &Variant, job: &Job, (rates, chip): (Rates, Chip), base: Option<&Profile>) -> Result<Row> {
    let predicted = predict(variant, &plan_options(job), rates, chip, base)?;
    let (name, why) = (variant.name, variant.why);
    Ok(Row { name, why, set: set(variant), predicted, measured: None, skipped: None })
}

/// All variants in turn.
pub struct Race {
    job: Job,
    variants: Vec<Variant>,
    steps: usize,
    seconds: f64,
    began: Instant,
}

/// What every variant is compared with.
struct Yardstick {
    seconds: f64,
    path: Trajectory,
    moved: Trajectory,
    choices: BTreeMap<String, String>,
    profile: Profile,
    rates: Rates,
    chip: Chip,
    device: String,
    capability: (i32, i32),
}

impl Race {
    /// Those that are named, or all; `steps` are compared, and nothing begins that would end after `seconds`.
    pub fn new(job: Job, only: &[String], steps: usize, seconds: f64) -> Result<Self> {
        Ok(Self { job, variants: chosen(only)?, steps, seconds, began: Instant::now() })
    }

    fn open(&self, variant: &Variant, known: BTreeMap<String, String>) -> Result<Card> {
        let Job { ordinal, storage, tf32, .. } = self.job;
        let Variant { search, deterministic, .. } = *variant;
        Card::open(CardOptions { search, deterministic, known, ..CardOptions::new(ordinal, storage, tf32) })
    }

    fn trial(&self, variant: &Variant, known: BTreeMap<String, String>) -> Result<Trial> {
        let card = self.open(variant, known)?;
        Trial::new(&Job { form: variant.form, ..self.job }, card)
    }

    fn base(&self) -> Result<Yardstick> {
        let card = self.open(&BASE, BTreeMap::new())?;
        let (device, capability) = (card.identity().to_owned(), card.capability());
        let rates = Rates { copy: card.copy_rate()?, product: card.product_rate()?, cache: card.cache()? };
        let chip = card.chip()?;
        let mut trial = Trial::new(&self.job, card)?;
        let fresh = trial.backend.state()?;
        let path = trial.train(self.steps)?;
        let seconds = trial.seconds()?;
        let choices = trial.backend.machine().choices();
        let profile = profile::of_step(trial.backend.machine(), Prepared(0), rates)?;
        trial.backend.load_state(&fresh)?;
        let roundoff = self.job.storage.roundoff();
        let moved = Trajectory::nudged(&mut trial.backend, &trial.batches, self.steps, roundoff)?;
        Ok(Yardstick { seconds, path, moved, choices, profile, rates, chip, device, capability })
    }

    pub fn run(&self) -> Result<Table> {
        let base = self.base()?;
        let mut longest = self.began.elapsed().as_secs_f64();
        let mut rows = vec![];
        for variant in &self.variants {
            let mut row = row(variant, &self.job, (base.rates, base.chip), Some(&base.profile))?;
            let begin = self.began.elapsed().as_secs_f64();
            if variant.capability > base.capability {
                row.skipped = Some(format!("not run: {}", not_on(variant, "this card", base.capability)));
            // Time is kept for the base at the end.
            } else if begin + 2.0 * longest > self.seconds {
                row.skipped = Some(format!("not run: no time left of {} s", self.seconds));
            } else {
                message(format!("{}: {}", variant.name, variant.why));
                match self.measure(variant, &base) {
                    Ok(measured) => row.measured = Some(measured),
                    Err(error) => row.skipped = Some(format!("failed: {error}")),
                }
                longest = longest.max(self.began.elapsed().as_secs_f64() - begin);
            }
            rows.push(row);
        }
        let again = self.trial(&BASE, base.choices.clone())?.seconds()?;
        let noise = (again - base.seconds).abs();
        judge(&mut rows, noise);
        Ok(Table {
            what: self.job.to_string(),
            device: base.device,
            step_milliseconds: Some(1e3 * base.seconds),
            images_per_second: Some(self.job.batch as f64 / base.seconds),
            noise_microseconds: Some(1e6 * noise),
            steps: self.steps,
            rows,
        })
    }

    fn measure(&self, variant: &Variant, base: &Yardstick) -> Result<Measured> {
        // Where the search is the base's, so are its answers: new shapes alone are searched.
        let same = variant.search == BASE.search && variant.deterministic == BASE.deterministic;
        let known = if same { base.choices.clone() } else { BTreeMap::new() };
        let mut trial = self.trial(variant, known)?;
        let path = trial.train(self.steps)?;
        let Apart { name, apart, allowed } = base.path.compare(&path, &base.moved);
        let seconds = trial.seconds()?;
        Ok(Measured {
            step_milliseconds: 1e3 * seconds,
            images_per_second: self.job.batch as f64 / seconds,
            change_microseconds: 1e6 * (seconds - base.seconds),
            farthest: name,
            apart,
            allowed,
            verdict: "",
        })
    }
}

/// A variant that trains otherwise is wrong, however fast; one within the noise is neither faster nor slower.
fn judge(rows: &mut [Row], noise: f64) {
    for measured in rows.iter_mut().filter_map(|row| row.measured.as_mut()) {
        let noise = (1e6 * noise).max(1e3 * 0.002 * measured.step_milliseconds);
        measured.verdict = match measured.change_microseconds {
            // A distance that is no number is none that is allowed.
            _ if measured.apart > measured.allowed || measured.apart.is_nan() => "WRONG",
            change if change < -noise => "faster",
            change if change > noise => "slower",
            _ => "same",
        };
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.device, self.what)?;
        if let (Some(ms), Some(rate), Some(noise)) =
            (self.step_milliseconds, self.images_per_second, self.noise_microseconds)
        {
            writeln!(f, "base {ms:.3} ms, {rate:.0} images/s; again at the end {noise:.0} us apart")?;
        }
        writeln!(
            f,
            "changes in us a step, less is faster; predicted: of all floors, by {:.1} us for each launch and wait, and at most by what the \
             base loses there",
            1e6 * Chip::PAUSE
        )?;
        writeln!(f, "    floor  pauses  at most  measured  images/s  verdict  apart/allowed  variant")?;
        for row in &self.rows {
            let most = row.predicted.at_most_microseconds.map_or("-".to_owned(), |most| format!("{most:.0}"));
            let Prediction { floor_microseconds, pauses_microseconds, .. } = row.predicted;
            write!(f, "{floor_microseconds:>9.0} {pauses_microseconds:>7.0} {most:>8}")?;
            match (&row.measured, &row.skipped) {
                (Some(of), _) => write!(
                    f,
                    " {:>9.0} {:>9.0}  {:<7} {:>6.1e}/{:<6.1e}",
                    of.change_microseconds, of.images_per_second, of.verdict, of.apart, of.allowed
                )?,
                (_, Some(why)) => write!(f, "  {why}")?,
                _ => write!(f, " {:>9} {:>9}  {:<7} {:>14}", "-", "-", "", "")?,
            }
            let p = row.predicted;
            writeln!(
                f,
                "  {} ({}): {:+.2} MB and {:+.3} GFLOP an image, {:+} launches, {:+} waits; {}",
                row.name, row.set, p.megabytes_an_image, p.gigaflop_an_image, p.launches, p.waits, row.why
            )?;
        }
        if self.noise_microseconds.is_none() {
            return write!(f, "nothing was run");
        }
        write!(
            f,
            "apart: what of the first step's gradients and {} losses is farthest from the base, for what three roundings of the \
             weights would do",
            self.steps
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};

    #[test]
    fn what_a_variant_prints_is_what_a_configuration_takes() {
        for variant in VARIANTS {
            let set: Vec<String> = set(&variant).split_whitespace().map(str::to_owned).collect();
            let device = load(None, &Overrides { set, ..Overrides::default() }).unwrap().device;
            let says = (device.form, device.search, device.deterministic);
            assert_eq!(says, (variant.form, variant.search, variant.deterministic), "{}", variant.name);
        }
    }

    #[test]
    fn a_wrong_variant_is_never_faster() {
        let predicted = Prediction {
            floor_microseconds: 0.0,
            megabytes_an_image: 0.0,
            gigaflop_an_image: 0.0,
            launches: 0,
            waits: 0,
            pauses_microseconds: 0.0,
            at_most_microseconds: None,
        };
        let row = |change_microseconds, apart| Row {
            name: "x",
            why: "",
            set: String::new(),
            predicted,
            measured: Some(Measured {
                step_milliseconds: 10.0,
                images_per_second: 1.0,
                change_microseconds,
                farthest: String::new(),
                apart,
                allowed: 0.1,
                verdict: "",
            }),
            skipped: None,
        };
        let mut rows =
            [row(-500.0, 0.2), row(-500.0, f64::NAN), row(-500.0, 0.1), row(500.0, 0.0), row(-30.0, 0.0)];
        judge(&mut rows, 40e-6);
        let verdicts = rows.map(|row| row.measured.unwrap().verdict);
        assert_eq!(verdicts, ["WRONG", "WRONG", "faster", "slower", "same"]);
    }
}
