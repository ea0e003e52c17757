//! Ctrl-C, SIGTERM, two at once, a run that is over, a loss that explodes.

use crate::common::{
    assert_same, checkpoints, contents, epoch_lines, finish, path, set, signal, temporary, tiny, tiny_whole,
    wait_until,
};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// A run that is long enough to be met in the middle.
fn long(output: &Path) -> Command {
    let mut command = tiny(output);
    set(&mut command, &["epochs=1000", "checkpoint.every_steps=0"]);
    command
}

struct Started {
    child: Child,
    err: BufReader<ChildStderr>,
    said: String,
}

/// Returns once the run has said where it begins and the log has an epoch.
fn started(command: &mut Command, output: &Path) -> Started {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut err, mut said) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    while !said.contains(", into ") {
        assert!(err.read_line(&mut said).unwrap() > 0, "{said}");
    }
    wait_until("an epoch", || {
        fs::read_to_string(output.join("logs.md")).is_ok_and(|text| text.contains("epoch: 1"))
    });
    Started { child, err, said }
}

impl Started {
    /// Sends a signal; exit code and what stood on stderr.
    fn stop(mut self, name: &str) -> (Option<i32>, String) {
        signal(&self.child, name);
        self.err.read_to_string(&mut self.said).unwrap();
        (self.child.wait().unwrap().code(), self.said)
    }
}

#[test]
fn signals_save_and_exit_75() {
    for name in ["INT", "TERM"] {
        let folder = temporary();
        let (code, err) = started(&mut long(folder.path()), folder.path()).stop(name);
        assert_eq!(code, Some(75), "SIG{name}: {err}");
        let newest = checkpoints(folder.path()).pop().unwrap();
        let last = err.lines().last().unwrap();
        for words in ["stopped on request", path(&newest), "run the same command again"] {
            assert!(last.contains(words), "{words}: {err}");
        }
        let lines = epoch_lines(folder.path());
        // Where it stopped is where it goes on.
        let (code, err) = started(&mut long(folder.path()), folder.path()).stop("TERM");
        assert_eq!(code, Some(75), "{err}");
        assert!(err.contains("going on from epoch") && !err.contains("warning"), "{err}");
        assert_eq!(epoch_lines(folder.path())[..lines.len()], lines);
    }
}

#[test]
fn stopped_and_finished_is_the_same_as_uninterrupted() {
    let folder = temporary();
    let mut stops = 0;
    for _ in 0..100 {
        let mut child = tiny(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60));
        if child.try_wait().unwrap().is_none() {
            signal(&child, "TERM");
        }
        match child.wait().unwrap().code() {
            Some(0) => break,
            Some(75) => stops += 1,
            // The signal came before the program listened to it.
            None => {}
            code => panic!("{code:?}"),
        }
    }
    finish(&mut tiny(folder.path())).expect(0);
    println!("{stops} stops");
    let (got, want) = (contents(folder.path()), tiny_whole());
    for name in ["last.safetensors", "best.safetensors", "logs.md", "metrics.jsonl"] {
        assert!(got[name] == want[name], "{name}");
    }
}

#[test]
fn two_in_one_folder() {
    let folder = temporary();
    let running = started(&mut long(folder.path()), folder.path());
    finish(&mut long(folder.path())).fails(2, &[path(folder.path()), "another engine", "--output"]);
    assert_eq!(running.stop("TERM").0, Some(75));
}

#[test]
fn a_finished_run_is_left_alone() {
    let folder = temporary();
    let first = finish(&mut tiny(folder.path())).expect(0);
    assert_eq!(first.out.lines().count(), 4, "one line an epoch: {}", first.out);
    assert!(first.out.lines().all(|line| line.starts_with("epoch: ")), "{}", first.out);
    let before = fs::read(folder.path().join("run.json")).unwrap();
    let again = finish(&mut tiny(folder.path())).expect(0);
    assert_eq!(again.out, "");
    assert!(again.err.starts_with("finished: 4 epochs; best val_top1"), "{}", again.err);
    assert_same(&contents(folder.path()), tiny_whole(), "a finished run again");
    assert_eq!(fs::read(folder.path().join("run.json")).unwrap(), before);

    let anew = finish(tiny(folder.path()).args(["--resume", "none"])).expect(0);
    assert_eq!(anew.out, first.out);
    assert_eq!(epoch_lines(folder.path()).len(), 8);
    let got = contents(folder.path());
    assert_eq!(got["last.safetensors"], tiny_whole()["last.safetensors"]);
}

#[test]
fn an_exploding_loss() {
    let folder = temporary();
    let explode = |rate: &str| {
        let mut command = tiny(folder.path());
        let rate = format!("optim.lr={rate}");
        finish(set(&mut command, &[&rate, "schedule.warmup_epochs=0", "checkpoint.every_steps=1"]))
    };
    explode("1e30").fails(1, &["epoch 1, step 2", "loss is", "layer1.0.conv1", "checkpoint", "optim.lr"]);
    for path in checkpoints(folder.path()) {
        engine::checkpoint::Checkpoint::read(&path).unwrap().check().unwrap();
    }
    let other = temporary();
    let mut command = tiny(other.path());
    // Too high for the first step's weights: there is nothing that could be saved.
    set(&mut command, &["optim.lr=1e300", "schedule.warmup_epochs=0"]);
    assert_eq!(finish(&mut command).code, Some(1));
    assert!(checkpoints(other.path()).is_empty());
}

/// Goals of `[stop]` end a run with 0, a checkpoint and a line in the log; another goal lets it go on to the same bytes.
#[test]
fn goals_end_a_run_and_it_may_go_on_beyond_them() {
    let folder = temporary();
    let ended = |assignment: &str, says: &str| {
        for _ in 0..2 {
            let done = finish(set(&mut tiny(folder.path()), &[assignment])).expect(0);
            assert!(done.err.contains(says), "{}", done.err);
        }
        let log = fs::read_to_string(folder.path().join("logs.md")).unwrap();
        assert_eq!(log.matches(says).count(), 1, "{log}");
        assert!(!checkpoints(folder.path()).is_empty());
    };
    ended("stop.top1=0.001", "stop.top1 = 0.001 is reached, and confirmed");
    ended("stop.hours=1e-9", "stop.hours = 0.000000001 are used");
    assert_eq!(epoch_lines(folder.path()).len(), 2);
    let done = finish(&mut tiny(folder.path())).expect(0);
    assert!(done.err.contains("finished: "), "{}", done.err);
    let got = contents(folder.path());
    assert!(got["last.safetensors"] == tiny_whole()["last.safetensors"], "the same bytes as without goals");
    finish(set(&mut tiny(folder.path()), &["stop.dollars=25"])).fails(2, &["stop.price is 0"]);
}
