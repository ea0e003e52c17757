//! The model file of `infer`: a checkpoint's weights with what a picture goes through before and after them.
//!
//! | file | gives |
//! |---|---|
//! | `write` | the file |
//! | [`calibrate`] | 8-bit numbers from photographs: steps, rounded weights, corrected biases, the noise of each layer |
//! | [`histogram`], `quantise`, `network` | the step of an activation; the rounding of weights; the f32 network that is looked into |

pub mod calibrate;
pub mod histogram;
pub(super) mod network;
mod quantise;
#[cfg(test)]
pub(super) mod tests;
mod write;

pub use calibrate::{Photographs, Quantisation, Scheme, calibrate};
pub use histogram::Method;
pub use write::{entries, export_cpu};
