//! Named tensors <-> file, so that a run killed at any moment goes on as if nothing had happened.
//!
//! [`format`] is one file: safetensors with torchvision's names, and digests over every byte. [`store`] is a folder of
//! them: what is kept, which one is the newest that verifies. [`background`] writes while training goes on. [`chosen`] takes
//! the weights or their moving averages out of one.

pub mod background;
pub mod chosen;
pub mod format;
pub mod header;
pub mod store;
pub mod weights;
#[cfg(test)]
mod tests;

pub use background::BackgroundWriter;
pub use chosen::Chosen;
pub use format::{Checkpoint, StateDict, Tensor, Values};
pub use store::{Found, Position, Search, Store};
pub use weights::read_weights;
