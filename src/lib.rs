//! `engine` trains ResNet-50 on ImageNet and takes the result to where people use it.
//!
//! The modules stand in the order in which data goes through them; each imports only what stands before it
//! (`tests/layers.rs` enforces it):
//!
//! | module | gives |
//! |---|---|
//! | [`error`], [`terminal`], [`failpoint`], [`files`], [`tensor`], [`rng`] | small things that everything uses |
//! | [`model`] | ResNet-50 once, lowered to a list of operations |
//! | [`config`] | TOML, environment and flags -> one validated struct |
//! | [`data`] | folder or tar -> decode -> augment -> ordered batches |
//! | [`simd`] | CPU micro-kernels, packing, thread pool |
//! | [`optim`] | update rules on slices, schedules: the oracle for fused kernels |
//! | [`backend`] | a training step on a device |
//! | `check` | one backend against the other |
//! | [`checkpoint`], [`log`] | named tensors <-> file; one line an epoch |
//! | [`train`] | trainer, evaluation, metrics |
//! | [`infer`] | inference on a CPU: model file -> program -> answer |
//! | [`export`] | safetensors and .pth for other programs, model files for [`infer`] |
//! | [`cli`] | flags -> command; exit codes in one place |

pub mod error;
pub mod terminal;
pub mod failpoint;
pub mod files;
pub mod tensor;
pub mod rng;
pub mod model;
pub mod config;
pub mod data;
pub mod simd;
pub mod optim;
pub mod backend;
#[cfg(feature = "cuda")]
pub mod check;
pub mod checkpoint;
pub mod log;
pub mod train;
pub mod infer;
pub mod export;
pub mod cli;
