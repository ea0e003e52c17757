//! A folder of checkpoints: `e0003-s00015012.safetensors` is the one after 3 whole epochs and 15,012 optimiser steps.
//!
//! After a save the folder keeps the newest few, the best, and one every so many epochs; `last.safetensors` and
//! `best.safetensors` are hard links to two of them. Nothing is removed before the new checkpoint is whole and durable.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::format::Checkpoint;
use crate::error::{Error, Result};
use crate::{failpoint, files};

const ENDING: &str = ".safetensors";
const POSITION: &str = "engine.position";
/// Put after the name of a checkpoint that a resume passed over.
const SET_ASIDE: &str = ".aside";

/// Where in training a checkpoint was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Completed epochs.
    pub epoch: u32,
    /// Optimiser steps since the beginning of the run.
    pub step: u64,
    /// Taken at the end of epoch `epoch`, before the first step of the next.
    pub epoch_end: bool,
}

impl Position {
    /// Before the first step: a resume from here sets every checkpoint aside.
    pub const START: Self = Self { epoch: 0, step: 0, epoch_end: false };

    /// After every step.
    pub const LAST: Self = Self { epoch: u32::MAX, step: u64::MAX, epoch_end: false };

    pub fn file_name(&self) -> String {
        format!("e{:04}-s{:08}{ENDING}", self.epoch, self.step)
    }

    fn is_at(&self, place: (u32, u64)) -> bool {
        (self.epoch, self.step) == place
    }
}

/// (epoch, step) of a checkpoint's file name.
fn parse_name(name: &str) -> Option<(u32, u64)> {
    let (epoch, step) = name.strip_suffix(ENDING)?.strip_prefix('e')?.split_once("-s")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(epoch) && is_number(step)).then_some(())?;
    Some((epoch.parse().ok()?, step.parse().ok()?))
}

/// A checkpoint that verified.
#[derive(Debug)]
pub struct Found {
    pub path: PathBuf,
    pub at: Position,
    pub checkpoint: Checkpoint,
}

impl Found {
    /// Reads one file, as `--resume PATH` does. The position comes from the file, not from its name.
    pub fn read(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::read(path)?;
        let at = position_of(path, &checkpoint.metadata)?;
        Ok(Self { path: path.to_owned(), at, checkpoint })
    }
}

fn position_of(path: &Path, metadata: &std::collections::BTreeMap<String, String>) -> Result<Position> {
    let text = metadata.get(POSITION).map_or("nothing", String::as_str);
    serde_json::from_str(text).map_err(|_| {
        let reason = format!("{POSITION} is {text}, wanted epoch and step; it is not a training checkpoint");
        Error::input_file(path, reason)
    })
}

/// What [`Store::newest`] found, and a sentence for each file that it passed over.
#[derive(Debug, Default)]
pub struct Search {
    pub found: Option<Found>,
    pub passed_over: Vec<String>,
}

/// A folder of checkpoints and its retention.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    keep: usize,
    keep_every_epochs: u32,
}

impl Store {
    /// Creates the folder. The newest `keep` checkpoints stay, at least 2: the last one may turn out damaged. Those at the end of
    /// every `keep_every_epochs`-th epoch stay as well; 0 for none of them.
    pub fn open(folder: &Path, keep: usize, keep_every_epochs: u32) -> Result<Self> {
        files::create_folder(folder)?;
        Ok(Self { folder: folder.to_owned(), keep: keep.max(2), keep_every_epochs })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn path(&self, at: Position) -> PathBuf {
        self.folder.join(at.file_name())
    }

    /// Writes a checkpoint durably, then tidies up: retention, `last` and `best`. `best` is the position of the best
    /// checkpoint so far, which may be `at`.
    pub fn save(&self, at: Position, checkpoint: &Checkpoint, best: Option<Position>) -> Result<PathBuf> {
        let path = self.path(at);
        let position = serde_json::to_string(&at).expect("three plain fields");
        checkpoint.write(&path, &[(POSITION, &position)])?;
        failpoint::hit("checkpoint", "before_retention");
        self.tidy(at, best)?;
        Ok(path)
    }

    /// The newest checkpoint that verifies. `last` and `best` are looked at after the numbered files, for folders into
    /// which only they were copied. Nothing found but something passed over is no new run: the caller refuses to begin one.
    pub fn newest(&self) -> Result<Search> {
        let mut search = Search::default();
        let numbered = self.present()?.into_iter().map(|(_, path)| path);
        let named = ["last", "best"].map(|name| self.folder.join(format!("{name}{ENDING}")));
        for path in numbered.chain(named.into_iter().filter(|path| path.exists())) {
            match Found::read(&path) {
                Ok(found) => {
                    search.found = Some(found);
                    break;
                }
                Err(error) => search.passed_over.push(format!("passed over {error}")),
            }
        }
        Ok(search)
    }

    /// To be called once a resume has chosen its checkpoint: later ones (damaged, or of a future that is now given up) are
    /// renamed to `NAME.aside`, so that no later resume takes them, and what a killed save left undone is done.
    /// Answers a sentence for each file set aside.
    pub fn resume_at(&self, at: Position, best: Option<Position>) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        self.unlink_later(at)?;
        for ((epoch, step), path) in self.present()? {
            if (step, epoch) <= (at.step, at.epoch) {
                continue;
            }
            set_aside(&path)?;
            notes.push(format!(
                "{} is later than the step {} that training goes on from; renamed to {}{SET_ASIDE}, delete it at will",
                path.display(),
                at.step,
                path.file_name().unwrap_or_default().to_string_lossy()
            ));
        }
        self.tidy(at, best)?;
        Ok(notes)
    }

    /// `last` and `best` of a future that is given up go with it, or a later resume would take them once the numbered files
    /// are gone. What is a link of a numbered file loses a name, anything else is set aside.
    fn unlink_later(&self, at: Position) -> Result<()> {
        let numbered = self.present()?;
        for name in ["last", "best"] {
            let link = self.folder.join(format!("{name}{ENDING}"));
            let position =
                Checkpoint::read_metadata(&link).and_then(|metadata| position_of(&link, &metadata));
            match position {
                Ok(position) if (position.step, position.epoch) <= (at.step, at.epoch) => {}
                _ if !link.exists() => {}
                _ if numbered.iter().any(|(_, path)| is_same_file(path, &link)) => files::remove(&link)?,
                _ => set_aside(&link)?,
            }
        }
        Ok(())
    }

    /// Retention, links, stale temporaries. Everything here can be done again after a kill at any place.
    fn tidy(&self, at: Position, best: Option<Position>) -> Result<()> {
        let links = ["last", "best"].map(|name| format!("{name}{ENDING}"));
        files::remove_temporaries(&self.folder, |name| {
            parse_name(name).is_some() || links.iter().any(|link| link == name)
        })?;
        let present = self.present()?;
        let mut newer = 0;
        for &((epoch, step), ref path) in &present {
            // A file later than `at` is none of this run's: it neither counts nor goes.
            if (step, epoch) > (at.step, at.epoch) {
                continue;
            }
            newer += 1;
            // Only the file knows whether it is an epoch's end.
            let is_epoch_end = || self.position(path).is_ok_and(|position| position.epoch_end);
            if !self.keeps(newer, (epoch, step), best, is_epoch_end) {
                files::remove(path)?;
                failpoint::hit("checkpoint", "between_deletes");
            }
        }
        failpoint::hit("checkpoint", "before_links");
        self.link("last", at)?;
        failpoint::hit("checkpoint", "between_links");
        if let Some(best) = best {
            self.link("best", best)?;
        }
        files::sync_folder(&self.folder).map_err(|source| Error::output_file(&self.folder, "sync", &source))
    }

    /// Whether retention leaves the `nth` newest checkpoint, from 1, which was taken at (epoch, step).
    pub fn keeps(
        &self,
        nth: usize,
        (epoch, step): (u32, u64),
        best: Option<Position>,
        is_epoch_end: impl FnOnce() -> bool,
    ) -> bool {
        let is_kept_epoch =
            self.keep_every_epochs > 0 && epoch > 0 && epoch.is_multiple_of(self.keep_every_epochs);
        let is_best = best.is_some_and(|best| best.is_at((epoch, step)));
        nth <= self.keep || is_best || is_kept_epoch && is_epoch_end()
    }

    /// Where in training a file was taken, by its head.
    pub fn position(&self, path: &Path) -> Result<Position> {
        position_of(path, &Checkpoint::read_metadata(path)?)
    }

    /// Points `NAME.safetensors` at a checkpoint, in one rename. A hard link takes no space and survives retention; file
    /// systems without them get a copy.
    fn link(&self, name: &str, at: Position) -> Result<()> {
        let (source, link) = (self.path(at), self.folder.join(format!("{name}{ENDING}")));
        if !source.exists() || is_same_file(&source, &link) {
            return Ok(());
        }
        let temporary =
            self.folder.join(format!("{name}{ENDING}.{}{}", std::process::id(), files::TEMPORARY));
        // A copy onto a left-over hard link would write into the checkpoint itself.
        files::remove(&temporary)?;
        let result = fs::hard_link(&source, &temporary)
            .or_else(|_| fs::copy(&source, &temporary).and_then(|_| fs::File::open(&temporary)?.sync_all()))
            .and_then(|()| fs::rename(&temporary, &link));
        // Renaming one link of a file onto another does nothing and leaves both (POSIX rename).
        let _ = fs::remove_file(&temporary);
        result.map_err(|source| Error::output_file(&link, "write", &source))
    }

    /// Checkpoints by their names, as (epoch, step), newest first.
    pub fn present(&self) -> Result<Vec<((u32, u64), PathBuf)>> {
        let mut present: Vec<_> = self
            .names()?
            .iter()
            .filter_map(|name| Some((parse_name(name)?, self.folder.join(name))))
            .collect();
        present.sort_by_key(|((epoch, step), _)| Reverse((*step, *epoch)));
        Ok(present)
    }

    fn names(&self) -> Result<Vec<String>> {
        let cannot = |source| Error::input_file(&self.folder, format!("cannot list: {source}"));
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(cannot)? {
            names.extend(entry.map_err(cannot)?.file_name().into_string().ok());
        }
        Ok(names)
    }
}

fn set_aside(path: &Path) -> Result<()> {
    let mut aside = path.to_owned().into_os_string();
    aside.push(SET_ASIDE);
    fs::rename(path, &aside).map_err(|source| Error::output_file(path, "rename", &source))
}

#[cfg(unix)]
fn is_same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    id(a).is_some() && id(a) == id(b)
}

#[cfg(not(unix))]
fn is_same_file(_: &Path, _: &Path) -> bool {
    false
}
