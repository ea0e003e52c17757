//! The figures of an epoch and of a step, and the line that a person reads.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Mean loss, and top-1 and top-5 in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    pub loss: f64,
    pub top1: f64,
    pub top5: f64,
}

/// One finished epoch. The checkpoint carries those of all epochs, so that the log can be rebuilt from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochScores {
    /// From 1.
    pub epoch: u32,
    /// Optimiser steps at its end.
    pub step: u64,
    pub train: Scores,
    pub val: Scores,
}

/// One optimiser step, for `metrics.jsonl`. Everything but `clock` is the same in every repetition of the run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRecord {
    /// The epoch that the step belongs to, from 1.
    pub epoch: u32,
    /// From 1.
    pub step: u64,
    pub scores: Scores,
    pub lr: f64,
    /// Images since the beginning of the run.
    pub images: u64,
    /// Factor on the loss; 1 where none is needed.
    pub loss_scale: f32,
    /// The factor was too large: the weights stayed as they were.
    pub skipped: bool,
    pub clock: StepClock,
}

/// What depends on the machine and the hour. Both are means since the epoch began, or since this process took over in it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepClock {
    pub images_per_second: f64,
    /// Share of the time spent waiting for data.
    pub wait: f64,
}

impl EpochScores {
    /// The line of logs.md without its timestamp: two spaces between fields, losses with 3 decimals, percentages with 2.
    pub fn fields(&self) -> String {
        let (t, v) = (&self.train, &self.val);
        format!(
            "epoch: {}  train_loss: {:.3}  train_top1: {:.2}%  train_top5: {:.2}%  val_loss: {:.3}  val_top1: {:.2}%  \
             val_top5: {:.2}%",
            self.epoch, t.loss, t.top1, t.top5, v.loss, v.top1, v.top5
        )
    }

    pub fn line(&self, timestamp: &str) -> String {
        format!("{}  timestamp: {timestamp}", self.fields())
    }
}

/// UTC, ISO 8601, whole seconds: `2025-10-11T14:02:13Z`.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

pub fn is_timestamp(text: &str) -> bool {
    humantime::parse_rfc3339(text).is_ok()
}

/// An epoch line that was read back.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedEpoch {
    pub epoch: u32,
    pub train: Scores,
    pub val: Scores,
    /// Empty where the line has none.
    pub timestamp: String,
}

/// The lines of one section of logs.md.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedRun {
    /// The section's heading.
    pub name: String,
    pub lines: Vec<LoggedEpoch>,
}

/// All runs of a logs.md, in its order. Lines may have been edited: any white space between fields, percentages with or
/// without the sign. An epoch that does not follow upwards begins another run of the same name.
pub fn parse_logs_md(text: &str) -> Vec<LoggedRun> {
    let mut runs: Vec<LoggedRun> = Vec::new();
    let mut name = String::new();
    let mut is_new = true;
    for line in text.lines() {
        let line = line.trim();
        if let Some(heading) = line.strip_prefix('#') {
            (name, is_new) = (heading.trim_start_matches('#').trim().to_owned(), true);
        } else if let Some(epoch) = parse_line(line) {
            let follows = |run: &LoggedRun| run.lines.last().is_some_and(|last| last.epoch < epoch.epoch);
            match runs.last_mut() {
                Some(run) if !is_new && follows(run) => run.lines.push(epoch),
                _ => runs.push(LoggedRun { name: name.clone(), lines: vec![epoch] }),
            }
            is_new = false;
        }
    }
    runs
}

fn parse_line(line: &str) -> Option<LoggedEpoch> {
    let mut words = line.split_whitespace();
    let mut field = |name: &str| {
        let value = words.next().filter(|word| *word == name).and_then(|_| words.next())?;
        Some(value.trim_end_matches('%'))
    };
    let epoch = field("epoch:")?.parse().ok()?;
    let mut scores = |names: [&str; 3]| {
        let mut number = |name: &str| field(name)?.parse::<f64>().ok();
        Some(Scores { loss: number(names[0])?, top1: number(names[1])?, top5: number(names[2])? })
    };
    let train = scores(["train_loss:", "train_top1:", "train_top5:"])?;
    let val = scores(["val_loss:", "val_top1:", "val_top5:"])?;
    let timestamp = field("timestamp:").unwrap_or_default().to_owned();
    Some(LoggedEpoch { epoch, train, val, timestamp })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_contracts() {
        let scores = EpochScores {
            epoch: 1,
            step: 5004,
            train: Scores { loss: 4.512, top1: 1.2, top5: 5.8 },
            val: Scores { loss: 4.389, top1: 1.5, top5: 6.2 },
        };
        let line = scores.line("2025-10-11T14:02:13Z");
        assert_eq!(
            line,
            "epoch: 1  train_loss: 4.512  train_top1: 1.20%  train_top5: 5.80%  val_loss: 4.389  val_top1: 1.50%  \
             val_top5: 6.20%  timestamp: 2025-10-11T14:02:13Z"
        );
        let runs = parse_logs_md(&line);
        assert_eq!((runs[0].lines[0].train, runs[0].lines[0].val), (scores.train, scores.val));
    }

    /// The second sample line of requirements.md has single spaces and one decimal.
    #[test]
    fn reads_the_requirements_sample() {
        let text = "## a\r\nepoch: 90 train_loss: 0.812  train_top1: 76.12% train_top5: 92.30% val_loss: 0.923  \
                    val_top1: 75.01% val_top5: 91.8% timestamp: 2025-11-01T03:22:10Z\r\nepoch: 91 train_loss: oops\n";
        let runs = parse_logs_md(text);
        assert_eq!((runs.len(), runs[0].name.as_str(), runs[0].lines.len()), (1, "a", 1));
        assert_eq!((runs[0].lines[0].epoch, runs[0].lines[0].val.top5), (90, 91.8));
    }

    #[test]
    fn an_epoch_that_begins_again_is_another_run() {
        let line =
            |epoch| EpochScores { epoch, step: 0, train: Scores::default(), val: Scores::default() }.fields();
        let text = [line(1), line(2), line(1)].join("\n");
        assert_eq!(parse_logs_md(&text).iter().map(|run| run.lines.len()).collect::<Vec<_>>(), [2, 1]);
    }
}
