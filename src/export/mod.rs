//! Weights to and from files that other programs use.
//!
//! [`state_dict`] takes a model's weights out of a checkpoint; [`export_safetensors`] and [`export_pth`] write them as
//! PyTorch's `load_state_dict(strict=True)` wants them; [`read_weights`] reads either format, from wherever it comes.

pub mod pickle;
pub mod pickle_read;
pub mod pth;
pub mod read;
pub mod state;
#[cfg(test)]
mod tests;

pub use pth::export_pth;
pub use read::read_weights;
pub use state::{StateDict, Weights, export_safetensors, state_dict};
