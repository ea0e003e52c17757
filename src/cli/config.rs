//! `--config`, `--set` and the flags that stand for keys: the configuration of a command.

use crate::config::{self, Config, Overrides};
use crate::error::Result;
use clap::Args;
use std::path::PathBuf;

/// A configuration and what stands above it.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Configuration file; without it, the defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Overrides a key of the configuration: --set optim.lr=0.2 (repeatable). Environment variables such as
    /// ENGINE__OPTIM__LR=0.2 do the same, one step weaker
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Parts that are not trained, running statistics included: stem, layer1 .. layer4, fc, or a range as stem..layer3. The same as
    /// --set optim.freeze=PARTS
    #[arg(long, value_name = "PARTS")]
    pub freeze: Option<String>,

    /// Training data: a folder or tar with train/ and val/; without it, the embedded synthetic set. The environment
    /// variable DATA_DIR does the same, one step weaker than --set data.path=
    #[arg(long, value_name = "DIR|TAR")]
    pub data: Option<PathBuf>,

    /// Where logs and checkpoints go
    #[arg(long, env = "OUTPUT_DIR", value_name = "DIR", default_value = ".")]
    pub output: PathBuf,

    /// Where they go as well, while training goes on; a resume looks there too. The environment variable OUTPUT_REMOTE does
    /// the same, one step weaker than --set checkpoint.remote=
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    pub remote: Option<String>,
}

impl ConfigArgs {
    /// The configuration in effect: file, environment, `--set`, then the flags.
    pub fn load(&self) -> Result<Config> {
        let freeze = self.freeze.as_ref().map(|parts| format!("optim.freeze={parts}"));
        let set = self.set.iter().cloned().chain(freeze).collect();
        let overrides = Overrides::from_process(set);
        let mut config = config::load(self.config.as_deref(), &overrides)?;
        if let Some(data) = &self.data {
            config.data.path = data.display().to_string();
        }
        if let Some(remote) = &self.remote {
            config.checkpoint.remote.clone_from(remote);
        }
        Ok(config)
    }
}
