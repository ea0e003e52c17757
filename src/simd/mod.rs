//! CPU micro-kernels, packing and the thread pool. Knows neither training nor inference.

pub(crate) mod dispatch;
pub mod isa;
pub mod pool;
pub mod memory;
pub mod peak;
pub mod copy;
pub mod filters;
pub mod conv;
pub mod direct;
pub mod winograd;
