//! `--init` and `--reset-head`: the weights that a run begins with.

use crate::train::init::Init;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct BeginArgs {
    /// First weights: an engine checkpoint, or a safetensors or .pth state dict with torchvision's names
    #[arg(long, value_name = "PATH")]
    pub init: Option<PathBuf>,

    /// With --init: a fresh classifier, for data with other classes than the weights know
    #[arg(long, requires = "init")]
    pub reset_head: bool,
}

impl BeginArgs {
    pub fn init(&self) -> Option<Init> {
        Some(Init { path: self.init.clone()?, reset_head: self.reset_head })
    }
}
