//! `engine plan`.

use super::args::PlanArgs;
use super::device;
use crate::backend::cuda::cards::{CARDS, CardModel, INSTANCES, Instance, Link};
use crate::backend::cuda::forecast::{Exchanges, Forecast, Seconds, Training};
use crate::backend::cuda::plan::{PlanOptions, Purpose, Recipe, ScalePolicy};
use crate::backend::cuda::shares::{SHARE, Shares};
use crate::config::Config;
use crate::data::{JPEG_DECODER, Splits};
use crate::error::{Error, Result};
use crate::model::spec::ResNetSpec;
use crate::terminal::answer;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

pub fn run(args: &PlanArgs) -> Result<()> {
    let config = args.config.load()?;
    device::check_pieces(&config, args.gpus)?;
    let machines = machines(args)?;
    let images = Images::of(&config)?;
    let shares = args.shares.as_deref().map_or(Ok(Shares::assumed()), Shares::read)?;
    let course = |machine: &Machine| Course::new(&config, images.classes, machine, &shares);
    let estimates = machines
        .iter()
        .map(|machine| Estimate::new(machine, &course(machine)?, &config, &images, args))
        .collect::<Result<Vec<_>>>()?;
    if args.json {
        return estimates
            .iter()
            .try_for_each(|one| answer(serde_json::to_string(one).expect("plain fields")));
    }
    answer(head(&config, &images, args))?;
    answer(Row(["card", "images/s", "hours", "dollars", "GiB of batch; largest", "disk MB/s", "CPU cores"]))?;
    estimates.iter().try_for_each(answer)?;
    let image = estimates.first().map_or(0.0, |one| one.activation_mebibytes_an_image);
    answer(sources(args, &shares, image))
}

fn chosen(names: &[String]) -> Result<Vec<CardModel>> {
    if names.is_empty() {
        return Ok(CARDS.to_vec());
    }
    let find = |name: &String| {
        CARDS.iter().find(|card| *name.to_lowercase() == *card.name).copied().ok_or_else(|| {
            let known: Vec<&str> = CARDS.iter().map(|card| card.name).collect();
            Error::usage(format!("--gpu {name}: no figures of it; known are {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

/// Cards that train together.
struct Machine {
    card: CardModel,
    cards: usize,
    /// Where there are several.
    instance: Option<&'static Instance>,
}

/// Those of the chosen cards; without a choice, those cards of which an instance has so many.
fn machines(args: &PlanArgs) -> Result<Vec<Machine>> {
    let cards = args.gpus;
    let machine = |card: CardModel| {
        let instance = if cards > 1 { card.instance(cards) } else { None };
        (cards == 1 || instance.is_some()).then_some(Machine { card, cards, instance })
    };
    let (chosen, all) = (chosen(&args.gpu)?, args.gpu.is_empty());
    let lacks = |card: &CardModel| {
        let known = INSTANCES.iter().filter(|instance| all || instance.card == card.name);
        let known: Vec<String> = known.map(|it| format!("{} ({} {})", it.name, it.cards, it.card)).collect();
        Error::usage(format!(
            "--gpus {cards}: no instance has so many {}; known are {}",
            if all { "cards" } else { card.name },
            known.join(", ")
        ))
    };
    let found: Vec<Option<Machine>> = chosen.iter().copied().map(machine).collect();
    let nothing =
        found.iter().position(Option::is_none).filter(|_| !all || found.iter().all(Option::is_none));
    match nothing {
        Some(index) => Err(lacks(&chosen[index])),
        None => Ok(found.into_iter().flatten().collect()),
    }
}

/// How many images an epoch has, and what they weigh.
struct Images {
    what: String,
    classes: usize,
    train: usize,
    val: usize,
    /// Bytes of a training image.
    mean_bytes: f64,
}

impl Images {
    /// ImageNet-1k, 1,281,167 images in a tar of 147,897,477,120 bytes.
    const IMAGENET_BYTES: f64 = 147_897_477_120.0 / 1_281_167.0;

    /// Of the data that the configuration names; ImageNet where it names none.
    fn of(config: &Config) -> Result<Self> {
        if config.data.path.is_empty() {
            return Ok(Self {
                what: "ImageNet-1k (no --data given)".to_owned(),
                classes: 1000,
                train: 1_281_167,
                val: 50_000,
                mean_bytes: Self::IMAGENET_BYTES,
            });
        }
        let splits = Splits::open(Path::new(&config.data.path))?;
        let find = |name: &str| splits.splits.iter().find(|(split, _)| split == name).map(|(_, split)| split);
        let train = find("train").or(splits.splits.first().map(|(_, split)| split));
        let train = train.ok_or_else(|| Error::input_file(&config.data.path, "holds no images"))?;
        // A thousand, evenly spread, say what all weigh.
        let sample: Vec<usize> = (0..train.len()).step_by(train.len().div_ceil(1000).max(1)).collect();
        let mut bytes = 0;
        for &index in &sample {
            bytes += train.bytes(index)?;
        }
        Ok(Self {
            what: config.data.path.clone(),
            classes: splits.classes.len(),
            train: if config.data.limit == 0 { train.len() } else { train.len().min(config.data.limit) },
            val: find("val").map_or(0, |split| split.len()),
            mean_bytes: bytes as f64 / sample.len().max(1) as f64,
        })
    }
}

/// A whole training on a machine.
struct Course {
    /// Epochs at each resolution, and what is done there; the last one is the largest, and sizes the memory.
    parts: Vec<(usize, Forecast)>,
    largest_micro_batch: Option<usize>,
    /// Of an image.
    activation_bytes: f64,
}

impl Course {
    fn new(config: &Config, classes: usize, machine: &Machine, shares: &Shares) -> Result<Self> {
        let mut epochs: BTreeMap<usize, usize> = BTreeMap::from([(config.data.resolution, 0)]);
        for epoch in 0..config.epochs {
            *epochs.entry(config.resolution_at(epoch)).or_default() += 1;
        }
        let at = |resolution| training(config, classes, resolution, machine.cards);
        let of = |side| at(side).forecast(&machine.card, machine.instance, shares);
        let parts = epochs.into_iter().map(|(side, count)| Ok((count, of(side)?)));
        Ok(Self {
            parts: parts.collect::<Result<_>>()?,
            largest_micro_batch: at(config.data.resolution).largest(&machine.card),
            activation_bytes: at(config.data.resolution).activation_bytes()?,
        })
    }

    fn last(&self) -> &Forecast {
        &self.parts.last().expect("there is one for data.resolution").1
    }

    /// Mean over all epochs.
    fn step(&self) -> Seconds {
        let all: usize = self.parts.iter().map(|(epochs, _)| epochs).sum();
        let share = |epochs: usize| epochs as f64 / all.max(1) as f64;
        self.parts.iter().fold(Seconds::default(), |sum, (epochs, at)| sum.plus(share(*epochs), at.step))
    }
}

fn training(config: &Config, classes: usize, resolution: usize, cards: usize) -> Training {
    let (storage, tf32) = device::storage(config.device.precision);
    let spec = ResNetSpec::named(&config.model.arch).expect("the configuration is validated");
    Training {
        options: PlanOptions {
            spec: spec.with_classes(classes),
            resolution,
            batch: config.micro_batch(),
            storage,
            purpose: Purpose::Finish { sum: false },
            form: config.device.form,
            decay: config.optim.decay,
            recipe: Recipe { ranks: (cards > 1).then_some(cards), ..device::recipe(config) },
            scale: ScalePolicy::FP16,
            keep: false,
            without: vec![],
        },
        tf32,
        micro_steps: config.micro_steps() / cards,
        eval_resolution: config.eval_resolution(),
        eval_batch: config.eval_batch(),
    }
}

/// From the slow to the fast end of what is expected.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn map(self, of: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (of(self.low), of(self.high));
        Self { low: a.min(b), high: a.max(b) }
    }
}

/// What the cards of a machine exchange, in a step at the largest resolution.
#[derive(Debug, Serialize)]
struct Exchanged {
    link: &'static str,
    /// That each card has.
    megabytes: f64,
    /// Of the link.
    milliseconds: Range,
    /// What of that hides behind the backward pass.
    hidden: Range,
}

impl Exchanged {
    fn new(link: Link, Exchanges { bytes, link: all, exposed }: Exchanges) -> Self {
        let hidden = |exposed: f64, all: f64| 1.0 - exposed / all;
        let (slow, fast) = (hidden(exposed.slow, all.slow), hidden(exposed.fast, all.fast));
        Self {
            link: link.kind,
            megabytes: bytes as f64 / 1e6,
            milliseconds: Range { low: 1e3 * all.fast, high: 1e3 * all.slow },
            hidden: Range { low: slow.min(fast), high: slow.max(fast) },
        }
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Estimate {
    card: &'static str,
    kind: &'static str,
    cards: usize,
    /// Where there are several cards.
    instance: Option<&'static str>,
    exchanged: Option<Exchanged>,
    /// At the floor of the launch list, validation left out.
    ceiling_images_per_second: f64,
    images_per_second: Range,
    /// With validation after each epoch.
    hours: Range,
    dollars_per_hour: Option<f64>,
    dollars: Option<Range>,
    /// Share of the training that the budget pays for.
    budget_covers: Option<Range>,
    micro_batch: usize,
    micro_batch_gibibytes: f64,
    largest_micro_batch: Option<usize>,
    /// Activations, gradients, masks and partial sums of a training pass.
    activation_mebibytes_an_image: f64,
    disk_megabytes_per_second: Range,
    cpu_cores: Range,
}

impl Estimate {
    fn new(
        machine: &Machine,
        course: &Course,
        config: &Config,
        images: &Images,
        args: &PlanArgs,
    ) -> Result<Self> {
        let batches = config.repeat().epoch_len(images.train) / config.data.batch;
        if batches == 0 {
            return Err(Error::usage(format!(
                "data.batch is {}, more than the {} training images of {}",
                config.data.batch, images.train, images.what
            )));
        }
        let Machine { card, cards, instance } = machine;
        let step = course.step();
        let rate = |step: f64| config.data.batch as f64 / step;
        let ceiling = rate(step.floor);
        let evaluations = images.val.div_ceil(config.eval_batch() * cards) as f64;
        let epoch = Seconds::default().plus(batches as f64, step).plus(evaluations, course.last().evaluation);
        let hours =
            Range { low: epoch.fast, high: epoch.slow }.map(|epoch| config.epochs as f64 * epoch / 3600.0);
        let images_per_second = Range { low: step.slow, high: step.fast }.map(rate);
        let dollars_per_hour = args.price.or(match instance {
            Some(instance) => Some(instance.dollars),
            None => known_price(card),
        });
        let dollars = dollars_per_hour.map(|price| hours.map(|hours| hours * price));
        let loader = args.loader_rate.unwrap_or(loader_rate());
        Ok(Self {
            card: card.name,
            kind: card.kind,
            cards: *cards,
            instance: instance.map(|instance| instance.name),
            exchanged: instance.map(|instance| Exchanged::new(instance.link, course.last().exchanges)),
            ceiling_images_per_second: ceiling,
            images_per_second,
            hours,
            dollars_per_hour,
            dollars,
            budget_covers: args.budget.zip(dollars).map(|(budget, all)| all.map(|dollars| budget / dollars)),
            micro_batch: config.micro_batch(),
            micro_batch_gibibytes: course.last().bytes as f64 / 2f64.powi(30),
            largest_micro_batch: course.largest_micro_batch,
            activation_mebibytes_an_image: course.activation_bytes / 2f64.powi(20),
            disk_megabytes_per_second: images_per_second.map(|rate| rate * images.mean_bytes / 1e6),
            cpu_cores: images_per_second.map(|rate| rate / loader),
        })
    }
}

/// p3.2xlarge on the spot market (3.06 on demand): a catalogue's undated figures. Of the other cards there is no such
/// machine with one, or no price at hand.
fn known_price(card: &CardModel) -> Option<f64> {
    (card.name == "v100").then_some(0.918)
}

/// Original ImageNet files to RandomResizedCrop(224) and flip, images a second and core (Zen 4), measured for both decoders.
fn loader_rate() -> f64 {
    if JPEG_DECODER.contains("turbo") { 960.0 } else { 640.0 }
}

/// A line of columns.
struct Row<'a>([&'a str; 7]);

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [card, rate, hours, dollars, memory, disk, cores] = self.0;
        write!(f, "{card:<7}  {rate:<11}  {hours:<11}  {dollars:<19}  {memory:<21}  {disk:<9}  {cores}")
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Three figures at least say something of a short training too.
        let range = |of: Range| match of.high {
            high if high < 1.0 => format!("{:.3}-{:.3}", of.low, high),
            high if high < 100.0 => format!("{:.1}-{:.1}", of.low, high),
            high => format!("{:.0}-{:.0}", of.low, high),
        };
        let dollars = match (self.dollars, self.dollars_per_hour) {
            (Some(dollars), Some(price)) => format!("{} at {price}", range(dollars)),
            _ => "give --price".to_owned(),
        };
        let memory = match self.largest_micro_batch {
            None => "no image fits".to_owned(),
            Some(most) if most < self.micro_batch => format!("does not fit; {most}"),
            Some(most) => format!("{:.1}; {most}", self.micro_batch_gibibytes),
        };
        Row([
            self.card,
            &range(self.images_per_second),
            &range(self.hours),
            &dollars,
            &memory,
            &range(self.disk_megabytes_per_second),
            &range(self.cpu_cores),
        ])
        .fmt(f)?;
        if let (Some(name), Some(exchanged)) = (self.instance, &self.exchanged) {
            write!(f, "\n         {} of {name}: {exchanged}", self.cards)?;
        }
        if let Some(covers) = self.budget_covers {
            write!(
                f,
                "\n         the budget pays for {:.0}-{:.0} % of it",
                100.0 * covers.low,
                100.0 * covers.high
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Exchanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, megabytes, milliseconds, hidden } = self;
        write!(
            f,
            "{megabytes:.0} MB a step and card over {link}, {:.1}-{:.1} ms, {:.0}-{:.0} % behind the backward pass",
            milliseconds.low,
            milliseconds.high,
            100.0 * hidden.low,
            100.0 * hidden.high
        )
    }
}

fn head(config: &Config, images: &Images, args: &PlanArgs) -> String {
    let name = args
        .config
        .config
        .as_ref()
        .map_or_else(|| "the defaults".to_owned(), |path| path.display().to_string());
    let micro = match config.micro_steps() {
        1 => String::new(),
        steps => format!(" in {steps} passes of {}", config.micro_batch()),
    };
    let (storage, tf32) = device::storage(config.device.precision);
    format!(
        "{name}: {}, {} epochs at {} px, batch {}{micro}, {}\n{}: {} training and {} validation images\n",
        config.model.arch,
        config.epochs,
        match (config.resolution_at(0), config.data.resolution) {
            (first, last) if first == last => last.to_string(),
            (first, last) => format!("{first} to {last}"),
        },
        config.data.batch,
        if tf32 { "tf32" } else { storage.suffix() },
        images.what,
        images.train,
        images.val
    )
}

fn sources(args: &PlanArgs, shares: &Shares, image: f64) -> String {
    let loader = match args.loader_rate {
        Some(rate) => format!("{rate} images a core and second, as given."),
        None => format!(
            "{:.0} images a core and second ({JPEG_DECODER}, Zen 4, crop and flip). A cloud's vCPU is half a\n\
             core, and RandAugment costs more: engine bench loader measures it there, --loader-rate takes it.",
            loader_rate()
        ),
    };
    let rate = match &shares.measured_on {
        None => format!(
            "{:.0} to {:.0} % of what the bytes and operations of this training's own launch list allow at the vendor's\n\
             bandwidth and rate (the H200's as measured): an assumption, the share of their floors that the fastest published\n\
             trainings reach. engine bench step --profile --json measures the shares, --shares takes them. Images of 64 px are\n\
             slower: launches cost more than bytes then.",
            100.0 * SHARE[0],
            100.0 * SHARE[1]
        ),
        Some(card) => format!(
            "what the bytes and operations of this training's own launch list take at the vendor's bandwidth and rate (the\n\
             H200's as measured), by the share of it that each kind of launch reached on\n\
             {card};\n\
             convolutions, which are other code on other cards, from {:.0} % or that to {:.0} % or that.",
            100.0 * SHARE[0],
            100.0 * SHARE[1]
        ),
    };
    let dollars = match args.gpus {
        1 => {
            "p3.2xlarge (V100): 0.918 an hour on the spot market, 3.06 on demand; figures of a catalogue without a\n\
             date, and spot prices move."
        }
        _ => {
            "of the whole instance on demand, us-east-1, February 2026; spot instances cost less: --price takes theirs."
        }
    };
    let several = if args.gpus == 1 { String::new() } else { several() };
    format!(
        "\nA prediction: engine has not been measured on these cards.\n\
         images/s  {rate}\n{several}\
         hours     with a validation after each epoch.\n\
         dollars   {dollars}\n\
         GiB       arenas and workspaces of training and validation; the driver and its libraries take more; {image:.1} MiB an\n\
         image in activations, gradients, masks and partial sums (engine bench step says what the card gives).\n\
         disk      every image read from it once an epoch. What the page cache holds is read once.\n\
         CPU       {loader}"
    )
}

fn several() -> String {
    format!(
        "exchange  images/s are of all cards together. Gradients leave in the launch list's buckets as they are made, by a ring, at\n\
         {:.0} to {:.0} % of what the link gives in one direction (NVIDIA's nccl-tests at such sizes) and {:.0} to {:.0} us each; what\n\
         is not done by then lengthens the step. Left out: what NCCL takes from the cards' own bandwidth, and waiting for the\n\
         slowest card. No NCCL has run this yet.\n",
        100.0 * Link::SHARE[0],
        100.0 * Link::SHARE[1],
        1e6 * Link::LATENCY[1],
        1e6 * Link::LATENCY[0]
    )
}
