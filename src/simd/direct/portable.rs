//! Plain Rust: what every other set is compared with, and what runs where there is none.

use super::kernel::{Dot, Residual, Strip, in_order, kernels};
use super::map::Format;
use half::bf16;

const LANES: usize = 8;

#[derive(Clone, Copy)]
struct F32([f32; LANES]);

#[derive(Clone, Copy)]
struct Bf16([f32; LANES]);

#[derive(Clone, Copy)]
struct I32([i32; LANES]);

kernels!(FP32, baseline, F32, Format::F32, [2 in_order::<LANES>: [1 2 3 4]]);
kernels!(BF16, baseline, Bf16, Format::Bf16, [2 in_order::<LANES>: [1 2 3 4]]);
kernels!(INT8, baseline, I32, Format::U8, [2 in_order::<LANES>: [1 2 3 4]]);

// SAFETY of every method of this file: the pointers are the strip's, valid for what `StripFn` names; unaligned reads.

impl Dot for F32 {
    const LANES: usize = LANES;
    const BYTES: usize = 4;
    type Weights = [f32; LANES];

    #[inline(always)]
    unsafe fn start(strip: &Strip, first: usize) -> Self {
        Self(unsafe { strip.bias.add(first).cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> Self::Weights {
        unsafe { from.cast::<[f32; LANES]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [Self::Weights; NV],
        _: *const u8,
    ) -> [Self; NV] {
        let x = unsafe { x.cast::<f32>().read_unaligned() };
        for (sum, w) in sums.iter_mut().zip(&weights) {
            for lane in 0..LANES {
                sum.0[lane] += x * w[lane];
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8) {
        let read = |at: usize| unsafe { r.add(at).cast::<f32>().read_unaligned() };
        unsafe { store(sums.map(|v| v.0), strip, y, 4, read, &|value| value) }
    }
}

impl Dot for Bf16 {
    const LANES: usize = LANES;
    const BYTES: usize = 2;
    type Weights = [[bf16; 2]; LANES];

    #[inline(always)]
    unsafe fn start(strip: &Strip, first: usize) -> Self {
        Self(unsafe { strip.bias.add(first).cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> Self::Weights {
        unsafe { from.cast::<Self::Weights>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [Self::Weights; NV],
        _: *const u8,
    ) -> [Self; NV] {
        let x = unsafe { x.cast::<[bf16; 2]>().read_unaligned() };
        for (sum, w) in sums.iter_mut().zip(&weights) {
            for lane in 0..LANES {
                for part in 0..2 {
                    sum.0[lane] += x[part].to_f32() * w[lane][part].to_f32();
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8) {
        let is_f32 = strip.residual == Residual::F32;
        let size = if is_f32 { 4 } else { 2 };
        let read = |at: usize| unsafe {
            if is_f32 {
                r.add(at).cast::<f32>().read_unaligned()
            } else {
                r.add(at).cast::<bf16>().read_unaligned().to_f32()
            }
        };
        unsafe { store(sums.map(|v| v.0), strip, y, size, read, &bf16::from_f32) }
    }
}

/// Adds the residual, elements of `size` bytes, and stores what `round` makes of the results, or f32.
#[inline(always)]
unsafe fn store<T, const NV: usize>(
    sums: [[f32; LANES]; NV],
    strip: &Strip,
    y: *mut u8,
    size: usize,
    read: impl Fn(usize) -> f32,
    round: &impl Fn(f32) -> T,
) {
    for (i, &sum) in sums.iter().flatten().enumerate() {
        let mut value = sum;
        if strip.residual != Residual::None {
            value += read(size * i);
        }
        if strip.relu {
            value = value.max(0.0);
        }
        unsafe {
            if strip.is_f32 {
                y.cast::<f32>().add(i).write_unaligned(value);
            } else {
                y.cast::<T>().add(i).write_unaligned(round(value));
            }
        }
    }
}

impl Dot for I32 {
    const LANES: usize = LANES;
    const BYTES: usize = 1;
    type Weights = [[i8; 4]; LANES];

    #[inline(always)]
    unsafe fn start(_: &Strip, _: usize) -> Self {
        Self([0; LANES])
    }

    #[inline(always)]
    unsafe fn weights(from: *const u8, _: usize) -> Self::Weights {
        unsafe { from.cast::<Self::Weights>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dots<const NV: usize>(
        mut sums: [Self; NV],
        x: *const u8,
        weights: [Self::Weights; NV],
        _: *const u8,
    ) -> [Self; NV] {
        let x = unsafe { x.cast::<[u8; 4]>().read_unaligned() };
        for (sum, w) in sums.iter_mut().zip(&weights) {
            for lane in 0..LANES {
                for part in 0..4 {
                    sum.0[lane] += i32::from(x[part]) * i32::from(w[lane][part]);
                }
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn finish<const NV: usize>(sums: [Self; NV], strip: &Strip, r: *const u8, y: *mut u8) {
        for (i, &sum) in sums.iter().flat_map(|sums| &sums.0).enumerate() {
            unsafe {
                let (scale, bias) = (*strip.scale.add(i), *strip.bias.add(i));
                let mut value = (sum as f32).mul_add(scale, bias);
                match strip.residual {
                    Residual::None => {}
                    Residual::Same => value = f32::from(*r.add(i)).mul_add(strip.r_scale, value),
                    Residual::F32 => {
                        let r = r.cast::<f32>().add(i).read_unaligned();
                        value = r.mul_add(strip.r_scale, value);
                    }
                }
                if strip.is_f32 {
                    let value = if strip.relu { value.max(0.0) } else { value };
                    y.cast::<f32>().add(i).write_unaligned(value);
                } else {
                    // The ReLU is the clamp at 0.
                    y.add(i).write(value.round_ties_even().clamp(0.0, 255.0) as u8);
                }
            }
        }
    }
}
