//! Plain Rust. Multiplies and adds are rounded apart: a fused one is a library call where the instruction is missing.

use super::kernel::{GatherTile, Kernels, Lanes, Outer, OuterTile, collect, gather, outer};

#[derive(Clone, Copy)]
pub(in crate::simd) struct Four(pub [f32; 4]);

impl Lanes for Four {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for four floats; an array has the alignment of its element.
        Self(unsafe { *from.cast() })
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller vouches for the pointer.
        Self([unsafe { *from }; 4])
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as `load`.
        unsafe { *to.cast() = self.0 }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
}

unsafe fn gather_4x2(tile: &GatherTile) {
    // SAFETY: this function's caller promises what the kernel asks for.
    unsafe { gather::<Four, 4, 2>(tile) }
}

unsafe fn outer_2<const MR: usize>(tile: &OuterTile) {
    // SAFETY: this function's caller promises what the kernel asks for.
    unsafe { outer::<Four, MR, 2>(tile) }
}

const fn rows<const MR: usize>() -> Outer {
    Outer { multiply: outer_2::<MR>, collect: collect::<Four, MR> }
}

pub(super) static KERNELS: Kernels = Kernels {
    gather_rows: 4,
    width: 8,
    gather: gather_4x2,
    collect: collect::<Four, 8>,
    outer: &[rows::<1>(), rows::<2>(), rows::<3>(), rows::<4>()],
};
