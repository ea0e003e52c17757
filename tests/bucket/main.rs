//! Checkpoints in a bucket, against a real S3 server on this machine, with a proxy in front that does what networks do.
//!
//! The server is `s3s-fs`, which checks signatures and digests before it stores: the program that ENGINE_S3_SERVER names, else
//! the first one in PATH or target/tools/bin. Where there is none, each test says so and passes.

#[path = "../common/mod.rs"]
mod common;

mod faults;
mod kills;
mod large;
mod night;
mod proxy;
mod refusals;
mod resume;
mod server;
mod stopping;
