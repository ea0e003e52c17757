//! Saving while training goes on.

use std::path::PathBuf;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::format::Checkpoint;
use super::store::{Position, Store};
use crate::error::{Error, Result};
use crate::terminal;

/// A checkpoint that is durable.
#[derive(Debug, Clone)]
pub struct Saved {
    pub at: Position,
    /// The best one by then.
    pub best: Option<Position>,
    pub path: PathBuf,
    pub took: Duration,
}

/// Writes at most one checkpoint at a time on a thread of its own.
#[derive(Debug)]
pub struct BackgroundWriter {
    store: Store,
    in_flight: Option<JoinHandle<Result<Saved>>>,
}

impl BackgroundWriter {
    pub fn new(store: Store) -> Self {
        Self { store, in_flight: None }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Hands a snapshot over. Waits for the save before it, answers what that one saved, and fails if it failed; then the
    /// new snapshot is not written.
    pub fn submit(
        &mut self,
        at: Position,
        checkpoint: Checkpoint,
        best: Option<Position>,
    ) -> Result<Option<Saved>> {
        let before = self.wait()?;
        let store = self.store.clone();
        let write = move || {
            let start = Instant::now();
            let path = store.save(at, &checkpoint, best)?;
            Ok(Saved { at, best, path, took: start.elapsed() })
        };
        let thread = Builder::new().name("checkpoint".into()).spawn(write);
        self.in_flight =
            Some(thread.map_err(|source| Error::failed(format!("cannot start a thread: {source}")))?);
        Ok(before)
    }

    /// Whether a save is still going on: `submit` would wait.
    pub fn is_busy(&self) -> bool {
        self.in_flight.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Whether a save has ended that nobody has waited for yet.
    pub fn has_ended(&self) -> bool {
        self.in_flight.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Waits for the save in flight, if there is one.
    pub fn wait(&mut self) -> Result<Option<Saved>> {
        match self.in_flight.take() {
            None => Ok(None),
            Some(thread) => thread
                .join()
                .unwrap_or_else(|_| {
                    Err(Error::failed("the thread that writes checkpoints panicked: this is a bug in engine; please report it with the lines above"))
                })
                .map(Some),
        }
    }
}

impl Drop for BackgroundWriter {
    /// A save that has begun is finished. Its error was for [`Self::wait`]; here there is nobody left to tell but stderr.
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            terminal::message(error);
        }
    }
}
