//! Checkpoints that are cut off or altered: passed over loudly, and the older one used.

use crate::common::{
    assert_same, checkpoints, contents, copy, epoch_lines, finish, path, temporary, tiny, tiny_whole,
};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A run killed in its third epoch, with two numbered checkpoints and the best.
fn interrupted() -> TempDir {
    let folder = temporary();
    assert_eq!(finish(tiny(folder.path()).env("ENGINE_FAILPOINT", "train.step:20")).code, None);
    folder
}

/// Goes on from a copy of the folder whose newest checkpoint `damage` has changed.
#[track_caller]
fn goes_on_from_the_older(folder: &Path, what: &str, damage: impl FnOnce(&mut Vec<u8>)) {
    let copied = copy(folder);
    let present = checkpoints(copied.path());
    let newest = present.last().unwrap();
    let mut bytes = fs::read(newest).unwrap();
    damage(&mut bytes);
    fs::write(newest, bytes).unwrap();
    let done = finish(&mut tiny(copied.path())).expect(0);
    let name = newest.file_name().unwrap().to_str().unwrap();
    let warning = done.err.lines().find(|line| line.starts_with("warning: passed over"));
    assert!(warning.is_some_and(|line| line.contains(name)), "{what}: {}", done.err);
    assert!(done.err.contains("going on from"), "{what}: {}", done.err);
    assert!(newest.with_file_name(format!("{name}.aside")).exists(), "{what}");
    assert_same(&contents(copied.path()), tiny_whole(), what);
}

#[test]
fn truncated() {
    let folder = interrupted();
    let size = fs::metadata(checkpoints(folder.path()).last().unwrap()).unwrap().len() as usize;
    for length in [0, 1, 7, 8, 9, 100, 4096, size / 4, size / 2, size / 4 * 3, size - 4, size - 1] {
        let what = format!("cut to {length} of {size} bytes");
        goes_on_from_the_older(folder.path(), &what, |bytes| bytes.truncate(length));
    }
    goes_on_from_the_older(folder.path(), "a byte more", |bytes| bytes.push(0));
}

#[test]
fn altered() {
    let folder = interrupted();
    let bytes = fs::read(checkpoints(folder.path()).last().unwrap()).unwrap();
    let (size, header) = (bytes.len(), u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8);
    let in_header = (0..6).map(|i| 8 + (header - 9) * i / 5);
    let in_data = (0..8).map(|i| header + (size - header - 1) * i / 7);
    for at in [0, 3, 7].into_iter().chain(in_header).chain(in_data) {
        let what = format!("byte {at} of {size} altered");
        goes_on_from_the_older(folder.path(), &what, |bytes| bytes[at] ^= 1 << (at % 8));
    }
    goes_on_from_the_older(folder.path(), "zeros", |bytes| bytes[header..].fill(0));
    goes_on_from_the_older(folder.path(), "another file", |bytes| *bytes = b"not a checkpoint".repeat(100));
}

#[test]
fn all_of_them() {
    let folder = interrupted();
    let lines = epoch_lines(folder.path());
    for path in checkpoints(folder.path()) {
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    let done = finish(&mut tiny(folder.path())).fails(3, &["checkpoints", "--resume none"]);
    for path in checkpoints(folder.path()) {
        assert!(done.err.contains(path.to_str().unwrap()), "{}", done.err);
    }
    assert_eq!(epoch_lines(folder.path()), lines, "nothing was begun");
    let anew = finish(tiny(folder.path()).args(["--resume", "none"])).expect(0);
    assert!(!anew.err.contains("going on"), "{}", anew.err);
    assert_eq!(epoch_lines(folder.path()).len(), lines.len() + 4, "the old lines stay");
}

#[test]
fn a_named_checkpoint_that_is_damaged_is_refused() {
    let folder = interrupted();
    let newest = checkpoints(folder.path()).pop().unwrap();
    let bytes = fs::read(&newest).unwrap();
    fs::write(&newest, &bytes[..bytes.len() - 1]).unwrap();
    let name = newest.to_str().unwrap();
    finish(tiny(folder.path()).args(["--resume", name])).fails(3, &[name, "cut off"]);
    assert!(newest.exists());
}

#[test]
fn beginning_anew_does_not_come_back_to_the_old_run() {
    let folder = interrupted();
    let killed =
        finish(tiny(folder.path()).args(["--resume", "none"]).env("ENGINE_FAILPOINT", "train.step:1"));
    assert_eq!(killed.code, None);
    let done = finish(&mut tiny(folder.path())).expect(0);
    assert!(!done.err.contains("going on from"), "{}", done.err);
    let new = contents(folder.path());
    assert_eq!(new["last.safetensors"], tiny_whole()["last.safetensors"]);
    assert_eq!(epoch_lines(folder.path()).len(), 2 + 4);
}

#[test]
fn a_checkpoint_of_another_folder() {
    let (from, to) = (interrupted(), temporary());
    let newest = checkpoints(from.path()).pop().unwrap();
    finish(tiny(to.path()).args(["--resume", path(&newest)])).expect(0);
    assert_eq!(contents(to.path())["last.safetensors"], tiny_whole()["last.safetensors"]);
    assert_eq!(contents(to.path())["logs.md"], tiny_whole()["logs.md"]);
    assert_eq!(checkpoints(from.path()).pop(), Some(newest), "the other folder is left alone");
}
