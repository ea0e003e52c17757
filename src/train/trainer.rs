//! The epoch loop.

use super::evaluate::in_percent;
use super::follow::follow;
use super::goals::Goals;
use super::images::{NamedBad, data_identity, loader_options, steps_per_epoch};
use super::init::Init;
use super::limit::Limit;
use super::mirror::Mirror;
use super::model_file::Description;
use super::orders::{self, Order, Outcomes};
use super::output::{Output, RunFile};
use super::passes::{At, Passes};
use super::progress::{Progress, Tick};
use super::resume::{self, Start};
use super::state::{Environment, RunState};
use super::stop::Stop;
use super::words::{diverged, finished, opening, summary, what_is_kept};
use crate::backend::{Backend, Score};
use crate::checkpoint::{BackgroundWriter, Store};
use crate::comm::Ranks;
use crate::config::{Config, recipe_keys};
use crate::data::{Dataset, Loader};
use crate::error::{Error, Kind, Result};
use crate::failpoint;
use crate::leave::LastWords;
use crate::log::{RunHeader, RunLog, StepClock, StepRecord};
use crate::remote::Offer;
use crate::terminal::message;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where a run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The newest checkpoint in the output folder that verifies; the beginning where there is none.
    Auto,
    /// The beginning.
    None,
    /// This checkpoint.
    From(PathBuf),
}

/// What `engine train` was asked for, beside the configuration.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    pub output: PathBuf,
    pub resume: Resume,
    /// First weights from elsewhere.
    pub init: Option<Init>,
    pub stop: Stop,
    pub ranks: Ranks,
}

/// Trains until the last epoch, a signal or a fault. `backend` is freshly initialised. Epoch lines go to stdout,
/// everything else to stderr.
pub fn train(
    config: &Config,
    options: &TrainOptions,
    dataset: &Dataset,
    backend: &mut dyn Backend,
    environment: Environment,
) -> Result<()> {
    let ranks = &options.ranks;
    let mut recipe = recipe_keys(config);
    recipe.extend(data_identity(dataset));
    if config.model.sync_batch_norm {
        // Batch norm sees the images of all of them.
        recipe.insert("ranks of model.sync_batch_norm".to_owned(), ranks.size().to_string());
    }
    orders::meet(ranks, &recipe, &environment)?;
    if ranks.rank() > 0 {
        return follow(config, dataset, backend, ranks, &options.stop);
    }
    let outcome = lead(config, options, dataset, backend, RunState::new(recipe, environment));
    match &outcome {
        // Ranks are gone, or silent: there is nobody to tell.
        Err(error) if error.kind == Kind::Device => {}
        outcome => {
            let code = outcome.as_ref().map_or_else(Error::exit_code, |()| 0);
            let given = orders::give(ranks, Order::End(code));
            // Where this rank failed within a step, the others wait for something else, and end for that.
            if outcome.is_ok() {
                given?;
            }
        }
    }
    outcome
}

/// The rank that reads and writes.
fn lead(
    config: &Config,
    options: &TrainOptions,
    dataset: &Dataset,
    backend: &mut dyn Backend,
    fresh: RunState,
) -> Result<()> {
    let output = Output::open(&options.output)?;
    let steps_per_epoch = steps_per_epoch(config, dataset)?;
    let store = Store::open(
        &output.checkpoints(),
        config.checkpoint.keep,
        config.checkpoint.keep_every_epochs as u32,
    )?;
    let mut mirror = Mirror::open(&config.checkpoint)?;
    mirror.bring(&options.resume, &output, &store, &fresh)?;
    let start = resume::start(fresh, options, &store, backend)?;
    let header = |run: &RunFile| {
        let (id, name) = (run.id.clone(), run.name.clone());
        RunHeader { id, name, configuration: summary(config, dataset) }
    };
    if start.state.epoch >= config.epochs {
        let Start { state, .. } = start;
        if let Some(run) = output.previous_run().filter(|run| run.recipe == state.recipe) {
            RunLog::mend(&output.folder, &header(&run), &state.history, state.total_steps)?;
            mirror.claim(&run, &state, &output, &store)?;
        }
        mirror.close(&state, &options.stop, Ok(()))?;
        message(finished(&state, &output));
        return Ok(());
    }
    orders::give(&options.ranks, Order::Begin)?;
    orders::share_state(&options.ranks, backend)?;
    let run = resume::run_file(config, &start, &options.resume, &output)?;
    let Start { state, notes, .. } = start;
    mirror.claim(&run, &state, &output, &store)?;
    output.write_config(config)?;
    let mut log = RunLog::open(&output.folder, &header(&run), &state.history, state.total_steps)?;
    log.warnings().iter().for_each(|warning| message(format!("warning: {warning}")));
    for note in notes {
        log.note(&note)?;
    }
    let steps_done = Arc::new(AtomicU64::new(state.total_steps));
    let mut trainer = Trainer {
        config,
        dataset,
        passes: Passes::new(config, steps_per_epoch).among(options.ranks.size()),
        outcomes: Outcomes::new(Ranks::clone(&options.ranks)),
        steps_per_epoch,
        model: Description::new(config, &dataset.classes).to_json(),
        steps_done: Arc::clone(&steps_done),
        state,
        writer: BackgroundWriter::new(store.clone()),
        log,
        output: &output,
        mirror: &mirror,
        goals: Goals::new(&config.stop, run.hours),
        run,
        stop: options.stop.clone(),
        began_at: steps_done.load(Ordering::Relaxed),
        saved: Instant::now(),
        saved_step: None,
        underway: VecDeque::new(),
        named_bad: NamedBad::default(),
        limit: Limit::default(),
    };
    message(opening(config, dataset, &trainer.state, &output));
    let words = LastWords::new(move || what_is_kept(&store, steps_done.load(Ordering::Relaxed)));
    let outcome = trainer.run(backend);
    drop(words);
    let durable = trainer.wait_for_save();
    trainer.run.hours = trainer.goals.hours();
    let finishing = trainer.log.finish();
    let recorded = output.write_run(&trainer.run);
    // The first that went wrong is the reason; the others may be its consequences.
    let (outcome, state) = (outcome.and(durable).and(finishing).and(recorded), trainer.state);
    mirror.close(&state, &options.stop, outcome)?;
    message(finished(&state, &output));
    Ok(())
}

pub(super) struct Trainer<'a> {
    pub(super) config: &'a Config,
    pub(super) dataset: &'a Dataset,
    passes: Passes<'a>,
    pub(super) outcomes: Outcomes,
    steps_per_epoch: usize,
    /// The network's description, as checkpoints carry it.
    model: String,
    pub(super) state: RunState,
    /// Optimiser steps handed over, for who ends the process from outside.
    steps_done: Arc<AtomicU64>,
    writer: BackgroundWriter,
    pub(super) log: RunLog,
    output: &'a Output,
    mirror: &'a Mirror,
    run: RunFile,
    goals: Goals<'a>,
    pub(super) stop: Stop,
    /// Optimiser steps of the run before this process.
    began_at: u64,
    saved: Instant,
    /// Optimiser step of the newest checkpoint that this process has handed over.
    saved_step: Option<(usize, u64)>,
    /// Optimiser steps whose outcomes have not all come, from whichever rank, oldest first.
    underway: VecDeque<Underway>,
    pub(super) named_bad: NamedBad,
    limit: Limit,
}

/// An optimiser step that the backend has been given.
struct Underway {
    /// Within its epoch, from 1.
    step: usize,
    total_steps: u64,
    lr: f64,
    /// Passes whose outcome has not come.
    passes: usize,
    score: Score,
    /// What the loader had waited by then.
    waited: Duration,
}

impl Trainer<'_> {
    fn run(&mut self, backend: &mut dyn Backend) -> Result<()> {
        while self.state.epoch < self.config.epochs {
            if let Some(reason) = self.goals.reached(&self.state.history) {
                return self.end_here(backend, &reason);
            }
            self.epoch(backend)?;
        }
        Ok(())
    }

    /// A goal of `[stop]` is no failure: checkpoint, a line in the log, and the end.
    fn end_here(&mut self, backend: &dyn Backend, reason: &str) -> Result<()> {
        let at = (self.state.epoch, self.state.total_steps);
        if self.saved_step != Some(at) && self.state.total_steps > self.began_at {
            self.save(backend)?;
        }
        let text = format!("ended in epoch {}, step {}: {reason}", self.state.epoch + 1, self.state.step);
        message(&text);
        self.log.note(&text)
    }

    fn epoch(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let mut loader = self.training_loader()?;
        let title = format!("epoch {}/{}", self.state.epoch + 1, self.config.epochs);
        let mut progress = Progress::new(title, self.steps_per_epoch, self.state.step);
        self.limit.begin_epoch();
        while self.state.step < self.steps_per_epoch {
            self.step(backend, &mut loader, &mut progress)?;
            if self.writer.has_ended() {
                self.wait_for_save()?;
            }
            if let Some(line) = self.limit.look(&loader, self.config.workers()) {
                progress.line(&line);
            }
            failpoint::hit("train", "step");
            if self.stop.requested() {
                self.collect(backend, Some(&mut progress), true)?;
                progress.finish();
                return self.save_and_stop(backend);
            }
            if self.goals.budget().is_some() && self.state.step < self.steps_per_epoch {
                self.collect(backend, Some(&mut progress), true)?;
                progress.finish();
                return Ok(());
            }
            if self.checkpoint_is_due() && self.state.step < self.steps_per_epoch {
                self.collect(backend, Some(&mut progress), true)?;
                self.save(backend)?;
            }
        }
        self.collect(backend, Some(&mut progress), true)?;
        let bad = loader.bad().to_vec();
        drop(loader);
        progress.validating();
        let validation = self.validate(backend);
        progress.finish();
        self.named_bad.report("training", &bad);
        let val = match validation
            .map_err(|error| self.lost(error))
            .and_then(|(score, bad)| self.judge(score, &bad))
        {
            Err(error) if error.kind == Kind::Stopped => return self.save_and_stop(backend),
            outcome => outcome?,
        };
        self.close_epoch(val)?;
        if self.state.epoch.is_multiple_of(self.config.checkpoint.every_epochs)
            || self.state.epoch == self.config.epochs
            || self.is_best()
        {
            self.save(backend)?;
        }
        if self.stop.requested() && self.state.epoch < self.config.epochs {
            return self.save_and_stop(backend);
        }
        Ok(())
    }

    /// Hands one optimiser step to the backend, and takes in what has come of earlier ones.
    fn step(
        &mut self,
        backend: &mut dyn Backend,
        loader: &mut Loader,
        progress: &mut Progress,
    ) -> Result<()> {
        let (at, of, ranks) = (self.at(), self.config.micro_steps(), self.outcomes.ranks.size());
        let lr = self.passes.lr(at);
        orders::give(&self.outcomes.ranks, Order::Step(at)).map_err(|error| self.lost(error))?;
        self.underway.push_back(Underway {
            step: self.state.step + 1,
            total_steps: self.state.total_steps + 1,
            lr,
            passes: of,
            score: Score::default(),
            waited: loader.waited(),
        });
        let own = self.passes.own();
        for index in 0..own {
            let batch = loader.next().ok_or_else(|| Error::failed("the loader ended before its epoch"))??;
            let passes = at.passes + (index * ranks) as u64;
            let submitted = backend.submit(&batch, &self.passes.step(At { passes, ..at }, index));
            submitted.map_err(|error| self.lost(error))?;
            loader.recycle(batch);
            if index + 1 == own {
                self.state.passes += of as u64;
                self.state.step += 1;
                self.state.total_steps += 1;
                self.steps_done.store(self.state.total_steps, Ordering::Relaxed);
            }
            self.collect(backend, Some(progress), false)?;
        }
        self.outcomes.exchange(&self.stop).map_err(|error| self.lost(error))?;
        self.settle(Some(progress))
    }

    /// Takes in the outcomes that have come; with `all`, waits until none is missing. The weights then are those of the
    /// last step that was handed over.
    fn collect(
        &mut self,
        backend: &mut dyn Backend,
        mut progress: Option<&mut Progress>,
        all: bool,
    ) -> Result<()> {
        if all {
            orders::give(&self.outcomes.ranks, Order::Collect).map_err(|error| self.lost(error))?;
        }
        loop {
            let outcome = if all { backend.wait() } else { backend.poll() };
            let Some(outcome) = outcome.map_err(|error| self.lost(error))? else { break };
            self.outcomes.add(outcome);
            self.settle(progress.as_deref_mut())?;
        }
        if all {
            self.outcomes.exchange(&self.stop).map_err(|error| self.lost(error))?;
            self.settle(progress)?;
            assert!(self.underway.is_empty(), "a backend keeps outcomes to itself");
        }
        Ok(())
    }

    /// Takes in what has been heard of passes, one after the other.
    fn settle(&mut self, mut progress: Option<&mut Progress>) -> Result<()> {
        while let Some(outcome) = self.outcomes.take() {
            let step =
                self.underway.front_mut().expect("every outcome belongs to a step that was handed over");
            if let Some(fault) = outcome.fault {
                let place = format!("step {}", step.step);
                return Err(self.fault(&place, outcome.score, &fault));
            }
            step.score += outcome.score;
            step.passes -= 1;
            if step.passes == 0 {
                let step = self.underway.pop_front().expect("it is the front");
                self.state.sums += step.score;
                self.report_step(&step, outcome.loss_scale, outcome.skipped, progress.as_deref_mut())?;
            }
        }
        Ok(())
    }

    /// A device that fails takes its memory along: what the newest checkpoint has is what is left.
    fn lost(&mut self, error: Error) -> Error {
        if error.kind != Kind::Device {
            return error;
        }
        let _ = self.wait_for_save();
        let kept = what_is_kept(self.writer.store(), self.state.total_steps);
        let at = match self.outcomes.ranks.size() {
            1 => String::new(),
            ranks => {
                let (epoch, step) = (self.state.epoch + 1, self.state.step + 1);
                format!("rank 0 of {ranks}, epoch {epoch}, step {step}: ")
            }
        };
        Error::device(format!("{at}{}; {kept}", error.message))
    }

    fn at(&self) -> At {
        let RunState { epoch, step, total_steps, passes, .. } = self.state;
        At { epoch, step, total_steps, passes }
    }

    fn report_step(
        &mut self,
        step: &Underway,
        loss_scale: f32,
        skipped: bool,
        progress: Option<&mut Progress>,
    ) -> Result<()> {
        let batch = self.config.data.batch;
        let clock = progress.as_ref().map_or(StepClock::default(), |progress| {
            let (images_per_second, wait) = progress.rates(step.step, batch, step.waited);
            StepClock { images_per_second, wait }
        });
        self.log.step(&StepRecord {
            epoch: self.state.epoch as u32 + 1,
            step: step.total_steps,
            scores: in_percent(step.score),
            lr: step.lr,
            images: step.total_steps * batch as u64,
            loss_scale,
            skipped,
            clock,
        })?;
        let epochs_after = self.config.epochs - self.state.epoch - 1;
        let all_steps = self.config.epochs * self.steps_per_epoch;
        if let Some(progress) = progress {
            progress.tick(Tick {
                step: step.step,
                batch,
                loss: step.score.loss / step.score.count as f64,
                waited: step.waited,
                steps_after: epochs_after * self.steps_per_epoch,
                money: self.goals.money(step.total_steps as f64 / all_steps as f64),
            });
        }
        Ok(())
    }

    fn training_loader(&self) -> Result<Loader> {
        let mut options = loader_options(self.config, self.state.epoch);
        options.share = self.share();
        options.start_batch = self.state.step * self.passes.own();
        Loader::train(Arc::clone(&self.dataset.train), options)
    }

    fn checkpoint_is_due(&self) -> bool {
        let policy = &self.config.checkpoint;
        let by_steps =
            policy.every_steps > 0 && self.state.total_steps.is_multiple_of(policy.every_steps as u64);
        let minutes = self.saved.elapsed().as_secs_f64() / 60.0;
        let by_clock = policy.every_minutes > 0.0 && minutes >= policy.every_minutes;
        by_steps || by_clock || self.stop.takes_checkpoint_request()
    }

    /// Hands a snapshot to the writer; training goes on while it is written. The logs are durable first, so that no
    /// checkpoint is ahead of them.
    fn save(&mut self, backend: &dyn Backend) -> Result<()> {
        debug_assert!(self.underway.is_empty(), "a checkpoint holds what its steps have left");
        self.log.flush()?;
        self.state.choices = backend.choices();
        let checkpoint = self.state.to_checkpoint(backend, &self.model).map_err(|error| self.lost(error))?;
        orders::compare_checkpoint(&self.outcomes.ranks, &checkpoint).map_err(|error| self.lost(error))?;
        self.wait_for_save()?;
        self.writer.submit(self.state.position(), checkpoint, self.state.best_position())?;
        self.saved = Instant::now();
        self.saved_step = Some((self.state.epoch, self.state.total_steps));
        Ok(())
    }

    /// Waits for the save in flight. That there is one that is durable, and the time that it took, stand beside the
    /// checkpoints.
    fn wait_for_save(&mut self) -> Result<()> {
        if let Some(saved) = self.writer.wait()? {
            self.run.checkpointed = true;
            self.run.hours = self.goals.hours();
            self.output.write_run(&self.run)?;
            self.mirror.offer(Offer { at: saved.at, best: saved.best });
        }
        Ok(())
    }

    fn save_and_stop(&mut self, backend: &dyn Backend) -> Result<()> {
        if self.saved_step != Some((self.state.epoch, self.state.total_steps)) {
            self.save(backend)?;
        }
        self.wait_for_save()?;
        let path = self.writer.store().path(self.state.position());
        Err(Error::stopped(format!(
            "stopped on request at epoch {}, step {}; {} is on disk; run the same command again to go on",
            self.state.epoch + 1,
            self.state.step,
            path.display()
        )))
    }

    pub(super) fn fault(&mut self, place: &str, score: Score, fault: &str) -> Error {
        // The newest checkpoint is named once it is known to be whole; failing to write it is the smaller news.
        let _ = self.wait_for_save();
        let place = format!("epoch {}, {place}", self.state.epoch + 1);
        Error::failed(diverged(self.writer.store(), &place, score, fault))
    }
}
