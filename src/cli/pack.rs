//! `engine data pack`.

use super::args::{EXIT_CODES, ThreadArgs};
use crate::data::Interpolation;
use crate::data::pack::{Observer, PackOptions, PackedSplit, Progress, pack};
use crate::data::{Splits, available_workers};
use crate::error::{Error, Result};
use crate::terminal::{answer, message};
use crate::train::stop::Stop;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Write tar shards in WebDataset's form, which `train` and Python's webdataset read in place; a killed run goes on by the
/// same command
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub struct PackArgs {
    /// Class folders, tars, or the folder with image-net.org's ILSVRC2012_img_train.tar, _img_val.tar and
    /// _devkit_t12.tar.gz as they were downloaded
    #[arg(value_name = "DIR|TAR")]
    pub data: PathBuf,

    /// The folder for the shards
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,

    /// Shrink pictures whose shorter side is longer than this to it, with Pillow's antialiasing; without it, every file is
    /// copied as it is. 256 makes ImageNet a quarter of its size and twice as fast to load, at some cost in accuracy
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(8..=8192))]
    pub shorter_side: Option<u32>,

    /// Of the JPEGs that shrinking makes
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub quality: u8,

    /// bilinear or bicubic
    #[arg(long, default_value = "bilinear", value_parser = interpolation)]
    pub interpolation: Interpolation,

    /// Pictures in a shard
    #[arg(long, default_value_t = 5120, value_parser = clap::value_parser!(u32).range(1..))]
    pub per_shard: u32,

    /// Mix the order once, for programs that read shards from one end to the other; `train` needs no such thing
    #[arg(long)]
    pub shuffle: bool,

    /// What data without train/ and val/ are
    #[arg(long, default_value = "train", value_parser = ["train", "val"])]
    pub split: String,

    /// Do not read and decode everything again at the end
    #[arg(long)]
    pub no_verify: bool,

    #[command(flatten)]
    pub threads: ThreadArgs,
}

fn interpolation(name: &str) -> std::result::Result<Interpolation, String> {
    match name {
        "bilinear" => Ok(Interpolation::Bilinear),
        "bicubic" => Ok(Interpolation::Bicubic),
        _ => Err("expected bilinear or bicubic".to_owned()),
    }
}

/// Share of pictures that may be left out: as a training run's `data.bad_share`.
const BAD_SHARE: f64 = 0.01;

pub fn run(args: &PackArgs) -> Result<()> {
    let stop = Stop::on_signals()?;
    let data = Splits::open(&args.data)?;
    let options = PackOptions {
        output: args.output.clone(),
        shorter_side: args.shorter_side.map(|side| side as usize),
        quality: args.quality,
        interpolation: args.interpolation,
        per_shard: args.per_shard as usize,
        shuffle: args.shuffle,
        undivided: args.split.clone(),
        workers: if args.threads.threads == 0 { available_workers() } else { args.threads.threads },
        verify: !args.no_verify,
        bad_share: BAD_SHARE,
    };
    let mut screen = Screen::new(stop);
    let summary = pack(data, &options, &mut screen);
    screen.bar.finish_and_clear();
    let summary = summary?;
    for PackedSplit { name, images, left_out, shards, bytes } in &summary.splits {
        let left_out = if *left_out > 0 { format!(", {left_out} left out") } else { String::new() };
        answer(format!(
            "{name}: {images} pictures in {shards} shards, {:.1} MB{left_out}",
            *bytes as f64 / 1e6
        ))?;
    }
    let verified = match summary.verified {
        0 => "not verified".to_owned(),
        count => format!("{count} pictures read back and decoded"),
    };
    answer(format!("{}: {verified}", args.output.display()))
}

/// A bar on a terminal, a line now and then elsewhere; and the ear for Ctrl-C.
struct Screen {
    stop: Stop,
    bar: ProgressBar,
    is_plain: bool,
    started: Instant,
    /// Pictures that earlier runs had packed.
    first: Option<usize>,
    verifying: bool,
    last_line: Instant,
}

/// Between two lines where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

impl Screen {
    fn new(stop: Stop) -> Self {
        let is_plain =
            !std::io::stderr().is_terminal() || std::env::var("TERM").is_ok_and(|term| term == "dumb");
        let target = if is_plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{prefix} {bar:24} {pos}/{len}  {msg}  {eta} left");
        bar.set_style(style.expect("the template is constant").progress_chars("=> "));
        let now = Instant::now();
        Self { stop, bar, is_plain, started: now, first: None, verifying: false, last_line: now }
    }
}

impl Observer for Screen {
    fn progress(&mut self, progress: Progress) -> Result<()> {
        if self.stop.requested() {
            return Err(Error::stopped("stopped on request"));
        }
        let Progress { verifying, done, of, bytes } = progress;
        if self.first.is_none() || verifying != self.verifying {
            self.verifying = verifying;
            self.first = Some(done - 1);
            self.started = Instant::now();
            self.bar.set_length(of as u64);
            self.bar.set_position(done as u64);
            self.bar.reset_eta();
            self.bar.set_prefix(if verifying { "verifying" } else { "packing" });
        }
        let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
        let rate = (done - self.first.unwrap_or(0)) as f64 / seconds;
        let written =
            if verifying { String::new() } else { format!(", {:.1} MB written", bytes as f64 / 1e6) };
        let text = format!("{rate:.0} pictures/s{written}");
        if self.is_plain && self.last_line.elapsed() >= PLAIN_INTERVAL {
            let what = if verifying { "verifying" } else { "packing" };
            message(format!("{what}  {done}/{of}  {text}"));
            self.last_line = Instant::now();
        }
        self.bar.set_position(done as u64);
        self.bar.set_message(text);
        Ok(())
    }

    fn warn(&mut self, sentence: &str) {
        self.bar.suspend(|| message(format!("warning: {sentence}")));
    }
}
