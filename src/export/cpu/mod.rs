//! The model file of `infer`: a checkpoint's weights with what a picture goes through before and after them.
//!
//! | file | gives |
//! |---|---|
//! | `write` | the file |
//! | [`calibrate`] | 8-bit numbers from photographs: levels, rounded weights, corrected biases, the noise of each layer |
//! | `network` | the f32 network that is looked into |
//! | [`levels`], [`histogram`], `sums` | what 8 bits stand for; behind a ReLU; on both sides of a sum |
//! | `quantise` | the rounding of weights |

pub mod calibrate;
pub mod histogram;
pub mod levels;
pub(super) mod network;
mod quantise;
mod sums;
#[cfg(test)]
pub(super) mod tests;
mod write;

pub use calibrate::{Photographs, Quantisation, Scheme, calibrate};
pub use histogram::Method;
pub use write::{entries, export_cpu};
