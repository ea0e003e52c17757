//! u8 pixels to normalised f32.

use super::Cpu;
use crate::backend::{MEAN, STD};

/// y = (x / 255 - mean) / std. `x` and `y` NHWC with three channels.
pub fn normalise(cpu: Cpu, x: &[u8], y: &mut [f32]) {
    const CHUNK: usize = 3 * 16384;
    // All 256 values of a channel, in the operations' order of torchvision's ToTensor and Normalize.
    let table: [[f32; 256]; 3] =
        std::array::from_fn(|c| std::array::from_fn(|value| (value as f32 / 255.0 - MEAN[c]) / STD[c]));
    let items = y.chunks_mut(CHUNK).zip(x.chunks(CHUNK)).collect();
    cpu.pool.for_each(items, |(y, x)| {
        for (y, x) in y.chunks_exact_mut(3).zip(x.chunks_exact(3)) {
            for c in 0..3 {
                y[c] = table[c][usize::from(x[c])];
            }
        }
    });
}
