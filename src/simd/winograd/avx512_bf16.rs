//! AVX512-BF16: feature maps, transformed data and weights are bf16, transforms and sums f32.

use super::kernel::{self, kernels};
use super::transform::{self, Number};
use crate::simd::conv::kernel::Lanes;
use half::bf16;
use std::arch::x86_64::*;

// SAFETY of both methods: called inside functions that enable avx512f and avx512bf16, on pointers that the caller vouches
// for.
impl Number<__m512> for bf16 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn store(lanes: __m512, to: *mut Self) {
        // A transmute is the one way from a vector of bf16 to one of bits.
        unsafe {
            _mm256_storeu_si256(
                to.cast(),
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(lanes)),
            )
        }
    }
}

/// 16 sums of f32, or 16 pairs of bf16 by which they grow.
#[derive(Clone, Copy)]
struct Pairs(__m512);

// SAFETY of every method: as above.
impl Lanes for Pairs {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        unsafe { Self(_mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        unsafe { Self(_mm512_castsi512_ps(_mm512_set1_epi32(*from.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    /// self + a0 b0 + a1 b1 of every pair.
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        unsafe {
            let (a, b) =
                (std::mem::transmute::<__m512, __m512bh>(a.0), std::mem::transmute::<__m512, __m512bh>(b.0));
            Self(_mm512_dpbf16_ps(self.0, a, b))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(line: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

// Only F(2x2): the transforms of F(4x4) magnify the rounding of data and weights several times over.
kernels!(target_feature(enable = "avx512f,avx512bf16"), bf16, __m512, product: Pairs, vectors: 2,
    rows: [1 2 3 4 5 6 7 8 9 10 11 12 13 14], tiles: [F2 4 2]);
