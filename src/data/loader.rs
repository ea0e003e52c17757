//! Ordered batches from a pool of threads.
//!
//! A batch is a function of (seed, epoch, batch number) and of nothing else: not of the number of workers, nor of the
//! batch that the loader was started at. Workers take single images in order and write them into their place of a
//! fixed window of batches, so memory is bounded by the window and a slow image delays nothing but its own batch.
//!
//! **Memory.** Buffers go round: after the first images nothing is allocated for one (`tests/allocations.rs`). The CUDA backend
//! copies a batch into its page-locked slots: some 10 us an image, beside 400 to 1,000 of decoding.
//!
//! **Bad files.** A sample that cannot be read or decoded is collected in [`Loader::bad`] once. In training, its
//! place is taken by a copy of the next good image of the same batch, cyclically, with that image's label and sample
//! number; in evaluation it is left out. `next` fails once the bad ones are more than
//! `max(1, bad_share * max(seen, min(total, 1000)))`: a single one never stops a run, a set that is bad throughout
//! stops in its first thousand, and a few bad ones in the first batch do not stop a run whose share is small. With
//! `bad_share = 0` the first one stops it. A training batch with no good image stops it too.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::augment::repeat::Repeat;
use super::augment::{Key, TrainTransform};
use super::batch::Batch;
use super::mix::MixOptions;
use super::order::{epoch_order, limited};
use super::preprocess::EvalTransform;
use super::share::Share;
use super::split::Split;
use super::stages::Stages;
use super::worker::{self, Job, Place, Recipe, Slots};
use crate::error::{Error, Result};
use crate::model::graph::MAX_RESOLUTION;

/// A sample that could not be used; the message names the file and says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    pub sample: u32,
    pub message: String,
}

#[derive(Debug, Clone)]
pub struct TrainOptions {
    pub transform: TrainTransform,
    /// How the images of a batch are mixed; they are handed out as they are, with what to do.
    pub mix: Option<MixOptions>,
    pub batch: usize,
    pub seed: u64,
    pub epoch: u64,
    pub share: Share,
    /// The first batch to give, of the share; those before it are neither read nor decoded.
    pub start_batch: usize,
    /// The first N of a fixed shuffle of the split; 0: all of it.
    pub limit: usize,
    pub repeat: Repeat,
    pub workers: usize,
    pub bad_share: f64,
}

impl TrainOptions {
    pub fn new(transform: TrainTransform, batch: usize) -> Self {
        let workers = available_workers();
        Self {
            transform,
            mix: None,
            batch,
            seed: 0,
            epoch: 0,
            share: Share::ALL,
            start_batch: 0,
            limit: 0,
            repeat: Repeat::OFF,
            workers,
            bad_share: 0.01,
        }
    }
}

#[derive(Debug, Clone)]
pub struct EvalOptions {
    pub transform: EvalTransform,
    pub batch: usize,
    pub share: Share,
    /// The first N of a fixed shuffle of the split; 0: all of it.
    pub limit: usize,
    pub workers: usize,
    pub bad_share: f64,
}

impl EvalOptions {
    pub fn new(transform: EvalTransform, batch: usize) -> Self {
        Self { transform, batch, share: Share::ALL, limit: 0, workers: available_workers(), bad_share: 0.01 }
    }
}

/// One worker for each CPU that this process may use.
pub fn available_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Images that the system is told of before they are read: what a disk that answers in 10 ms has to have before it for
/// 25,000 images a second.
const READ_AHEAD: usize = 256;

/// One batch while it is being filled.
struct InFlight {
    slots: Arc<Slots>,
    remaining: usize,
    failures: Vec<(usize, String)>,
}

#[derive(Default)]
struct State {
    /// Next position of the order to be handed to a worker.
    next: usize,
    /// Next position that the system has not been told of.
    announced: usize,
    stages: Stages,
    /// Number of the batch at the front of the window.
    front: usize,
    window: VecDeque<InFlight>,
    stop: bool,
    fatal: Option<Error>,
}

/// Which samples come in which batches; order and copies are those of all ranks.
struct Course {
    order: Vec<u32>,
    copies: Vec<u8>,
    batch: usize,
    share: Share,
    start_batch: usize,
}

struct Shared {
    split: Arc<Split>,
    /// Samples in the order of their visit; its length is a multiple of `batch` in training.
    order: Vec<u32>,
    /// Which of its sample's visits each position is; empty where every one is the first.
    copies: Vec<u8>,
    batch: usize,
    share: Share,
    recipe: Recipe,
    state: Mutex<State>,
    /// A worker may have something to do.
    work: Condvar,
    /// The front batch may be complete.
    done: Condvar,
}

/// Iterates over `Result<Batch>`; ends after the epoch or after the first error. Dropping it stops the workers.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    bad_share: f64,
    bad: Vec<BadFile>,
    seen: usize,
    waited: Duration,
    spare: Vec<Vec<u8>>,
    failed: bool,
}

impl Loader {
    /// One epoch of training from `start_batch` on; the last partial batch is dropped.
    pub fn train(split: Arc<Split>, options: TrainOptions) -> Result<Self> {
        let order = epoch_order(split.len(), options.limit, options.seed, options.epoch);
        let order = options.repeat.order(order);
        Self::train_in_order(split, options, order)
    }

    /// Training images in an order given (the benchmark goes round a small set for as long as it measures), and which of
    /// its sample's visits each is (none given: the first).
    pub(crate) fn train_in_order(
        split: Arc<Split>,
        options: TrainOptions,
        (mut order, copies): (Vec<u32>, Vec<u8>),
    ) -> Result<Self> {
        let TrainOptions { transform, mix, batch, seed, epoch, .. } = options;
        if batch == 0 || order.len() < batch {
            let n = order.len();
            return Err(Error::usage(format!(
                "data.batch is {batch} and the training set has {n} images; a batch of 1 to {n} is needed"
            )));
        }
        order.truncate(order.len() / batch * batch);
        let recipe = Recipe::Train { transform, mix, seed, epoch };
        let TrainOptions { share, start_batch, workers, bad_share, .. } = options;
        Self::start(split, Course { order, copies, batch, share, start_batch }, recipe, workers, bad_share)
    }

    /// Every image once, in the order of the split; the last batch may be smaller.
    pub fn eval(split: Arc<Split>, options: EvalOptions) -> Result<Self> {
        let order = limited(split.len(), options.limit);
        let EvalTransform { resize, crop, .. } = options.transform;
        if options.batch == 0 || resize == 0 || crop == 0 {
            let batch = options.batch;
            return Err(Error::usage(format!(
                "an evaluation of batch {batch}, resize {resize} and crop {crop} was asked for; each must be 1 or more"
            )));
        }
        let recipe = Recipe::Eval { transform: options.transform };
        let EvalOptions { batch, share, workers, bad_share, .. } = options;
        let course = Course { order, copies: vec![], batch, share, start_batch: 0 };
        Self::start(split, course, recipe, workers, bad_share)
    }

    fn start(
        split: Arc<Split>,
        course: Course,
        recipe: Recipe,
        workers: usize,
        bad_share: f64,
    ) -> Result<Self> {
        let resolution = recipe.resolution();
        if !(1..=MAX_RESOLUTION).contains(&resolution) {
            let reason = format!(
                "images of {resolution} pixels a side were asked for; 1 to {MAX_RESOLUTION} are made"
            );
            return Err(Error::usage(reason));
        }
        let Course { order, copies, batch, share, start_batch } = course;
        let (order, copies) = (share.take(order, batch), share.take(copies, batch));
        let workers = workers.max(1);
        let batches = order.len().div_ceil(batch);
        let front = start_batch.min(batches);
        let next = (front * batch).min(order.len());
        let state = State { next, announced: next, front, ..State::default() };
        let shared = Shared {
            split,
            order,
            copies,
            batch,
            share,
            recipe,
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
        };
        // Two batches, so that workers go on while the consumer takes one, and more where a batch is smaller than
        // the number of workers.
        let window = (2 + workers.div_ceil(batch)).min(batches - front);
        {
            let mut state = shared.lock();
            for number in front..front + window {
                let in_flight = shared.in_flight(number, Vec::new());
                state.window.push_back(in_flight);
            }
        }
        let mut loader = Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
            bad_share,
            bad: Vec::new(),
            seen: 0,
            waited: Duration::ZERO,
            spare: Vec::new(),
            failed: false,
        };
        for i in 0..workers {
            let shared = Arc::clone(&loader.shared);
            let thread = std::thread::Builder::new().name(format!("data {i}")).spawn(move || shared.work());
            let thread = thread.map_err(|e| {
                Error::failed(format!(
                    "cannot start data worker {i} of {workers}: {e}; set data.workers lower"
                ))
            })?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// Batches of the share of a whole epoch, those before `start_batch` among them.
    pub fn batches_per_epoch(&self) -> usize {
        self.shared.order.len().div_ceil(self.shared.batch)
    }

    /// How long `next` has blocked so far: what training lost by waiting for data.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// What the workers' images have cost so far.
    pub fn stages(&self) -> Stages {
        self.shared.lock().stages
    }

    /// The bad files of the batches given so far, in order.
    pub fn bad(&self) -> &[BadFile] {
        &self.bad
    }

    /// Gives the memory of a batch back, to be filled again.
    pub fn recycle(&mut self, batch: Batch) {
        if self.spare.len() < 2 {
            self.spare.push(batch.images);
        }
    }

    /// The front batch as the workers left it, and its number.
    fn take(&mut self) -> Option<Result<(usize, InFlight)>> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let begin = Instant::now();
        loop {
            if let Some(error) = state.fatal.take() {
                return Some(Err(error));
            }
            if state.window.front()?.remaining == 0 {
                break;
            }
            state = shared.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        self.waited += begin.elapsed();
        let number = state.front;
        let front = state.window.pop_front()?;
        state.front += 1;
        let new = state.front + state.window.len();
        if new < self.batches_per_epoch() {
            let in_flight = shared.in_flight(new, self.spare.pop().unwrap_or_default());
            state.window.push_back(in_flight);
            shared.work.notify_all();
        }
        Some(Ok((number, front)))
    }

    fn finish(&mut self, number: usize, in_flight: InFlight) -> Result<Batch> {
        let InFlight { slots, mut failures, .. } = in_flight;
        let slots = Arc::into_inner(slots)
            .ok_or_else(|| Error::failed("a data worker still holds a finished batch; please report this"))?;
        let resolution = self.shared.recipe.resolution();
        let first = number * self.shared.batch;
        let last = (first + self.shared.batch).min(self.shared.order.len());
        let samples = self.shared.order[first..last].to_vec();
        self.seen += samples.len();
        failures.sort();
        let bad_slots: Vec<usize> = failures.iter().map(|(slot, _)| *slot).collect();
        self.bad
            .extend(failures.into_iter().map(|(slot, message)| BadFile { sample: samples[slot], message }));
        self.check_share(bad_slots.len() == samples.len())?;
        let labels = samples.iter().map(|&s| self.shared.split.label(s as usize)).collect();
        let images = slots.into_images();
        let mut batch = Batch { images, labels, samples, resolution, ..Batch::default() };
        match self.shared.recipe {
            Recipe::Train { transform, mix, seed, epoch } => {
                if transform.erase.probability > 0.0 {
                    let key = |(i, &sample)| Key { seed, epoch, sample, copy: self.shared.copy(first + i) };
                    let keys = batch.samples.iter().enumerate().map(key);
                    batch.erased = keys.map(|key| transform.erase.draw(resolution, key)).collect();
                }
                batch.fill(&bad_slots);
                if let Some(mix) = mix {
                    batch.blend = mix.form.blend();
                    let number = self.shared.share.number(number) as u64;
                    batch.mixes = mix.draw((seed, epoch, number), batch.labels.len(), resolution);
                }
            }
            Recipe::Eval { .. } => batch.remove(&bad_slots),
        }
        Ok(batch)
    }

    fn check_share(&self, no_good_image: bool) -> Result<()> {
        let total = self.shared.order.len();
        let base = self.seen.max(total.min(1000));
        let at_least = if self.bad_share > 0.0 { 1 } else { 0 };
        let allowed = ((self.bad_share * base as f64) as usize).max(at_least);
        let training = matches!(self.shared.recipe, Recipe::Train { .. });
        if self.bad.len() <= allowed && !(no_good_image && training) {
            return Ok(());
        }
        let (bad, seen) = (self.bad.len(), self.seen);
        let first: Vec<&str> = self.bad.iter().take(3).map(|b| b.message.as_str()).collect();
        Err(Error::input(format!(
            "{bad} of {seen} images could not be used, more than the {allowed} that data.bad_share = {} allows; \
             list them with `engine data check`. The first: {}",
            self.bad_share,
            first.join("; ")
        )))
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Result<Batch>> {
        while !self.failed {
            let result = match self.take()? {
                Ok((number, in_flight)) => self.finish(number, in_flight),
                Err(error) => Err(error),
            };
            self.failed = result.is_err();
            // An evaluation batch of bad files alone is left out.
            if !matches!(&result, Ok(batch) if batch.labels.is_empty()) {
                return Some(result);
            }
        }
        None
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A worker's panic has been reported by `next`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A panic while the lock is held leaves nothing half done: no decoding happens under it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self, position: usize) -> u32 {
        self.copies.get(position).map_or(0, |&copy| u32::from(copy))
    }

    fn in_flight(&self, number: usize, images: Vec<u8>) -> InFlight {
        let count = self.batch.min(self.order.len() - number * self.batch);
        let stride = self.recipe.resolution() * self.recipe.resolution() * 3;
        InFlight {
            slots: Arc::new(Slots::new(images, count, stride)),
            remaining: count,
            failures: Vec::new(),
        }
    }

    /// The next image to make; `None`: there is none, or the loader stops. Positions that come up are announced on the way.
    fn next_job(&self) -> Option<Place> {
        let (job, coming) = self.take_job()?;
        coming.for_each(|position| self.split.will_read(self.order[position] as usize));
        Some(job)
    }

    fn take_job(&self) -> Option<(Place, Range<usize>)> {
        let mut state = self.lock();
        loop {
            if state.stop || state.fatal.is_some() || state.next >= self.order.len() {
                return None;
            }
            let number = state.next / self.batch;
            if let Some(in_flight) = state.window.get(number - state.front) {
                let slots = Arc::clone(&in_flight.slots);
                let slot = state.next % self.batch;
                state.next += 1;
                let end = (state.next + READ_AHEAD).min(self.order.len());
                let coming = state.announced.max(state.next)..end;
                state.announced = end.max(state.announced);
                return Some(((number, slot, slots), coming));
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker's life; a panic in it becomes the loader's error.
    fn work(&self) {
        let current = Cell::new(None);
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.make_images(&current))) else { return };
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        // What panicked may panic again.
        let name = |sample: u32| catch_unwind(AssertUnwindSafe(|| self.split.name(sample as usize)));
        let name = current.get().and_then(|sample| name(sample).ok()).unwrap_or("an image".into());
        let reason =
            format!("{name}: a data worker panicked on it: {text}; move the file away, and report it");
        self.lock().fatal.get_or_insert(Error::failed(reason));
        self.done.notify_all();
        self.work.notify_all();
    }

    fn make_images(&self, current: &Cell<Option<u32>>) {
        let mut worker = worker::Worker::default();
        while let Some((number, slot, slots)) = self.next_job() {
            let sample = self.order[number * self.batch + slot];
            current.set(Some(sample));
            let copy = self.copy(number * self.batch + slot);
            let job = Job { split: &self.split, sample, copy, recipe: &self.recipe };
            let result = worker.run(&job, &slots, slot);
            // Before the count goes down: who finds it at zero owns the slots alone.
            drop(slots);
            let mut state = self.lock();
            let front = state.front;
            let Some(in_flight) = state.window.get_mut(number - front) else { return };
            in_flight.failures.extend(result.err().map(|message| (slot, message)));
            in_flight.remaining -= 1;
            if in_flight.remaining == 0 {
                self.done.notify_all();
            }
            state.stages += worker.take_stages();
        }
    }
}
