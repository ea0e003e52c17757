//! `engine` trains ResNet-50 on ImageNet and takes the result to where people use it.
//!
//! The modules stand in the order in which data goes through them; each imports only what stands before it
//! (`tests/layers.rs` enforces it):
//!
//! | module | gives |
//! |---|---|
//! | [`error`], [`terminal`], `leave`, [`failpoint`], [`files`], [`base64`], [`cpu_time`], [`tensor`], [`rng`] | small things that everything uses |
//! | [`comm`] | ranks that train together |
//! | [`model`] | ResNet-50 once, lowered to a list of operations |
//! | [`simd`] | CPU micro-kernels, packing, thread pool |
//! | [`data`] | folder or tar -> decode -> augment -> ordered batches |
//! | [`config`] | TOML, environment and flags -> one validated struct |
//! | [`optim`] | update rules on slices, schedules: the oracle for fused kernels |
//! | [`backend`] | a training step on a device |
//! | `check` | one backend against the other |
//! | [`checkpoint`], [`log`] | named tensors <-> file; one line an epoch |
//! | [`remote`] | both in a bucket of S3 as well |
//! | [`train`] | trainer, evaluation, metrics |
//! | [`infer`] | inference on a CPU: model file -> program -> answer |
//! | [`export`] | safetensors and .pth for other programs, model files for [`infer`] |
//! | [`classify`] | the standalone binary: pictures -> answers |
//! | [`cli`] | flags -> command; exit codes in one place |
//!
//! Without the feature `train` there is only what the standalone binary `classify` needs: no data sets, no trainer, no
//! checkpoints and exports, no `engine` command.

pub mod error;
pub mod terminal;
#[cfg(feature = "train")]
pub mod leave;
pub mod failpoint;
pub mod files;
pub mod base64;
pub mod cpu_time;
pub mod tensor;
pub mod rng;
#[cfg(feature = "train")]
pub mod comm;
pub mod model;
pub mod simd;
pub mod data;
#[cfg(feature = "train")]
pub mod config;
#[cfg(feature = "train")]
pub mod optim;
#[cfg(feature = "train")]
pub mod backend;
#[cfg(feature = "cuda")]
pub mod check;
#[cfg(feature = "train")]
pub mod checkpoint;
#[cfg(feature = "train")]
pub mod log;
#[cfg(feature = "train")]
pub mod remote;
#[cfg(feature = "train")]
pub mod train;
pub mod infer;
#[cfg(feature = "train")]
pub mod export;
pub mod classify;
#[cfg(feature = "train")]
pub mod cli;
