//! 8-bit products in 16 registers of 8 lanes, 2 vectors of weights at a time, three ways of one layout:
//!
//! * [`VNNI`]: `vpdpbusd` of AVX-VNNI, four products and the sum in one instruction;
//! * [`INT8`]: `vpmaddubsw` sums products of bytes in pairs to 16 bits, and saturates there. Two units' pairs are added in 16
//!   bits before `vpmaddwd` widens them: five instructions for 64 products, three of them on the multipliers. Exact where
//!   the weights are of [`super::quads`]' kind;
//! * [`WIDENED`]: bytes are widened to 16 bits first: eight instructions and more for as many products, exact for all.

use super::avx2::{floor, prefetch};
use super::kernel::{Dot, Residual, Strip, kernels};
use super::map::Format;
use std::arch::x86_64::*;

const LANES: usize = 8;

/// By the instruction of AVX-VNNI, or by its twin of AVX-512 VL, which tests run where the machine lacks the first.
#[derive(Clone, Copy)]
struct Vnni<const VEX: bool>(__m256i);

#[derive(Clone, Copy)]
struct Quads(__m256i);

#[derive(Clone, Copy)]
struct Widened(__m256i);

kernels!(VNNI, "avx2,fma,avxvnni", Vnni<true>, Format::U8, [2 interleaved: [1 2 3 4 5 6]]);
kernels!(#[cfg(test)] VNNI_OF_AVX512, "avx2,fma,avx512f,avx512vl,avx512vnni", Vnni<false>, Format::U8, [2 interleaved: [1 2 3 4 5 6]]);
kernels!(INT8, "avx2,fma", Quads, Format::U8, [2 interleaved: [1 2 3 4]], widened: WIDENED);
kernels!(WIDENED, "avx2,fma", Widened, Format::U8, [2 interleaved: [1 2 3 4]]);

/// Where packing two vectors of i32 to one of bytes, within 128-bit lanes, leaves each value.
fn interleaved(vector: usize, lane: usize) -> usize {
    8 * (lane / 4) + 4 * vector + lane % 4
}

// SAFETY of every method of this file: the set's features are on, the pointers are the strip's, valid for what `StripFn`
// names; no access needs alignment.

/// What all three have alike: all of [`Dot`] but the products.
macro_rules! integers {
    () => {
        #[inline(always)]
        unsafe fn start(_: &Strip, _: usize) -> Self {
            Self(unsafe { _mm256_setzero_si256() })
        }

        #[inline(always)]
        unsafe fn prefetch(at: *const u8, is_written: bool) {
            unsafe { prefetch(at, is_written) }
        }

        #[inline(always)]
        unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8) {
            const { assert!(NV == 2, "results are packed in pairs") };
            unsafe { finish([sums[0].0, sums[1].0], strip, r, y) }
        }
    };
}

/// A unit in all lanes.
#[inline(always)]
unsafe fn unit(x: *const u8) -> __m256i {
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

impl<const VEX: bool> Dot for Vnni<VEX> {
    const LANES: usize = LANES;
    const BYTES: usize = 1;
    type Weights = __m256i;

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> __m256i {
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
            let x = unit(x);
            for j in 0..NV {
                sums[j].0 = if VEX {
                    _mm256_dpbusd_avx_epi32(sums[j].0, x, weights[j])
                } else {
                    _mm256_dpbusd_epi32(sums[j].0, x, weights[j])
                };
            }
        }
        sums
    }

    integers!();
}

impl Dot for Quads {
    const LANES: usize = LANES;
    const BYTES: usize = 1;
    const UNITS: usize = 2;
    type Weights = [__m256i; 2];

    #[inline(always)]
    unsafe fn weights(from: *const u8, unit: usize) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(unit).cast())] }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [[__m256i; 2]; NV],
        _: *const u8,
    ) -> [Self; NV] {
        unsafe {
            let x = [unit(x), unit(x.add(4))];
            for j in 0..NV {
                let pairs = [0, 1].map(|i| _mm256_maddubs_epi16(x[i], weights[j][i]));
                let quads = _mm256_add_epi16(pairs[0], pairs[1]);
                sums[j].0 = _mm256_add_epi32(sums[j].0, _mm256_madd_epi16(quads, _mm256_set1_epi16(1)));
            }
        }
        sums
    }

    integers!();
}

impl Dot for Widened {
    const LANES: usize = LANES;
    const BYTES: usize = 1;
    /// The even bytes in 16 bits, and the odd ones.
    type Weights = [__m256i; 2];

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> [__m256i; 2] {
        unsafe {
            let bytes = _mm256_loadu_si256(from.cast());
            [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)]
        }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [[__m256i; 2]; NV],
        _: *const u8,
    ) -> [Self; NV] {
        unsafe {
            let bytes = unit(x);
            let x = [_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(bytes)];
            for j in 0..NV {
                let pairs = [0, 1].map(|i| _mm256_madd_epi16(x[i], weights[j][i]));
                sums[j].0 = _mm256_add_epi32(sums[j].0, _mm256_add_epi32(pairs[0], pairs[1]));
            }
        }
        sums
    }

    integers!();
}

/// Residual, ReLU and rounding of 16 results.
#[inline(always)]
unsafe fn finish(sums: [__m256i; 2], strip: &Strip, r: *const u8, y: *mut u8) {
    unsafe {
        let r_scale = _mm256_set1_ps(strip.r_scale);
        let mut values = [r_scale; 2];
        for j in 0..2 {
            let scale = _mm256_loadu_ps(strip.scale.add(LANES * j));
            let bias = _mm256_loadu_ps(strip.bias.add(LANES * j));
            values[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[j]), scale, bias);
        }
        let residual = match strip.residual {
            Residual::None => None,
            Residual::Same => Some(spread(r).map(|bytes| _mm256_cvtepi32_ps(bytes))),
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
            // Rounded to the nearest, ties to even, and within the range of i32; the clamp at 0 is the ReLU.
            let [low, high] = values.map(|value| _mm256_cvtps_epi32(value));
            let words = _mm256_packs_epi32(low, high);
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(y.cast(), bytes);
        }
    }
}

/// 16 bytes in the order of the sums' lanes, as i32.
#[inline(always)]
unsafe fn spread(from: *const u8) -> [__m256i; 2] {
    unsafe {
        // The even dwords of the 16 bytes are the first vector's lanes, the odd ones the second's.
        let bytes = _mm_shuffle_epi32::<0b11_01_10_00>(_mm_loadu_si128(from.cast()));
        [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))]
    }
}
