//! Which algorithm computes a layer.

use super::Precision;
use crate::model::units::ConvUnit;
use crate::simd::isa::Isa;
use crate::simd::winograd::{self, Tile};
use half::bf16;

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Direct,
    Winograd(Tile),
}

impl Algorithm {
    /// Winograd where it has kernels and multiplies less: 3x3 convolutions of stride 1. Eight bits are too few for it.
    pub fn choose(unit: &ConvUnit, precision: Precision, isa: Isa, batch: usize) -> Self {
        let tile = match precision {
            Precision::Fp32 => winograd::preferred::<f32>(isa, &unit.shape, batch),
            Precision::Bf16 => winograd::preferred::<bf16>(isa, &unit.shape, batch),
            Precision::Int8 => None,
        };
        tile.map_or(Self::Direct, Self::Winograd)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Winograd(Tile::F2) => "winograd 2",
            Self::Winograd(Tile::F4) => "winograd 4",
        }
    }
}
