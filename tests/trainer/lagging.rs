//! Outcomes that come late, as a card's do: the trainer's files must not show it.

use crate::common::{assert_same, checkpoints, contents, temporary};
use crate::cpu;
use crate::training::{config, run, steps};
use engine::backend::cpu::CpuBackend;
use engine::backend::{Backend, NamedTensors, Outcome, Step, Weights};
use engine::config::Config;
use engine::data::Batch;
use engine::error::{Kind, Result};
use engine::rng::{Purpose, Rng};
use engine::tensor::HostTensor;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

/// Changes the outcome of a pass, counted from 1.
type Change = fn(u64, &mut Outcome);

/// A backend that works at once and tells late: up to `most` passes, by chance.
pub struct Lagging<B> {
    backend: B,
    held: VecDeque<Outcome>,
    most: u64,
    chance: Rng,
    passes: u64,
    change: Change,
}

impl<B: Backend> Lagging<B> {
    pub fn new(backend: B, most: u64, seed: u64) -> Self {
        let chance = Rng::new(seed, 0, 0, Purpose::Init);
        Self { backend, held: VecDeque::new(), most, chance, passes: 0, change: |_, _| {} }
    }
}

impl<B: Backend> Backend for Lagging<B> {
    fn submit(&mut self, batch: &Batch, step: &Step) -> Result<()> {
        self.backend.submit(batch, step)?;
        while let Some(mut outcome) = self.backend.poll()? {
            self.passes += 1;
            (self.change)(self.passes, &mut outcome);
            self.held.push_back(outcome);
        }
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Outcome>> {
        let lag = self.chance.below(self.most + 1) as usize;
        Ok(if self.held.len() > lag { self.held.pop_front() } else { None })
    }

    fn wait(&mut self) -> Result<Option<Outcome>> {
        Ok(self.held.pop_front())
    }

    fn eval_batch(&mut self, batch: &Batch, weights: Weights) -> Result<HostTensor> {
        assert!(self.held.is_empty(), "validation begins when every step of the epoch is known");
        self.backend.eval_batch(batch, weights)
    }

    fn state(&self) -> Result<NamedTensors> {
        assert!(self.held.is_empty(), "a checkpoint is made when every step before it is known");
        self.backend.state()
    }

    fn load_state(&mut self, state: &NamedTensors) -> Result<()> {
        self.backend.load_state(state)
    }

    fn read(&self, name: &str) -> Result<HostTensor> {
        self.backend.read(name)
    }
}

/// What an undisturbed run on the CPU backend leaves.
fn direct(config: &Config) -> BTreeMap<String, Vec<u8>> {
    let folder = temporary();
    run(config, folder.path(), &mut cpu(config)).unwrap();
    contents(folder.path())
}

fn lagging(config: &Config, change: Change) -> Lagging<CpuBackend> {
    Lagging { change, ..Lagging::new(cpu(config), 2, 7) }
}

#[test]
fn late_outcomes_leave_the_same_files() {
    let micro = {
        let mut config = config();
        config.data.micro_batch = 4;
        config
    };
    for config in [config(), micro] {
        let want = direct(&config);
        for (most, seed) in [(1, 1), (2, 2), (2, 3), (5, 4)] {
            let folder = temporary();
            run(&config, folder.path(), &mut Lagging::new(cpu(&config), most, seed)).unwrap();
            let micro = config.data.micro_batch;
            let what = format!("micro-batch {micro}, up to {most} passes late, seed {seed}");
            assert_same(&contents(folder.path()), &want, &what);
        }
    }
}

/// A fault is told one or two steps after the fact: the step at fault is named, nothing of it or after it is in the logs,
/// and what the newest checkpoint holds goes on to the same end.
#[test]
fn a_late_fault_is_that_of_its_own_step() {
    let config = config();
    // Pass 12 is step 5 of the second epoch.
    let faulty = |pass: u64, outcome: &mut Outcome| {
        if pass == 12 {
            outcome.score.loss = f64::NAN;
            outcome.fault = Some("layer1.0.conv1's output is not finite".to_owned());
        }
    };
    let folder = temporary();
    let error = run(&config, folder.path(), &mut lagging(&config, faulty)).unwrap_err();
    assert_eq!((error.kind, error.exit_code()), (Kind::Failed, 1), "{error}");
    let newest = checkpoints(folder.path()).pop().unwrap();
    for part in ["epoch 2, step 5: the loss is NaN", "layer1.0.conv1", newest.to_str().unwrap()] {
        assert!(error.message.contains(part), "{part:?} in {error}");
    }
    assert_eq!(last_step(folder.path()), 11);
    run(&config, folder.path(), &mut cpu(&config)).unwrap();
    assert_same(&contents(folder.path()), &direct(&config), "resumed after a fault");
}

/// With micro-steps, a fault in the first pass of a step is not that of the step before.
#[test]
fn a_late_fault_in_a_micro_step() {
    let mut config = config();
    config.data.micro_batch = 4;
    for (pass, step) in [(5, "step 3"), (6, "step 3"), (7, "step 4")] {
        let folder = temporary();
        let changes: [Change; 3] = [
            |pass, outcome| outcome.fault = (pass == 5).then(|| "planted".to_owned()),
            |pass, outcome| outcome.fault = (pass == 6).then(|| "planted".to_owned()),
            |pass, outcome| outcome.fault = (pass == 7).then(|| "planted".to_owned()),
        ];
        let mut backend = lagging(&config, changes[pass - 5]);
        let error = run(&config, folder.path(), &mut backend).unwrap_err();
        assert!(error.message.contains(&format!("epoch 1, {step}: ")), "pass {pass}: {error}");
    }
}

fn last_step(output: &Path) -> u64 {
    steps(output).last().unwrap()["step"].as_u64().unwrap()
}

#[test]
fn skipped_steps_are_recorded_as_such() {
    let config = config();
    // An overflow at the first step, and two in a row later on, each of which halves the scale.
    let skipping = |pass: u64, outcome: &mut Outcome| {
        outcome.skipped = [1, 9, 10].contains(&pass);
        let halvings = [1, 9, 10].iter().filter(|&&at| at < pass).count();
        outcome.loss_scale = 65536.0 / f32::from(1u16 << halvings);
    };
    let (folder, plain) = (temporary(), temporary());
    run(&config, folder.path(), &mut lagging(&config, skipping)).unwrap();
    run(&config, plain.path(), &mut cpu(&config)).unwrap();
    let mut want = steps(plain.path());
    for line in &mut want {
        let step = line["step"].as_u64().unwrap();
        let scale = [65536.0, 32768.0, 16384.0, 8192.0][[1, 9, 10].iter().filter(|&&at| at < step).count()];
        line["skipped"] = json!([1, 9, 10].contains(&step));
        line["loss_scale"] = json!(scale);
    }
    let got = steps(folder.path());
    let recorded: Vec<&Value> = got.iter().filter(|line| line["skipped"] == true).collect();
    assert_eq!(recorded.len(), 3);
    assert_eq!(got, want);
}
