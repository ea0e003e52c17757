//! `engine` trains ResNet-50 on ImageNet and takes the result to where people use it.
//!
//! The modules stand in the order in which data goes through them; each imports only what stands before it
//! (`tests/layers.rs` enforces it):
//!
//! | module | gives |
//! |---|---|
//! | [`error`], [`tensor`], [`rng`] | small things that everything uses |
//! | [`model`] | ResNet-50 once, lowered to a list of operations |
//! | [`data`] | images on their way to batches; the embedded synthetic set |
//! | [`simd`] | CPU micro-kernels, packing, thread pool |

pub mod error;
pub mod tensor;
pub mod rng;
pub mod model;
pub mod data;
pub mod simd;
