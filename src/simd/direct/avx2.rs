//! 16 registers of 8 lanes: 6 pixels by 2 vectors are 12 sums, beside 2 vectors of weights and one unit.
//!
//! Without dot products of bytes, int8 keeps its activations in 16 bits: products of 16-bit pairs are exact, while
//! those of bytes (`vpmaddubsw`) saturate at 2 x 255 x 127.

use super::kernel::{Dot, Residual, Strip, in_order, kernels};
use super::map::Format;
use std::arch::x86_64::*;

const LANES: usize = 8;

#[derive(Clone, Copy)]
struct F32(__m256);

/// Sums of products of 16-bit pairs.
#[derive(Clone, Copy)]
struct I32(__m256i);

kernels!(FP32, "avx2,fma", F32, Format::F32, [2 in_order::<LANES>: [1 2 3 4 5 6]]);
kernels!(INT8, "avx2,fma", I32, Format::U8In16, [2 interleaved: [1 2 3 4 5 6]]);

/// Where packing two vectors of i32 to one of 16 bits, within 128-bit lanes, leaves each value.
fn interleaved(vector: usize, lane: usize) -> usize {
    8 * (lane / 4) + 4 * vector + lane % 4
}

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
    unsafe fn start(bias: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(bias) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m256 {
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
unsafe fn floor(strip: &Strip) -> __m256 {
    unsafe { _mm256_set1_ps(if strip.relu { 0.0 } else { f32::NEG_INFINITY }) }
}

impl Dot for I32 {
    const LANES: usize = LANES;
    const BYTES: usize = 2;
    type Weights = __m256i;

    #[inline(always)]
    unsafe fn start(_: *const f32) -> Self {
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [__m256i; NV],
        _: *const u8,
    ) -> [Self; NV] {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            for j in 0..NV {
                sums[j].0 = _mm256_add_epi32(sums[j].0, _mm256_madd_epi16(x, weights[j]));
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
        const { assert!(NV == 2, "results are packed in pairs") };
        unsafe {
            let r_scale = _mm256_set1_ps(strip.r_scale);
            let mut values = [r_scale; 2];
            for j in 0..2 {
                let scale = _mm256_loadu_ps(strip.scale.add(LANES * j));
                let bias = _mm256_loadu_ps(strip.bias.add(LANES * j));
                values[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[j].0), scale, bias);
            }
            let residual = match strip.residual {
                Residual::None => None,
                Residual::Same => {
                    let zero = _mm256_setzero_si256();
                    let whole = _mm256_loadu_si256(r.cast());
                    let low = _mm256_cvtepi32_ps(_mm256_unpacklo_epi16(whole, zero));
                    Some([low, _mm256_cvtepi32_ps(_mm256_unpackhi_epi16(whole, zero))])
                }
                Residual::F32 => {
                    let r = r.cast::<f32>();
                    Some([_mm256_loadu_ps(r), _mm256_loadu_ps(r.add(LANES))])
                }
            };
            if let Some(residual) = residual {
                for j in 0..2 {
                    values[j] = _mm256_fmadd_ps(residual[j], r_scale, values[j]);
                }
            }
            if strip.is_f32 {
                let floor = floor(strip);
                for j in 0..2 {
                    _mm256_storeu_ps(y.cast::<f32>().add(LANES * j), _mm256_max_ps(values[j], floor));
                }
            } else {
                // Rounded to the nearest, ties to even; the clamp at 0 is the ReLU.
                let [low, high] = values.map(|value| _mm256_cvtps_epi32(value));
                let bytes = _mm256_min_epu16(_mm256_packus_epi32(low, high), _mm256_set1_epi16(255));
                _mm256_storeu_si256(y.cast(), bytes);
            }
        }
    }
}
