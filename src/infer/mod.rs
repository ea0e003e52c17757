//! Inference on a CPU: a program compiled from graph and weights, batch norm folded, epilogues fused, weights packed for
//! the machine. Knows nothing of training.
//!
//! | file | gives |
//! |---|---|
//! | [`weights`] | folded and quantised weights of a layer, wherever they come from |

pub mod weights;
