//! How fast the training loader is on its own, per second and per CPU-second, and where the time goes.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::order::epoch_order;
use super::stages::PerImage;
use super::{JPEG_DECODER, Loader, Split, TrainOptions, TrainTransform};
use crate::cpu_time::{process_time, thread_time};
use crate::error::Result;

/// What one measurement gave.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderSpeed {
    pub workers: usize,
    pub resolution: usize,
    pub decoder: &'static str,
    pub images: usize,
    pub seconds: f64,
    /// User and system time of the whole process.
    pub cpu_seconds: f64,
    /// Images a CPU-second in the best of the measurement's slices: what other programs disturbed least.
    pub best: f64,
    pub stages: PerImage,
    /// Share of the time that the consumer, which does nothing else, waited for a batch.
    pub waited: f64,
    /// CPU microseconds an image of one more copy, as into the page-locked memory that a GPU's backend fills.
    pub copy: f64,
    /// Of each batch, from one to the next.
    pub batch_seconds: Vec<f64>,
    /// Files that could not be used.
    pub bad: usize,
}

impl LoaderSpeed {
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }

    /// Images a second that one core would give: what counts on a machine that others use too.
    pub fn images_per_cpu_second(&self) -> f64 {
        self.images as f64 / self.cpu_seconds
    }
}

impl fmt::Display for LoaderSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workers, resolution, decoder, images, seconds, best, stages, waited, copy, .. } = self;
        let (rate, cpu_rate) = (self.images_per_second(), self.images_per_cpu_second());
        write!(f, "{workers} workers: {rate:.0} images/s, {cpu_rate:.0} images/CPU-s, {best:.0} at best")?;
        write!(f, " (RandomResizedCrop({resolution}), {decoder}, {images} images in {seconds:.1} s")?;
        if self.bad > 0 {
            write!(f, ", {} bad", self.bad)?;
        }
        let PerImage { read, disk, decode, resize, augment, bytes, .. } = stages;
        write!(
            f,
            ")\n  CPU us an image of {:.0} kB: read {read:.0}, decode {decode:.0}, resize {resize:.0}, augment {augment:.0}; \
             waiting for the disk {disk:.0} us, for a batch {:.0} % of the time; a copy to the card's buffer {copy:.0}",
            bytes / 1e3,
            100.0 * waited,
        )
    }
}

/// Images in the order of a measurement: more than any machine decodes in it.
const ROUND: usize = 4_000_000;

/// CPU seconds of a slice: long enough for pictures of all sizes, short beside what disturbs.
const SLICE: f64 = 0.5;

const BATCH: usize = 32;

/// Training batches for about `seconds`, after a second that is not counted. The split is gone round as often as it
/// takes, in the order of its first epoch, with other crops each time.
pub fn loader(
    split: &Arc<Split>,
    transform: TrainTransform,
    workers: usize,
    seconds: f64,
) -> Result<LoaderSpeed> {
    let options = TrainOptions { workers, bad_share: 1.0, ..TrainOptions::new(transform, BATCH) };
    let order = epoch_order(split.len(), 0, 0, 0).into_iter().cycle().take(ROUND).collect();
    let rounds = (0..ROUND).map(|i| (i / split.len().max(1)) as u8).collect();
    let mut loader = Loader::train_in_order(Arc::clone(split), options, (order, rounds))?;
    run(&mut loader, workers, seconds.min(1.0))?;
    run(&mut loader, workers, seconds)
}

fn run(loader: &mut Loader, workers: usize, seconds: f64) -> Result<LoaderSpeed> {
    let before = (loader.stages(), loader.waited(), loader.bad().len());
    let (begin, cpu) = (Instant::now(), process_time());
    let (mut images, mut best, mut batch_seconds, mut resolution) = (0, 0.0f64, Vec::new(), 0);
    let (mut slice_cpu, mut slice_images) = (cpu, 0);
    let mut last = begin;
    let mut card = Vec::new();
    let mut copy = 0.0;
    while begin.elapsed().as_secs_f64() < seconds {
        let Some(batch) = loader.next() else { break };
        let batch = batch?;
        images += batch.labels.len();
        slice_images += batch.labels.len();
        batch_seconds.push(last.elapsed().as_secs_f64());
        last = Instant::now();
        resolution = batch.resolution;
        let slice = (process_time() - slice_cpu).as_secs_f64();
        if slice >= SLICE {
            best = best.max(slice_images as f64 / slice);
            (slice_cpu, slice_images) = (process_time(), 0);
        }
        if card.is_empty() && begin.elapsed().as_secs_f64() >= 0.5 * seconds {
            card.resize(batch.images.len(), 0);
            copy = copy_time(&batch.images, &mut card) / batch.labels.len() as f64;
        }
        loader.recycle(batch);
    }
    let (elapsed, cpu_seconds) = (begin.elapsed().as_secs_f64(), (process_time() - cpu).as_secs_f64());
    Ok(LoaderSpeed {
        workers,
        resolution,
        decoder: JPEG_DECODER,
        images,
        seconds: elapsed,
        cpu_seconds,
        best: best.max(images as f64 / cpu_seconds),
        stages: (loader.stages() - before.0).per_image(),
        waited: (loader.waited() - before.1).as_secs_f64() / elapsed,
        copy,
        batch_seconds,
        bad: loader.bad().len() - before.2,
    })
}

/// CPU microseconds of one copy: the shortest of a few, the first of which touches the memory.
fn copy_time(from: &[u8], to: &mut [u8]) -> f64 {
    let one = |_| {
        let begin = thread_time();
        to.copy_from_slice(from);
        std::hint::black_box(&*to);
        1e6 * (thread_time() - begin).as_secs_f64()
    };
    (0..4).map(one).fold(f64::MAX, f64::min)
}
