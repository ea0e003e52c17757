//! How fast the training loader is on its own, per second and per CPU-second.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::loader::epoch_order;
use super::{JPEG_DECODER, Loader, Split, TrainOptions, TrainTransform};
use crate::error::Result;

/// What one measurement gave.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderSpeed {
    pub workers: usize,
    pub resolution: usize,
    pub decoder: &'static str,
    pub images: usize,
    pub seconds: f64,
    /// User and system time of the whole process; `None` where the system does not tell.
    pub cpu_seconds: Option<f64>,
    /// Files that could not be used.
    pub bad: usize,
}

impl LoaderSpeed {
    pub fn images_per_second(&self) -> f64 {
        self.images as f64 / self.seconds
    }

    /// Images a second that one core would give: what counts on a machine that others use too.
    pub fn images_per_cpu_second(&self) -> Option<f64> {
        self.cpu_seconds.filter(|&s| s > 0.0).map(|s| self.images as f64 / s)
    }
}

impl fmt::Display for LoaderSpeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workers, resolution, decoder, images, seconds, .. } = self;
        let rate = self.images_per_second();
        write!(f, "{workers} workers: {rate:.0} images/s")?;
        if let Some(rate) = self.images_per_cpu_second() {
            write!(f, ", {rate:.0} images/CPU-s")?;
        }
        write!(f, " (RandomResizedCrop({resolution}), {decoder}, {images} images in {seconds:.1} s")?;
        if self.bad > 0 {
            write!(f, ", {} bad", self.bad)?;
        }
        write!(f, ")")
    }
}

/// CPU time of this process in seconds: fields 14 and 15 of `/proc/self/stat`, in ticks of USER_HZ, which is 100 for
/// every program on Linux (proc(5)).
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, which may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

/// Images in the order of a measurement: more than any machine decodes in it.
const ROUND: usize = 4_000_000;

/// Training batches for about `seconds`, after a second that is not counted. The split is gone round as often as it
/// takes, in the order of its first epoch, with other crops each time.
pub fn loader(
    split: &Arc<Split>,
    transform: TrainTransform,
    workers: usize,
    seconds: f64,
) -> Result<LoaderSpeed> {
    let options = TrainOptions { workers, bad_share: 1.0, ..TrainOptions::new(transform, 32) };
    let order = epoch_order(split.len(), 0, 0, 0).into_iter().cycle().take(ROUND).collect();
    let rounds = (0..ROUND).map(|i| (i / split.len().max(1)) as u8).collect();
    let mut loader = Loader::train_in_order(Arc::clone(split), options, (order, rounds))?;
    let mut run = |seconds: f64| -> Result<LoaderSpeed> {
        let (begin, cpu, bad) = (Instant::now(), cpu_seconds(), loader.bad().len());
        let mut images = 0;
        while begin.elapsed().as_secs_f64() < seconds {
            let Some(batch) = loader.next() else { break };
            let batch = batch?;
            images += batch.labels.len();
            loader.recycle(batch);
        }
        Ok(LoaderSpeed {
            workers,
            resolution: transform.resolution,
            decoder: JPEG_DECODER,
            images,
            seconds: begin.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds().zip(cpu).map(|(after, before)| after - before),
            bad: loader.bad().len() - bad,
        })
    };
    run(seconds.min(1.0))?;
    run(seconds)
}
