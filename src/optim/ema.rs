//! How fast moving averages of the weights follow them, update by update.

use crate::config::{Config, Ema, EmaForm};

/// The averages of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Averages {
    every: usize,
    /// Of an update that is no copy.
    decay: f64,
    /// The first epoch whose updates are no copies, but for its first one; `None`: no update is one.
    follows_from: Option<usize>,
}

impl Averages {
    /// `None` where a run keeps none.
    pub fn new(config: &Config) -> Option<Self> {
        let Ema { decay, every, form } = config.ema;
        let averages = match form {
            EmaForm::Plain => Self { every, decay, follows_from: None },
            // adjust = args.world_size * args.batch_size * args.model_ema_steps / args.epochs
            EmaForm::Torchvision => {
                let adjust = (config.data.batch * every) as f64 / config.epochs as f64;
                let alpha = ((1.0 - decay) * adjust).min(1.0);
                let follows_from = Some(config.schedule.warmup_epochs.ceil() as usize);
                Self { every, decay: 1.0 - alpha, follows_from }
            }
        };
        config.ema.is_on().then_some(averages)
    }

    /// The decay with optimiser step `step` of `epoch`, both from 0: `None` where averages stay as they are, 0 where they
    /// become the weights. torchvision's count of updates goes back to 0 with every step of the warm-up, and an update copies
    /// where the count is 0: every one of the warm-up, and the first one after it.
    pub fn decay_at(&self, epoch: usize, step: usize) -> Option<f64> {
        let copies = self.follows_from.is_some_and(|first| epoch < first || (epoch == first && step == 0));
        let decay = if copies { 0.0 } else { self.decay };
        step.is_multiple_of(self.every).then_some(decay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn averages(edit: impl FnOnce(&mut Config)) -> Option<Averages> {
        let mut config = Config::default();
        edit(&mut config);
        Averages::new(&config)
    }

    /// torchvision's V2: 8 x 128 images, every 32 steps, 600 epochs, 5 of warm-up.
    #[test]
    fn v2_follows_by_a_thousandth() {
        let v2 = averages(|config| {
            config.ema = Ema { decay: 0.99998, every: 32, form: EmaForm::Torchvision };
            config.data.batch = 1024;
            config.epochs = 600;
        })
        .unwrap();
        assert!((v2.decay - 0.998_907_733).abs() < 1e-9, "{}", v2.decay);
        let decays =
            [(0, 0), (0, 1), (4, 1248), (5, 0), (5, 31), (5, 32), (6, 0)].map(|(e, s)| v2.decay_at(e, s));
        let follows = Some(v2.decay);
        assert_eq!(decays, [Some(0.0), None, Some(0.0), Some(0.0), None, follows, follows]);
    }

    #[test]
    fn plain_averages_follow_from_the_first_update() {
        let plain = averages(|config| config.ema.decay = 0.75).unwrap();
        assert_eq!((plain.decay_at(0, 0), plain.decay_at(3, 1)), (Some(0.75), Some(0.75)));
        assert_eq!(averages(|_| ()), None);
    }
}
