//! The command line as people and scripts meet it: exit codes, sentences, what goes to which stream.

#[path = "../common/mod.rs"]
mod common;

mod bad_data;
mod bugs;
mod commands;
mod configuration;
mod device;
mod exports;
mod evaluating;
mod libraries;
mod model_file;
mod other_weights;
mod outputs;
#[cfg(feature = "cuda")]
mod plan;
mod packing;
mod stopping;
mod writers;
