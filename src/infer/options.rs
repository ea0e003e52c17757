//! What a program is compiled for.

use super::Precision;
use crate::simd::isa::{Isa, Set};

/// Which intermediate tensors outlive the layers that read them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Keep {
    #[default]
    None,
    /// By the graph's names ([`crate::model::graph::TensorInfo`]).
    Named(Vec<String>),
    All,
}

impl Keep {
    pub fn holds(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Named(names) => names.iter().any(|kept| kept == name),
            Self::All => true,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    pub precision: Precision,
    pub isa: Isa,
    /// 0: one a core.
    pub threads: usize,
    /// The most images of a run.
    pub batch: usize,
    /// Of the model's preprocessing, by channel in [0, 1]; int8 has them in its first layer's weights.
    pub mean: [f32; 3],
    pub std: [f32; 3],
    pub keep: Keep,
    /// Every convolution directly: in fp32 nearer to exact sums than Winograd's, and slower.
    pub direct: bool,
}

impl Options {
    /// The machine's best instruction set, all its cores, one image at a time.
    pub fn new(precision: Precision, mean: [f32; 3], std: [f32; 3]) -> Self {
        Self {
            precision,
            isa: Isa::current(),
            threads: 0,
            batch: 1,
            mean,
            std,
            keep: Keep::None,
            direct: false,
        }
    }
}

impl Precision {
    /// The fastest that `isa` has instructions for: int8 where there are 8-bit numbers, then bf16, then fp32. Where bytes
    /// are multiplied in plain code, fp32 is faster and loses nothing.
    pub fn fastest(isa: Isa, has_int8: bool) -> Self {
        match isa.set() {
            Set::Avx512 | Set::Avx2 if has_int8 => Self::Int8,
            _ if isa.has_bf16() => Self::Bf16,
            _ => Self::Fp32,
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|precision| precision.name() == name)
    }
}
