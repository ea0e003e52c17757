//! ONNX files: the network for every other runtime, in f32 or in 8 bits.
//!
//! | file | gives |
//! |---|---|
//! | [`schema`] | ONNX's messages, as far as they are used |
//! | [`builder`] | nodes and constants -> a graph |
//! | [`plain`] | the graph in f32, batch norm folded or on its own |
//! | [`quantised`] | the graph in 8 bits, as QuantizeLinear and DequantizeLinear around f32 operations (QDQ) |
//! | [`write`] | the file with its metadata |
//! | [`run`] | a written file -> logits, operation by operation |
//!
//! Every value has the name of the [`crate::model::graph`] tensor that it equals, every node that of torchvision's module.
//! The input is f32 [batch, 3, side, side], RGB, (byte / 255 - mean) / std; the output f32 [batch, classes].

pub mod builder;
pub mod plain;
pub mod quantised;
pub mod run;
pub mod schema;
#[cfg(test)]
mod tests;
pub mod write;

pub use plain::{Norms, plain};
pub use quantised::{Activations, quantised};
pub use run::Session;
pub use write::{encode, export_onnx};

/// Names of the graph's ends, and of the size that a run chooses.
pub const INPUT: &str = "input";
pub const OUTPUT: &str = "logits";
pub const BATCH: &str = "batch";
