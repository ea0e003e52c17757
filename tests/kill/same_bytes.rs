//! What does not move a byte, and what is said where bytes are no longer promised.

use crate::common::{assert_same, contents, epoch_lines, finish, set, temporary, tiny, tiny_whole};
use engine::simd::isa::Isa;
use std::fs;

#[test]
fn two_undisturbed_runs() {
    let folder = temporary();
    finish(&mut tiny(folder.path())).expect(0);
    assert_same(&contents(folder.path()), tiny_whole(), "the same run twice");
}

#[test]
fn workers_and_threads() {
    for workers in [1, 2, 8] {
        for threads in [1, 2] {
            let folder = temporary();
            let (workers, threads) = (format!("data.workers={workers}"), format!("device.threads={threads}"));
            finish(set(&mut tiny(folder.path()), &[&workers, &threads])).expect(0);
            let mut got = contents(folder.path());
            // It says how many there were.
            got.insert("config.toml".into(), tiny_whole()["config.toml"].clone());
            assert_same(&got, tiny_whole(), &format!("{workers} {threads}"));
        }
    }
}

#[test]
fn gradient_accumulation_resumes_too() {
    let (whole, cut) = (temporary(), temporary());
    let command = |folder: &tempfile::TempDir| {
        let mut command = tiny(folder.path());
        set(&mut command, &["data.micro_batch=4", "epochs=2", "schedule.kind=step", "schedule.per=epoch"]);
        command
    };
    finish(&mut command(&whole)).expect(0);
    for failpoint in ["train.step:4", "train.step:8"] {
        assert_eq!(finish(command(&cut).env("ENGINE_FAILPOINT", failpoint)).code, None);
    }
    finish(&mut command(&cut)).expect(0);
    assert_same(&contents(cut.path()), &contents(whole.path()), "micro-batches");
}

#[test]
fn augmentation_repeats_and_another_resolution_resume_too() {
    let (whole, cut) = (temporary(), temporary());
    let command = |folder: &tempfile::TempDir| {
        let mut command = tiny(folder.path());
        let recipe = [
            "epochs=2",
            "data.resolution=64",
            "data.progressive.from=32",
            "data.progressive.end=1",
            "data.repeats=3",
            "data.repeat_ranks=2",
            "augment.auto=rand-m9-mstd0.5-inc1",
            "augment.interpolation=bicubic",
            "augment.color_jitter=[0.4,0.4,0.4,0.1]",
            "augment.erase=0.5",
            "augment.erase_fill=noise",
        ];
        set(&mut command, &recipe);
        command
    };
    finish(&mut command(&whole)).expect(0);
    // In the middle of the epoch at 32 px, then of the one at 64 px.
    for failpoint in ["train.step:4", "train.step:7"] {
        assert_eq!(finish(command(&cut).env("ENGINE_FAILPOINT", failpoint)).code, None);
    }
    finish(&mut command(&cut)).expect(0);
    assert_same(&contents(cut.path()), &contents(whole.path()), "augmented and repeated, at two resolutions");
}

#[test]
fn another_instruction_set_goes_on_and_says_so_once() {
    if Isa::available().len() < 2 {
        return;
    }
    let folder = temporary();
    let portable = |failpoint: Option<&str>| {
        let mut command = tiny(folder.path());
        command.env("ENGINE_ISA", "portable");
        command.envs(failpoint.map(|failpoint| ("ENGINE_FAILPOINT", failpoint)));
        finish(&mut command)
    };
    assert_eq!(finish(tiny(folder.path()).env("ENGINE_FAILPOINT", "train.step:10")).code, None);
    // Dies before it could save: the next attempt comes from the other instruction set again.
    let first = portable(Some("train.step:1"));
    assert!(first.err.contains("warning: resumed elsewhere"), "{}", first.err);
    portable(Some("train.step:6"));
    let last = portable(None).expect(0);
    assert!(!last.err.contains("warning"), "its checkpoint is its own now: {}", last.err);
    let logs = fs::read_to_string(folder.path().join("logs.md")).unwrap();
    assert_eq!(logs.matches("note: resumed elsewhere").count(), 1, "{logs}");
    assert_eq!(epoch_lines(folder.path()).len(), 4);
}

/// Everything that a recipe adds to plain SGD has a state or a draw: moments, averages, partners, boxes, masks.
#[test]
fn a_recipe_with_everything_resumes_too() {
    let (whole, cut) = (temporary(), temporary());
    let command = |folder: &tempfile::TempDir| {
        let mut command = tiny(folder.path());
        set(
            &mut command,
            &[
                "epochs=3",
                "data.micro_batch=4",
                "optim.rule=lamb",
                "optim.lr=0.01",
                "optim.clip_norm=1",
                "loss.kind=bce",
                "loss.target_threshold=0.2",
                "mix.form=timm",
                "mix.mixup=0.2",
                "mix.cutmix=1",
                "model.drop_path=0.3",
                "ema.decay=0.9",
                "ema.every=3",
                "ema.form=torchvision",
            ],
        );
        command
    };
    let done = finish(&mut command(&whole)).expect(0);
    assert!(done.err.contains("batch 8"), "{}", done.err);
    for failpoint in ["train.step:4", "train.step:5", "train.step:8"] {
        assert_eq!(finish(command(&cut).env("ENGINE_FAILPOINT", failpoint)).code, None);
    }
    finish(command(&cut).arg("--set").arg("device.threads=1")).expect(0);
    let (mut got, want) = (contents(cut.path()), contents(whole.path()));
    // It says how many threads there were.
    got.insert("config.toml".into(), want["config.toml"].clone());
    assert_same(&got, &want, "LAMB, mixing, drop path and averages");
    let last = crate::common::checkpoints(whole.path()).pop().unwrap();
    let text = String::from_utf8_lossy(&fs::read(last).unwrap()).into_owned();
    for name in ["ema.fc.weight", "ema.bn1.running_var", "optim.second_moment.fc.bias", "optim.updates"] {
        assert!(text.contains(&format!("\"{name}\"")), "{name} is not in the checkpoint");
    }
    let logs = fs::read_to_string(whole.path().join("logs.md")).unwrap();
    assert!(logs.contains("validated on moving averages"), "{logs}");
}

/// Frozen parts have no velocity, and averages that stay copies.
#[test]
fn frozen_parts_resume_too() {
    let (whole, cut) = (temporary(), temporary());
    let command = |folder: &tempfile::TempDir| {
        let mut command = tiny(folder.path());
        set(&mut command, &["epochs=2", "data.micro_batch=4", "optim.rule=lamb", "ema.decay=0.9"]);
        command.args(["--freeze", "stem..layer1"]);
        command
    };
    let done = finish(&mut command(&whole)).expect(0);
    assert!(done.err.contains("frozen: stem..layer1"), "{}", done.err);
    for failpoint in ["train.step:4", "train.step:7"] {
        assert_eq!(finish(command(&cut).env("ENGINE_FAILPOINT", failpoint)).code, None);
    }
    finish(&mut command(&cut)).expect(0);
    assert_same(&contents(cut.path()), &contents(whole.path()), "frozen up to layer1");
    let last = crate::common::checkpoints(whole.path()).pop().unwrap();
    let text = String::from_utf8_lossy(&fs::read(last).unwrap()).into_owned();
    let has = |name: &str| text.contains(&format!("\"{name}\""));
    assert!(has("optim.momentum.fc.weight") && has("ema.conv1.weight"));
    assert!(!has("optim.momentum.conv1.weight") && !has("optim.second_moment.layer1.0.bn1.bias"));
    let other = finish(set(&mut tiny(whole.path()), &["epochs=2"]));
    assert!(
        other.code == Some(2) && other.err.contains("optim.freeze: \"stem..layer1\" there"),
        "{}",
        other.err
    );
}
