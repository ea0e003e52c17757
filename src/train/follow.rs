//! A rank that follows rank 0: it does what it is told, writes nothing, and ends as rank 0 does.

use super::evaluate::{combine, score_share};
use super::images::{NamedBad, loader_options, steps_per_epoch, validation};
use super::orders::{self, Order, Outcomes, compare, ended, share_state, tensors};
use super::passes::{At, Passes};
use super::stop::Stop;
use crate::backend::Backend;
use crate::comm::Ranks;
use crate::config::Config;
use crate::data::{Dataset, Loader, Share};
use crate::error::{Error, Result};
use crate::failpoint;
use std::sync::Arc;

/// Follows until rank 0 ends the run.
pub fn follow(
    config: &Config,
    dataset: &Dataset,
    backend: &mut dyn Backend,
    ranks: &Ranks,
    stop: &Stop,
) -> Result<()> {
    let passes = Passes::new(config, steps_per_epoch(config, dataset)?).among(ranks.size());
    let mut follower = Follower {
        config,
        dataset,
        passes,
        share: Share { index: ranks.rank(), of: ranks.size() },
        outcomes: Outcomes::new(Ranks::clone(ranks)),
        stop,
        loader: None,
        named_bad: NamedBad::default(),
        at: None,
    };
    let mut last = None;
    loop {
        let order = orders::next(ranks, last)?;
        if let Order::End(code) = order {
            return ended(code);
        }
        follower.obey(order, backend).map_err(|error| follower.located(error))?;
        last = Some(order);
    }
}

struct Follower<'a> {
    config: &'a Config,
    dataset: &'a Dataset,
    passes: Passes<'a>,
    share: Share,
    outcomes: Outcomes,
    stop: &'a Stop,
    /// Of an epoch, with the step that it is at.
    loader: Option<(usize, usize, Loader)>,
    named_bad: NamedBad,
    /// The last step.
    at: Option<At>,
}

impl Follower<'_> {
    fn obey(&mut self, order: Order, backend: &mut dyn Backend) -> Result<()> {
        match order {
            Order::Begin => share_state(&self.outcomes.ranks, backend),
            Order::Step(at) => self.step(at, backend),
            Order::Collect => {
                self.collect(backend, true)?;
                self.outcomes.exchange(self.stop)
            }
            Order::Validate => self.validate(backend),
            Order::Compare => compare(&self.outcomes.ranks, tensors(&backend.state()?)),
            Order::End(_) => Ok(()),
        }
    }

    fn located(&self, error: Error) -> Error {
        match self.at {
            Some(at) => error.within(format!("epoch {}, step {}", at.epoch + 1, at.step + 1)),
            None => error,
        }
    }

    fn step(&mut self, at: At, backend: &mut dyn Backend) -> Result<()> {
        self.at = Some(at);
        let (share, own) = (self.share, self.passes.own());
        let mut loader = match self.loader.take() {
            Some((epoch, step, loader)) if (epoch, step) == (at.epoch, at.step) => loader,
            _ => {
                let options = loader_options(self.config, at.epoch);
                let options = crate::data::TrainOptions { share, start_batch: at.step * own, ..options };
                Loader::train(Arc::clone(&self.dataset.train), options)?
            }
        };
        for index in 0..own {
            let batch = loader.next().ok_or_else(|| Error::failed("the loader ended before its epoch"))??;
            let passes = at.passes + (index * share.of + share.index) as u64;
            backend.submit(&batch, &self.passes.step(At { passes, ..at }, index))?;
            loader.recycle(batch);
            self.collect(backend, false)?;
        }
        self.named_bad.report("training", loader.bad());
        self.loader = Some((at.epoch, at.step + 1, loader));
        failpoint::hit("train", "step");
        self.outcomes.exchange(self.stop)?;
        // What they come to is rank 0's to say.
        while self.outcomes.take().is_some() {}
        Ok(())
    }

    fn collect(&mut self, backend: &mut dyn Backend, all: bool) -> Result<()> {
        while let Some(outcome) = if all { backend.wait() } else { backend.poll() }? {
            self.outcomes.add(outcome);
        }
        Ok(())
    }

    fn validate(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let (mut loader, weights) = validation(self.config, self.dataset, self.share)?;
        let own = score_share(backend, &mut loader, weights, self.stop)?;
        self.named_bad.report("validation", loader.bad());
        combine(&self.outcomes.ranks, own).map(drop)
    }
}
