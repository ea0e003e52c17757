//! 16 registers of 8 lanes: 6 pixels by 2 vectors are 12 sums, beside 2 vectors of weights and one unit.

use super::kernel::{Dot, Residual, Strip, in_order, kernels};
use super::map::Format;
use std::arch::x86_64::*;

const LANES: usize = 8;

#[derive(Clone, Copy)]
struct F32(__m256);

kernels!(FP32, "avx2,fma", F32, Format::F32, [2 in_order::<LANES>: [1 2 3 4 5 6]]);

// SAFETY of every method of this file: the set's features are on, the pointers are the strip's, valid for what `StripFn`
// names; no access needs alignment.

/// A hint, at any address.
#[inline(always)]
pub(super) unsafe fn prefetch(at: *const u8, is_written: bool) {
    unsafe {
        if is_written {
            _mm_prefetch::<_MM_HINT_ET0>(at.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }
}

impl Dot for F32 {
    const LANES: usize = LANES;
    const BYTES: usize = 4;
    type Weights = __m256;

    #[inline(always)]
    unsafe fn start(strip: &Strip, first: usize) -> Self {
        Self(unsafe { _mm256_loadu_ps(strip.bias.add(first)) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> __m256 {
        unsafe { _mm256_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [__m256; NV],
        _: *const u8,
    ) -> [Self; NV] {
        unsafe {
            let x = _mm256_set1_ps(x.cast::<f32>().read_unaligned());
            for j in 0..NV {
                sums[j].0 = _mm256_fmadd_ps(x, weights[j], sums[j].0);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn prefetch(at: *const u8, is_written: bool) {
        unsafe { prefetch(at, is_written) }
    }

    #[inline(always)]
    unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8) {
        unsafe {
            let floor = floor(strip);
            for j in 0..NV {
                let mut value = sums[j].0;
                if strip.residual != Residual::None {
                    value = _mm256_add_ps(value, _mm256_loadu_ps(r.cast::<f32>().add(LANES * j)));
                }
                _mm256_storeu_ps(y.cast::<f32>().add(LANES * j), _mm256_max_ps(value, floor));
            }
        }
    }
}

/// What a ReLU, or its absence, leaves results at.
#[inline(always)]
pub(super) unsafe fn floor(strip: &Strip) -> __m256 {
    unsafe { _mm256_set1_ps(if strip.relu { 0.0 } else { f32::NEG_INFINITY }) }
}
