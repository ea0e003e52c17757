//! metrics.jsonl: one JSON object a line for every step and epoch, in a stable order of keys.
//!
//! A line `{"kind":"run","id":...}` says whose the lines below it are. Everything that depends on the clock is under
//! `"clock"`, so that two runs can be compared without it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::markdown::RunHeader;
use super::scores::{EpochScores, StepClock, StepRecord};
use crate::error::{Error, Result};
use crate::{failpoint, files};

/// Lines are handed to the system in pieces of this size, or at a flush.
const BUFFER: usize = 1 << 16;

#[derive(Serialize)]
struct StepLine {
    kind: &'static str,
    epoch: u32,
    step: u64,
    loss: f64,
    lr: f64,
    top1: f64,
    top5: f64,
    images: u64,
    loss_scale: f32,
    skipped: bool,
    clock: StepClock,
}

#[derive(Serialize)]
struct EpochLine<'a> {
    kind: &'static str,
    epoch: u32,
    step: u64,
    train_loss: f64,
    train_top1: f64,
    train_top5: f64,
    val_loss: f64,
    val_top1: f64,
    val_top5: f64,
    clock: EpochClock<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct EpochClock<T> {
    timestamp: T,
}

#[derive(Serialize)]
struct RunLine<'a> {
    kind: &'static str,
    id: &'a str,
    name: &'a str,
    configuration: &'a str,
}

/// What cutting back needs to know of a line.
#[derive(Deserialize)]
struct AnyLine {
    kind: String,
    id: Option<String>,
    epoch: Option<u32>,
    step: Option<u64>,
    clock: Option<AnyClock>,
}

#[derive(Deserialize)]
struct AnyClock {
    timestamp: Option<String>,
}

/// The lines of a file that belong to the run at a step.
struct Cut<'a> {
    kept: Vec<&'a [u8]>,
    /// Whether `kept` is how the file begins.
    is_prefix: bool,
    timestamps: BTreeMap<u32, String>,
    last_step: u64,
    /// Whether the last `run` line is this run's.
    is_current: bool,
}

/// The file, open for appending.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
}

/// What the file had of the run.
#[derive(Debug, Default)]
pub struct Kept {
    /// When each epoch ended, as the file says.
    pub timestamps: BTreeMap<u32, String>,
    pub warnings: Vec<String>,
}

impl Metrics {
    /// Cuts the run's lines back to steps up to `step` and epochs up to `epochs`. Other runs' lines stay.
    pub fn open(path: &Path, run: &RunHeader, epochs: u32, step: u64) -> Result<(Self, Kept)> {
        let cannot = |source: io::Error| Error::output_file(path, "write", &source);
        let text = match fs::read(path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(|source| Error::output_file(path, "read", &source))?,
        };
        let cut = cut(&text, &run.id, epochs, step);
        if !cut.is_prefix {
            files::write_bytes_atomically("metrics", path, &cut.kept.concat())?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(cannot)?;
        if cut.is_prefix {
            // The lines to go are the last ones: shortening the file is one operation of the file system.
            let length: usize = cut.kept.iter().map(|line| line.len()).sum();
            file.set_len(length as u64).and_then(|()| file.sync_all()).map_err(cannot)?;
            files::sync_folder(files::folder_of(path)).map_err(cannot)?;
        }
        if cut.kept.last().is_some_and(|line| !line.ends_with(b"\n")) {
            file.write_all(b"\n").map_err(cannot)?;
        }
        let mut kept = Kept { timestamps: cut.timestamps, warnings: Vec::new() };
        if cut.last_step < step {
            kept.warnings.push(format!(
                "{}: the steps {} to {step} of this run are missing; the file was removed or changed, training goes on",
                path.display(),
                cut.last_step + 1
            ));
        }
        let mut metrics = Self { path: path.to_owned(), file, buffer: Vec::new() };
        if !cut.is_current {
            let RunHeader { id, name, configuration } = run;
            metrics.push(&RunLine { kind: "run", id, name, configuration })?;
            metrics.flush()?;
        }
        Ok((metrics, kept))
    }

    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        let StepRecord { epoch, step, scores, lr, images, loss_scale, skipped, clock } = *record;
        let (loss, top1, top5) = (scores.loss, scores.top1, scores.top5);
        let kind = "step";
        self.push(&StepLine { kind, epoch, step, loss, lr, top1, top5, images, loss_scale, skipped, clock })
    }

    pub fn epoch(&mut self, scores: &EpochScores, timestamp: &str) -> Result<()> {
        let (train, val) = (&scores.train, &scores.val);
        self.push(&EpochLine {
            kind: "epoch",
            epoch: scores.epoch,
            step: scores.step,
            train_loss: train.loss,
            train_top1: train.top1,
            train_top5: train.top5,
            val_loss: val.loss,
            val_top1: val.top1,
            val_top5: val.top5,
            clock: EpochClock { timestamp },
        })
    }

    fn push(&mut self, line: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.buffer, line).expect("plain fields, written to memory");
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        append("metrics", &mut self.file, &buffer)
            .map_err(|source| Error::output_file(&self.path, "write", &source))
    }

    /// Makes every line so far durable. Called before a checkpoint, so that no checkpoint is ahead of this file.
    pub fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.write()?;
        }
        failpoint::hit("metrics", "line_not_synced");
        self.file.sync_data().map_err(|source| Error::output_file(&self.path, "sync", &source))
    }
}

/// Appends bytes; the failpoint is where a kill leaves a torn line.
pub fn append(scope: &str, file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    file.write_all(head)?;
    failpoint::hit(scope, "half_line");
    file.write_all(tail)
}

fn cut<'a>(text: &'a [u8], id: &str, epochs: u32, step: u64) -> Cut<'a> {
    let mut cut = Cut {
        kept: Vec::new(),
        is_prefix: true,
        timestamps: BTreeMap::new(),
        last_step: 0,
        is_current: false,
    };
    let mut is_dropping = false;
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let parsed: Option<AnyLine> = serde_json::from_slice(line).ok();
        if let Some(owner) =
            parsed.as_ref().filter(|line| line.kind == "run").and_then(|line| line.id.as_ref())
        {
            cut.is_current = owner == id;
        }
        // Torn lines of other runs stay as they are, except at the end of the file, where ours would run on in them.
        let is_kept = match parsed {
            None => !cut.is_current && line.ends_with(b"\n"),
            Some(line) if cut.is_current => cut.keeps(&line, epochs, step),
            Some(_) => true,
        };
        if is_kept {
            cut.is_prefix &= !is_dropping;
            cut.kept.push(line);
        }
        is_dropping |= !is_kept;
    }
    cut
}

impl Cut<'_> {
    /// For a line of this run; remembers what it says.
    fn keeps(&mut self, line: &AnyLine, epochs: u32, step: u64) -> bool {
        match line.kind.as_str() {
            "step" => {
                let is_next = line.step.is_some_and(|s| s <= step && s > self.last_step);
                if is_next {
                    self.last_step = line.step.unwrap_or_default();
                }
                is_next
            }
            "epoch" => {
                let Some(epoch) = line.epoch.filter(|&epoch| epoch <= epochs) else { return false };
                let timestamp = line.clock.as_ref().and_then(|clock| clock.timestamp.clone());
                let is_first = !self.timestamps.contains_key(&epoch);
                self.timestamps.entry(epoch).or_insert(timestamp.unwrap_or_default());
                is_first && line.step.is_some_and(|s| s <= step)
            }
            _ => true,
        }
    }
}
