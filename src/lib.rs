//! `engine` trains ResNet-50 on ImageNet and takes the result to where people use it.
//!
//! The modules stand in the order in which data goes through them; each imports only what stands before it
//! (`tests/layers.rs` enforces it):
//!
//! | module | gives |
//! |---|---|
//! | [`error`], [`failpoint`], [`files`], [`tensor`], [`rng`] | small things that everything uses |
//! | [`model`] | ResNet-50 once, lowered to a list of operations |
//! | [`simd`] | CPU micro-kernels, packing, thread pool |
//! | [`checkpoint`], [`log`] | named tensors <-> file; one line an epoch |
//! | [`export`] | safetensors and .pth, to and from other programs |

pub mod error;
pub mod failpoint;
pub mod files;
pub mod tensor;
pub mod rng;
pub mod model;
pub mod simd;
pub mod checkpoint;
pub mod log;
pub mod export;
