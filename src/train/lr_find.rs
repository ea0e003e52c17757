//! The range test: training steps at rates that grow exponentially, until the loss runs away (L. N. Smith,
//! arXiv:1506.01186).

use super::images::{loader_options, steps_per_epoch};
use super::passes::{At, Passes};
use super::stop::Stop;
use crate::backend::{Backend, Score};
use crate::config::Config;
use crate::data::{Dataset, Loader};
use crate::error::{Error, Result};
use crate::log::rate_plot::RatePoint;
use std::collections::VecDeque;
use std::sync::Arc;

/// The rates, those of the whole batch after linear scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    pub low: f64,
    pub high: f64,
    pub steps: usize,
}

impl Range {
    pub fn check(&self) -> Result<()> {
        let Self { low, high, steps } = *self;
        if low > 0.0 && low < high && high.is_finite() && steps >= 2 {
            return Ok(());
        }
        Err(Error::usage(format!("--lr-range {low} {high}: wanted two rates above 0, the smaller one first")))
    }

    fn rate(&self, step: usize) -> f64 {
        self.low * (self.high / self.low).powf(step as f64 / (self.steps - 1) as f64)
    }
}

/// What the test found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub points: Vec<RatePoint>,
    /// Where the smooth loss falls fastest over the rate's logarithm.
    pub steepest: f64,
    /// Where it is lowest.
    pub lowest: f64,
    /// A tenth of the rate at the lowest loss, unless it falls fastest before that.
    pub suggested: f64,
}

/// Weight of the past in the smooth loss, whose start is corrected for it.
const SMOOTHING: f64 = 0.95;
/// The smooth loss has run away at this many times its minimum.
const RUNAWAY: f64 = 4.0;
/// Losses before which nothing is concluded.
const FEWEST: usize = 5;

/// Runs the test on a freshly initialised `backend`, which is of no other use afterwards.
pub fn lr_find(
    config: &Config,
    dataset: &Dataset,
    backend: &mut dyn Backend,
    range: &Range,
    stop: &Stop,
) -> Result<Found> {
    range.check()?;
    let per_epoch = steps_per_epoch(config, dataset)?;
    let mut test = Test {
        micro_steps: config.micro_steps(),
        passes: Passes::new(config, per_epoch),
        backend,
        smooth: Smooth::default(),
        underway: VecDeque::new(),
        points: vec![],
    };
    let mut loader = None;
    for step in 0..range.steps {
        if stop.requested() {
            return Err(Error::stopped("stopped during the search for a learning rate; it begins anew"));
        }
        if step % per_epoch == 0 {
            let options = loader_options(config, step / per_epoch);
            loader = Some(Loader::train(Arc::clone(&dataset.train), options)?);
        }
        let loader = loader.as_mut().expect("the first step opens it");
        let passes = (step * test.micro_steps) as u64;
        let at = At { epoch: step / per_epoch, step: step % per_epoch, total_steps: step as u64, passes };
        if test.step(loader, range.rate(step), at)? {
            break;
        }
    }
    test.collect(true)?;
    conclude(test.points)
}

struct Test<'a> {
    micro_steps: usize,
    passes: Passes<'a>,
    backend: &'a mut dyn Backend,
    smooth: Smooth,
    /// Rate, passes whose outcome has not come, score.
    underway: VecDeque<(f64, usize, Score)>,
    points: Vec<RatePoint>,
}

impl Test<'_> {
    /// Whether the loss has run away.
    fn step(&mut self, loader: &mut Loader, lr: f64, at: At) -> Result<bool> {
        let of = self.micro_steps;
        self.underway.push_back((lr, of, Score::default()));
        for index in 0..of {
            let batch = loader.next().ok_or_else(|| Error::failed("the loader ended before its epoch"))??;
            let at = At { passes: at.passes + index as u64, ..at };
            self.backend.submit(&batch, &self.passes.step_at_rate(lr, at, index))?;
            loader.recycle(batch);
            if self.collect(false)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes in outcomes; whether the loss has run away. A loss that is not finite has, and is no fault here.
    fn collect(&mut self, all: bool) -> Result<bool> {
        loop {
            let outcome = if all { self.backend.wait()? } else { self.backend.poll()? };
            let Some(outcome) = outcome else { return Ok(false) };
            let (lr, passes, score) = self.underway.front_mut().expect("an outcome belongs to a pass");
            *score += outcome.score;
            *passes -= 1;
            if outcome.fault.is_some() || !score.loss.is_finite() {
                return Ok(true);
            }
            if *passes == 0 {
                let (lr, loss) = (*lr, score.loss / score.count.max(1) as f64);
                self.underway.pop_front();
                let smooth = self.smooth.add(loss);
                self.points.push(RatePoint { lr, loss, smooth });
                let lowest = self.points.iter().map(|point| point.smooth).fold(f64::MAX, f64::min);
                if self.points.len() > FEWEST && smooth > RUNAWAY * lowest {
                    return Ok(true);
                }
            }
        }
    }
}

#[derive(Default)]
struct Smooth {
    mean: f64,
    count: i32,
}

impl Smooth {
    fn add(&mut self, loss: f64) -> f64 {
        self.mean = SMOOTHING * self.mean + (1.0 - SMOOTHING) * loss;
        self.count += 1;
        self.mean / (1.0 - SMOOTHING.powi(self.count))
    }
}

fn conclude(points: Vec<RatePoint>) -> Result<Found> {
    // The first losses are hardly smoothed, and one that is low by chance would win.
    let Some(settled) = points.get(FEWEST..).filter(|settled| settled.len() >= FEWEST) else {
        return Err(Error::failed(format!(
            "the loss ran away after {} steps; begin --lr-range at a smaller rate",
            points.len()
        )));
    };
    let lowest = settled.iter().min_by(|a, b| a.smooth.total_cmp(&b.smooth)).expect("there are some").lr;
    if lowest == settled[0].lr {
        return Err(Error::failed(
            "the loss falls at none of these rates; give more steps (--lr-find 300), a larger data.batch, or another \
             --lr-range",
        ));
    }
    let falling = settled.windows(2).take_while(|pair| pair[1].lr <= lowest);
    let slope = |pair: &[RatePoint]| (pair[1].smooth - pair[0].smooth) / (pair[1].lr / pair[0].lr).ln();
    let steepest = falling.min_by(|a, b| slope(a).total_cmp(&slope(b))).map_or(lowest, |pair| pair[1].lr);
    let suggested = (lowest / 10.0).max(points[0].lr).min(steepest);
    Ok(Found { points, steepest, lowest, suggested })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_grow_by_one_factor() {
        let range = Range { low: 1e-4, high: 1.0, steps: 5 };
        for (step, want) in [1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
            assert!((range.rate(step) / want - 1.0).abs() < 1e-12);
        }
        assert_eq!(Range { low: 1.0, high: 0.1, steps: 5 }.check().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_suggestion_lies_before_the_lowest_loss() {
        // Flat, then falling around 1e-2, lowest at 1e-1, then away.
        let loss = |lr: f64| 7.0 - 2.0 * (1.0 + (lr / 1e-2).log10().tanh()) + (lr / 0.3).powi(2);
        let range = Range { low: 1e-5, high: 10.0, steps: 121 };
        let points = (0..121).map(|step| {
            let lr = range.rate(step);
            RatePoint { lr, loss: loss(lr), smooth: loss(lr) }
        });
        let found = conclude(points.collect()).unwrap();
        assert!((5e-3..2e-2).contains(&found.steepest), "{}", found.steepest);
        assert!((5e-2..2e-1).contains(&found.lowest), "{}", found.lowest);
        assert_eq!(found.suggested, (found.lowest / 10.0).min(found.steepest));
        let few = conclude(found.points[..9].to_vec()).unwrap_err();
        assert!(few.message.contains("after 9 steps"), "{few}");
        let rising = conclude(found.points[90..].to_vec()).unwrap_err();
        assert!(rising.message.contains("falls at none of these rates"), "{rising}");
    }

    #[test]
    fn smoothing_is_corrected_for_its_start() {
        let mut smooth = Smooth::default();
        assert!((smooth.add(3.0) - 3.0).abs() < 1e-12);
        assert!((smooth.add(3.0) - 3.0).abs() < 1e-12);
        assert!(smooth.add(5.0) > 3.5);
    }
}
