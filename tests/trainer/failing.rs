//! A device that fails in the middle: exit code 70, what is kept and what is lost, and the same end after a resume.

use crate::common::{assert_same, checkpoints, contents, temporary};
use crate::cpu;
use crate::lagging::Lagging;
use crate::training::{config, run};
use engine::backend::{Backend, NamedTensors, Outcome, Step, Weights};
use engine::data::Batch;
use engine::error::{Error, Kind, Result};
use engine::tensor::HostTensor;
use std::cell::Cell;
use std::path::Path;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Submit,
    Poll,
    Wait,
    Evaluate,
    State,
}

/// Fails at the `at`-th call of a kind, and at every call from then on.
struct Failing<B> {
    backend: B,
    call: Call,
    at: u64,
    seen: Cell<u64>,
    /// Optimiser steps whose last pass was taken.
    steps: u64,
}

impl<B: Backend> Failing<B> {
    fn check(&self, call: Call) -> Result<()> {
        if call == self.call {
            self.seen.set(self.seen.get() + 1);
        }
        match self.seen.get() >= self.at {
            true => Err(Error::device("the card failed at a training step: CUDA_ERROR_ECC_UNCORRECTABLE")),
            false => Ok(()),
        }
    }
}

impl<B: Backend> Backend for Failing<B> {
    fn submit(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        self.check(Call::Submit)?;
        self.steps += u64::from(step.index + 1 == step.of);
        self.backend.submit(batch, step)
    }

    fn poll(&mut self) -> Result<Option<Outcome>> {
        self.check(Call::Poll)?;
        self.backend.poll()
    }

    fn wait(&mut self) -> Result<Option<Outcome>> {
        self.check(Call::Wait)?;
        self.backend.wait()
    }

    fn eval_batch(&mut self, batch: &Batch, weights: Weights) -> Result<HostTensor> {
        self.check(Call::Evaluate)?;
        self.backend.eval_batch(batch, weights)
    }

    fn state(&self) -> Result<NamedTensors> {
        self.check(Call::State)?;
        self.backend.state()
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.backend.load_state(state)
    }

    fn read(&self, name: &str) -> Result<HostTensor> {
        self.backend.read(name)
    }
}

/// What the device was given and the newest checkpoint does not hold.
fn lost(output: &Path, given: u64) -> (String, u64) {
    let newest = checkpoints(output).pop().unwrap();
    let name = newest.file_name().unwrap().to_str().unwrap();
    let digits = name.trim_end_matches(".safetensors").rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
    (newest.display().to_string(), given - digits.parse::<u64>().unwrap())
}

#[test]
fn a_card_lost_anywhere_keeps_the_last_checkpoint_and_names_the_loss() {
    let config = config();
    let whole = temporary();
    run(&config, whole.path(), &mut cpu(&config)).unwrap();
    let want = contents(whole.path());
    for (call, at) in [
        (Call::Submit, 6),
        (Call::Submit, 12),
        (Call::Poll, 7),
        (Call::Poll, 18),
        (Call::Wait, 3),
        (Call::Wait, 8),
        (Call::Evaluate, 1),
        (Call::Evaluate, 2),
        (Call::State, 2),
        (Call::State, 6),
    ] {
        let what = format!("{call:?} {at}");
        let folder = temporary();
        let backend = Lagging::new(cpu(&config), 2, 11);
        let mut failing = Failing { backend, call, at, seen: Cell::new(0), steps: 0 };
        let error = run(&config, folder.path(), &mut failing).expect_err(&what);
        assert_eq!((error.kind, error.exit_code()), (Kind::Device, 70), "{what}: {error}");
        let (newest, steps) = lost(folder.path(), failing.steps);
        for part in [
            "CUDA_ERROR_ECC_UNCORRECTABLE",
            &format!("{newest} is whole, steps lost since: {steps};"),
            "run the same command again",
        ] {
            assert!(error.message.contains(part), "{what}: {part:?} in {error}");
        }
        run(&config, folder.path(), &mut cpu(&config)).unwrap();
        assert_same(&contents(folder.path()), &want, &what);
    }
}

#[test]
fn a_card_lost_before_the_first_checkpoint() {
    let config = config();
    let folder = temporary();
    let backend = Lagging::new(cpu(&config), 2, 11);
    let mut failing = Failing { backend, call: Call::Submit, at: 2, seen: Cell::new(0), steps: 0 };
    let error = run(&config, folder.path(), &mut failing).unwrap_err();
    assert_eq!(error.exit_code(), 70);
    assert!(error.message.contains("there is no checkpoint yet, steps lost: 1;"), "{error}");
}
