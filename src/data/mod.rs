//! Images on the way to the network: where they come from, and how they become batches.

pub mod synth;
