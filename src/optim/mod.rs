//! Update rules on slices and learning-rate schedules: the oracle for the fused kernels.

pub mod lamb;
pub mod schedule;
pub mod sgd;
