//! The CPU backend against what PyTorch, torchvision and Pillow recorded in `tests/golden/` (README.md there), against
//! finite differences, and against itself on other numbers of threads.
//!
//!     cargo test --release --test golden -- --nocapture      # prints the tables of measured errors

mod golden_support;
