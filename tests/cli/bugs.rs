//! A panic is a bug in the program, and ends it like any other failure: exit code 1 and one last sentence.

use crate::common::{
    Done, assert_same, checkpoints, contents, epoch_lines, finish, temporary, tiny, tiny_whole,
};
use std::path::Path;

/// A training whose failpoint panics; `finish` would take the panic for a failed test.
fn panicking(output: &Path, failpoint: &str) -> Done {
    let output = tiny(output).env("ENGINE_FAILPOINT", failpoint).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn a_panic_is_exit_code_1_and_says_whose_fault_it_is() {
    let folder = temporary();
    let done = panicking(folder.path(), "train.step:10:panic").expect(1);
    assert!(done.err.contains("panicked at") && done.err.contains("failpoint train.step"), "{}", done.err);
    let last = done.err.lines().last().unwrap();
    assert!(last.starts_with("engine: this is a bug in engine") && last.contains("report it"), "{last}");
    assert_eq!(epoch_lines(folder.path()).len(), 1);
    assert!(!checkpoints(folder.path()).is_empty());
    finish(&mut tiny(folder.path())).expect(0);
    assert_same(&contents(folder.path()), tiny_whole(), "resumed after a panic");
}

/// On the thread that writes checkpoints: the run ends with what was written before.
#[test]
fn a_panic_on_another_thread_ends_the_run_as_well() {
    let folder = temporary();
    let done = panicking(folder.path(), "checkpoint.tmp_written:3:panic").expect(1);
    let last = done.err.lines().last().unwrap();
    assert!(last.starts_with("engine: ") && last.contains("bug in engine"), "{last}");
    finish(&mut tiny(folder.path())).expect(0);
    assert_same(&contents(folder.path()), tiny_whole(), "resumed after a panic of the writer");
}

#[test]
fn a_misspelt_failpoint_is_refused() {
    let folder = temporary();
    for bad in ["train.stop:1:panic", "train.step:0:panic", "train.step:x", "panic"] {
        let done = panicking(folder.path(), bad).expect(2);
        assert!(done.err.contains("NAME:N:panic"), "{bad}: {}", done.err);
    }
}
