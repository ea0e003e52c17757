//! Which algorithm computes a layer.

use super::Precision;
use crate::model::units::ConvUnit;
use crate::simd::winograd::{self, Tile};

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Direct,
    Winograd(Tile),
}

impl Algorithm {
    /// Winograd needs f32 and a 3x3 of stride 1. F(4x4) multiplies least; on small maps F(2x2) is as fast, for its tiles fit
    /// them and its weights, which come from memory, are fewer, and it is as accurate as a direct convolution.
    pub fn choose(unit: &ConvUnit, precision: Precision) -> Self {
        let shape = &unit.shape;
        if precision != Precision::Fp32 || !winograd::supports(shape) {
            Self::Direct
        } else if shape.h.min(shape.w) > 14 {
            Self::Winograd(Tile::F4)
        } else {
            Self::Winograd(Tile::F2)
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Winograd(Tile::F2) => "winograd 2",
            Self::Winograd(Tile::F4) => "winograd 4",
        }
    }
}
