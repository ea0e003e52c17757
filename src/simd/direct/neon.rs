//! 32 registers of 4 lanes: 6 pixels by 4 vectors are 24 sums, beside 4 vectors of weights and one unit.

use super::kernel::{Dot, Residual, Strip, in_order, kernels};
use super::map::Format;
use std::arch::aarch64::*;

const LANES: usize = 4;

#[derive(Clone, Copy)]
struct F32(float32x4_t);

kernels!(FP32, "neon", F32, Format::F32, [4 in_order::<LANES>: [1 2 3 4 5 6]]);

// SAFETY of every method: aarch64 has NEON, the pointers are the strip's, valid for what `StripFn` names; no access needs
// alignment.
impl Dot for F32 {
    const LANES: usize = LANES;
    const BYTES: usize = 4;
    type Weights = float32x4_t;

    #[inline(always)]
    unsafe fn start(strip: &Strip, first: usize) -> Self {
        Self(unsafe { vld1q_f32(strip.bias.add(first)) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> float32x4_t {
        unsafe { vld1q_f32(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [float32x4_t; NV],
        _: *const u8,
    ) -> [Self; NV] {
        unsafe {
            let x = vld1q_dup_f32(x.cast());
            for j in 0..NV {
                sums[j].0 = vfmaq_f32(sums[j].0, x, weights[j]);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8) {
        unsafe {
            let floor = vdupq_n_f32(if strip.relu { 0.0 } else { f32::NEG_INFINITY });
            for j in 0..NV {
                let mut value = sums[j].0;
                if strip.residual != Residual::None {
                    value = vaddq_f32(value, vld1q_f32(r.cast::<f32>().add(LANES * j)));
                }
                vst1q_f32(y.cast::<f32>().add(LANES * j), vmaxq_f32(value, floor));
            }
        }
    }
}
