//! What the tests of the binary share: running it, data for it, what a run leaves.

#![allow(dead_code)] // Each test program uses a part.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What a command did.
#[derive(Debug)]
pub struct Done {
    /// None: a signal ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    /// The one sentence of a command that failed with `code`: stdout is empty, the last line of stderr names all `words`, and
    /// nothing but warnings and the opening stands before it.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        let done = self.expect(code);
        let sentences: Vec<&str> = done.err.lines().filter(|line| line.starts_with("engine: ")).collect();
        assert_eq!(sentences.len(), 1, "one sentence: {}", done.err);
        assert_eq!(done.err.lines().last(), Some(sentences[0]), "the last line: {}", done.err);
        for word in words {
            assert!(sentences[0].contains(word), "{word:?} in {}", sentences[0]);
        }
        done
    }
}

/// The binary, without what this process's environment would tell it.
pub fn engine<I: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    for (name, _) in std::env::vars_os() {
        let is_ours =
            name.to_str().is_some_and(|name| name.starts_with("ENGINE_") || name.starts_with("AWS_"));
        if is_ours || name == "DATA_DIR" || name == "OUTPUT_DIR" || name == "OUTPUT_REMOTE" {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

pub fn finish(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let done = Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
    assert!(!done.err.contains("panicked"), "{}", done.err);
    done
}

pub fn run(args: &[&str]) -> Done {
    finish(&mut engine(args))
}

pub fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// In memory where the machine has such a place: these tests sync many small files.
pub fn temporary() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// An absent folder for what all tests of this program share. Nothing drops a static, so the name is always the same and
/// what an earlier run left is removed.
pub fn lasting(name: &str) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(concat!("engine-", env!("CARGO_CRATE_NAME"))).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

/// 60 training and 20 validation pictures of ten classes, made once a test program.
pub fn data() -> &'static Path {
    static DATA: OnceLock<PathBuf> = OnceLock::new();
    DATA.get_or_init(|| {
        let folder = lasting("synth");
        let sizes = ["--train-per-class", "6", "--val-per-class", "2", "--size", "40"];
        finish(engine(["data", "synth", path(&folder)]).args(sizes)).expect(0);
        folder
    })
}

/// Steps in an epoch of [`tiny`] on [`data`].
pub const STEPS: u64 = 7;
pub const EPOCHS: u64 = 4;

/// Four epochs of seven steps of the smallest network, with a checkpoint after every second step.
pub fn tiny(output: &Path) -> Command {
    let mut command = engine(["train", "--data", path(data()), "--output", path(output)]);
    set(
        &mut command,
        &[
            "model.arch=resnet-tiny",
            "data.resolution=32",
            "data.batch=8",
            "epochs=4",
            "checkpoint.every_steps=2",
            "schedule.warmup_epochs=1",
            "optim.lr=0.5",
        ],
    );
    command
}

pub fn set<'c>(command: &'c mut Command, assignments: &[&str]) -> &'c mut Command {
    assignments.iter().fold(command, |command, assignment| command.args(["--set", assignment]))
}

/// An undisturbed [`tiny`] run, made once a test program.
pub fn tiny_whole() -> &'static BTreeMap<String, Vec<u8>> {
    static WHOLE: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let folder = temporary();
        finish(&mut tiny(folder.path())).expect(0);
        contents(folder.path())
    })
}

/// The last checkpoint of an undisturbed [`tiny`] run, made once a test program.
pub fn tiny_last() -> &'static Path {
    static LAST: OnceLock<PathBuf> = OnceLock::new();
    LAST.get_or_init(|| {
        let folder = lasting("tiny");
        finish(&mut tiny(&folder)).expect(0);
        checkpoints(&folder).pop().expect("a finished run leaves a checkpoint")
    })
}

/// What a run left, by name: checkpoints to the byte, the rest without clocks and the run's name. Files set aside and
/// TensorBoard's are left out.
pub fn contents(output: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for name in ["logs.md", "metrics.jsonl", "curve.svg", "config.toml"] {
        contents.insert(name.to_owned(), without_clock(&fs::read(output.join(name)).unwrap()));
    }
    for entry in fs::read_dir(output.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_str().unwrap().ends_with(".aside") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            contents.insert(name, fs::read(&path).unwrap());
        }
    }
    contents
}

fn without_clock(bytes: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(bytes).unwrap();
    let line = |line: &str| {
        if line.starts_with("<!-- run: ") || line.starts_with("## run, ") {
            return String::new();
        }
        let line = line.split("  timestamp: ").next().unwrap();
        let line = line.split(",\"clock\"").next().unwrap();
        let id = line.split_once("\"kind\":\"run\",\"id\":\"");
        id.map_or(line.to_owned(), |(_, rest)| rest.split_once('"').unwrap().1.to_owned()) + "\n"
    };
    text.lines().map(line).collect::<String>().into_bytes()
}

/// Fails with the names of what differs, not with the bytes.
#[track_caller]
pub fn assert_same(got: &BTreeMap<String, Vec<u8>>, want: &BTreeMap<String, Vec<u8>>, what: &str) {
    let names = |contents: &BTreeMap<String, Vec<u8>>| contents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(want), "{what}");
    for (name, bytes) in want {
        if got[name] != *bytes {
            let text = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(3000)]).into_owned();
            panic!("{what}: {name} differs; got\n{}\nwanted\n{}", text(&got[name]), text(bytes));
        }
    }
}

/// The epoch lines of a logs.md, without timestamps.
pub fn epoch_lines(output: &Path) -> Vec<String> {
    let text = fs::read_to_string(output.join("logs.md")).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("epoch: "));
    lines.map(|line| line.split("  timestamp: ").next().unwrap().to_owned()).collect()
}

/// Numbered checkpoints, newest last.
pub fn checkpoints(output: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(output.join("checkpoints")).unwrap();
    let numbered = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with('e') && name.ends_with(".safetensors")
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(numbered).collect();
    found.sort();
    found
}

/// A copy of a folder, hard links kept.
pub fn copy(from: &Path) -> TempDir {
    let to = temporary();
    let inside = format!("{}/.", path(from));
    assert!(Command::new("cp").args(["-a", &inside, path(to.path())]).status().unwrap().success());
    to
}

/// Sends a signal by its name: KILL, TERM, INT.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Waits until `is_so`; a minute is far too long for everything here.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
