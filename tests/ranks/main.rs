//! Training by several processes: they end with what one would have made, and when one of them is lost all end, soon.
//!
//! Every test runs over TCP, as torchrun's variables ask for; with the feature `mpi`, and OpenMPI installed, under `mpirun` as
//! well.

#[path = "../common/mod.rs"]
mod common;

mod equal;
mod launch;
mod lost;

use common::{data, finish, path};
use launch::{Launcher, Ranks};
use std::path::Path;

/// What is common to the runs of this program: two epochs of seven steps of four passes.
const RECIPE: [&str; 9] = [
    "model.arch=resnet-tiny",
    "data.resolution=32",
    "data.batch=8",
    "data.micro_batch=2",
    "epochs=2",
    "checkpoint.every_steps=2",
    "schedule.warmup_epochs=1",
    "optim.lr=0.5",
    "mix.mixup=0.2",
];

/// The arguments of a training into `output`, with further `settings`.
fn arguments(output: &Path, settings: &[&str]) -> Vec<String> {
    let mut args: Vec<String> =
        ["train", "--device", "cpu", "--data", path(data()), "--output", path(output)]
            .map(str::to_owned)
            .to_vec();
    for setting in RECIPE.iter().chain(settings) {
        args.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    args
}

/// Training by one process.
fn train_alone(output: &Path, settings: &[&str]) {
    finish(&mut common::engine(arguments(output, settings))).expect(0);
}

/// Training by `size` processes, which all end with 0.
fn train_among(launcher: Launcher, size: usize, output: &Path, settings: &[&str]) {
    let mut ranks = Ranks::start(launcher, size, &arguments(output, settings), &[]);
    assert_eq!(ranks.codes(), vec![0; size], "{}", ranks.messages());
}
