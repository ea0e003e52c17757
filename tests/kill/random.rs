//! SIGKILL from outside, whenever.

use crate::common::{assert_same, contents, engine, finish, path, set, temporary, tiny, tiny_whole};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// splitmix64: the moments are the same in every run of the tests, the machine's speed is not.
struct Random(u64);

impl Random {
    fn up_to(&mut self, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        most.mul_f64((z >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// Starts the command and kills it after `time`. False: it had finished.
fn killed_after(command: &mut Command, time: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(time);
    if let Some(status) = child.try_wait().unwrap() {
        assert!(status.success(), "{status}");
        return false;
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

#[test]
fn any_moment_of_a_small_run() {
    let whole = tiny_whole();
    let begin = Instant::now();
    let folder = temporary();
    finish(&mut tiny(folder.path())).expect(0);
    let time = begin.elapsed();
    let mut random = Random(1);
    let (mut kills, mut runs) = (0, 0);
    while kills < 24 {
        let folder = temporary();
        let mut here = 0;
        // At most so many, or a run whose start takes longer than its steps would never end.
        while here < 12 && killed_after(&mut tiny(folder.path()), random.up_to(time)) {
            here += 1;
        }
        let end = finish(&mut tiny(folder.path())).expect(0);
        assert!(end.err.contains("finished: 4 epochs"), "{}", end.err);
        assert_same(&contents(folder.path()), whole, &format!("run {runs} after {here} kills"));
        kills += here;
        runs += 1;
        assert!(runs < 50, "{kills} kills in {runs} runs: they end before they are killed");
    }
    println!("{kills} kills in {runs} runs");
}

/// Two epochs of three steps of the real network, with a checkpoint of 200 MB after every step.
fn resnet50(data: &Path, output: &Path) -> Command {
    let mut command = engine(["train", "--data", path(data), "--output", path(output)]);
    set(
        &mut command,
        &[
            "model.arch=resnet50",
            "data.resolution=32",
            "data.batch=4",
            "data.limit=12",
            "epochs=2",
            "checkpoint.every_steps=1",
            "schedule.warmup_epochs=1",
        ],
    );
    command
}

#[test]
fn the_real_network() {
    // On disk: a machine's memory folder may be too small for these checkpoints.
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let sizes = ["--train-per-class", "2", "--val-per-class", "1", "--size", "40"];
    finish(engine(["data", "synth", path(&data)]).args(sizes)).expect(0);
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let begin = Instant::now();
    finish(&mut resnet50(&data, &whole)).expect(0);
    let time = begin.elapsed();
    let whole = contents(&whole);
    // In the middle of the second checkpoint, twice within the first epoch; after the last step of an epoch; whenever.
    let mut kills = 0;
    for failpoint in ["checkpoint.tmp_half_written:2", "train.step:1", "train.step:2", "checkpoint.renamed:1"]
    {
        let done = finish(resnet50(&data, &cut).env("ENGINE_FAILPOINT", failpoint));
        assert_eq!(done.code, None, "{failpoint}: {}", done.err);
        kills += 1;
    }
    let mut random = Random(2);
    for _ in 0..2 {
        kills += usize::from(killed_after(&mut resnet50(&data, &cut), random.up_to(time / 2)));
    }
    finish(&mut resnet50(&data, &cut)).expect(0);
    assert_same(&contents(&cut), &whole, "resnet50");
    assert!(kills >= 3);
    println!("{kills} kills");
}
