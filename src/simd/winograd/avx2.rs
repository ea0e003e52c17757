//! 8 lanes, 16 registers: 6 x 2 accumulators, two of the panel and one broadcast leave one to spare.

use super::kernel::{self, kernels};
use super::transform::{self, Vector};
use std::arch::x86_64::*;

// SAFETY of every method: called inside functions that enable avx2 and fma.
impl Vector for __m256 {
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { _mm256_sub_ps(self, other) }
    }

    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // The second operand is the result where one is a NaN.
        unsafe { _mm256_max_ps(_mm256_setzero_ps(), self) }
    }
}

kernels!(target_feature(enable = "avx2,fma"), f32, __m256, product: __m256, vectors: 2,
    rows: [1 2 3 4 5 6], tiles: [F2 4 2, F4 6 4]);
