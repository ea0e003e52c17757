//! 8 lanes, 16 registers: 6 x 2 accumulators, two of the panel and one broadcast leave one to spare.

use super::kernel::{Lanes, kernels};
use std::arch::x86_64::*;

// SAFETY of every method: called inside functions that enable avx2 and fma, on pointers that the caller vouches for.
impl Lanes for __m256 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { _mm256_set1_ps(*from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { _mm256_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    unsafe fn prefetch_write(line: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.cast()) }
    }
}

kernels!("avx2,fma", __m256, gather: 6 x 2, outer: [1 2 3 4 5 6]);
