//! The end of an epoch: validation, bad files, the epoch's line.

use super::evaluate::{combine, in_percent, score_share};
use super::images::validation;
use super::orders::{self, Order};
use super::state::Best;
use super::trainer::Trainer;
use crate::backend::{Backend, Score};
use crate::data::{BadFile, Share};
use crate::error::Result;
use crate::log::EpochScores;
use crate::terminal::answer;

impl Trainer<'_> {
    pub(super) fn validate(&self, backend: &mut dyn Backend) -> Result<(Score, Vec<BadFile>)> {
        let ranks = &self.outcomes.ranks;
        orders::give(ranks, Order::Validate)?;
        let (mut loader, weights) = validation(self.config, self.dataset, self.share())?;
        let own = score_share(backend, &mut loader, weights, &self.stop)?;
        Ok((combine(ranks, own)?, loader.bad().to_vec()))
    }

    /// Of the images, that of rank 0.
    pub(super) fn share(&self) -> Share {
        Share { index: 0, of: self.outcomes.ranks.size() }
    }

    pub(super) fn judge(&mut self, score: Score, bad: &[BadFile]) -> Result<Score> {
        self.named_bad.report("validation", bad);
        // Also what a checkpoint could not be read back with: JSON has no NaN.
        match score.loss.is_finite() {
            true => Ok(score),
            false => Err(self.fault("validation", score, "the logits are not finite")),
        }
    }

    /// Turns the epoch's sums into its line.
    pub(super) fn close_epoch(&mut self, val: Score) -> Result<()> {
        self.state.epoch += 1;
        self.state.step = 0;
        let epoch = EpochScores {
            epoch: self.state.epoch as u32,
            step: self.state.total_steps,
            train: in_percent(self.state.sums),
            val: in_percent(val),
        };
        self.state.sums = Score::default();
        self.state.history.push(epoch);
        if self.state.best.as_ref().is_none_or(|best| epoch.val.top1 > best.top1) {
            let (epoch_number, total_steps) = (self.state.epoch, self.state.total_steps);
            self.state.best = Some(Best { top1: epoch.val.top1, epoch: epoch_number, total_steps });
        }
        self.log.epoch(&epoch)?;
        // The line is in logs.md; a closed or full standard output is no reason to stop.
        let _ = answer(epoch.fields());
        Ok(())
    }

    pub(super) fn is_best(&self) -> bool {
        self.state.best.as_ref().is_some_and(|best| best.epoch == self.state.epoch)
    }
}
