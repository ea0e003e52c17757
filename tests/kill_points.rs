//! Kills a process at every failpoint of the checkpoint store and the log, and goes on from what it left.
//!
//! The child is this test binary run again with `ENGINE_FAILPOINT` set: it "trains" a run whose state is a function of the step.
//! After each kill a new child resumes from the newest checkpoint; in the end every file equals the uninterrupted run's.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use engine::checkpoint::{Checkpoint, Position, Store, Tensor};
use engine::failpoint;
use engine::log::{EpochScores, RunHeader, RunLog, Scores, StepClock, StepRecord};

const FOLDER: &str = "ENGINE_KILL_POINTS_FOLDER";
const EPOCHS: u32 = 7;
const STEPS: u64 = 3;

fn scores(epoch: u32) -> Scores {
    Scores { loss: 1.0 / f64::from(epoch), top1: f64::from(epoch), top5: 2.0 * f64::from(epoch) }
}

fn history(epochs: u32) -> Vec<EpochScores> {
    let one = |epoch| EpochScores {
        epoch,
        step: u64::from(epoch) * STEPS,
        train: scores(epoch),
        val: scores(epoch),
    };
    (1..=epochs).map(one).collect()
}

fn state(step: u64) -> Checkpoint {
    let values = (0..3000).map(|i| (step * 3000 + i) as f32).collect();
    let metadata = BTreeMap::from([("engine.state".to_owned(), format!("{{\"step\":{step}}}"))]);
    Checkpoint { tensors: BTreeMap::from([("w".to_owned(), Tensor::f32(&[3000], values))]), metadata }
}

/// A checkpoint after every step, an epoch's line before the checkpoint at its end.
fn train(folder: &Path) -> engine::error::Result<()> {
    let store = Store::open(&folder.join("checkpoints"), 2, 3)?;
    let search = store.newest()?;
    assert!(search.passed_over.is_empty(), "a kill leaves nothing damaged: {:?}", search.passed_over);
    let from = search.found.map_or(Position::START, |found| {
        assert_eq!(found.checkpoint.tensors, state(found.at.step).tensors);
        found.at
    });
    let best =
        |step: u64| (step >= 2 * STEPS).then_some(Position { epoch: 2, step: 2 * STEPS, epoch_end: true });
    let notes = store.resume_at(from, best(from.step))?;
    assert!(notes.is_empty(), "{notes:?}");
    let run = RunHeader { id: "kill".into(), name: "kill".into(), configuration: "none".into() };
    let mut log = RunLog::open(folder, &run, &history(from.epoch), from.step)?;
    assert!(log.warnings().is_empty(), "{:?}", log.warnings());
    for step in from.step + 1..=STEPS * u64::from(EPOCHS) {
        let epoch = step.div_ceil(STEPS) as u32;
        let clock = StepClock::default();
        log.step(&StepRecord {
            epoch,
            step,
            scores: scores(epoch),
            lr: 0.1,
            images: step,
            loss_scale: 1.0,
            skipped: false,
            clock,
        })?;
        failpoint::hit("train", "step");
        let epoch_end = step.is_multiple_of(STEPS);
        if epoch_end {
            log.epoch(&history(epoch)[epoch as usize - 1])?;
        }
        log.flush()?;
        let at = Position { epoch: (step / STEPS) as u32, step, epoch_end };
        store.save(at, &state(step), best(step))?;
    }
    log.finish()
}

/// The child's work; does nothing when run as a test.
#[test]
fn child() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        train(Path::new(&folder)).unwrap();
    }
}

fn run_child(folder: &Path, failpoint: Option<&str>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(FOLDER, folder).env_remove("ENGINE_FAILPOINT");
    if let Some(failpoint) = failpoint {
        command.env("ENGINE_FAILPOINT", failpoint);
    }
    let output = command.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("panicked"), "{text}");
    assert!(output.status.success() || text.contains("aborting"), "{text}");
    output.status.success()
}

/// Every file but the TensorBoard events, with clocks and timestamps taken out of the logs.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for sub in [".", "checkpoints"] {
        for entry in fs::read_dir(folder.join(sub)).unwrap() {
            let (path, name) =
                (entry.as_ref().unwrap().path(), entry.unwrap().file_name().into_string().unwrap());
            if path.is_file() {
                let bytes = fs::read(&path).unwrap();
                contents.insert(name.clone(), if sub == "." { without_clock(&bytes) } else { bytes });
            }
        }
    }
    contents
}

fn without_clock(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let lines = text.lines().map(|line| {
        let line = line.split("  timestamp: ").next().unwrap();
        line.split(",\"clock\"").next().unwrap().to_owned() + "\n"
    });
    lines.collect::<String>().into_bytes()
}

#[test]
fn a_run_killed_anywhere_ends_as_the_uninterrupted_one() {
    let temporary = || tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let whole = temporary();
    assert!(run_child(whole.path(), None));
    let want = contents(whole.path());
    assert_eq!(want.len(), 3 + 7, "{:?}", want.keys());
    let scopes = ["checkpoint", "logs_md", "curve", "metrics"];
    let staged = failpoint::ALL[..4].iter().flat_map(|stage| scopes.map(|scope| format!("{scope}.{stage}")));
    let plain = failpoint::ALL[4..].iter().map(|name| (*name).to_owned());
    for name in staged.chain(plain) {
        let folder = temporary();
        let mut kills = 0;
        // The n-th hit each time: early ones kill a run at its beginning, later ones further on.
        for n in [1, 1, 2, 3, 5] {
            kills += usize::from(!run_child(folder.path(), Some(&format!("{name}:{n}"))));
        }
        // An atomic write of the logs happens once a run, or not at all: lines are appended.
        let is_rare = name.contains("logs_md.") || name.starts_with("metrics.");
        assert!(kills >= 2 || is_rare, "{name}: {kills} kills");
        assert!(run_child(folder.path(), None), "{name}");
        let got = contents(folder.path());
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{name}");
        assert!(got == want, "{name}");
    }
}
