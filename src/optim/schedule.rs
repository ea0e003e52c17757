//! Learning rate by optimiser step.

use crate::config::{Config, Per, Schedule, ScheduleKind};

/// A schedule tied to a run's length.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    schedule: Schedule,
    full: f64,
    epochs: f64,
    steps_per_epoch: usize,
}

impl LearningRate {
    pub fn new(config: &Config, steps_per_epoch: usize) -> Self {
        Self {
            schedule: config.schedule.clone(),
            full: config.full_lr(),
            epochs: config.epochs as f64,
            steps_per_epoch: steps_per_epoch.max(1),
        }
    }

    /// The rate of optimiser step `step`, counted from 0 over the whole run.
    ///
    /// t = step / steps_per_epoch, or its floor with `per = "epoch"`. Warm-up is linear from `warmup_start` to 1 (PyTorch's
    /// `LinearLR`), then the rate is full for `hold_epochs`. What follows is a function of the share of the decay that has
    /// passed, (t - begin) / (epochs - begin), for cosine (`CosineAnnealingLR`, SGDR arXiv:1608.03983) and linear, and of t
    /// against the milestones for `step` (`MultiStepLR`); the decay begins after warm-up and hold, or with the run where
    /// `after_warmup` is off (timm's `CosineLRScheduler`).
    pub fn at(&self, step: usize) -> f64 {
        let schedule = &self.schedule;
        let t = match schedule.per {
            Per::Step => step as f64 / self.steps_per_epoch as f64,
            Per::Epoch => (step / self.steps_per_epoch) as f64,
        };
        if t < schedule.warmup_epochs {
            let start = schedule.warmup_start;
            return self.full * (start + (1.0 - start) * t / schedule.warmup_epochs);
        }
        let level = schedule.warmup_epochs + schedule.hold_epochs;
        if t < level {
            return self.full;
        }
        let begin = if schedule.after_warmup { level } else { 0.0 };
        let share = ((t - begin) / (self.epochs - begin)).min(1.0);
        self.full
            * match schedule.kind {
                ScheduleKind::Constant => 1.0,
                ScheduleKind::Cosine => {
                    let angle = std::f64::consts::PI * share.powf(schedule.k_decay);
                    schedule.end + (1.0 - schedule.end) * 0.5 * (1.0 + angle.cos())
                }
                ScheduleKind::Linear => schedule.end + (1.0 - schedule.end) * (1.0 - share),
                ScheduleKind::Step => {
                    let passed = schedule.milestones.iter().filter(|&&milestone| milestone <= t).count();
                    schedule.factor.powi(passed as i32)
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(edit: impl FnOnce(&mut Config)) -> LearningRate {
        let mut config = Config::default();
        config.optim.lr_per = 0;
        config.optim.lr = 1.0;
        config.epochs = 10;
        config.schedule.warmup_epochs = 2.0;
        config.schedule.warmup_start = 0.5;
        edit(&mut config);
        LearningRate::new(&config, 4)
    }

    #[test]
    fn warm_up_meets_cosine() {
        let rate = rate(|_| ());
        assert_eq!((rate.at(0), rate.at(4), rate.at(8)), (0.5, 0.75, 1.0));
        assert!((rate.at(24) - 0.5).abs() < 1e-15, "half way: {}", rate.at(24));
        assert_eq!(rate.at(40), 0.0);
    }

    #[test]
    fn per_epoch_is_constant_within_one() {
        let rate = rate(|config| config.schedule.per = Per::Epoch);
        assert_eq!(rate.at(0), rate.at(3));
        assert_eq!(rate.at(4), 0.75);
    }

    #[test]
    fn steps_and_line() {
        let step = rate(|config| {
            config.schedule.kind = ScheduleKind::Step;
            config.schedule.milestones = vec![3.0, 6.0];
        });
        assert_eq!((step.at(11), step.at(12), step.at(24)), (1.0, 0.1, 0.1 * 0.1));
        let line = rate(|config| config.schedule.kind = ScheduleKind::Linear);
        assert_eq!((line.at(8), line.at(24), line.at(40)), (1.0, 0.5, 0.0));
    }

    /// NVIDIA's warm-up, lr (e + 1) / 8 by the epoch, is at the full rate for two epochs.
    #[test]
    fn the_full_rate_is_held() {
        let rate = rate(|config| {
            config.schedule.warmup_epochs = 3.0;
            config.schedule.warmup_start = 0.25;
            config.schedule.hold_epochs = 1.0;
            config.schedule.per = Per::Epoch;
        });
        let epochs = [0, 1, 2, 3, 4, 7].map(|epoch| rate.at(4 * epoch));
        assert_eq!(epochs[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((epochs[5] - 0.5).abs() < 1e-15, "half way from 4 to 10: {}", epochs[5]);
    }

    /// timm's warm-up replaces the beginning of the cosine.
    #[test]
    fn a_decay_may_begin_with_the_run() {
        let rate = rate(|config| {
            config.schedule.after_warmup = false;
            config.schedule.end = 0.5;
        });
        assert_eq!((rate.at(0), rate.at(20)), (0.5, 0.75));
        let k = self::rate(|config| {
            config.schedule.after_warmup = false;
            config.schedule.k_decay = 2.0;
        });
        assert!((k.at(20) - 0.5 * (1.0 + (std::f64::consts::PI * 0.25).cos())).abs() < 1e-15);
    }

    #[test]
    fn the_rate_scales_with_the_batch() {
        let mut config = Config::default();
        config.data.batch = 512;
        assert_eq!(config.full_lr(), 0.2);
    }
}
