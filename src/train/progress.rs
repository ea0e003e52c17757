//! What a person sees while a run works: a bar on a terminal, a line now and then elsewhere.

use crate::terminal;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// One epoch's progress, on stderr.
pub struct Progress {
    bar: ProgressBar,
    plain: bool,
    title: String,
    steps: usize,
    first: usize,
    started: Instant,
    last_line: Instant,
}

/// Between two lines where there is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// What one step adds to the picture.
#[derive(Debug, Clone)]
pub struct Tick {
    /// Steps done in the epoch.
    pub step: usize,
    /// Images in a step.
    pub batch: usize,
    /// Mean loss of the step.
    pub loss: f64,
    /// Time spent waiting for data since the epoch (or the resume) began.
    pub waited: Duration,
    /// Steps of the epochs that follow.
    pub steps_after: usize,
    /// Dollars spent and expected, in words; empty where no price is known.
    pub money: String,
}

impl Progress {
    /// `first` steps were done before this process took over.
    pub fn new(title: String, steps: usize, first: usize) -> Self {
        let plain =
            !std::io::stderr().is_terminal() || std::env::var("TERM").is_ok_and(|term| term == "dumb");
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target);
        let style = ProgressStyle::with_template("{prefix} {bar:12} {pos}/{len}  {wide_msg}");
        bar.set_style(style.expect("the template is constant").progress_chars("=> "));
        bar.set_prefix(title.clone());
        bar.set_position(first as u64);
        let now = Instant::now();
        Self { bar, plain, title, steps, first, started: now, last_line: now }
    }

    /// Images per second and the share of time spent waiting for data, so far.
    pub fn rates(&self, step: usize, batch: usize, waited: Duration) -> (f64, f64) {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        (((step - self.first) * batch) as f64 / seconds, waited.as_secs_f64() / seconds)
    }

    pub fn tick(&mut self, tick: Tick) {
        let (images_per_second, waiting) = self.rates(tick.step, tick.batch, tick.waited);
        let remaining = (self.steps - tick.step + tick.steps_after) * tick.batch;
        let left = Duration::from_secs((remaining as f64 / images_per_second.max(1e-9)).min(1e9) as u64);
        let message = format!(
            "loss {:.3}  {} left{}  {images_per_second:.1} images/s  {:.1} % waiting for data",
            tick.loss,
            brief(left),
            tick.money,
            100.0 * waiting
        );
        self.bar.set_position(tick.step as u64);
        self.bar.set_message(message.clone());
        if self.plain && self.last_line.elapsed() >= PLAIN_INTERVAL {
            terminal::message(format!("{}  step {}/{}  {message}", self.title, tick.step, self.steps));
            self.last_line = Instant::now();
        }
    }

    /// A line above the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| terminal::message(text));
    }

    /// After the last step: a validation may take minutes.
    pub fn validating(&self) {
        self.bar.set_message("validating");
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The two largest units that matter: `3d 4h`, `2h 5m`, `4m 10s`, `9s`.
fn brief(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days > 0 => format!("{days}d {}h", hours % 24),
        () if hours > 0 => format!("{hours}h {}m", minutes % 60),
        () if minutes > 0 => format!("{minutes}m {}s", seconds % 60),
        () => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_brief() {
        let brief = |seconds| brief(Duration::from_secs(seconds));
        assert_eq!([brief(9), brief(250), brief(7500), brief(273_700)], ["9s", "4m 10s", "2h 5m", "3d 4h"]);
    }
}
