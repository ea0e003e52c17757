//! The card: NVIDIA's libraries, loaded when they are used, and a machine that runs plans on them.
//!
//! | file | says |
//! |---|---|
//! | [`libraries`] | what is here, what is missing, what to do about it |
//! | [`driver`] | memory, streams, events, graphs |
//! | [`cudnn`], [`cublas`] | convolutions, matrix products |
//! | [`algorithms`] | which convolution algorithm for which shape |
//! | [`card`] | the machine |
//!
//! No GPU has run any of this yet.

pub mod algorithms;
pub mod card;
pub mod cublas;
pub mod cudnn;
pub mod driver;
pub mod libraries;
