//! Ranks that die, hang, or are asked to stop.

use crate::common::{assert_same, checkpoints, contents, data, path, temporary, wait_until};
use crate::launch::{Launcher, Ranks};
use crate::{arguments, train_among};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// What an undisturbed run of two ranks leaves.
fn undisturbed() -> BTreeMap<String, Vec<u8>> {
    let output = temporary();
    train_among(Launcher::Variables, 2, output.path(), &[]);
    contents(output.path())
}

/// The same command again ends in the same bytes.
#[track_caller]
fn resumes(launcher: Launcher, output: &Path, want: &BTreeMap<String, Vec<u8>>, what: &str) {
    train_among(launcher, 2, output, &[]);
    assert_same(&contents(output), want, what);
}

#[test]
fn a_rank_that_dies_ends_all_and_the_run_goes_on() {
    let want = undisturbed();
    for launcher in Launcher::all() {
        for dying in [0, 1] {
            let output = temporary();
            let began = Instant::now();
            // As by SIGKILL, between its fifth step and what it tells of it.
            let extra = [(dying, "ENGINE_FAILPOINT=train.step:5")];
            let mut ranks = Ranks::start(launcher, 2, &arguments(output.path(), &[]), &extra);
            let left = 1 - dying;
            assert_eq!(ranks.code(left), 70, "{}", ranks.messages());
            ranks.codes();
            println!(
                "{launcher:?}, rank {dying} dies: after {:?} rank {left} says\n{}",
                began.elapsed(),
                ranks.said(left)
            );
            assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
            if left == 0 {
                let said = ranks.said(0);
                assert!(
                    said.contains("epoch 1, step ") && said.contains("is whole, steps lost since"),
                    "{said}"
                );
            }
            resumes(launcher, output.path(), &want, &format!("{launcher:?}, rank {dying}"));
        }
    }
}

#[test]
fn a_rank_that_hangs_ends_all_in_time() {
    let want = undisturbed();
    for launcher in Launcher::all() {
        for hanging in [0, 1] {
            let output = temporary();
            let mut ranks = Ranks::start(launcher, 2, &arguments(output.path(), &["epochs=2"]), &[]);
            wait_until("a checkpoint", || {
                output.path().join("checkpoints").exists() && !checkpoints(output.path()).is_empty()
            });
            ranks.signal(hanging, "STOP");
            let began = Instant::now();
            let left = 1 - hanging;
            assert_eq!(ranks.code(left), 70, "{}", ranks.messages());
            println!(
                "{launcher:?}, rank {hanging} hangs: after {:?} rank {left} says\n{}",
                began.elapsed(),
                ranks.said(left)
            );
            assert!(ranks.said(left).contains("has not answered for 4 s"), "{}", ranks.said(left));
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
            ranks.signal(hanging, "KILL");
            ranks.codes();
            resumes(launcher, output.path(), &want, &format!("{launcher:?}, rank {hanging}"));
        }
    }
}

#[test]
fn a_wish_to_stop_at_one_rank_is_that_of_all() {
    let want = undisturbed();
    for launcher in Launcher::all() {
        for asked in [0, 1] {
            let output = temporary();
            let mut ranks = Ranks::start(launcher, 2, &arguments(output.path(), &[]), &[]);
            wait_until("a checkpoint", || {
                output.path().join("checkpoints").exists() && !checkpoints(output.path()).is_empty()
            });
            ranks.signal(asked, "TERM");
            assert_eq!(ranks.codes(), [75, 75], "{}", ranks.messages());
            assert!(ranks.said(0).contains("stopped on request at epoch"), "{}", ranks.messages());
            resumes(launcher, output.path(), &want, &format!("{launcher:?}, rank {asked}"));
        }
    }
}

/// The training files of rank 0 are no images: it fails within its first step, while the other waits for its gradients. Nobody
/// waits until a rank counts as silent.
#[test]
fn a_failure_of_rank_0_within_a_step_ends_all_at_once() {
    let (spoilt, output) = (temporary(), temporary());
    spoil(data(), spoilt.path());
    for launcher in Launcher::all() {
        let mut args = arguments(output.path(), &[]);
        let flag = args.iter().position(|arg| arg == "--data").unwrap();
        args.drain(flag..flag + 2);
        let of = |folder: &Path| format!("DATA_DIR={} ENGINE_RANK_PATIENCE=100", path(folder));
        let (bad, good) = (of(spoilt.path()), of(data()));
        let began = Instant::now();
        let mut ranks = Ranks::start(launcher, 2, &args, &[(0, &bad), (1, &good)]);
        let codes = ranks.codes();
        println!("{launcher:?}: {codes:?} after {:?}\n{}", began.elapsed(), ranks.messages());
        assert_eq!(codes, [3, 70], "{}", ranks.messages());
        assert!(ranks.said(1).contains("rank 0"), "{}", ranks.messages());
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }
}

/// A copy whose training files have their lengths and nothing else.
fn spoil(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            spoil(&from, &to);
        } else if from.components().any(|part| part.as_os_str() == "train") {
            fs::write(to, vec![0; fs::metadata(&from).unwrap().len() as usize]).unwrap();
        } else {
            fs::copy(&from, to).unwrap();
        }
    }
}
