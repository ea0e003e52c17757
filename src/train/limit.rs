//! Whether the data are what a run waits for, said once, with what would help.

use crate::data::stages::{PerImage, Stages};
use crate::data::{JPEG_DECODER, Loader, available_workers};
use std::time::{Duration, Instant};

/// Steps of an epoch's beginning, when nothing is decoded yet: they wait for a first batch, and empty the loader's window.
const SETTLING: usize = 2;
/// What is looked at for one judgement, in one epoch or in several.
const WINDOW: Duration = Duration::from_secs(20);
/// Of the time spent waiting for data, above which it is worth a line.
const SHARE: f64 = 0.1;

/// Listens to a run's loaders until it has spoken.
#[derive(Debug, Default)]
pub struct Limit {
    has_spoken: bool,
    /// Of the epoch, or its rest.
    steps: usize,
    /// The end of the last step that was looked at, by the epoch's own loader.
    last: Option<Mark>,
    /// What the steps of this window have shown.
    seen: Seen,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    waited: Duration,
    stages: Stages,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    time: Duration,
    waited: Duration,
    stages: Stages,
}

/// What a window showed.
#[derive(Debug, Clone, Copy)]
struct Finding {
    /// Of the time, spent waiting.
    share: f64,
    images_per_second: f64,
    image: PerImage,
    workers: usize,
    cores: usize,
}

impl Limit {
    /// A new loader counts anew.
    pub fn begin_epoch(&mut self) {
        (self.steps, self.last) = (0, None);
    }

    /// After a step: the line, once a window shows that the device waits for data.
    pub fn look(&mut self, loader: &Loader, workers: usize) -> Option<String> {
        if self.has_spoken {
            return None;
        }
        let now = Mark { at: Instant::now(), waited: loader.waited(), stages: loader.stages() };
        let seen = self.add(now)?;
        let share = seen.waited.as_secs_f64() / seen.time.as_secs_f64();
        let finding = Finding {
            share,
            images_per_second: seen.stages.images as f64 / seen.time.as_secs_f64(),
            image: seen.stages.per_image(),
            workers,
            cores: available_workers(),
        };
        self.has_spoken = share > SHARE;
        self.has_spoken.then(|| finding.sentence(cfg!(feature = "turbojpeg")))
    }

    /// Takes in a step; a window's worth, once there is one.
    fn add(&mut self, now: Mark) -> Option<Seen> {
        self.steps += 1;
        if self.steps < SETTLING {
            return None;
        }
        let last = self.last.replace(now)?;
        self.seen.time += now.at - last.at;
        self.seen.waited += now.waited - last.waited;
        self.seen.stages += now.stages - last.stages;
        (self.seen.time >= WINDOW).then(|| std::mem::take(&mut self.seen))
    }
}

impl Finding {
    fn sentence(&self, has_turbojpeg: bool) -> String {
        let PerImage { read, disk, decode, resize, augment, .. } = self.image;
        let milliseconds = |micro: f64| micro / 1e3;
        format!(
            "the data are the limit, not the device: it waits {:.0} % of the time for {:.0} images/s; an image takes {:.2} ms \
             of a core (read {:.2}, decode {:.2}, resize {:.2}, augment {:.2}) and {:.2} ms of waiting for the disk, with {} \
             worker{} on {} cores and {JPEG_DECODER}. What would help: {}",
            100.0 * self.share,
            self.images_per_second,
            milliseconds(self.image.cpu()),
            milliseconds(read),
            milliseconds(decode),
            milliseconds(resize),
            milliseconds(augment),
            milliseconds(disk),
            self.workers,
            if self.workers == 1 { "" } else { "s" },
            self.cores,
            self.remedies(has_turbojpeg).join("; ")
        )
    }

    /// The cheapest first.
    fn remedies(&self, has_turbojpeg: bool) -> Vec<String> {
        /// What a picture of 256 pixels takes at quality 90, twice over.
        const SMALL: f64 = 60e3;
        let PerImage { disk, decode, bytes, wall, .. } = self.image;
        let cpu = self.image.cpu();
        let mut found = Vec::new();
        if self.workers < self.cores {
            found.push(format!("data.workers = {} or \"auto\"", self.cores));
        }
        // Beside a busy neighbour a thread waits everywhere, and not in its reads most of all.
        let is_disk = disk > 0.5 * wall;
        if is_disk {
            found.push(format!(
                "a faster disk, or memory for all of the data ({:.0} MB/s are read)",
                self.images_per_second * bytes / 1e6
            ));
        }
        if !has_turbojpeg && decode > 0.3 * cpu {
            found.push("a build with --features turbojpeg".into());
        }
        if bytes > SMALL {
            found.push("`engine data pack --shorter-side 256`, once".into());
        }
        let busy = self.workers.min(self.cores) as f64;
        let wanted = (busy / (1.0 - self.share).max(0.05)).ceil();
        if !is_disk && wanted > self.cores as f64 {
            found.push(format!("more cores (about {wanted:.0} for this device)"));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(edit: impl FnOnce(&mut Finding)) -> Finding {
        let image = PerImage {
            read: 20.0,
            disk: 5.0,
            decode: 900.0,
            resize: 90.0,
            augment: 10.0,
            wall: 1030.0,
            bytes: 110e3,
        };
        let mut finding = Finding { share: 0.5, images_per_second: 7800.0, image, workers: 8, cores: 8 };
        edit(&mut finding);
        finding
    }

    /// Windows of runs whose steps take half a second, of which `waited` is waiting, the first step's all of it; by epochs of
    /// `steps` steps.
    fn shares(epochs: usize, steps: usize, waited: f64) -> Vec<f64> {
        let (mut limit, mut at, mut found) = (Limit::default(), Instant::now(), vec![]);
        for _ in 0..epochs {
            limit.begin_epoch();
            let mut total = Duration::ZERO;
            for step in 0..steps {
                at += Duration::from_millis(500);
                total += Duration::from_secs_f64(0.5 * if step == 0 { 1.0 } else { waited });
                if let Some(seen) = limit.add(Mark { at, waited: total, stages: Stages::default() }) {
                    found.push(seen.waited.as_secs_f64() / seen.time.as_secs_f64());
                }
            }
        }
        found
    }

    #[test]
    fn epochs_shorter_than_a_window_add_up() {
        for (epochs, steps) in [(1, 100), (20, 7), (60, 3)] {
            let shares = shares(epochs, steps, 0.3);
            assert!(!shares.is_empty(), "{epochs} epochs of {steps} steps");
            assert!(shares.iter().all(|share| (share - 0.3).abs() < 1e-6), "{shares:?}");
        }
    }

    /// What an epoch begins with is no limit: a run that waits for its first batches alone is not told so.
    #[test]
    fn the_first_batch_of_an_epoch_does_not_count() {
        assert!(shares(60, 3, 0.0).iter().all(|&share| share == 0.0));
        assert_eq!(shares(100, 2, 1.0), [0.0; 0]);
    }

    #[test]
    fn one_line_with_what_would_help() {
        let line = finding(|_| ()).sentence(false);
        assert!(line.starts_with(
            "the data are the limit, not the device: it waits 50 % of the time for 7800 images/s"
        ));
        assert!(
            line.contains("1.02 ms of a core (read 0.02, decode 0.90, resize 0.09, augment 0.01)"),
            "{line}"
        );
        assert!(
            line.ends_with(
                "a build with --features turbojpeg; `engine data pack --shorter-side 256`, once; more cores (about 16 for \
                 this device)"
            ),
            "{line}"
        );
        assert!(!line.contains('\n'));
    }

    #[test]
    fn the_disk_is_told_from_the_cores() {
        let slow = finding(|finding| {
            (finding.image.disk, finding.image.wall, finding.workers) = (4000.0, 5000.0, 4);
        });
        assert_eq!(
            slow.remedies(true),
            [
                "data.workers = 8 or \"auto\"",
                "a faster disk, or memory for all of the data (858 MB/s are read)",
                "`engine data pack --shorter-side 256`, once",
            ]
        );
        let beside_others = finding(|finding| (finding.image.disk, finding.image.wall) = (3000.0, 50_000.0));
        assert!(!beside_others.remedies(true).iter().any(|remedy| remedy.contains("disk")));
        let one = finding(|finding| (finding.image.bytes, finding.workers) = (29e3, 1));
        assert_eq!(one.remedies(true), ["data.workers = 8 or \"auto\""]);
        let packed = finding(|finding| finding.image.bytes = 29e3);
        assert_eq!(packed.remedies(true), ["more cores (about 16 for this device)"]);
    }
}
