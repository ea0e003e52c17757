//! 16 lanes, 32 registers: 13 x 2 accumulators at most, two of the panel, one broadcast. Of the 15 free general
//! registers, a gather of 12 rows takes 12 for its sources, one for the panel and one for the channel.

use super::kernel::{Lanes, kernels};
use std::arch::x86_64::*;

// SAFETY of every method: called inside functions that enable avx512f, on pointers that the caller vouches for.
impl Lanes for __m512 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { _mm512_set1_ps(*from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { _mm512_add_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe { _mm512_fmadd_ps(a, b, self) }
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

// 13 rows of the weight gradient: 64 channels are then 5 tiles with one row to spare.
kernels!("avx512f", __m512, gather: 12 x 2, outer: [1 2 3 4 5 6 7 8 9 10 11 12 13]);
