//! Calls of the driver that do not come back.
//!
//! What a pass does is waited for with questions that return at once ([`crate::backend::cuda::patience`]). Some calls wait
//! by themselves: a copy, memory taken or freed, a queue that is full, the end of everything. Where a card falls silent in
//! one of these, the thread that uses it never runs again; another one ends the process, as [`leave`] does, with the exit
//! code of a lost device. It watches every call that [`super::trace`] can show, and, with more patience, whatever makes a
//! card ready: compiling kernels and searching algorithms take their time.

use crate::backend::cuda::patience::Patience;
use crate::error::Error;
use crate::leave::leave;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// For what makes a card ready: some hundred algorithms are tried, each in milliseconds, and some megabyte of PTX is
/// compiled.
pub const SETUP: Duration = Duration::from_secs(600);

/// How often the calls are looked at.
const PAUSE: Duration = Duration::from_millis(500);

/// A call that has not come back.
#[derive(Debug, Clone)]
struct Call {
    id: u64,
    name: &'static str,
    began: Instant,
    limit: Duration,
}

/// The calls under way, of all threads; what is outside comes before what it calls.
#[derive(Debug)]
struct Calls {
    next: u64,
    list: Vec<Call>,
}

impl Calls {
    const fn new() -> Self {
        Self { next: 0, list: vec![] }
    }

    fn begin(&mut self, name: &'static str, limit: Duration) -> u64 {
        self.next += 1;
        self.list.push(Call { id: self.next, name, began: Instant::now(), limit });
        self.next
    }

    fn end(&mut self, id: u64) {
        self.list.retain(|call| call.id != id);
    }

    /// The innermost call that is over its limit.
    fn late(&self, now: Instant) -> Option<Error> {
        let late = |call: &&Call| now.saturating_duration_since(call.began) > call.limit;
        self.list.iter().rev().find(late).map(|Call { name, limit, .. }| {
            Error::device(format!(
                "the card has not answered for {:.0} s: the driver does not return from \"{name}\"",
                limit.as_secs_f64()
            ))
        })
    }
}

static CALLS: Mutex<Calls> = Mutex::new(Calls::new());

fn calls() -> std::sync::MutexGuard<'static, Calls> {
    // Nothing that holds it can panic halfway.
    CALLS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs a call that may wait for the card, for as long as one pass may take.
pub(super) fn watched<T>(name: &'static str, call: impl FnOnce() -> T) -> T {
    watched_for(name, Patience::of_a_pass().limit, call)
}

/// The same with another limit.
pub(super) fn watched_for<T>(name: &'static str, limit: Duration, call: impl FnOnce() -> T) -> T {
    /// Ends the watch where the call panics as well.
    struct Watch(u64);
    impl Drop for Watch {
        fn drop(&mut self) {
            calls().end(self.0);
        }
    }
    let _watch = Watch(calls().begin(name, limit));
    call()
}

/// Starts the thread that looks at them, once in a process.
pub(super) fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // Without a thread for it there is no watchdog; everything else goes on.
        let _ = std::thread::Builder::new().name("watchdog".to_owned()).spawn(|| {
            loop {
                std::thread::sleep(PAUSE);
                let late = calls().late(Instant::now());
                if let Some(error) = late {
                    leave(&error);
                }
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn the_innermost_call_over_its_limit_is_named() {
        let mut calls = Calls::new();
        let outer = calls.begin("make a plan ready", SETUP);
        let inner = calls.begin("copy from card", Duration::from_secs(50));
        let after = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert!(calls.late(after(49)).is_none());
        let error = calls.late(after(51)).unwrap();
        assert_eq!((error.kind, error.exit_code()), (Kind::Device, 70));
        assert!(error.message.contains("50 s") && error.message.contains("copy from card"), "{error}");
        calls.end(inner);
        assert!(calls.late(after(51)).is_none(), "what has come back is not late");
        assert!(calls.late(after(601)).unwrap().message.contains("make a plan ready"));
        calls.end(outer);
        assert!(calls.late(after(10_000)).is_none());
    }

    #[test]
    fn a_call_that_panics_is_no_longer_watched() {
        let here = "a call of this test";
        let panics = || watched(here, || panic!("as asked"));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(watched(here, || calls().list.iter().any(|call| call.name == here)));
        assert!(calls().list.iter().all(|call| call.name != here));
    }
}
