//! The command line. Doc comments are the help texts.

use super::begin::BeginArgs;
use super::config::ConfigArgs;
use super::device::Device;
use super::export::args::ExportArgs;
use super::weights::WeightsArgs;
use crate::config::{MAX_THREADS, Precision};
use crate::data::augment::Auto;
use crate::infer::Precision as InferencePrecision;
use crate::model::graph::{MAX_RESOLUTION, MIN_RESOLUTION};
use crate::simd::isa::Isa;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

pub(super) const EXIT_CODES: &str = "Exit codes:\n  \
    0   done\n  \
    1   failed\n  \
    2   command line or configuration\n  \
    3   bad input data; the file is named\n  \
    70  the device failed: run again elsewhere\n  \
    75  stopped on request with a checkpoint on disk: run the same command again";

/// Trains ResNet-50 from scratch, survives being killed, and exports the result.
#[derive(Debug, Parser)]
#[command(name = "engine", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Train(TrainArgs),
    Eval(EvalArgs),
    Predict(PredictArgs),
    Export(ExportArgs),
    /// Make, check, describe or dump data
    #[command(subcommand, after_help = EXIT_CODES)]
    Data(DataCommand),
    Plot(PlotArgs),
    Report(ReportArgs),
    #[cfg(feature = "cuda")]
    Plan(PlanArgs),
    Doctor(DoctorArgs),
    #[cfg(feature = "cuda")]
    Check(CheckArgs),
    /// Measure this machine
    #[command(subcommand, after_help = EXIT_CODES)]
    Bench(BenchCommand),
}

/// Train, or go on with a training that was interrupted
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct TrainArgs {
    #[command(flatten)]
    pub config: ConfigArgs,

    #[command(flatten)]
    pub begin: BeginArgs,

    /// auto (a GPU where one is usable, else the CPU), cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: Device,

    /// Find a learning rate instead of training: this many steps from the beginning, at rates that grow evenly by their
    /// logarithm. Draws lr_find.svg in the output folder, suggests a rate, and touches neither logs nor checkpoints
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "100", value_parser = clap::value_parser!(u32).range(10..))]
    pub lr_find: Option<u32>,

    /// The first and the last of these rates
    #[arg(long, value_name = "RATE", num_args = 2, default_values_t = [1e-5, 10.0], requires = "lr_find")]
    pub lr_range: Vec<f64>,
}

/// Compare every operation of a training step on a card, and whole steps, with the CPU
#[cfg(feature = "cuda")]
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct CheckArgs {
    /// auto, cuda or cuda:N; with --dump also cpu
    #[arg(long, default_value = "auto")]
    pub device: Device,

    /// The tiny network in fp16 alone, for a run under a slow tool
    #[arg(long)]
    pub quick: bool,

    /// Compare nothing, but write weights.safetensors and step.safetensors: one step's batch, loss and gradients, for
    /// another program to compare with (bench/peers/step_parity.py)
    #[arg(long, value_name = "DIR", conflicts_with = "quick")]
    pub dump: Option<PathBuf>,

    /// The dumped step's network
    #[arg(long, default_value = "resnet50", requires = "dump")]
    pub arch: String,

    /// Images of the dumped step
    #[arg(long, default_value_t = 32, requires = "dump")]
    pub batch: usize,

    /// Their side
    #[arg(long, default_value_t = 128, requires = "dump")]
    pub resolution: usize,

    /// The dumped step's precision: auto, fp32, tf32, fp16 or bf16
    #[arg(long, default_value = "auto", value_parser = super::device::precision, requires = "dump")]
    pub precision: Precision,
}

/// Say what a training takes, before a dollar is spent: hours, dollars, device memory, disk and CPU on each card. A
/// prediction, and it says from what
#[cfg(feature = "cuda")]
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct PlanArgs {
    #[command(flatten)]
    pub config: ConfigArgs,

    /// v100, t4, a100, a100-40, h100 or h200 (repeatable); without it, all of them
    #[arg(long, value_name = "CARD")]
    pub gpu: Vec<String>,

    /// How many of them train together, in the smallest EC2 instance that has so many
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = cards)]
    pub gpus: usize,

    /// Dollars an hour of the machine, in place of the known ones
    #[arg(long, value_name = "DOLLARS", value_parser = positive)]
    pub price: Option<f64>,

    /// Dollars there are: how much of the training they pay for
    #[arg(long, value_name = "DOLLARS", value_parser = positive)]
    pub budget: Option<f64>,

    /// Images a CPU core prepares in a second on that machine (engine bench loader says it), in place of what was measured
    /// elsewhere
    #[arg(long, value_name = "IMAGES", value_parser = positive)]
    pub loader_rate: Option<f64>,

    /// What engine bench step --profile --json has written: the share of its floor that each kind of launch reached there, in
    /// place of an assumption
    #[arg(long, value_name = "FILE")]
    pub shares: Option<PathBuf>,

    /// One JSON object a card instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Say what this machine has for training, what it lacks, and what to do about it
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct DoctorArgs {
    /// The folder whose disk is measured
    #[arg(long, value_name = "DIR", env = "OUTPUT_DIR", default_value = ".")]
    pub output: PathBuf,

    /// A bucket that is written to and read from, with a small object that is removed again
    #[arg(long, value_name = "s3://BUCKET/PREFIX", env = "OUTPUT_REMOTE")]
    pub remote: Option<String>,

    /// One JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

/// Validate a checkpoint: loss, top-1 and top-5 over every validation image once, read as torchvision does (EXIF ignored).
/// Folders named 0 to 999, as ImageNet-V2's, are the outputs of those numbers
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct EvalArgs {
    /// An engine checkpoint, or a safetensors or .pth state dict with torchvision's names
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,

    #[command(flatten)]
    pub weights: WeightsArgs,

    /// A folder or tar with a val/ split
    #[arg(long, env = "DATA_DIR", value_name = "DIR|TAR")]
    pub data: PathBuf,

    /// Side of the images; without it, what the checkpoint was validated at
    #[arg(long, value_name = "PIXELS")]
    pub resolution: Option<usize>,

    /// One table over these sides instead: --sweep 224,256,288. Plain and, with --flip, mirrored; the weights and, where the
    /// checkpoint has them, their averages
    #[arg(long, value_name = "PIXELS,..", value_delimiter = ',', conflicts_with = "resolution", value_parser = side)]
    pub sweep: Vec<usize>,

    /// The crop's share of the resized shorter side; several with --sweep: 0.875,0.95,1. Without it, the checkpoint's
    #[arg(long, value_name = "RATIO,..", value_delimiter = ',', value_parser = crop_ratio)]
    pub crop_ratio: Vec<f64>,

    /// Average with the mirrored image
    #[arg(long)]
    pub flip: bool,

    /// Also score against ReaL's labels (real.json): of ImageNet's validation images, by the numbers in their names
    #[arg(long, value_name = "FILE")]
    pub real: Option<PathBuf>,

    #[arg(long, default_value_t = 64)]
    pub batch: usize,

    /// cpu, auto (a GPU where one is usable), cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: Device,

    #[command(flatten)]
    pub threads: ThreadArgs,

    /// One JSON object instead of a line
    #[arg(long)]
    pub json: bool,
}

fn side(text: &str) -> std::result::Result<usize, String> {
    let sides = MIN_RESOLUTION..=MAX_RESOLUTION;
    let side = text.parse().ok().filter(|side| sides.contains(side));
    side.ok_or_else(|| format!("expected pixels from {MIN_RESOLUTION} to {MAX_RESOLUTION}"))
}

fn crop_ratio(text: &str) -> std::result::Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.05..=1.0).contains(ratio));
    ratio.ok_or_else(|| "expected a share from 0.05 to 1".to_owned())
}

#[derive(Debug, Args)]
pub struct ThreadArgs {
    /// Threads; 0 means one a core
    #[arg(long, default_value_t = 0, value_parser = threads)]
    pub threads: usize,
}

#[cfg(feature = "cuda")]
fn positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

/// GPUs of a machine.
#[cfg(feature = "cuda")]
fn cards(text: &str) -> std::result::Result<usize, String> {
    let count = text.parse::<usize>().ok().filter(|&count| count > 0);
    count.ok_or_else(|| "expected a number from 1".to_owned())
}

fn threads(text: &str) -> std::result::Result<usize, String> {
    let count = text.parse::<usize>().ok().filter(|&count| count <= MAX_THREADS);
    count.ok_or_else(|| format!("expected a number from 0 to {MAX_THREADS}"))
}

/// Classify pictures, seen as a viewer shows them: turned by their EXIF orientation, transparency on white
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct PredictArgs {
    #[arg(long, value_name = "PATH")]
    pub checkpoint: PathBuf,

    #[command(flatten)]
    pub weights: WeightsArgs,

    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<PathBuf>,

    /// How many classes to name
    #[arg(long, default_value_t = 5)]
    pub top: usize,

    /// One JSON object a line: {"file", "predictions": [{"index", "label", "probability"}]}
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub threads: ThreadArgs,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Write the embedded synthetic data set: ten classes of drawn shapes as JPEGs
    Synth {
        #[arg(value_name = "DIR")]
        output: PathBuf,
        #[arg(long, default_value_t = 200)]
        train_per_class: usize,
        #[arg(long, default_value_t = 40)]
        val_per_class: usize,
        /// Side of a picture in pixels
        #[arg(long, default_value_t = 72)]
        size: usize,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Decode every file and list what is odd, by path
    Check {
        #[arg(value_name = "DIR|TAR")]
        data: PathBuf,
    },
    Pack(super::pack::PackArgs),
    /// Count classes, images and bytes
    Info {
        #[arg(value_name = "DIR|TAR")]
        data: PathBuf,
    },
    /// Write the exact first training batches to a safetensors file
    Batches {
        #[command(flatten)]
        config: ConfigArgs,
        #[arg(long, default_value_t = 1)]
        count: usize,
        /// The file to write
        #[arg(short = 'o', long = "to", value_name = "FILE")]
        to: PathBuf,
    },
}

/// Draw the curves of a logs.md
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct PlotArgs {
    #[arg(value_name = "LOGS_MD")]
    pub logs: PathBuf,

    #[arg(short, long, value_name = "SVG", default_value = "curve.svg")]
    pub output: PathBuf,

    /// All runs of the file in one picture, instead of the last
    #[arg(long)]
    pub all: bool,
}

/// Write SUBMISSION.md: the acceptance checklist, with each item found in the files, missing, or left to a person
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct ReportArgs {
    /// The clone of the repository
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub root: PathBuf,

    #[arg(short, long, value_name = "FILE", default_value = "SUBMISSION.md")]
    pub output: PathBuf,
}

/// Classification on the CPU, as `classify` does it, on synthetic pixels
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct InferArgs {
    /// A model file, or random weights of a network: random:resnet50
    #[arg(long, value_name = "FILE|random:ARCH", default_value = "random:resnet50")]
    pub model: String,

    #[arg(long, default_value_t = 1)]
    pub batch: usize,

    /// Side of the images; without it, the model's, and 224 for random weights
    #[arg(long, value_name = "PIXELS")]
    pub resolution: Option<usize>,

    #[command(flatten)]
    pub threads: ThreadArgs,

    /// fp32, bf16 or int8; without it, the fastest that model and machine have
    #[arg(long, value_parser = inference_precision)]
    pub precision: Option<InferencePrecision>,

    /// auto, avx512, avxvnni, avx2, dotprod, neon or portable
    #[arg(long, default_value = "auto", value_parser = Isa::named)]
    pub isa: Isa,

    /// Seconds of measuring
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,

    /// Measure this many runs, instead of for some seconds
    #[arg(long)]
    pub iterations: Option<usize>,

    /// Each layer's time and its share of what this machine was measured to be capable of
    #[arg(long)]
    pub layers: bool,

    /// One JSON object instead of a line
    #[arg(long)]
    pub json: bool,
}

fn inference_precision(name: &str) -> std::result::Result<InferencePrecision, String> {
    InferencePrecision::named(name).ok_or_else(|| "expected fp32, bf16 or int8".to_owned())
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    Infer(InferArgs),
    /// Training steps on synthetic pixels
    Train {
        #[arg(long, default_value = "resnet50")]
        arch: String,
        #[arg(long, default_value_t = 16)]
        batch: usize,
        #[arg(long, default_value_t = 224)]
        resolution: usize,
        /// Timed steps, after two that are not
        #[arg(long, default_value_t = 5)]
        steps: usize,
        #[command(flatten)]
        threads: ThreadArgs,
        /// auto (a GPU where one is usable, else the CPU), cpu, cuda or cuda:N
        #[arg(long, default_value = "auto")]
        device: Device,
        /// auto, fp32, tf32, fp16 or bf16
        #[arg(long, default_value = "auto", value_parser = super::device::precision)]
        precision: Precision,
        /// On a GPU: take the routines that this file names, so that two measurements run the same ones; it is written where it
        /// is not there
        #[arg(long, value_name = "FILE")]
        algorithms: Option<PathBuf>,
        /// On a GPU: write what the host asks of the driver, and when, in Chrome's trace format (ui.perfetto.dev);
        /// events of the category "blocks" between two "submit" would be the host waiting for the card inside a step
        #[arg(long, value_name = "FILE")]
        trace: Option<PathBuf>,
        #[arg(long)]
        json: bool,
    },
    #[cfg(feature = "cuda")]
    Step(super::bench_step::StepArgs),
    /// Every call of a training step on a GPU, each against its floor: its bytes at the rate of a large copy, or its
    /// operations at the rate of a large matrix product
    Kernels {
        #[arg(long, default_value_t = 256)]
        batch: usize,
        #[arg(long, default_value_t = 224)]
        resolution: usize,
        /// auto, cuda or cuda:N
        #[arg(long, default_value = "auto")]
        device: Device,
        /// auto (fp16), fp32, tf32, fp16 or bf16
        #[arg(long, default_value = "auto", value_parser = super::device::precision)]
        precision: Precision,
        #[arg(long)]
        json: bool,
    },
    /// Bytes a second of a large copy, read and written together
    Copy {
        /// auto (a GPU where there is one, else main memory), cpu, cuda or cuda:N
        #[arg(long, default_value = "auto")]
        device: Device,
        #[command(flatten)]
        threads: ThreadArgs,
        #[arg(long)]
        json: bool,
    },
    /// Decode, RandomResizedCrop and flip, without training: images a second and a CPU-second, and what reading, decoding,
    /// resizing and the rest take of it
    Loader {
        /// Class folders or a tar of them
        #[arg(long, env = "DATA_DIR", value_name = "DIR|TAR")]
        data: PathBuf,
        #[arg(long, default_value_t = 224)]
        resolution: usize,
        /// A policy on top, as in `augment.auto`: randaugment, rand-m7-mstd0.5-inc1, ...
        #[arg(long, default_value = "none")]
        auto: Auto,
        /// Seconds of measuring for each number of workers
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Measure with 1 to this many workers; 0 means one a core
        #[arg(long, default_value_t = 0)]
        workers: usize,
        #[arg(long)]
        json: bool,
    },
}
