//! How activations, weight copies and their gradients are stored on the card. All arithmetic is fp32.

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
