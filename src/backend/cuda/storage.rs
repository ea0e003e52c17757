//! How activations, weight copies and their gradients are stored on the card. All arithmetic is fp32.

use half::{bf16, f16};

/// The element type of activations, of the weights that convolutions read, and of their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    F16,
    Bf16,
    F32,
}

impl Storage {
    pub const ALL: [Self; 3] = [Self::F16, Self::Bf16, Self::F32];

    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// What ends the names of the kernels for it: `bn_stats_f16`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }

    /// Unit roundoff: half the distance from 1 to the next number.
    pub fn roundoff(self) -> f64 {
        match self {
            Self::F16 => 2f64.powi(-11),
            Self::Bf16 => 2f64.powi(-8),
            Self::F32 => 2f64.powi(-24),
        }
    }
}

/// Rounds to the storage type, to nearest, ties to even.
pub fn to_stored(storage: Storage, values: &[f32]) -> Vec<u8> {
    match storage {
        Storage::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        Storage::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        Storage::F32 => bytemuck::cast_slice(values).to_vec(),
    }
}

pub fn from_stored(storage: Storage, bytes: &[u8]) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match storage {
        Storage::F16 => pairs().map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        Storage::Bf16 => pairs().map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
        Storage::F32 => bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
    }
}
