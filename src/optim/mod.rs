//! Update rules on slices and learning-rate schedules: the oracle for the fused kernels.

pub mod clip;
pub mod ema;
pub mod lamb;
pub mod lars;
pub mod rule;
pub mod schedule;
pub mod sgd;

pub use rule::Rule;
