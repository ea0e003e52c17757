//! Every command that writes a file or a folder, where it cannot be written: a sentence, and nothing left of it.

use crate::common::{Done, data, engine, finish, path, temporary, tiny, tiny_last};
use crate::outputs::mount;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The commands that write one file, with where they are told to.
fn files(to: &Path) -> Vec<(&'static str, Command)> {
    let run = tiny_last().parent().unwrap().parent().unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    let export = ["export", "--checkpoint", path(tiny_last())];
    let formats = ["safetensors", "pth", "onnx", "cpu"];
    let exports =
        formats.map(|format| engine([&export[..], &["--format", format, "--output", path(to)]].concat()));
    let mut commands: Vec<_> = formats.into_iter().zip(exports).collect();
    commands.extend([
        ("card", engine([&export[..], &["--card", path(to)]].concat())),
        ("plot", engine(["plot", path(&run.join("logs.md")), "-o", path(to)])),
        ("report", engine(["report", "--root", root, "-o", path(to)])),
    ]);
    commands
}

/// All of them, into a folder that is there; each with the folder's entries that are no loss.
fn writers(to: &Path) -> Vec<(&'static str, Command, &'static [&'static str])> {
    let files = files(&to.join("file")).into_iter().map(|(name, command)| (name, command, &[][..]));
    let mut commands: Vec<_> = files.collect();
    let below = to.join("below");
    let mut rates = tiny(&below);
    rates.args(["--lr-find", "10"]);
    commands.extend([
        (
            "synth",
            engine(["data", "synth", path(&below), "--train-per-class", "1", "--val-per-class", "1"]),
            &[][..],
        ),
        // What says what is packed there, for the next time.
        ("pack", engine(["data", "pack", path(data()), "--output", path(&below)]), &["below"][..]),
        ("lr-find", rates, &["below"][..]),
    ]);
    commands
}

fn entries(folder: &Path) -> Vec<OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Runs all writers into `folder`; each fails and names `words`, and leaves no file with anything in it.
fn all_fail(folder: &Path, words: &[&str], run: impl Fn(&mut Command) -> Done) {
    let before = entries(folder);
    for (name, mut command, left) in writers(folder) {
        let done = run(&mut command);
        assert_eq!(done.code, Some(1), "{name}: {done:?}");
        done.fails(1, &[words, &[path(folder)]].concat());
        let mut found = entries(folder);
        found.retain(|entry| !before.contains(entry));
        assert!(found.iter().all(|entry| left.iter().any(|left| entry == left)), "{name} left {found:?}");
        let below = folder.join("below");
        if below.exists() {
            let shards = entries(&below).into_iter().filter(|entry| {
                let name = entry.to_string_lossy();
                name.ends_with(".tar") || name.ends_with(".tmp") || name.ends_with(".svg")
            });
            assert_eq!(shards.count(), 0, "{name}: {:?}", entries(&below));
            fs::remove_dir_all(&below).unwrap();
        }
    }
}

/// The limit's signal does not end the process: the write fails.
#[test]
fn a_limit_on_file_sizes() {
    let folder = temporary();
    all_fail(folder.path(), &["ulimit -f"], |command| limited(command, 1));
}

/// `command` where a file may have so many blocks of 512 bytes.
pub fn limited(command: &Command, blocks: usize) -> Done {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    finish(Command::new("sh").args(["-c", &format!("ulimit -f {blocks}; exec {}", words.join(" "))]))
}

#[test]
fn a_full_disk_and_a_read_only_one() {
    let folder = temporary();
    if let Some(_mounted) = mount(&["-t", "tmpfs", "-o", "ro", "tmpfs"], folder.path()) {
        all_fail(folder.path(), &["Read-only"], finish);
    }
    let folder = temporary();
    if let Some(_mounted) = mount(&["-t", "tmpfs", "-o", "size=4k", "tmpfs"], folder.path()) {
        // Its only page, in which a small report would find room.
        fs::write(folder.path().join("filling"), [0; 4096]).unwrap();
        all_fail(folder.path(), &["No space left", "free some space"], finish);
    }
}

/// A file must not take the place of a device; the test gives a link to one, which it may lose.
#[test]
fn devices_and_folders_are_refused() {
    let folder = temporary();
    let link = folder.path().join("device");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    for (to, found) in [(link.as_path(), "a device or a pipe"), (folder.path(), "a folder")] {
        for (_, mut command) in files(to) {
            finish(&mut command).fails(2, &[path(to), found, "give the name of a file"]);
        }
    }
    assert_eq!(entries(folder.path()), ["device"]);
    assert!(!fs::metadata("/dev/full").unwrap().is_file());
}
