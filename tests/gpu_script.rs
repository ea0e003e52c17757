//! `bench/gpu.sh` itself, with stand-ins for the card's tools and for the engine. Needs bash.

#[path = "common/stand_ins.rs"]
mod stand_ins;

use stand_ins::{StandIns, code, said};
use std::fs;
use std::process::Output;

/// Answers every command as a machine with a good card would.
const GOOD_ENGINE: &str = r#"#!/bin/sh
case "$*" in
--version) echo "engine 0.1.0" ;;
doctor) echo "ok       NCCL           2.27" ;;
*kernels*--json*) cat "$(dirname "$0")/kernels.json" ;;
*throughput* | *--json*) rate=1300.5
    [ "$ENGINE_NCCL_ALONE" = 1 ] && [ -e "$(dirname "$0")/rate" ] && rate=$(cat "$(dirname "$0")/rate")
    echo "{\"images_per_second\": $rate, \"latency_ms\": {\"median\": 1.0}}" ;;
*--trace*) echo "trace.json: 5 steps; nothing between the first and the last waits for the card" >&2 ;;
train*) while [ $# -gt 1 ]; do [ "$1" = --output ] && folder=$2; shift; done
    mkdir -p "$folder/checkpoints" && echo same >"$folder/checkpoints/last.safetensors"
    [ "$ENGINE_NCCL_ALONE" = 1 ] && [ -e "$(dirname "$0")/other" ] && echo other >"$folder/checkpoints/last.safetensors"
    # Resumed where epoch 1 is there already; else slow enough to be killed after it.
    [ -e "$folder/logs.md" ] && exit 0
    echo "epoch: 1  train_loss: 1.000" >"$folder/logs.md"
    case $folder in */cut) sleep 20 ;; esac ;;
*) echo "fine: $1" ;;
esac
"#;

/// A report of `engine bench kernels --json`: a product, and kernels of ours with these microseconds, the last of which fits
/// the cache. At 800 GB/s the first two take 1541 and 639 microseconds.
fn report(microseconds: [f64; 3]) -> String {
    let row = |call: &str, count: u32, microseconds: f64, megabytes: f64, gigaflop: f64, cached: bool| {
        serde_json::json!({
            "call": call, "node": "x", "count": count, "microseconds": microseconds,
            "floor_microseconds": megabytes / 0.8, "megabytes": megabytes, "gigaflop": gigaflop, "cached": cached,
        })
    };
    let rows = [
        row(
            "forward 56x56x64 k64 3x3 s1: cudnn algorithm 1 math 1 workspace 0",
            3,
            900.0,
            205.6,
            59.2,
            false,
        ),
        row("bn_apply_f16 411.0 MB", 3, microseconds[0], 1233.1, 0.0, false),
        row("sgd_f16 102.2 MB", 1, microseconds[1], 511.4, 0.0, false),
        row("bn_finalize 0.5 MB", 53, microseconds[2], 0.5, 0.0, true),
    ];
    serde_json::json!({
        "what": "resnet50 at 224 px, batch 256, f16", "device": "Some Card 16GB", "copy_gigabytes_per_second": 800.0,
        "product_teraflop_per_second": 100.0, "cache_megabytes": 6.3, "rows": rows, "sum_milliseconds": 8.0,
        "floor_milliseconds": 6.0, "step_milliseconds": 7.5, "images_per_second": 34133.0,
    })
    .to_string()
}

/// Torch is there; peers answer with a slower rate.
const GOOD_PYTHON: &str = r#"#!/bin/sh
case "$*" in
*train_throughput*) echo '{"program": "pytorch", "images_per_second": 1000.0}' ;;
-) cat >/dev/null ;;
*) echo "within" ;;
esac
"#;

struct Machine {
    tools: StandIns,
}

impl Machine {
    fn new(tools: &[(&str, &str)]) -> Self {
        let machine = Self { tools: StandIns::new(tools) };
        machine.kernels(&report([1600.0, 700.0, 5.0]));
        machine
    }

    /// What `engine bench kernels --json` answers.
    fn kernels(&self, report: &str) {
        fs::write(self.tools.at("kernels.json"), format!("{report}\n")).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.tools.bench("gpu.sh", arguments)
    }
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
    assert_eq!(passed, 13, "{text}");
    assert!(text.contains("ratio 1.30 (goal 1.2)") && text.contains("all passed"), "{text}");
    let out = machine.tools.at("out");
    assert!(fs::read_to_string(out.join("table.txt")).unwrap().contains("the same bytes"));
    assert!(out.join("sanitizer-racecheck.txt").exists());
}

/// A kernel of ours below 80 % of the copy's bandwidth fails and is named, the slowest first; one whose operands fit the
/// cache is not judged, nor a product of the libraries.
#[test]
fn kernels_are_judged_by_the_share_of_copy_bandwidth() {
    let machine = Machine::new(&[CARD, ("engine", GOOD_ENGINE), ("python", GOOD_PYTHON)]);
    let said_of = |report: &str| {
        machine.kernels(report);
        let output = machine.run(&["--parts=kernels"]);
        (code(&output), said(&output))
    };
    // 1541 of 1600 microseconds are 96.3 %, 639 of 700 are 91.3 %.
    let (status, text) = said_of(&report([1600.0, 700.0, 5.0]));
    assert_eq!(status, Some(0), "{text}");
    let line = "all 2 of ours reach 80 % of the copy's 800.0 GB/s; the slowest: sgd_f16 102.2 MB 91.3 %";
    assert!(text.contains("PASS  kernels") && text.contains(line), "{text}");
    let table = fs::read_to_string(machine.tools.at("out/kernels-shares.txt")).unwrap();
    assert_eq!(table.lines().next(), Some("12.5\t100\t53\t*\tbn_finalize 0.5 MB"), "{table}");

    let (status, text) = said_of(&report([2000.0, 1e3, 0.2]));
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("FAIL  kernels") && text.contains("2 of 2 of ours below 80 %"), "{text}");
    let named: Vec<&str> = text.lines().filter(|line| line.contains(" times ")).map(str::trim).collect();
    let want = [
        "63.9 %    511 GB/s   1 times  sgd_f16 102.2 MB",
        "77.1 %    617 GB/s   3 times  bn_apply_f16 411.0 MB",
    ];
    assert_eq!(named, want, "{text}");

    for nothing in ["{}", "not a report"] {
        let (status, text) = said_of(nothing);
        assert!(status == Some(1) && text.contains("the report names no kernel of ours"), "{text}");
    }
}

/// Of a step with NCCL bytes and time are judged against one without; without NCCL nothing is.
#[test]
fn nccl_on_one_rank_must_change_no_bytes_and_cost_next_to_nothing() {
    let machine = Machine::new(&[CARD, ("engine", GOOD_ENGINE), ("python", GOOD_PYTHON)]);
    let said_of = || {
        let output = machine.run(&["--parts=nccl"]);
        (code(&output), said(&output))
    };
    fs::write(machine.tools.at("rate"), "1290.0").unwrap();
    let (status, text) = said_of();
    let line = "the same bytes; 1290 images/s with NCCL, 1300 without: 0.81 % of the step (goal below 1 %)";
    assert!(status == Some(0) && text.contains("PASS  nccl") && text.contains(line), "{text}");
    let digests = fs::read_to_string(machine.tools.at("out/nccl-digests.txt")).unwrap();
    assert_eq!(digests.lines().count(), 2, "{digests}");

    fs::write(machine.tools.at("rate"), "1280.0").unwrap();
    let (status, text) = said_of();
    assert!(
        status == Some(1) && text.contains("FAIL  nccl") && text.contains("1.60 % of the step"),
        "{text}"
    );

    fs::remove_file(machine.tools.at("rate")).unwrap();
    fs::write(machine.tools.at("other"), "").unwrap();
    let (status, text) = said_of();
    assert!(status == Some(1) && text.contains("other bytes; 1300 images/s with NCCL"), "{text}");

    let without = GOOD_ENGINE.replace("ok       NCCL           2.27", "optional NCCL           not found");
    let machine = Machine::new(&[CARD, ("engine", &without), ("python", GOOD_PYTHON)]);
    let output = machine.run(&["--parts=nccl"]);
    assert!(code(&output) == Some(0) && said(&output).contains("--    nccl"), "{}", said(&output));
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
