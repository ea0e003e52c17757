//! The trained bytes do not depend on how often the program was killed, nor on threads and workers. The binary runs as a
//! child of these tests.

#[path = "../common/mod.rs"]
mod common;

mod damage;
mod logs;
mod random;
mod same_bytes;
mod stages;
