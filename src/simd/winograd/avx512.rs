//! 16 lanes, 32 registers: 14 x 2 accumulators, two of the panel and one broadcast leave one to spare.

use super::kernel::{self, kernels};
use super::transform::{self, Vector};
use std::arch::x86_64::*;

// SAFETY of every method: called inside functions that enable avx512f.
impl Vector for __m512 {
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { _mm512_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // The second operand is the result where one is a NaN.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), self) }
    }
}

kernels!(target_feature(enable = "avx512f"), f32, __m512, product: __m512, vectors: 2,
    rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], tiles: [F2 4 2, F4 6 4]);
