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
