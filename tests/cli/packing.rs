//! `engine data pack` as people meet it: killed anywhere, stopped, asked for too much.

use crate::common::{contents, data, engine, finish, path, run, signal, temporary, wait_until};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// 60 + 20 pictures in shards of 16, shrunk.
fn pack(output: &Path) -> Command {
    let args = ["--shorter-side", "24", "--per-shard", "16", "--threads", "2"];
    let mut command = engine(["data", "pack", path(data()), "--output", path(output)]);
    command.args(args);
    command
}

/// What a run leaves, without the lock.
fn left(output: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(output)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .filter(|(name, _)| name != ".engine.lock")
        .collect();
    files.sort();
    files
}

#[test]
fn what_is_packed_is_counted_and_read_back() {
    let folder = temporary();
    let done = finish(&mut pack(folder.path())).expect(0);
    let lines: Vec<&str> = done.out.lines().collect();
    assert!(lines[0].starts_with("train: 60 pictures in 4 shards, 0."), "{}", done.out);
    assert!(lines[1].starts_with("val: 20 pictures in 2 shards, 0."), "{}", done.out);
    assert_eq!(lines[2], format!("{}: 80 pictures read back and decoded", path(folder.path())));
    assert!(done.err.is_empty(), "{}", done.err);
    let info = run(&["data", "info", path(folder.path())]).expect(0).out;
    assert!(info.contains("train: 60 images (60 JPEG)") && info.contains("width 24 / 24 / 24"), "{info}");
    assert!(info.contains("10 classes: "), "{info}");
    run(&["data", "check", path(folder.path())]).expect(0);
    // A run that has ended says the same again, at once.
    assert_eq!(finish(&mut pack(folder.path())).expect(0).out, done.out);
}

#[test]
fn killed_anywhere_it_goes_on_to_the_same_bytes() {
    let whole = temporary();
    finish(&mut pack(whole.path())).expect(0);
    let want = left(whole.path());
    assert_eq!(want.len(), 4 + 2 + 3);
    for point in [
        "pack_json.tmp_half_written",
        "pack_json.renamed",
        "classes.tmp_synced",
        "shard.tmp_written",
        "shard.tmp_synced:3",
        "shard.renamed",
        "shard.renamed:6",
        "packed_json.tmp_written",
    ] {
        let folder = temporary();
        let killed = pack(folder.path()).env("ENGINE_FAILPOINT", point).output().unwrap();
        assert_eq!(killed.status.code(), None, "{point}: {}", String::from_utf8_lossy(&killed.stderr));
        finish(&mut pack(folder.path())).expect(0);
        assert!(left(folder.path()) == want, "killed at {point}");
    }
    // And at moments that nobody chose.
    for milliseconds in [5, 20, 40, 60, 90, 130] {
        let folder = temporary();
        let mut child = pack(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        // It may have ended.
        let _ = child.kill();
        child.wait().unwrap();
        finish(&mut pack(folder.path())).expect(0);
        assert!(left(folder.path()) == want, "killed after {milliseconds} ms");
    }
}

#[test]
fn a_signal_ends_it_with_75() {
    let folder = temporary();
    let source = folder.path().join("source");
    let output = folder.path().join("packed");
    run(&["data", "synth", path(&source), "--train-per-class", "150", "--val-per-class", "1"]).expect(0);
    let pack = || {
        let mut command = engine(["data", "pack", path(&source), "-o", path(&output), "--per-shard", "32"]);
        command.args(["--shorter-side", "64", "--threads", "1"]);
        command
    };
    let child = pack().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("a shard", || output.join("train-000000.tar").exists());
    signal(&child, "INT");
    let ended = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(75), "{err}");
    assert!(
        err.contains("stopped on request; the shards in") && err.contains("run the same command again"),
        "{err}"
    );
    assert!(left(&output).iter().all(|(name, _)| !name.ends_with(".tmp")));
    finish(&mut pack()).expect(0);
    let info = run(&["data", "info", path(&output)]).expect(0).out;
    assert!(info.contains("train: 1500 images"), "{info}");
}

#[test]
fn a_request_that_cannot_be_is_refused() {
    let folder = temporary();
    let source = temporary();
    finish(&mut engine(["data", "pack", path(source.path()), "-o", path(folder.path())]))
        .fails(3, &[path(source.path())]);
    finish(pack(folder.path()).args(["--quality", "0"])).expect(2);
    finish(&mut pack(folder.path())).expect(0);
    let before = contents(folder.path());
    finish(pack(folder.path()).args(["--quality", "80"]))
        .fails(2, &["quality: 90 there, 80 here", "choose another --output"]);
    assert!(contents(folder.path()) == before);
}
