//! The CUDA backend without a GPU: its kernels compiled for the host (`kernels/host`), each against the CPU backend, and
//! whole training steps from the very plans that a card runs.
//!
//! Needs a C++ compiler (`$CXX`, `c++` or `g++`); without one the tests say that they were skipped. With
//! `ENGINE_HOST_SANITIZE=1` the kernels run under the address and undefined-behaviour sanitizers.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/training.rs"]
mod training;

mod compare;
mod faults;
mod harness;
mod hooked;
mod kernels;
mod layers;
mod machine;
mod plan;
mod ranks;
mod recipe;
mod runs;
mod shim;
