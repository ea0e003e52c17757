//! The card: NVIDIA's libraries, loaded when they are used, and a machine that runs plans on them.
//!
//! | file | says |
//! |---|---|
//! | [`libraries`] | what is here, what is missing, what to do about it |
//! | [`driver`], `module` | memory, streams, events, graphs; kernels |
//! | `cooperation` | launches whose blocks wait for each other |
//! | [`cudnn`], [`cublas`], [`cublaslt`] | convolutions, matrix products |
//! | [`graph_api`], [`cudnn_graph`], [`cudnn_engine`] | convolutions, and what is fused with them, by cuDNN's graph API |
//! | [`algorithms`], `search` | which routine for which convolution |
//! | [`nccl`], `exchanges` | what ranks exchange |
//! | [`card`] | the machine |
//! | [`measure`] | how long things take on it |
//! | [`trace`] | what the host asks of the driver, and when |
//! | `watchdog` | calls of the driver that do not come back |
//!
//! No GPU has run any of this yet. `tests/cuda_driver/` runs it against libraries that hold it to the manuals' rules.

pub mod algorithms;
pub mod card;
mod cooperation;
pub mod cublas;
pub mod cublaslt;
pub mod cudnn;
pub mod cudnn_engine;
pub mod cudnn_graph;
pub mod driver;
mod exchanges;
pub mod graph_api;
pub mod libraries;
pub mod measure;
mod module;
pub mod nccl;
mod search;
pub mod trace;
mod watchdog;
