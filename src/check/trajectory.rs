//! Whether two ways to run a step train alike: gradients of the first step, and losses of some more, under what a nudge of
//! one rounding to each weight changes of the same.

use super::{FACTOR, LEAST, Report, nudged, pass};
use crate::backend::{Backend, MOMENTUM_PREFIX, NamedTensors, Step};
use crate::data::Batch;
use crate::error::{Error, Result};
use crate::optim::sgd::Sgd;
use crate::tensor::Difference;

/// What a training went through.
#[derive(Debug, Clone)]
pub struct Trajectory {
    pub losses: Vec<f64>,
    /// Velocities after the first step: its gradients, with the weights' decay.
    first: NamedTensors,
}

/// Small enough that fresh weights without zeroed gammas do not run away.
const RULE: Sgd = Sgd { lr: 0.01, momentum: 0.9, nesterov: false, weight_decay: 1e-4 };

/// How far losses may be apart where nothing moves: the printed digits.
const LEAST_LOSS: f64 = 1e-4;

impl Trajectory {
    /// Trains for `steps` from what the backend holds, on the batches in turn.
    pub fn run(backend: &mut dyn Backend, batches: &[Batch], steps: usize) -> Result<Self> {
        let (mut losses, mut first) = (vec![], NamedTensors::new());
        for number in 0..steps {
            let outcome = pass(backend, &batches[number % batches.len()], &Step::plain(0, 1, RULE, 0.1))?;
            if let Some(fault) = outcome.fault {
                return Err(Error::failed(format!("step {}: {fault}", number + 1)));
            }
            losses.push(outcome.score.loss / outcome.score.count.max(1) as f64);
            if number == 0 {
                first = backend.state()?;
                first.retain(|name, _| name.starts_with(MOMENTUM_PREFIX));
            }
        }
        Ok(Self { losses, first })
    }

    /// The same from weights that are each moved by up to one rounding.
    pub fn nudged(backend: &mut dyn Backend, batches: &[Batch], steps: usize, roundoff: f64) -> Result<Self> {
        let moved = nudged(&backend.state()?, roundoff);
        backend.load_state(&moved)?;
        Self::run(backend, batches, steps)
    }

    /// The tensor or loss that uses most of what it is allowed: [`FACTOR`] times what `moved` is from `self`. A loss may be
    /// as far as any loss up to it: after some steps trainings go their own ways.
    pub fn compare(&self, other: &Self, moved: &Self) -> Report {
        let mut worst = Report { name: "nothing".to_owned(), apart: 0.0, allowed: LEAST };
        let mut note = |name: String, apart: f64, allowed: f64| {
            // In the total order, in which NaN is the worst of all.
            if (apart / allowed).total_cmp(&(worst.apart / worst.allowed)).is_gt() {
                worst = Report { name, apart, allowed };
            }
        };
        for (name, want) in &self.first {
            let norm = |of: &Self| Difference::between(&of.first[name].data, &want.data).norm;
            // What is all zero is a machine's that computes nothing.
            let zero = |of: &Self| of.first[name].data.iter().all(|&value| value == 0.0);
            if !(zero(self) && zero(other)) {
                note(
                    format!("gradient of {}", &name[MOMENTUM_PREFIX.len()..]),
                    norm(other),
                    FACTOR * norm(moved) + LEAST,
                );
            }
        }
        let mut most = 0.0f64;
        for (number, want) in self.losses.iter().enumerate() {
            let apart = |of: &Self| (of.losses[number] - want).abs() / want.abs().max(f64::MIN_POSITIVE);
            most = most.max(apart(moved));
            note(format!("loss of step {}", number + 1), apart(other), FACTOR * most + LEAST_LOSS);
        }
        worst
    }
}
