//! Inference on a CPU: a program compiled from graph and weights, batch norm folded, epilogues fused, weights packed for
//! the machine. Knows nothing of training.
//!
//! | file | gives |
//! |---|---|
//! | [`weights`] | folded and quantised weights of a layer, wherever they come from |
//! | [`fold`] | batch norm into the convolution before it; layouts |
//! | [`file`] | the model file: weights, classes, preparation of pictures, checked and mapped |
//! | [`reference`] | the graph run unfused, operation by operation: what programs are compared with |
//! | [`integer`] | the 8-bit network in exact integers: what 8-bit programs are compared with |

pub mod file;
pub mod fold;
pub mod reference;
pub mod integer;
pub mod weights;
