//! The command line as people and scripts meet it: exit codes, sentences, what goes to which stream.

#[path = "../common/mod.rs"]
mod common;

mod bad_data;
mod bugs;
mod commands;
mod configuration;
mod device;
mod evaluating;
mod libraries;
mod model_file;
mod other_weights;
mod outputs;
mod packing;
mod stopping;
