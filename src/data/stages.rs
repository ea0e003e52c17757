//! Where the workers' time goes.

use std::ops::{AddAssign, Sub};
use std::time::Duration;

/// Sums over images. CPU time of the workers' threads, so that other programs on the machine do not count; waiting for the
/// disk is what reading took beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stages {
    pub images: u64,
    /// Of files, as they are stored.
    pub bytes: u64,
    pub read: Duration,
    /// No CPU time: the reading thread was waiting.
    pub disk: Duration,
    pub decode: Duration,
    pub resize: Duration,
    /// Everything after the resize and around it.
    pub augment: Duration,
    /// From the beginning of an image to its end, by the clock on the wall.
    pub wall: Duration,
}

/// Microseconds an image.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PerImage {
    pub read: f64,
    pub disk: f64,
    pub decode: f64,
    pub resize: f64,
    pub augment: f64,
    pub wall: f64,
    /// Bytes.
    pub bytes: f64,
}

impl PerImage {
    /// CPU time of all stages.
    pub fn cpu(&self) -> f64 {
        self.read + self.decode + self.resize + self.augment
    }
}

impl Stages {
    pub fn per_image(&self) -> PerImage {
        let images = self.images.max(1) as f64;
        let micro = |time: Duration| 1e6 * time.as_secs_f64() / images;
        PerImage {
            read: micro(self.read),
            disk: micro(self.disk),
            decode: micro(self.decode),
            resize: micro(self.resize),
            augment: micro(self.augment),
            wall: micro(self.wall),
            bytes: self.bytes as f64 / images,
        }
    }
}

impl AddAssign for Stages {
    fn add_assign(&mut self, other: Self) {
        self.images += other.images;
        self.bytes += other.bytes;
        self.read += other.read;
        self.disk += other.disk;
        self.decode += other.decode;
        self.resize += other.resize;
        self.augment += other.augment;
        self.wall += other.wall;
    }
}

impl Sub for Stages {
    type Output = Self;

    /// What came after `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            images: self.images - earlier.images,
            bytes: self.bytes - earlier.bytes,
            read: self.read - earlier.read,
            disk: self.disk - earlier.disk,
            decode: self.decode - earlier.decode,
            resize: self.resize - earlier.resize,
            augment: self.augment - earlier.augment,
            wall: self.wall - earlier.wall,
        }
    }
}
