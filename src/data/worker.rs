//! One image: read, decode, transform, into its place of the batch.

use super::augment::{Key, TrainTransform};
use super::decode::{Limits, read_header};
use super::mix::MixOptions;
use super::preprocess::{EvalTransform, Workshop};
use super::split::Split;
use super::stages::Stages;
use crate::cpu_time::thread_time;
use std::sync::Arc;
use std::time::Instant;

/// What is done to each image.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a loader has one")]
pub(crate) enum Recipe {
    Train { transform: TrainTransform, mix: Option<MixOptions>, seed: u64, epoch: u64 },
    Eval { transform: EvalTransform },
}

impl Recipe {
    pub fn resolution(&self) -> usize {
        match self {
            Self::Train { transform, .. } => transform.resolution,
            Self::Eval { transform } => transform.crop,
        }
    }
}

/// The pixels of one batch, which several workers fill at once.
pub(crate) struct Slots {
    images: Vec<u8>,
    base: *mut u8,
    stride: usize,
}

// SAFETY: `base` points into `images`, which is neither read nor moved out of while a worker holds the slots; workers
// write to disjoint slots, as `Slots::slot` demands.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    /// `count` slots of `stride` bytes in the memory of `images`.
    pub fn new(mut images: Vec<u8>, count: usize, stride: usize) -> Self {
        if images.is_empty() {
            // Fresh zeroed memory, which costs nothing until it is written to.
            images = vec![0; count * stride];
        }
        images.resize(count * stride, 0);
        let base = images.as_mut_ptr();
        Self { images, base, stride }
    }

    /// # Safety
    /// No two threads use the same slot at the same time. (The loader hands out each position of the order once.)
    #[allow(clippy::mut_from_ref)]
    unsafe fn slot(&self, slot: usize) -> &mut [u8] {
        assert!((slot + 1) * self.stride <= self.images.len(), "slot {slot} is not in the batch");
        // SAFETY: inside the allocation by the assertion, and of no other thread by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(slot * self.stride), self.stride) }
    }

    pub fn into_images(self) -> Vec<u8> {
        self.images
    }
}

/// A batch's number, a slot of it, and its slots.
pub(crate) type Place = (usize, usize, Arc<Slots>);

pub(crate) struct Job<'a> {
    pub split: &'a Split,
    pub sample: u32,
    /// Which of the sample's visits in this epoch.
    pub copy: u32,
    pub recipe: &'a Recipe,
}

/// Both clocks at one moment.
struct Begin {
    wall: Instant,
    cpu: std::time::Duration,
}

#[derive(Default)]
pub(crate) struct Worker {
    bytes: Vec<u8>,
    workshop: Workshop,
    stages: Stages,
}

impl Worker {
    /// The image of `job` into its slot; the error is the sentence that says why the file is bad.
    pub fn run(&mut self, job: &Job, slots: &Slots, slot: usize) -> Result<(), String> {
        // SAFETY: the loader hands out each position of the order, and so each slot of a batch, once.
        let out = unsafe { slots.slot(slot) };
        let begin = Begin { wall: Instant::now(), cpu: thread_time() };
        let result = self.produce(job, out);
        let Workshop { decoder, resizer, .. } = &mut self.workshop;
        let (decode, resize) = (std::mem::take(&mut decoder.spent), std::mem::take(&mut resizer.spent));
        let stages = &mut self.stages;
        stages.images += 1;
        stages.decode += decode;
        stages.resize += resize;
        stages.augment += (thread_time() - begin.cpu).saturating_sub(stages.read + decode + resize);
        stages.wall += begin.wall.elapsed();
        result
    }

    /// What the last image took.
    pub fn take_stages(&mut self) -> Stages {
        std::mem::take(&mut self.stages)
    }

    fn produce(&mut self, job: &Job, out: &mut [u8]) -> Result<(), String> {
        let sample = job.sample as usize;
        let begin = Begin { wall: Instant::now(), cpu: thread_time() };
        let read = job.split.read_into(sample, &mut self.bytes);
        self.stages.read += thread_time() - begin.cpu;
        self.stages.disk += begin.wall.elapsed().saturating_sub(thread_time() - begin.cpu);
        self.stages.bytes += self.bytes.len() as u64;
        read.map_err(|e| e.message)?;
        let bytes = &mut self.bytes;
        let made = read_header(bytes, Limits::default()).and_then(|header| match job.recipe {
            Recipe::Train { transform, seed, epoch, .. } => {
                let key = Key { seed: *seed, epoch: *epoch, sample: job.sample, copy: job.copy };
                self.workshop.train(bytes, &header, transform, key, out)
            }
            Recipe::Eval { transform } => {
                self.workshop.eval(bytes, &header, Limits::default(), transform, out)
            }
        });
        made.map_err(|reason| format!("{}: {reason}", job.split.name(sample)))
    }
}
