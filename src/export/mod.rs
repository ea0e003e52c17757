//! Weights to and from files that other programs use.
//!
//! [`state_dict`] takes a model's tensors out of a checkpoint; [`export_safetensors`] and [`export_pth`] write them as
//! PyTorch's `load_state_dict(strict=True)` wants them, [`export_onnx`] with the network around them. The way back is
//! `checkpoint::read_weights`. [`export_cpu`] writes the model file of [`crate::infer`].
//!
//! Every file says what it is ([`describe`]) and is run before it gets its name ([`verify`]); [`card`] says it to people.

pub mod card;
pub mod cpu;
pub mod describe;
pub mod onnx;
pub mod pickle;
pub mod pth;
pub mod state;
#[cfg(test)]
mod tests;
pub mod verify;

pub use cpu::export_cpu;
pub use describe::describe;
pub use onnx::export_onnx;
pub use pth::export_pth;
pub use state::{export_safetensors, state_dict};
