//! Convolutions and pools of an inference program, on NHWC feature maps with a border of zeros.
//!
//! Output pixels of a row have inputs at equal distances, and the border stands in for padding, so a tile of pixels reads
//! its taps at fixed offsets: no im2col, no table of pointers, no test for edges. A tile of `MR` pixels by 64 channels
//! stays in registers from the first tap to the bias, residual, ReLU and rounding of its results.
//!
//! All three arithmetics walk memory in units of 4 bytes: one f32, two bf16 or four u8 channels of a pixel, against
//! [`Packed`] weights of as many channels for each output channel.
//!
//! | file | gives |
//! |---|---|
//! | [`map`] | where a feature map lies, in which format |
//! | [`kernel`] | the register tile, written once over the vectors of an instruction set |
//! | `portable`, `avx512`, `avx2`, `avx2_int8`, `neon`, `neon_int8` | those vectors |
//! | [`quads`] | the 8-bit weights that AVX2 multiplies fast |
//! | [`pack`] | weights in the order in which tiles read them |
//! | [`conv`] | a convolution over rows and channels of a map |
//! | [`pools`], [`linear`], [`input`] | what a network has besides |

#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers are indexed by constants, as in conv::kernel"
)]

pub mod map;
pub mod kernel;
pub mod quads;
mod portable;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_int8;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_int8;
pub mod pack;
pub mod conv;
pub mod pools;
pub mod linear;
pub mod input;
#[cfg(test)]
mod tests;

/// What a program computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Fp32,
    /// Weights and activations rounded to bfloat16, sums in f32. In AVX512-BF16 and in plain Rust; other sets refuse it, for
    /// they are faster in f32.
    Bf16,
    /// 8-bit weights and activations, sums in i32.
    Int8,
}

impl Precision {
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Bf16, Self::Int8];

    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}
