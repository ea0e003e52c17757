//! Which algorithm computes a layer.

use super::{Options, Precision};
use crate::model::units::ConvUnit;
use crate::simd::winograd::{self, Tile};
use half::bf16;

/// Rows of a map above which a layer's activations outweigh its weights. Above, a layer is divided among tasks by rows;
/// below, by output channels.
pub const LARGE_MAP: usize = 14;

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Direct,
    Winograd(Tile),
}

impl Algorithm {
    /// Winograd where it has kernels and multiplies less: 3x3 convolutions of stride 1. Eight bits are too few for it. On a
    /// few small maps F(2x2) is as fast as F(4x4), whose weights are more than twice as many: 26 MB of ResNet-50's.
    pub fn choose(unit: &ConvUnit, options: &Options) -> Self {
        let Options { isa, batch, .. } = *options;
        let tile = match options.precision {
            _ if options.direct => None,
            Precision::Fp32 => winograd::preferred::<f32>(isa, &unit.shape, batch),
            Precision::Bf16 => winograd::preferred::<bf16>(isa, &unit.shape, batch),
            Precision::Int8 => None,
        };
        match tile {
            None => Self::Direct,
            Some(_) if unit.shape.h <= LARGE_MAP && batch < 4 => Self::Winograd(Tile::F2),
            Some(tile) => Self::Winograd(tile),
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
