//! Ending the process at once, from whichever thread finds that it must end.

use crate::error::Error;
use crate::terminal::message;
use std::io::Write;
use std::sync::Mutex;

type Words = Box<dyn Fn() -> String + Send>;

static LAST_WORDS: Mutex<Option<Words>> = Mutex::new(None);

/// Holds while the process is doing what its last words are about.
pub struct LastWords(());

impl LastWords {
    /// What [`leave`] adds to its error as long as this is held. The newest words count.
    pub fn new(words: impl Fn() -> String + Send + 'static) -> Self {
        *LAST_WORDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(Box::new(words));
        Self(())
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        *LAST_WORDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }
}

/// Says `error` and what the main thread would have added, and ends the process with the error's code.
pub fn leave(error: &Error) -> ! {
    // `try_lock`: whoever holds it may be the one that hangs.
    let words = LAST_WORDS.try_lock().ok().and_then(|words| words.as_ref().map(|words| words()));
    message(match words {
        Some(words) => format!("engine: {error}; {words}"),
        None => format!("engine: {error}"),
    });
    leave_silently(error.exit_code())
}

/// Ends the process without its exit handlers: the libraries of a card that is lost have some that may wait for it.
pub fn leave_silently(code: u8) -> ! {
    // What cannot be written has no reader any more.
    let _ = std::io::stdout().flush();
    signal_hook::low_level::exit(i32::from(code))
}
