//! A checkpoint ahead of the log, behind it, and logs that somebody removed or edited.

use crate::common::{
    assert_same, checkpoints, contents, copy, epoch_lines, finish, temporary, tiny, tiny_whole,
};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn interrupted() -> TempDir {
    let folder = temporary();
    assert_eq!(finish(tiny(folder.path()).env("ENGINE_FAILPOINT", "train.step:20")).code, None);
    folder
}

fn logs(output: &Path) -> String {
    fs::read_to_string(output.join("logs.md")).unwrap()
}

#[test]
fn behind_the_log() {
    let folder = interrupted();
    // Down to the best one, of the first epoch's end, each time one less.
    while checkpoints(folder.path()).len() > 1 {
        fs::remove_file(checkpoints(folder.path()).last().unwrap()).unwrap();
        let copied = copy(folder.path());
        // `last` still has the bytes that lost their name.
        fs::remove_file(copied.path().join("checkpoints/last.safetensors")).unwrap();
        finish(&mut tiny(copied.path())).expect(0);
        assert_same(&contents(copied.path()), tiny_whole(), "a checkpoint removed");
    }
}

#[test]
fn ahead_of_the_log() {
    let folder = interrupted();
    fs::remove_file(folder.path().join("logs.md")).unwrap();
    finish(&mut tiny(folder.path())).expect(0);
    assert_same(&contents(folder.path()), tiny_whole(), "logs.md removed");

    let folder = interrupted();
    let cut = logs(folder.path()).replace("epoch: 2  ", "epoch: 2  tra\n");
    fs::write(folder.path().join("logs.md"), cut.split("epoch: 2  ").next().unwrap()).unwrap();
    finish(&mut tiny(folder.path())).expect(0);
    assert_same(&contents(folder.path()), tiny_whole(), "a line removed");

    let folder = interrupted();
    fs::remove_file(folder.path().join("metrics.jsonl")).unwrap();
    let done = finish(&mut tiny(folder.path())).expect(0);
    assert!(done.err.contains("warning: ") && done.err.contains("metrics.jsonl"), "{}", done.err);
    assert_eq!(contents(folder.path())["logs.md"], tiny_whole()["logs.md"]);
    assert_eq!(contents(folder.path())["last.safetensors"], tiny_whole()["last.safetensors"]);
}

#[test]
fn edited() {
    let folder = interrupted();
    let edited =
        logs(folder.path()).replace("epoch: 1  train_loss: ", "epoch: 1  train_loss: 9") + "\na thought\n";
    fs::write(folder.path().join("logs.md"), edited).unwrap();
    finish(&mut tiny(folder.path())).expect(0);
    let text = logs(folder.path());
    let want = String::from_utf8(tiny_whole()["logs.md"].clone()).unwrap();
    let want: Vec<&str> = want.lines().filter(|line| line.starts_with("epoch: ")).collect();
    assert_eq!(epoch_lines(folder.path()), want, "{text}");
    assert!(text.contains("a thought"), "{text}");
}

/// A finished run repairs its logs, and otherwise changes nothing.
#[test]
fn of_a_finished_run() {
    let folder = temporary();
    finish(&mut tiny(folder.path())).expect(0);
    let before = logs(folder.path());
    let done = finish(&mut tiny(folder.path())).expect(0);
    assert!(done.err.contains("finished: 4 epochs") && done.out.is_empty(), "{done:?}");
    assert_eq!(logs(folder.path()), before);
    fs::remove_file(folder.path().join("logs.md")).unwrap();
    finish(&mut tiny(folder.path())).expect(0);
    assert_same(&contents(folder.path()), tiny_whole(), "logs.md of a finished run removed");
}

#[test]
fn checkpoints_removed() {
    let folder = temporary();
    finish(&mut tiny(folder.path())).expect(0);
    fs::remove_dir_all(folder.path().join("checkpoints")).unwrap();
    let done = finish(&mut tiny(folder.path())).expect(0);
    assert!(done.err.contains("warning: ") && done.err.contains("beginning anew"), "{}", done.err);
    assert_eq!(epoch_lines(folder.path()).len(), 8, "{}", logs(folder.path()));
}
