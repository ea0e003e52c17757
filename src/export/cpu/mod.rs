//! The model file of `infer`: a checkpoint's weights with what a picture goes through before and after them.

mod write;

pub use write::export_cpu;
