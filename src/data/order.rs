//! The order in which samples are visited.

use crate::rng::{Purpose, Rng};

/// The samples that `limit` leaves, in ascending order: the same ones for every seed, so that runs compare.
pub fn limited(len: usize, limit: usize) -> Vec<u32> {
    let mut samples: Vec<u32> = (0..len as u32).collect();
    if limit > 0 && limit < len {
        Rng::new(0, 0, 0, Purpose::Subset).shuffle(&mut samples);
        samples.truncate(limit);
        samples.sort_unstable();
    }
    samples
}

/// The order in which an epoch of training visits the samples.
pub fn epoch_order(len: usize, limit: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut samples = limited(len, limit);
    Rng::new(seed, epoch, 0, Purpose::Shuffle).shuffle(&mut samples);
    samples
}
