//! How fast the training loader is on its own, per second and per CPU-second.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

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

/// Epoch after epoch of training batches for about `seconds`, after one epoch (or a second) that is not counted.
pub fn loader(
    split: &Arc<Split>,
    transform: TrainTransform,
    workers: usize,
    seconds: f64,
) -> Result<LoaderSpeed> {
    let batch = split.len().clamp(1, 64);
    let mut speed = LoaderSpeed {
        workers,
        resolution: transform.resolution,
        decoder: JPEG_DECODER,
        images: 0,
        seconds: 0.0,
        cpu_seconds: None,
        bad: 0,
    };
    let mut run = |seconds: f64, first_epoch: u64| -> Result<()> {
        let (begin, cpu) = (Instant::now(), cpu_seconds());
        (speed.images, speed.bad) = (0, 0);
        let mut epoch = first_epoch;
        while begin.elapsed().as_secs_f64() < seconds {
            let options =
                TrainOptions { epoch, workers, bad_share: 1.0, ..TrainOptions::new(transform, batch) };
            let mut loader = Loader::train(Arc::clone(split), options)?;
            while let Some(batch) = loader.next() {
                let batch = batch?;
                speed.images += batch.labels.len();
                loader.recycle(batch);
                if begin.elapsed().as_secs_f64() >= seconds {
                    break;
                }
            }
            speed.bad += loader.bad().len();
            epoch += 1;
        }
        speed.seconds = begin.elapsed().as_secs_f64();
        speed.cpu_seconds = cpu_seconds().zip(cpu).map(|(after, before)| after - before);
        Ok(())
    };
    run(seconds.min(1.0), 0)?;
    run(seconds, 1000)?;
    Ok(speed)
}
