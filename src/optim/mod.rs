//! Update rules on slices and learning-rate schedules: the oracle for the fused kernels.

pub mod schedule;
pub mod sgd;
