//! Ends of a run before its last epoch: an accuracy that is reached, hours or dollars that are spent.

use crate::config::Stopping;
use crate::log::EpochScores;
use std::time::Instant;

/// Epochs in succession that must reach the accuracy: the one that does, and one that confirms it.
const CONFIRMED: usize = 2;

/// What a run is to end at, and what it has used.
pub struct Goals<'a> {
    stopping: &'a Stopping,
    /// Of earlier processes of the run.
    hours_before: f64,
    began: Instant,
}

impl<'a> Goals<'a> {
    pub fn new(stopping: &'a Stopping, hours_before: f64) -> Self {
        Self { stopping, hours_before, began: Instant::now() }
    }

    /// Time spent in training, all attempts together.
    pub fn hours(&self) -> f64 {
        self.hours_before + self.began.elapsed().as_secs_f64() / 3600.0
    }

    /// Why the run ends here, if it does; `history` holds its finished epochs.
    pub fn reached(&self, history: &[EpochScores]) -> Option<String> {
        self.accuracy(history).or_else(|| self.budget())
    }

    /// Why it ends, as far as time and money go.
    pub fn budget(&self) -> Option<String> {
        let Stopping { hours, dollars, price, .. } = *self.stopping;
        let spent = self.hours();
        if hours > 0.0 && spent >= hours {
            return Some(format!("stop.hours = {hours} are used"));
        }
        (dollars > 0.0 && spent * price >= dollars)
            .then(|| format!("stop.dollars = {dollars} are spent, at {price} an hour"))
    }

    fn accuracy(&self, history: &[EpochScores]) -> Option<String> {
        let top1 = self.stopping.top1;
        let last = history.iter().rev().take_while(|epoch| epoch.val.top1 >= top1).count();
        (top1 > 0.0 && last >= CONFIRMED)
            .then(|| format!("stop.top1 = {top1} is reached, and confirmed by another validation"))
    }

    /// For the bar: dollars so far, and those of the whole run after `share` of it; nothing where no price is known.
    pub fn money(&self, share: f64) -> String {
        let spent = self.hours() * self.stopping.price;
        match share {
            _ if self.stopping.price == 0.0 => String::new(),
            0.0 => format!(", {spent:.2} dollars"),
            share => format!(", {spent:.2} of about {:.2} dollars", spent / share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Scores;

    fn history(top1: &[f64]) -> Vec<EpochScores> {
        let scores = |top1| Scores { loss: 1.0, top1, top5: 99.0 };
        let epoch = |(epoch, &top1): (u32, &f64)| EpochScores {
            epoch,
            step: u64::from(epoch),
            train: scores(0.0),
            val: scores(top1),
        };
        (1..).zip(top1).map(epoch).collect()
    }

    #[test]
    fn an_accuracy_is_confirmed_by_the_next_validation() {
        let stopping = Stopping { top1: 75.0, ..Stopping::default() };
        let goals = Goals::new(&stopping, 0.0);
        for (top1, is_reached) in
            [(&[74.9, 75.0][..], false), (&[75.0, 74.9], false), (&[60.0, 75.0, 75.0], true), (&[], false)]
        {
            assert_eq!(goals.reached(&history(top1)).is_some(), is_reached, "{top1:?}");
        }
        assert!(Goals::new(&Stopping::default(), 1e9).reached(&history(&[100.0, 100.0])).is_none());
    }

    #[test]
    fn hours_and_dollars_of_earlier_processes_count() {
        let stopping = Stopping { dollars: 25.0, price: 0.918, ..Stopping::default() };
        assert!(Goals::new(&stopping, 27.0).budget().is_none());
        assert!(Goals::new(&stopping, 27.3).budget().unwrap().contains("stop.dollars = 25"));
        let stopping = Stopping { hours: 2.0, ..stopping };
        assert!(Goals::new(&stopping, 2.0).budget().unwrap().contains("stop.hours = 2"));
        assert_eq!(Goals::new(&stopping, 10.0).money(0.5), ", 9.18 of about 18.36 dollars");
        assert_eq!(Goals::new(&Stopping::default(), 10.0).money(0.5), "");
    }
}
