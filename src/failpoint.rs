//! Places where a test kills the process, to prove that nothing is lost there.
//!
//! With `ENGINE_FAILPOINT=NAME` in the environment the process aborts the first time it reaches NAME, with `NAME:3`
//! the third time: no destructor runs and no buffer is flushed, as under SIGKILL. With `NAME:3:panic` it panics there
//! instead, as where the program has a bug. Without the variable a point costs one atomic load. [`ALL`] and [`REMOTE`]
//! are the lists of names.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// `SCOPE.STAGE` of every point. The first four are the stages of [`crate::files::write_atomically`], under the scope of the
/// file: `checkpoint`, `logs_md`, `metrics`, `curve`, `export`, or what a caller gives.
pub const ALL: &[&str] = &[
    // About half of the bytes handed to the system.
    "tmp_half_written",
    // All of them, none synced.
    "tmp_written",
    // Durable under the temporary name.
    "tmp_synced",
    // Under its own name; the folder is not synced.
    "renamed",
    // The new checkpoint is whole and durable, the folder as it was before.
    "checkpoint.before_retention",
    // After each removal of an old one.
    "checkpoint.between_deletes",
    // `last` and `best` still point at the checkpoints before.
    "checkpoint.before_links",
    // `last` is new, `best` is not.
    "checkpoint.between_links",
    // An appended line, torn in the middle; whole but not synced.
    "logs_md.half_line",
    "logs_md.line_not_synced",
    "metrics.half_line",
    "metrics.line_not_synced",
    // The epoch is in logs.md, not in metrics.jsonl.
    "log.between_files",
    // After an optimiser step, before anything is written about it.
    "train.step",
];

/// Between a run and its bucket, where one is given.
pub const REMOTE: &[&str] = &[
    // A checkpoint is in the bucket, its manifest names it not yet.
    "remote.uploaded",
    // The manifest is new, what it names no longer is still there.
    "remote.published",
    // After each removal.
    "remote.removed",
];

struct Armed {
    name: String,
    /// The hit that kills, counted from 1.
    at: u64,
    panics: bool,
    hits: AtomicU64,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var("ENGINE_FAILPOINT").ok()?)).as_ref()
}

/// A misspelt point would make a crash test pass without a crash, so it ends the process at once.
fn parse(text: &str) -> Option<Armed> {
    let (hit, panics) = match text.strip_suffix(":panic") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (name, at) = match hit.split_once(':') {
        Some((name, at)) => (name, at.parse().ok().filter(|&at| at > 0)),
        None => (hit, Some(1)),
    };
    let stage = name.split_once('.').map_or(name, |(_, stage)| stage);
    match at {
        Some(at) if ALL.contains(&name) || REMOTE.contains(&name) || ALL[..4].contains(&stage) => {
            Some(Armed { name: name.to_owned(), at, panics, hits: AtomicU64::new(0) })
        }
        _ => {
            eprintln!(
                "ENGINE_FAILPOINT={text}: want NAME, NAME:N or NAME:N:panic, NAME one of {}, {}",
                ALL.join(", "),
                REMOTE.join(", ")
            );
            std::process::exit(2);
        }
    }
}

/// Kills the process here if `SCOPE.STAGE` is armed and this is its N-th hit.
pub fn hit(scope: &str, stage: &str) {
    let Some(armed) = armed() else { return };
    let is_here = armed.name.split_once('.').is_some_and(|(s, t)| s == scope && t == stage);
    if is_here && armed.hits.fetch_add(1, Ordering::Relaxed) + 1 == armed.at {
        assert!(!armed.panics, "failpoint {scope}.{stage}");
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
        assert_eq!((third.name.as_str(), third.at, third.panics), ("curve.tmp_synced", 3, false));
        let bug = parse("train.step:2:panic").unwrap();
        assert_eq!((bug.name.as_str(), bug.at, bug.panics), ("train.step", 2, true));
    }
}
