//! Inference on a CPU: a program compiled from graph and weights, batch norm folded, epilogues fused, weights packed for
//! the machine. Knows nothing of training.
//!
//! ```ignore
//! let graph = lower(&RESNET50, 224)?;
//! let mut program = Program::compile(&graph, &weights, &Options::new(Precision::Fp32, MEAN, STD))?;
//! let logits = program.run(&pixels)?;                        // u8 RGB [n][224][224][3] -> f32 [n][classes]
//! for layer in program.profile() { println!("{} {} ns", layer.name, layer.nanoseconds); }
//! ```
//!
//! With [`Keep::All`], or the name of a tensor in [`Keep::Named`], [`Program::tensor`] reads what a layer made.
//!
//! | file | gives |
//! |---|---|
//! | [`weights`] | folded and quantised weights of a layer, wherever they come from |
//! | [`options`] | what a program is compiled for |
//! | [`algorithm`] | how each convolution is computed |
//! | [`plan`] | which tensors exist, in which format, and where in the arena |
//! | [`program`] | graph and weights -> steps with packed weights |
//! | [`random`] | weights for measuring without a model file |
//! | [`run`] | images -> logits, tensors by name, time by layer |
//! | [`explain`] | logits -> where in the picture they come from |
//! | [`profile`], [`top`] | a table of layers beside the machine's peak; logits -> classes |
//! | [`fold`] | batch norm into the convolution before it; layouts |
//! | [`file`] | the model file: weights, classes, preparation of pictures, checked and mapped |
//! | [`reference`] | the graph run unfused, operation by operation: what programs are compared with |
//! | [`integer`] | the 8-bit network in exact integers: what 8-bit programs are compared with |

pub mod weights;
pub mod fold;
pub mod file;
pub mod random;
pub mod reference;
pub mod integer;
pub mod options;
pub mod algorithm;
pub mod plan;
pub mod program;
pub mod run;
pub mod explain;
pub mod profile;
pub mod top;
#[cfg(test)]
mod tests;

pub use crate::simd::direct::Precision;
pub use algorithm::Algorithm;
pub use options::{Keep, Options};
pub use program::Program;
pub use run::LayerTime;
