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
    type Weights = float32x4_t;
    type Unit = float32x4_t;

    #[inline(always)]
    unsafe fn start(bias: *const f32) -> Self {
        Self(unsafe { vld1q_f32(bias) })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8) -> float32x4_t {
        unsafe { vld1q_f32(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const u8) -> float32x4_t {
        unsafe { vld1q_dup_f32(from.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(self, x: float32x4_t, w: float32x4_t) -> Self {
        Self(unsafe { vfmaq_f32(self.0, x, w) })
    }

    #[inline(always)]
    unsafe fn finish<const MR: usize, const NV: usize>(
        sums: &[[Self; NV]; MR],
        strip: &Strip,
        r: *const u8,
        y: *mut u8,
    ) {
        unsafe {
            let floor = vdupq_n_f32(if strip.relu { 0.0 } else { f32::NEG_INFINITY });
            for (m, sums) in sums.iter().enumerate() {
                let y = y.add(m * strip.y_pixel).cast::<f32>();
                let r = r.wrapping_add(m * strip.r_pixel).cast::<f32>();
                for (j, sum) in sums.iter().enumerate() {
                    let mut value = sum.0;
                    if strip.residual != Residual::None {
                        value = vaddq_f32(value, vld1q_f32(r.add(LANES * j)));
                    }
                    vst1q_f32(y.add(LANES * j), vmaxq_f32(value, floor));
                }
            }
        }
    }
}
