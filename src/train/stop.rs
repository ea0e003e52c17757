//! Ctrl-C and SIGTERM: the first asks the run to save and stop, a second ends it at once.

use crate::error::{Error, Result};
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Exit code after a second signal: whether there is a checkpoint is not known then, so it is not 75.
const ENDED_AT_ONCE: i32 = 1;

/// Whether somebody asked to stop, or for a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    checkpoint: Arc<AtomicBool>,
    /// When the run first saw the request.
    seen: Arc<OnceLock<Instant>>,
    /// When the machine goes, where it said so.
    goes: Arc<OnceLock<Instant>>,
}

impl Stop {
    /// Listens to this process's signals.
    pub fn on_signals() -> Result<Self> {
        let stop = Self::default();
        let cannot = |signal, error| Error::failed(format!("cannot listen to signal {signal}: {error}"));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset and sets it, the second one finds it set.
            flag::register_conditional_shutdown(signal, ENDED_AT_ONCE, Arc::clone(&stop.requested))
                .and_then(|_| flag::register(signal, Arc::clone(&stop.requested)))
                .map_err(|error| cannot(signal, error))?;
        }
        Ok(stop)
    }

    pub fn requested(&self) -> bool {
        let requested = self.requested.load(Ordering::Relaxed);
        if requested {
            self.seen.get_or_init(Instant::now);
        }
        requested
    }

    /// What is left of `grace` since the request was first seen, and of the machine's own time.
    pub fn time_left(&self, grace: Duration) -> Duration {
        let end = *self.seen.get_or_init(Instant::now) + grace;
        let end = self.goes.get().map_or(end, |goes| end.min(*goes));
        end.saturating_duration_since(Instant::now())
    }

    /// What the first signal does.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Relaxed);
    }

    /// The machine goes after `time`.
    pub fn request_within(&self, time: Duration) {
        self.goes.get_or_init(|| Instant::now() + time);
        self.request();
    }

    /// A checkpoint soon, without stopping.
    pub fn ask_for_checkpoint(&self) {
        self.checkpoint.store(true, Ordering::Relaxed);
    }

    /// Whether one was asked for since the last time.
    pub fn takes_checkpoint_request(&self) -> bool {
        self.checkpoint.swap(false, Ordering::Relaxed)
    }
}
