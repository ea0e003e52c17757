//! `bench/gpu.sh` itself, with stand-ins for the card's tools and for the engine. Needs bash.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Answers every command as a machine with a good card would.
const GOOD_ENGINE: &str = r#"#!/bin/sh
case "$*" in
--version) echo "engine 0.1.0" ;;
*throughput* | *--json*) echo '{"images_per_second": 1300.5, "latency_ms": {"median": 1.0}}' ;;
*--trace*) echo "trace.json: 5 steps; nothing between the first and the last waits for the card" >&2 ;;
train*) while [ $# -gt 1 ]; do [ "$1" = --output ] && folder=$2; shift; done
    mkdir -p "$folder/checkpoints" && echo same >"$folder/checkpoints/last.safetensors"
    # Resumed where epoch 1 is there already; else slow enough to be killed after it.
    [ -e "$folder/logs.md" ] && exit 0
    echo "epoch: 1  train_loss: 1.000" >"$folder/logs.md"
    case $folder in */cut) sleep 20 ;; esac ;;
*) echo "fine: $1" ;;
esac
"#;

/// Torch is there; peers answer with a slower rate.
const GOOD_PYTHON: &str = r#"#!/bin/sh
case "$*" in
*train_throughput*) echo '{"program": "pytorch", "images_per_second": 1000.0}' ;;
-) cat >/dev/null ;;
*) echo "within" ;;
esac
"#;

struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new(tools: &[(&str, &str)]) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        for (name, text) in tools {
            let path = machine.folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        machine
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let at = |name: &str| self.folder.path().join(name);
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new("bash")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/gpu.sh"))
            .args(arguments)
            .arg(at("out"))
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .env("ENGINE", at("engine"))
            .env("PYTHON", at("python"))
            .output()
            .unwrap()
    }
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const CARD: (&str, &str) = ("nvidia-smi", "#!/bin/sh\necho 'Some Card 16GB'\n");

#[test]
fn a_good_machine_passes_every_part() {
    let sanitizer = ("compute-sanitizer", "#!/bin/sh\necho '========= ERROR SUMMARY: 0 errors'\n");
    let machine = Machine::new(&[CARD, sanitizer, ("engine", GOOD_ENGINE), ("python", GOOD_PYTHON)]);
    let output = machine.run(&[]);
    let text = said(&output);
    assert_eq!(code(&output), Some(0), "{text}");
    let passed = text.lines().filter(|line| line.starts_with("PASS")).count();
    assert_eq!(passed, 12, "{text}");
    assert!(text.contains("ratio 1.30 (goal 1.2)") && text.contains("all passed"), "{text}");
    let out = machine.folder.path().join("out");
    assert!(fs::read_to_string(out.join("table.txt")).unwrap().contains("the same bytes"));
    assert!(out.join("sanitizer-racecheck.txt").exists());
}

#[test]
fn what_a_machine_lacks_is_said_and_does_not_fail() {
    let machine = Machine::new(&[CARD, ("engine", GOOD_ENGINE), ("python", "#!/bin/sh\nexit 1\n")]);
    let output = machine.run(&["--parts", "parity,losses,throughput"]);
    let text = said(&output);
    assert_eq!(code(&output), Some(0), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("--")).count(), 3, "{text}");
}

#[test]
fn a_card_that_cannot_be_used_exits_70_and_a_missing_command_fails() {
    let lost = "#!/bin/sh\necho 'engine: the card is lost' >&2\nexit 70\n";
    let machine = Machine::new(&[CARD, ("engine", lost), ("python", GOOD_PYTHON)]);
    let output = machine.run(&["--parts", "check"]);
    assert_eq!(code(&output), Some(70), "{}", said(&output));
    assert!(said(&output).contains("FAIL  check") && said(&output).contains("the card is lost"));

    let old = "#!/bin/sh\nprintf \"error: unrecognized subcommand 'kernels'\\n\\nFor more information\\n\" >&2\nexit 2\n";
    let machine = Machine::new(&[CARD, ("engine", old), ("python", GOOD_PYTHON)]);
    let output = machine.run(&["--parts=kernels"]);
    assert_eq!(code(&output), Some(1), "{}", said(&output));
    assert!(said(&output).contains("unrecognized subcommand 'kernels'"), "{}", said(&output));
}

#[test]
fn no_card_is_70_and_a_wrong_command_line_2() {
    let none = ("nvidia-smi", "#!/bin/sh\nexit 9\n");
    let machine = Machine::new(&[none, ("engine", GOOD_ENGINE), ("python", GOOD_PYTHON)]);
    assert_eq!(code(&machine.run(&[])), Some(70));
    assert!(said(&machine.run(&[])).contains("finds no card"));
    for arguments in [&["--parts", "nonesuch"][..], &["--frob"], &["a-folder"]] {
        assert_eq!(code(&machine.run(arguments)), Some(2), "{arguments:?}");
    }
    let help = machine.run(&["--help"]);
    assert!(code(&help) == Some(0) && said(&help).contains("parts, in this order"));
}
