//! Weights to and from files that other programs use.
//!
//! [`state_dict`] takes a model's weights out of a checkpoint; [`export_safetensors`] and [`export_pth`] write them as
//! PyTorch's `load_state_dict(strict=True)` wants them. The way back is `checkpoint::read_weights`. [`export_cpu`] writes the
//! model file of [`crate::infer`].

pub mod cpu;
pub mod pickle;
pub mod pth;
pub mod state;
#[cfg(test)]
mod tests;

pub use cpu::export_cpu;
pub use pth::export_pth;
pub use state::{Weights, export_safetensors, state_dict};
