//! Dot products of four bytes (DotProd of Armv8.2, `sdot`) in 32 registers of 4 lanes: 6 pixels by 4 vectors are 24 sums,
//! beside 4 vectors of weights and one unit.
//!
//! `sdot` multiplies signed bytes with signed ones. With its highest bit turned an activation is one less 128, and the
//! sums start from 128 times what the weights sum to: borders are multiplied like the rest, so that this is exact
//! everywhere. Spelt out, for Rust's `vdotq_s32` is not stable.

use super::kernel::{Dot, Residual, Strip, in_order, kernels};
use super::map::Format;
use std::arch::aarch64::*;
use std::arch::asm;

const LANES: usize = 4;

#[derive(Clone, Copy)]
struct I32(int32x4_t);

kernels!(INT8, "neon,dotprod", I32, Format::U8, [4 in_order::<LANES>: [1 2 3 4 5 6]]);

// SAFETY of every method: the processor has DotProd, the pointers are the strip's, valid for what `StripFn` names; no
// access needs alignment.

/// sum + w x, of the four bytes in the lowest of `x` with each four of `w`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(mut sum: int32x4_t, w: int8x16_t, x: uint8x8_t) -> int32x4_t {
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[0]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl Dot for I32 {
    const LANES: usize = LANES;
    const BYTES: usize = 1;
    const OFFSET: i32 = 128;
    type Weights = int8x16_t;

    #[inline(always)]
    unsafe fn start(strip: &Strip, first: usize) -> Self {
        Self(unsafe { vld1q_s32(strip.starts.add(first)) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> int8x16_t {
        unsafe { vld1q_s8(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [int8x16_t; NV],
        _: *const u8,
    ) -> [Self; NV] {
        unsafe {
            let unit = vcreate_u8(u64::from(x.cast::<u32>().read_unaligned()));
            let less = veor_u8(unit, vdup_n_u8(0x80));
            for j in 0..NV {
                sums[j].0 = sdot(sums[j].0, weights[j], less);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8) {
        const { assert!(NV == 4, "results are packed in fours") };
        unsafe {
            let r_scale = vdupq_n_f32(strip.r_scale);
            let mut values = [r_scale; 4];
            for j in 0..4 {
                let scale = vld1q_f32(strip.scale.add(LANES * j));
                let bias = vld1q_f32(strip.bias.add(LANES * j));
                values[j] = vfmaq_f32(bias, vcvtq_f32_s32(sums[j].0), scale);
            }
            match strip.residual {
                Residual::None => {}
                Residual::Same => {
                    for (value, bytes) in values.iter_mut().zip(spread(r)) {
                        *value = vfmaq_f32(*value, vcvtq_f32_u32(bytes), r_scale);
                    }
                }
                Residual::F32 => {
                    for (j, value) in values.iter_mut().enumerate() {
                        *value = vfmaq_f32(*value, vld1q_f32(r.cast::<f32>().add(LANES * j)), r_scale);
                    }
                }
            }
            if strip.is_f32 {
                let floor = vdupq_n_f32(if strip.relu { 0.0 } else { f32::NEG_INFINITY });
                for (j, value) in values.iter().enumerate() {
                    vst1q_f32(y.cast::<f32>().add(LANES * j), vmaxq_f32(*value, floor));
                }
            } else {
                // Rounded to the nearest, ties to even; the clamp at 0 is the ReLU.
                let [a, b, c, d] = values.map(|value| vqmovn_s32(vcvtnq_s32_f32(value)));
                let (low, high) = (vqmovun_s16(vcombine_s16(a, b)), vqmovun_s16(vcombine_s16(c, d)));
                vst1q_u8(y, vcombine_u8(low, high));
            }
        }
    }
}

/// 16 bytes to four vectors.
#[inline(always)]
unsafe fn spread(from: *const u8) -> [uint32x4_t; 4] {
    unsafe {
        let bytes = vld1q_u8(from);
        let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
        let [a, b] = [low, high].map(|half| [vmovl_u16(vget_low_u16(half)), vmovl_u16(vget_high_u16(half))]);
        [a[0], a[1], b[0], b[1]]
    }
}
