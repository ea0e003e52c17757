//! What the backend is told with each pass: the configuration's constants, and what changes from step to step.

use crate::backend::{DropPath, Extras, Loss, Objective, Step};
use crate::config::{Config, LossKind, RuleKind};
use crate::optim::Rule;
use crate::optim::ema::Averages;
use crate::optim::lamb::Lamb;
use crate::optim::lars::Lars;
use crate::optim::schedule::LearningRate;
use crate::optim::sgd::Sgd;
use crate::rng::{Purpose, Rng};
use serde::{Deserialize, Serialize};

/// Where an optimiser step stands in its run. All count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct At {
    pub epoch: usize,
    /// Of the epoch.
    pub step: usize,
    /// Of the run.
    pub total_steps: u64,
    /// Forward and backward passes of the run before this one, in the order in which one rank would do them.
    pub passes: u64,
}

/// The passes of a run.
pub struct Passes<'a> {
    config: &'a Config,
    rate: LearningRate,
    averages: Option<Averages>,
    ranks: usize,
}

impl<'a> Passes<'a> {
    pub fn new(config: &'a Config, steps_per_epoch: usize) -> Self {
        Self {
            config,
            rate: LearningRate::new(config, steps_per_epoch),
            averages: Averages::new(config),
            ranks: 1,
        }
    }

    /// Those of one of `ranks` ranks, which deal an optimiser step's passes out among them.
    pub fn among(self, ranks: usize) -> Self {
        Self { ranks, ..self }
    }

    /// Passes that a rank has of an optimiser step.
    pub fn own(&self) -> usize {
        self.config.micro_steps() / self.ranks
    }

    pub fn lr(&self, at: At) -> f64 {
        self.rate.at(at.total_steps as usize)
    }

    /// Pass `index` of the optimiser step that stands at `at`.
    pub fn step(&self, at: At, index: usize) -> Step {
        self.step_at_rate(self.lr(at), at, index)
    }

    /// The same at a rate of one's own.
    pub fn step_at_rate(&self, lr: f64, at: At, index: usize) -> Step {
        let optim = &self.config.optim;
        Step {
            index,
            of: self.own(),
            ranks: self.ranks,
            rule: self.rule(lr as f32),
            loss: loss(self.config),
            clip_norm: optim.clip_norm as f32,
            ema_decay: self
                .averages
                .as_ref()
                .and_then(|averages| averages.decay_at(at.epoch, at.step))
                .map(|decay| decay as f32),
            drop_path: self.drop_path(at.passes),
        }
    }

    fn rule(&self, lr: f32) -> Rule {
        let optim = &self.config.optim;
        let (momentum, nesterov) = (optim.momentum as f32, optim.nesterov);
        let (weight_decay, epsilon) = (optim.weight_decay as f32, optim.epsilon as f32);
        let [beta1, beta2] = optim.betas.map(|beta| beta as f32);
        match optim.rule {
            RuleKind::Sgd => Rule::Sgd(Sgd { lr, momentum, nesterov, weight_decay }),
            RuleKind::Lamb => Rule::Lamb(Lamb { lr, beta1, beta2, epsilon, weight_decay }),
            RuleKind::Lars => {
                let trust = optim.trust as f32;
                Rule::Lars(Lars { lr, momentum, nesterov, weight_decay, trust, epsilon })
            }
        }
    }

    fn drop_path(&self, pass: u64) -> DropPath {
        match self.config.model.drop_path as f32 {
            0.0 => DropPath::OFF,
            rate => DropPath { rate, key: Rng::new(self.config.seed, 0, pass, Purpose::DropPath).key() },
        }
    }
}

/// What is minimised.
pub fn loss(config: &Config) -> Loss {
    let loss = &config.loss;
    let threshold = (loss.target_threshold > 0.0).then_some(loss.target_threshold as f32);
    let objective = match loss.kind {
        LossKind::Softmax => Objective::SoftmaxCrossEntropy,
        LossKind::Bce => Objective::BinaryCrossEntropy { threshold, reduction: loss.reduction },
    };
    Loss { objective, label_smoothing: loss.label_smoothing as f32 }
}

/// What a backend is to make room for.
pub fn extras(config: &Config) -> Extras {
    Extras { rule: config.optim.rule, averages: config.ema.is_on(), freeze: config.freeze() }
}
