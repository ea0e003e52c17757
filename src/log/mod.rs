//! What a run leaves to read: `logs.md` (one line an epoch), `metrics.jsonl` (everything), TensorBoard events and
//! `curve.svg`.
//!
//! [`RunLog`] keeps all four in step with the checkpoint that training goes on from: lines beyond it are cut, missing ones
//! are written again, none is repeated.

pub mod events;
pub mod markdown;
pub mod metrics;
pub mod plot;
pub mod rate_plot;
pub mod scores;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::{failpoint, files};
use events::Events;
use markdown::Wanted;
use metrics::Metrics;

pub use markdown::RunHeader;
pub use plot::{Which, plot_logs_md};
pub use scores::{
    EpochScores, LoggedEpoch, LoggedRun, Scores, StepClock, StepRecord, parse_logs_md, timestamp,
};

/// The logs of one run, open for writing.
#[derive(Debug)]
pub struct RunLog {
    output: PathBuf,
    run: RunHeader,
    history: Vec<EpochScores>,
    timestamps: BTreeMap<u32, String>,
    metrics: Metrics,
    /// None where logs are only mended.
    events: Option<Events>,
    warnings: Vec<String>,
}

impl RunLog {
    /// Opens or creates the logs in `output` as they were at optimiser step `step`, with the epochs of `history` (epochs 1, 2,
    /// ... in order; empty for a new run).
    pub fn open(output: &Path, run: &RunHeader, history: &[EpochScores], step: u64) -> Result<Self> {
        let mut log = Self::prepare(output, run, history, step)?;
        log.events = Some(Events::open(&output.join("tensorboard").join(&run.id), step)?);
        Ok(log)
    }

    fn prepare(output: &Path, run: &RunHeader, history: &[EpochScores], step: u64) -> Result<Self> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if run.id.is_empty() || run.id.starts_with('.') || !run.id.chars().all(is_plain) {
            return Err(Error::failed(format!(
                "run id {:?}: want letters, digits, '-', '_' and '.'",
                run.id
            )));
        }
        if let Some((i, scores)) =
            history.iter().enumerate().find(|(i, scores)| scores.epoch as usize != i + 1)
        {
            let epoch = scores.epoch;
            return Err(Error::input(format!(
                "the history's entry {} is of epoch {epoch}; damaged state",
                i + 1
            )));
        }
        files::create_folder(output)?;
        files::remove_temporaries(output, |name| ["logs.md", "metrics.jsonl", "curve.svg"].contains(&name))?;
        let (metrics, kept) = Metrics::open(&output.join("metrics.jsonl"), run, history.len() as u32, step)?;
        let mut log = Self {
            output: output.to_owned(),
            run: run.clone(),
            history: history.to_vec(),
            timestamps: kept.timestamps,
            metrics,
            events: None,
            warnings: kept.warnings,
        };
        log.write_logs_md()?;
        log.write_curve()?;
        Ok(log)
    }

    /// Makes the logs of a finished run say all that they should, where they were lost or a kill came before their last line.
    pub fn mend(output: &Path, run: &RunHeader, history: &[EpochScores], step: u64) -> Result<()> {
        Self::prepare(output, run, history, step)?.finish()
    }

    /// What was wrong with the files that were found; to be shown once.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Takes a step's figures; they are durable after the next [`Self::flush`].
    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.metrics.step(record)?;
        let (scores, speed) = (&record.scores, record.clock.images_per_second);
        let scalars = [
            ("loss/train", scores.loss),
            ("top1/train", scores.top1),
            ("lr", record.lr),
            ("images_per_second", speed),
        ];
        self.events(record.step, &scalars)
    }

    /// Writes an epoch's line, durably, and redraws the curve.
    pub fn epoch(&mut self, scores: &EpochScores) -> Result<()> {
        if scores.epoch as usize != self.history.len() + 1 {
            let (got, want) = (scores.epoch, self.history.len() + 1);
            return Err(Error::failed(format!(
                "the log was given epoch {got} after {} lines, wanted {want}",
                want - 1
            )));
        }
        self.history.push(*scores);
        let now = timestamp(SystemTime::now());
        self.timestamps.insert(scores.epoch, now.clone());
        self.write_logs_md()?;
        failpoint::hit("log", "between_files");
        self.metrics.epoch(scores, &now)?;
        let (train, val) = (&scores.train, &scores.val);
        let scalars = [
            ("epoch/loss_train", train.loss),
            ("epoch/top1_train", train.top1),
            ("loss/val", val.loss),
            ("top1/val", val.top1),
        ];
        self.events(scores.step, &scalars)?;
        self.flush()?;
        self.write_curve()
    }

    /// Adds `note: TEXT` below the run's last line: why it stopped, what is no longer promised. A note that is there already
    /// is not repeated.
    pub fn note(&mut self, text: &str) -> Result<()> {
        let run = self.run.clone();
        self.change_logs_md(|logs| markdown::place_note(logs, &run, text))
    }

    /// Makes every figure so far durable. Called before a checkpoint is handed over.
    pub fn flush(&mut self) -> Result<()> {
        self.metrics.flush()?;
        self.events.as_mut().map_or(Ok(()), Events::flush)
    }

    fn events(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(step, scalars))
    }

    /// Flushes, and closes the run's section for whatever is written below it. The run may still be resumed.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        let run = self.run.clone();
        self.change_logs_md(|logs| markdown::close(logs, &run))
    }

    fn write_logs_md(&mut self) -> Result<()> {
        let now = timestamp(SystemTime::now());
        let wanted: Vec<Wanted> = self
            .history
            .iter()
            .map(|scores| Wanted {
                fields: scores.fields(),
                timestamp: self
                    .timestamps
                    .get(&scores.epoch)
                    .filter(|text| !text.is_empty())
                    .unwrap_or(&now)
                    .clone(),
            })
            .collect();
        let run = self.run.clone();
        self.change_logs_md(|logs| markdown::place(logs, &run, &now[..10], &wanted))
    }

    /// Reads logs.md and makes it what `change` says. Where that only adds to the end the file is appended to, so that
    /// `tail -f` follows it; otherwise it is replaced. Somebody's edits since the last line are read, and stay.
    fn change_logs_md(&self, change: impl FnOnce(&str) -> String) -> Result<()> {
        let path = self.output.join("logs.md");
        let old = match fs::read(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|source| Error::output_file(&path, "read", &source))?,
        };
        let old = String::from_utf8(old).map_err(|_| {
            Error::failed(format!(
                "{}: is not UTF-8 text; move it away, a new one is then begun",
                path.display()
            ))
        })?;
        let new = change(&old);
        match new.strip_prefix(&old) {
            Some("") => Ok(()),
            Some(added) if added.starts_with("epoch:") || added.starts_with("note:") => {
                append_durably(&path, added).map_err(|source| Error::output_file(&path, "append to", &source))
            }
            _ => files::write_bytes_atomically("logs_md", &path, new.as_bytes()),
        }
    }

    fn write_curve(&self) -> Result<()> {
        if self.history.is_empty() {
            return Ok(());
        }
        let line = |s: &EpochScores| LoggedEpoch {
            epoch: s.epoch,
            train: s.train,
            val: s.val,
            timestamp: String::new(),
        };
        let run = LoggedRun { name: self.run.name.clone(), lines: self.history.iter().map(line).collect() };
        let path = self.output.join("curve.svg");
        files::write_bytes_atomically("curve", &path, plot::plot(&[run]).as_bytes())
    }
}

fn append_durably(path: &Path, text: &str) -> io::Result<()> {
    if fs::metadata(path)?.permissions().readonly() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut file = OpenOptions::new().append(true).open(path)?;
    metrics::append("logs_md", &mut file, text.as_bytes())?;
    failpoint::hit("logs_md", "line_not_synced");
    file.sync_data()
}
