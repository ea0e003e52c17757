//! 4 lanes, 32 registers: 7 x 4 accumulators and four of the panel leave none for a broadcast, 12 x 2 and two leave six.

use super::kernel::{self, kernels};
use super::transform::{self, Vector};
use std::arch::aarch64::*;

// SAFETY of every method: every aarch64 has NEON.
impl Vector for float32x4_t {
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { vsubq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn relu(self) -> Self {
        unsafe { vmaxq_f32(self, vdupq_n_f32(0.0)) }
    }
}

kernels!(target_feature(enable = "neon"), f32, float32x4_t, product: float32x4_t, vectors: 2,
    rows: [1 2 3 4 5 6 7 8 9 10 11 12], tiles: [F2 4 2, F4 6 4]);
