//! The trainer: epochs, validation, resume, progress.

pub mod evaluate;
mod follow;
pub mod images;
pub mod init;
mod limit;
pub mod lr_find;
mod mirror;
pub mod model_file;
mod resume;
pub mod state;
mod goals;
pub mod notice;
mod orders;
pub mod stop;
pub mod sweep;
pub mod trainer;
mod output;
pub mod passes;
mod progress;
mod validation;
mod words;

pub use trainer::{Resume, TrainOptions, train};
