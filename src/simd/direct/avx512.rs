//! 32 registers of 16 lanes: 7 pixels by 4 vectors are 28 sums, beside the 4 vectors of weights; a pixel's unit is
//! spread by the multiplying instruction itself.

use super::avx2::prefetch;
use super::kernel::{Dot, Residual, Strip, in_order, kernels};
use super::map::Format;
use std::arch::asm;
use std::arch::x86_64::*;

const LANES: usize = 16;

#[derive(Clone, Copy)]
struct F32(__m512);

#[derive(Clone, Copy)]
struct Bf16(__m512);

#[derive(Clone, Copy)]
struct I32(__m512i);

kernels!(FP32, "avx512f,avx512bw,avx512dq,avx512vl", F32, Format::F32,
    [4 in_order::<LANES>: [1 2 3 4 5 6 7], 2 in_order::<LANES>: [1 2 3 4 5 6 7], 1 in_order::<LANES>: [1 2 3 4 5 6 7]]);
kernels!(BF16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", Bf16, Format::Bf16,
    [4 in_order::<LANES>: [1 2 3 4 5 6 7], 2 in_order::<LANES>: [1 2 3 4 5 6 7], 1 in_order::<LANES>: [1 2 3 4 5 6 7]]);
kernels!(INT8, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", I32, Format::U8,
    [4 interleaved: [1 2 3 4 5 6 7], 2 in_order::<LANES>: [1 2 3 4 5 6 7], 1 in_order::<LANES>: [1 2 3 4 5 6 7]]);

/// Where packing four vectors of i32 to one of bytes, twice within 128-bit lanes, leaves each value.
fn interleaved(vector: usize, lane: usize) -> usize {
    16 * (lane / 4) + 4 * vector + lane % 4
}

// SAFETY of every method of this file: the set's features are on, the pointers are the strip's, valid for what `StripFn`
// names; no access needs alignment.

// The multiplications are spelt out because a full tile has no register to spare: 28 sums and 4 vectors of weights leave
// none for a pixel's unit, which the compiler would yet load first, and spill sums for it in every step.

/// sum + x w, of the f32 at `x`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn fma_at(mut sum: __m512, x: *const u8, w: __m512) -> __m512 {
    unsafe {
        asm!(
            "vfmadd231ps {sum}, {w}, dword ptr [{x}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    sum
}

/// sum + x w, of the two bf16 at `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn dpbf16_at(mut sum: __m512, x: *const u8, w: __m512i) -> __m512 {
    unsafe {
        asm!(
            "vdpbf16ps {sum}, {w}, dword ptr [{x}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    sum
}

/// Four sums + x w, of the four bytes at `x`. The unsigned operand is a register and only the signed one can come from
/// memory, so that the unit takes the register of the last weights, which are read from `w` in each place.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dpbusd_four(sums: [__m512i; 4], x: *const u8, weights: [__m512i; 3], w: *const u8) -> [__m512i; 4] {
    let [mut a, mut b, mut c, mut d] = sums;
    let unit: __m512i;
    unsafe {
        asm!(
            "vpbroadcastd {unit}, dword ptr [{x}]",
            "vpdpbusd {a}, {unit}, {wa}",
            "vpdpbusd {b}, {unit}, {wb}",
            "vpdpbusd {c}, {unit}, {wc}",
            "vpdpbusd {d}, {unit}, zmmword ptr [{w} + 192]",
            a = inout(zmm_reg) a,
            b = inout(zmm_reg) b,
            c = inout(zmm_reg) c,
            d = inout(zmm_reg) d,
            wa = in(zmm_reg) weights[0],
            wb = in(zmm_reg) weights[1],
            wc = in(zmm_reg) weights[2],
            unit = out(zmm_reg) unit,
            x = in(reg) x,
            w = in(reg) w,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    let _ = unit;
    [a, b, c, d]
}

impl Dot for F32 {
    const LANES: usize = LANES;
    const BYTES: usize = 4;
    type Weights = __m512;

    #[inline(always)]
    unsafe fn start(strip: &Strip, first: usize) -> Self {
        Self(unsafe { _mm512_loadu_ps(strip.bias.add(first)) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> __m512 {
        unsafe { _mm512_loadu_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [__m512; NV],
        _: *const u8,
    ) -> [Self; NV] {
        for j in 0..NV {
            sums[j].0 = unsafe { fma_at(sums[j].0, x, weights[j]) };
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
                    value = _mm512_add_ps(value, _mm512_loadu_ps(r.cast::<f32>().add(LANES * j)));
                }
                _mm512_storeu_ps(y.cast::<f32>().add(LANES * j), _mm512_max_ps(value, floor));
            }
        }
    }
}

/// What a ReLU, or its absence, leaves results at.
#[inline(always)]
unsafe fn floor(strip: &Strip) -> __m512 {
    unsafe { _mm512_set1_ps(if strip.relu { 0.0 } else { f32::NEG_INFINITY }) }
}

impl Dot for Bf16 {
    const LANES: usize = LANES;
    const BYTES: usize = 2;
    type Weights = __m512i;

    #[inline(always)]
    unsafe fn start(strip: &Strip, first: usize) -> Self {
        Self(unsafe { _mm512_loadu_ps(strip.bias.add(first)) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [__m512i; NV],
        _: *const u8,
    ) -> [Self; NV] {
        for j in 0..NV {
            sums[j].0 = unsafe { dpbf16_at(sums[j].0, x, weights[j]) };
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
            let mut values = [floor; NV];
            for j in 0..NV {
                values[j] = match strip.residual {
                    Residual::None => sums[j].0,
                    Residual::Same => _mm512_add_ps(sums[j].0, widen(r.add(2 * LANES * j))),
                    Residual::F32 => _mm512_add_ps(sums[j].0, _mm512_loadu_ps(r.add(4 * LANES * j).cast())),
                };
                values[j] = _mm512_max_ps(values[j], floor);
            }
            if strip.is_f32 {
                for j in 0..NV {
                    _mm512_storeu_ps(y.cast::<f32>().add(LANES * j), values[j]);
                }
                return;
            }
            for j in 0..NV / 2 {
                let pair = _mm512_cvtne2ps_pbh(values[2 * j + 1], values[2 * j]);
                let to = y.add(4 * LANES * j);
                _mm512_storeu_si512(to.cast(), std::mem::transmute::<__m512bh, __m512i>(pair));
            }
            if NV % 2 == 1 {
                let half = _mm512_cvtneps_pbh(values[NV - 1]);
                let to = y.add(2 * LANES * (NV - 1));
                _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(half));
            }
        }
    }
}

/// 16 bf16 to f32.
#[inline(always)]
unsafe fn widen(from: *const u8) -> __m512 {
    unsafe {
        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }
}

impl Dot for I32 {
    const LANES: usize = LANES;
    const BYTES: usize = 1;
    type Weights = __m512i;

    #[inline(always)]
    unsafe fn start(_: &Strip, _: usize) -> Self {
        Self(unsafe { _mm512_setzero_si512() })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [__m512i; NV],
        w: *const u8,
    ) -> [Self; NV] {
        unsafe {
            if NV == 4 {
                let done = dpbusd_four(
                    [0, 1, 2, 3].map(|j| sums[j % NV].0),
                    x,
                    [0, 1, 2].map(|j| weights[j % NV]),
                    w,
                );
                for j in 0..NV {
                    sums[j].0 = done[j];
                }
            } else {
                let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
                for j in 0..NV {
                    sums[j].0 = _mm512_dpbusd_epi32(sums[j].0, x, weights[j]);
                }
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
            let r_scale = _mm512_set1_ps(strip.r_scale);
            let mut values = [r_scale; NV];
            for j in 0..NV {
                let scale = _mm512_loadu_ps(strip.scale.add(LANES * j));
                let bias = _mm512_loadu_ps(strip.bias.add(LANES * j));
                values[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[j].0), scale, bias);
            }
            match strip.residual {
                Residual::None => {}
                Residual::Same => {
                    let bytes = spread::<NV>(r);
                    for j in 0..NV {
                        values[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(bytes[j]), r_scale, values[j]);
                    }
                }
                Residual::F32 => {
                    for j in 0..NV {
                        let reals = _mm512_loadu_ps(r.cast::<f32>().add(LANES * j));
                        values[j] = _mm512_fmadd_ps(reals, r_scale, values[j]);
                    }
                }
            }
            if strip.is_f32 {
                let floor = floor(strip);
                for j in 0..NV {
                    _mm512_storeu_ps(y.cast::<f32>().add(LANES * j), _mm512_max_ps(values[j], floor));
                }
            } else {
                store_bytes(values, y);
            }
        }
    }
}

/// Bytes in the order of the sums' lanes, as i32.
#[inline(always)]
unsafe fn spread<const NV: usize>(from: *const u8) -> [__m512i; NV] {
    unsafe {
        let mut vectors = [_mm512_setzero_si512(); NV];
        if NV == 4 {
            let bytes = _mm512_loadu_si512(from.cast());
            for (j, vector) in vectors.iter_mut().enumerate() {
                // Byte 4 j + i of a 128-bit lane to the lowest byte of its dword i, zeros above.
                let first = 4 * j as i32;
                let zero = 0x8080_8000_u32 as i32;
                let pick =
                    _mm_setr_epi32(zero | first, zero | (first + 1), zero | (first + 2), zero | (first + 3));
                *vector = _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(pick));
            }
        } else {
            for (j, vector) in vectors.iter_mut().enumerate() {
                *vector = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.add(LANES * j).cast()));
            }
        }
        vectors
    }
}

/// Rounds to the nearest, ties to even, and clamps to 0..=255; the clamp at 0 is the ReLU. Values are within the range
/// of i32.
#[inline(always)]
unsafe fn store_bytes<const NV: usize>(values: [__m512; NV], y: *mut u8) {
    unsafe {
        let mut whole = [_mm512_setzero_si512(); NV];
        for j in 0..NV {
            whole[j] = _mm512_cvtps_epi32(values[j]);
        }
        if NV == 4 {
            let low = _mm512_packs_epi32(whole[0], whole[1]);
            let high = _mm512_packs_epi32(whole[2], whole[3]);
            _mm512_storeu_si512(y.cast(), _mm512_packus_epi16(low, high));
        } else {
            for (j, whole) in whole.iter().enumerate() {
                let positive = _mm512_max_epi32(*whole, _mm512_setzero_si512());
                _mm_storeu_si128(y.add(LANES * j).cast(), _mm512_cvtusepi32_epi8(positive));
            }
        }
    }
}
