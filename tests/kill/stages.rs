//! A kill at every stage of a save and of a log append, through `ENGINE_FAILPOINT`.

use crate::common::{STEPS, assert_same, contents, finish, temporary, tiny, tiny_whole};
use engine::failpoint;
use std::path::Path;

/// Whether the process died there; where it did not, it finished.
fn dies(output: &Path, failpoint: &str) -> bool {
    let done = finish(tiny(output).env("ENGINE_FAILPOINT", failpoint));
    assert!(done.code.is_none_or(|code| code == 0), "{failpoint}: {}", done.err);
    done.code.is_none()
}

#[track_caller]
fn ends_the_same(failpoints: &[&str]) {
    let folder = temporary();
    for failpoint in failpoints {
        assert!(dies(folder.path(), failpoint), "{failpoint} of {failpoints:?}");
    }
    let done = finish(&mut tiny(folder.path())).expect(0);
    assert!(!done.err.contains("warning"), "a kill leaves nothing to warn of: {}", done.err);
    assert_same(&contents(folder.path()), tiny_whole(), &format!("{failpoints:?}"));
}

#[test]
fn every_stage() {
    let scopes = ["checkpoint", "logs_md", "metrics", "curve", "run_json", "config"];
    let staged = failpoint::ALL[..4].iter().flat_map(|stage| scopes.map(|scope| format!("{scope}.{stage}")));
    let plain = failpoint::ALL[4..].iter().map(|name| (*name).to_owned());
    let mut kills = 0;
    for name in staged.chain(plain) {
        let folder = temporary();
        let here = [3, 1, 2].iter().filter(|n| dies(folder.path(), &format!("{name}:{n}"))).count();
        // Written whole once a run: logs.md is appended to, metrics.jsonl is only cut.
        let is_rare =
            ["logs_md.", "metrics.", "config.", "run_json."].iter().any(|scope| name.starts_with(scope));
        assert!(here >= 2 || is_rare, "{name}: {here}");
        finish(&mut tiny(folder.path())).expect(0);
        assert_same(&contents(folder.path()), tiny_whole(), &name);
        kills += here;
    }
    println!("{kills} kills");
    assert!(kills >= 50, "{kills}");
}

#[test]
fn twice_within_an_epoch() {
    ends_the_same(&["train.step:3", "train.step:2", "train.step:9", "train.step:2"]);
}

#[test]
fn before_the_first_checkpoint() {
    ends_the_same(&["train.step:1", "checkpoint.tmp_half_written:1", "train.step:2"]);
}

#[test]
fn at_the_ends_of_epochs() {
    let last_step = format!("train.step:{STEPS}");
    ends_the_same(&[&last_step, "logs_md.half_line:1", "log.between_files:1", "metrics.half_line:2"]);
    ends_the_same(&["logs_md.line_not_synced:1", "logs_md.line_not_synced:2", "curve.tmp_written:1"]);
}

/// The checkpoint of an epoch's end is whole, the one of its middle and the links are not tidied up.
#[test]
fn between_a_checkpoint_and_its_links() {
    ends_the_same(&[
        "checkpoint.before_links:4",
        "checkpoint.between_links:3",
        "checkpoint.before_retention:5",
    ]);
}
