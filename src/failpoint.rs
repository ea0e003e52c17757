//! Places where a test kills the process, to prove that nothing is lost there.
//!
//! With `ENGINE_FAILPOINT=NAME` in the environment the process aborts the first time it reaches NAME, with `NAME:3`
//! the third time: no destructor runs and no buffer is flushed, as under SIGKILL. Without the variable a point costs one
//! atomic load. [`ALL`] is the list of names.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// `SCOPE.STAGE` of every point. Each atomic write has the four stages of [`crate::files::write_atomically`] under its
/// own scope (`checkpoint`, `logs_md`, `metrics`, `curve`, `export`, `run_json`).
pub const ALL: &[&str] = &[
    // Of an atomic write: the scope is put in front.
    "tmp_half_written",
    "tmp_written",
    "tmp_synced",
    "renamed",
    // checkpoint::store, after the new checkpoint is whole.
    "checkpoint.before_retention",
    "checkpoint.between_deletes",
    "checkpoint.before_links",
    "checkpoint.between_links",
    // log: an appended line.
    "logs_md.half_line",
    "logs_md.line_not_synced",
    "metrics.half_line",
    "metrics.line_not_synced",
    "log.between_files",
    // train: after a step, before anything is written about it.
    "train.step",
];

struct Armed {
    name: String,
    /// The hit that kills, counted from 1.
    at: u64,
    hits: AtomicU64,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var("ENGINE_FAILPOINT").ok()?)).as_ref()
}

/// A misspelt point would make a crash test pass without a crash, so it ends the process at once.
fn parse(text: &str) -> Option<Armed> {
    let (name, at) = match text.split_once(':') {
        Some((name, at)) => (name, at.parse().ok().filter(|&at| at > 0)),
        None => (text, Some(1)),
    };
    let stage = name.split_once('.').map_or(name, |(_, stage)| stage);
    match at {
        Some(at) if ALL.contains(&name) || ALL[..4].contains(&stage) => {
            Some(Armed { name: name.to_owned(), at, hits: AtomicU64::new(0) })
        }
        _ => {
            eprintln!("ENGINE_FAILPOINT={text}: want NAME or NAME:N, NAME one of {}", ALL.join(", "));
            std::process::exit(2);
        }
    }
}

/// Kills the process here if `SCOPE.STAGE` is armed and this is its N-th hit.
pub fn hit(scope: &str, stage: &str) {
    let Some(armed) = armed() else { return };
    let is_here = armed.name.split_once('.').is_some_and(|(s, t)| s == scope && t == stage);
    if is_here && armed.hits.fetch_add(1, Ordering::Relaxed) + 1 == armed.at {
        eprintln!("failpoint {scope}.{stage}: aborting");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn names_and_counts() {
        let one = parse("checkpoint.between_deletes").unwrap();
        assert_eq!((one.name.as_str(), one.at), ("checkpoint.between_deletes", 1));
        let third = parse("curve.tmp_synced:3").unwrap();
        assert_eq!((third.name.as_str(), third.at), ("curve.tmp_synced", 3));
    }
}
