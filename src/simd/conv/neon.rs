//! 4 lanes, 32 registers: 12 x 2 accumulators, two of the panel and the broadcasts.

use super::kernel::{Lanes, kernels};
use std::arch::aarch64::*;

// SAFETY of every method: every aarch64 has NEON; the caller vouches for the pointers.
impl Lanes for float32x4_t {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { vld1q_dup_f32(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { vaddq_f32(self, other) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { vfmaq_f32(self, a, b) }
    }
}

kernels!("neon", float32x4_t, gather: 12 x 2, outer: [1 2 3 4 5 6 7 8 9 10 11 12]);
