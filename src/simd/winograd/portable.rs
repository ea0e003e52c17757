//! Plain Rust. Multiplies and adds are rounded apart: a fused one is a library call where the instruction is missing.

use super::kernel::{self, kernels};
use super::transform::{self, Vector};
use crate::simd::conv::portable::Four;

impl Vector for Four {
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    unsafe fn relu(self) -> Self {
        Self(self.0.map(|lane| if lane < 0.0 { 0.0 } else { lane }))
    }
}

kernels!(inline, f32, Four, product: Four, vectors: 2,
    rows: [1 2 3 4], tiles: [F2 4 2, F4 6 4]);
