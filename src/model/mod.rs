//! ResNet-50 v1.5, described once (`spec`), lowered to a flat list of operations (`graph`) with named parameters
//! (`params`), grouped as they are run (`units`), counted (`cost`), and divided into what trains and what does not (`freeze`).
//! Knows nothing of devices.

pub mod cost;
pub mod freeze;
pub mod graph;
pub mod params;
pub mod spec;
pub mod units;
