//! Which algorithm computes a layer.

use super::Precision;
use crate::model::units::ConvUnit;
use crate::simd::direct::winograd as bf16;
use crate::simd::winograd::{self, Tile};

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Direct,
    Winograd(Tile),
}

impl Algorithm {
    /// For 3x3 convolutions of stride 1. In f32, F(4x4) multiplies least; on small maps F(2x2) is as fast, for its tiles fit
    /// them and its weights, which come from memory, are fewer. bf16 has the bits for F(2x2); 8-bit integers have them for
    /// neither.
    pub fn choose(unit: &ConvUnit, precision: Precision) -> Self {
        let shape = &unit.shape;
        match precision {
            Precision::Fp32 if winograd::supports(shape) && shape.h.min(shape.w) > 14 => {
                Self::Winograd(Tile::F4)
            }
            Precision::Fp32 if winograd::supports(shape) => Self::Winograd(Tile::F2),
            Precision::Bf16 if bf16::Winograd::supports(shape) && unit.residual.is_none() => {
                Self::Winograd(Tile::F2)
            }
            _ => Self::Direct,
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
