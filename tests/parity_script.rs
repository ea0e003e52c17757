//! `experiments/parity/run.py`, with stand-ins for the engine and for PyTorch, and its recipes. Needs bash and tar; Python 3.11
//! or later, without which nothing but the recipes is tested.

#[path = "common/stand_ins.rs"]
mod stand_ins;

use stand_ins::{StandIns, code, said};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A training of two epochs that ends at $TOP1, or stops on request; both programs write the same metrics.
const TRAINING: &str = r#"
while [ $# -gt 0 ]; do
    [ "$1" = --output ] && output=$2
    case $1 in epochs=3) epochs=3 ;; esac
    shift
done
mkdir -p "$output/checkpoints"
[ -e "$output/logs.md" ] && resumed=yes
epoch=0
[ -n "$resumed" ] && epoch=$(cat "$output/logs.md")
while [ $epoch -lt ${epochs:-2} ]; do
    epoch=$((epoch + 1))
    [ -z "$SLOW$resumed" ] && case $output in */cut | */whole) [ $epoch -gt 1 ] && sleep 0.4 ;; esac
    for step in 1 2 3 4; do
        n=$((4 * (epoch - 1) + step))
        echo "{\"kind\": \"step\", \"epoch\": $epoch, \"step\": $n, \"loss\": 1.0, \"lr\": 0.0$n, \"clock\": {\"wait\": 0.001}}"
    done >>"$output/metrics.jsonl"
    echo $epoch >"$output/logs.md"
    echo "epoch: $epoch  train_loss: 2.500  val_loss: 2.000  val_top1: $([ $epoch -eq 1 ] && echo 20.00 || echo "$TOP1")%"
    [ -z "$SLOW" ] || [ -n "$resumed" ] || { trap 'kill $!; exit 75' TERM; sleep 60 >/dev/null & wait; }
done
echo "$BYTES$resumed" | sed "s/yes/$RESUMED/" >"$output/checkpoints/last.safetensors"
"#;

const ENGINE: &str = r#"#!/bin/bash
case "$1" in --version) echo "engine 0.1.0"; exit ;; train) ;; *) exit 0 ;; esac
TOP1=${ENGINE_TOP1:-40.00}
"#;

const PYTHON: &str = r#"#!/bin/bash
case "$*" in
*follow_amp*) echo "4 steps: $FOLLOWED the spread"; [ "$FOLLOWED" = within ]; exit ;;
*torch_train*--output*) ;;
*) echo "torch 2"; exit 0 ;;
esac
TOP1=40.60
"#;

struct Machine {
    tools: StandIns,
    variables: Vec<(&'static str, &'static str)>,
}

impl Machine {
    fn new(variables: &[(&'static str, &'static str)]) -> Self {
        let tools =
            [("engine", ENGINE), ("python", PYTHON)].map(|(name, head)| (name, format!("{head}{TRAINING}")));
        let tools = StandIns::new(&tools.each_ref().map(|(name, text)| (*name, text.as_str())));
        let machine = Self { tools, variables: variables.to_vec() };
        for class in ["n0", "n1", "n2", "n3"] {
            for split in ["train", "val"] {
                let folder = machine.at("tiny").join(split).join(class);
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("a.JPEG"), class).unwrap();
            }
        }
        let mut tar = Command::new("tar");
        tar.args(["-cf", "data.tar", "tiny"]).current_dir(machine.at("."));
        assert!(tar.status().unwrap().success());
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.tools.at(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.tools
            .command("python3")
            .arg(script("run.py"))
            .args(["--recipe", "mixed", "--scale", "smoke"])
            .arg("--data")
            .arg(self.at("data.tar"))
            .arg("--scratch")
            .arg(self.at("scratch"))
            .args(arguments)
            .arg(self.at("out"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("FOLLOWED", "within")
            .envs(self.variables.iter().copied())
            .output()
            .unwrap()
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/parity").join(name)
}

/// tomllib came with Python 3.11.
fn has_python() -> bool {
    let found = Command::new("python3").args(["-c", "import tomllib"]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("left out: python3 is not installed, or older than 3.11");
    }
    found
}

#[test]
fn all_parts_pass_and_trainings_that_have_ended_are_not_repeated() {
    if !has_python() {
        return;
    }
    let machine = Machine::new(&[]);
    let output = machine.run(&[]);
    let text = said(&output);
    assert_eq!(code(&output), Some(0), "{text}");
    for line in [
        "PASS  paired",
        "2 trainings of 2 epochs have ended, 2 of them now",
        "killed with SIGKILL inside epoch 2 of 3 and resumed: the same bytes",
        "engine 40.00 %, PyTorch 40.60 %: -0.60 points (one seed, whose spread is not known); 1 of 1 seeds",
        "8 learning rates over the training: at most 0.0e+00 of the largest apart",
        "engine waits for data 0.10 % of the time",
        "| mixed | pytorch | 1 | 40.60 |",
        "all passed",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let result = fs::read_to_string(machine.at("out/mixed-smoke/engine-seed0.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["epochs"][1]["val_top1"], 40.0, "{result}");
    let picture = fs::read_to_string(machine.at("out/curves-smoke.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert_eq!(picture.matches("<polyline").count() % 2, 0, "both programs are drawn alike");
    // The data's first three classes, of both splits.
    let tar = Command::new("tar").arg("-tf").arg(machine.at("scratch/first-3.tar")).output().unwrap();
    let members = String::from_utf8(tar.stdout).unwrap();
    assert_eq!(members.lines().count(), 6, "{members}");

    let again = said(&machine.run(&["--parts", "train"]));
    assert!(again.contains("2 trainings of 2 epochs have ended, 0 of them now"), "{again}");
}

#[test]
fn what_is_cut_off_goes_on() {
    if !has_python() {
        return;
    }
    let machine = Machine::new(&[("SLOW", "yes")]);
    // A training takes a minute at least: it is asked to stop two seconds before the end of the six.
    let output = machine.run(&["--parts", "train", "--minutes", "0.1"]);
    let text = said(&output);
    assert_eq!(code(&output), Some(75), "{text}");
    assert!(text.contains("time is up in part train: the same command goes on"), "{text}");
    let machine = Machine { variables: Vec::new(), ..machine };
    let output = machine.run(&["--parts", "train,judge"]);
    let text = said(&output);
    assert_eq!(code(&output), Some(0), "{text}");
    let result = fs::read_to_string(machine.at("out/mixed-smoke/engine-seed0.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["attempts"], 2);
    // Seconds of both attempts, and an epoch of each.
    let epochs = result["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 2, "{result}");
    assert!(epochs[1]["seconds"].as_f64().unwrap() > 3.5, "{result}");
}

#[test]
fn failures_are_named() {
    if !has_python() {
        return;
    }
    let case = |variables: &[(&'static str, &'static str)], parts: &str, status: i32, want: &str| {
        let output = Machine::new(variables).run(&["--parts", parts]);
        let text = said(&output);
        assert!(code(&output) == Some(status) && text.contains(want), "{want} is missing in\n{text}");
    };
    case(&[("ENGINE_TOP1", "39.50")], "train,judge", 1, "-1.10 points");
    case(&[("FOLLOWED", "OUTSIDE")], "paired", 1, "4 steps: OUTSIDE the spread");
    case(&[("BYTES", "same"), ("RESUMED", "other")], "resume", 1, "OTHER bytes than the uninterrupted run");
    case(&[], "nonesuch", 2, "--parts nonesuch: no such part");
}

/// The comparison itself, from results as trainings leave them.
#[test]
fn means_are_compared_by_their_spread() {
    if !has_python() {
        return;
    }
    let machine = Machine::new(&[]);
    let write = |recipe: &str, program: &str, finals: [f64; 3]| {
        let folder = machine.at("out").join(format!("{recipe}-cpu"));
        fs::create_dir_all(&folder).unwrap();
        for (seed, top1) in finals.into_iter().enumerate() {
            let epoch = |epoch: u32, top1: f64| {
                let seconds = f64::from(epoch) * if program == "engine" { 10.0 } else { 25.0 };
                serde_json::json!({"epoch": epoch, "seconds": seconds, "train_loss": 1.0, "val_loss": 1.0, "val_top1": top1})
            };
            let result = serde_json::json!({
                "recipe": recipe, "scale": "cpu", "program": program, "seed": seed, "seconds": 50.0, "attempts": 1,
                "epochs": [epoch(1, 21.5), epoch(2, top1)], "images_per_second": 100.0, "peak_memory_mb": 500.0,
                "wait": 0.03, "cores": 2.0, "workers": 2, "rates": [0.1, 0.2],
            });
            fs::write(folder.join(format!("{program}-seed{seed}.json")), result.to_string()).unwrap();
        }
    };
    write("plain", "engine", [50.0, 51.0, 52.0]);
    write("plain", "pytorch", [51.0, 51.5, 53.0]);
    write("mixed", "engine", [40.0, 41.0, 42.0]);
    write("mixed", "pytorch", [45.0, 46.0, 47.0]);
    let judged = |recipe: &str| {
        let output = machine.run(&["--recipe", recipe, "--scale", "cpu", "--parts", "judge"]);
        (code(&output), said(&output))
    };
    // Standard deviations 1 and 1.0408, errors 0.5774 and 0.6009: 2 * 0.8333.
    let (status, text) = judged("plain");
    let top1 = "-0.83 points (two standard errors 1.67); 3 of 3 seeds";
    assert!(text.contains("PASS  top1") && text.contains(top1), "{text}");
    assert!(text.contains("to 50 %: engine 20 s, PyTorch 50 s, ratio 2.50"), "{text}");
    assert!(text.contains("FAIL  loader") && text.contains("3.00 % of the time"), "{text}");
    assert_eq!(status, Some(1), "{text}");
    // 10 points less in engine, 5.83 in PyTorch: 2 * sqrt(0.577^2 * 3 + 0.601^2) = 2.33.
    let (_, text) = judged("mixed");
    assert!(text.contains("FAIL  top1") && text.contains("-5.00 points"), "{text}");
    let gain = "engine -10.00, PyTorch -5.83 points: 4.17 apart (two standard errors 2.33)";
    assert!(text.contains("FAIL  gain") && text.contains(gain), "{text}");
}

/// engine takes every recipe at every scale.
#[cfg(feature = "train")]
#[test]
fn recipes_are_valid_at_every_scale() {
    use engine::config::{Overrides, load};
    let scales: toml::Table = fs::read_to_string(script("scales.toml")).unwrap().parse().unwrap();
    for (name, scale) in &scales {
        let settings = scale["set"].as_array().unwrap().iter().map(|set| set.as_str().unwrap().to_owned());
        let settings: Vec<String> = settings.collect();
        for recipe in ["plain.toml", "mixed.toml"] {
            let overrides = Overrides { set: settings.clone(), ..Overrides::default() };
            let config = load(Some(&script(recipe)), &overrides).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(config.ema.is_on(), recipe == "mixed.toml");
        }
    }
}
