//! `engine data pack`.

use super::args::PackArgs;
use crate::data::pack::{Observer, PackOptions, PackedSplit, Progress, pack};
use crate::data::{Splits, available_workers};
use crate::error::{Error, Result};
use crate::terminal::{answer, message};
use crate::train::stop::Stop;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

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
