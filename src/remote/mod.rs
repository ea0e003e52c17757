//! A run's checkpoints and logs in a bucket of S3, or of a server that speaks its language: a spot instance may take its
//! disk along.
//!
//! ```text
//! s3://BUCKET/PREFIX/checkpoints/step-00001234-5f0c9a72d1e3.safetensors   each written once, under its digest
//!                    logs.md  metrics.jsonl  run.json  config.toml  curve.svg   as of the newest of them
//!                    manifest.json                                       last: whose it is, names, sizes, digests
//! ```
//!
//! [`client`] signs and sends one request, [`retry`] tries again, [`manifest`] says what is there, [`fetch`] brings it down
//! before a run, [`upload`] takes it up while training goes on. [`metadata`] asks the instance for its role and region.

pub mod address;
pub mod client;
pub mod credentials;
pub mod fetch;
pub mod manifest;
pub mod metadata;
pub mod object;
pub mod probe;
pub mod region;
pub mod retry;
pub mod upload;

pub use address::Address;
pub use client::{Client, Failure};
pub use manifest::{Manifest, Owner};
pub use retry::Patience;
pub use upload::{Claim, Job, Offer, Uploader};
