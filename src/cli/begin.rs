//! `--resume`, `--init` and `--reset-head`: where a run begins.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::freeze::Part;
use crate::train::Resume;
use crate::train::init::Init;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct BeginArgs {
    /// auto: the newest intact checkpoint of the output folder, if there is one. none: from the beginning.
    /// PATH: this checkpoint
    #[arg(long, default_value = "auto", value_name = "auto|none|PATH")]
    pub resume: String,

    /// First weights: an engine checkpoint, or a safetensors or .pth state dict with torchvision's names
    #[arg(long, value_name = "PATH")]
    pub init: Option<PathBuf>,

    /// With --init: a fresh classifier, for data with other classes than the weights know
    #[arg(long, requires = "init")]
    pub reset_head: bool,
}

impl BeginArgs {
    /// What does not go together.
    pub fn check(&self, config: &Config) -> Result<()> {
        if let (Some(_), Resume::From(path)) = (&self.init, self.resume()) {
            return Err(Error::usage(format!(
                "--init begins a run with the weights of a file, --resume {} goes on with one; give one of the two",
                path.display()
            )));
        }
        if self.reset_head && config.freeze().has(Part::Fc) {
            return Err(Error::usage(format!(
                "--reset-head begins fc anew, and optim.freeze = \"{}\" never trains it; leave fc out of one of the two",
                config.optim.freeze
            )));
        }
        Ok(())
    }

    pub fn resume(&self) -> Resume {
        match self.resume.as_str() {
            "auto" => Resume::Auto,
            "none" => Resume::None,
            path => Resume::From(path.into()),
        }
    }

    pub fn init(&self) -> Option<Init> {
        Some(Init { path: self.init.clone()?, reset_head: self.reset_head })
    }
}
