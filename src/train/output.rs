//! A run's folder: one run at a time, its identity, its effective configuration.
//!
//! ```text
//! logs.md  metrics.jsonl  curve.svg  tensorboard/    what happened
//! config.toml  run.json                              what was asked for; who and when
//! checkpoints/                                       what a resume needs
//! ```

use crate::base64::hex;
use crate::config::Config;
use crate::error::Result;
use crate::files::{self, FolderLock};
use crate::log::timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What is true of a run but not of its result: kept out of checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Names the run's section in logs.md.
    pub id: String,
    pub name: String,
    /// RFC 3339, UTC.
    pub started: String,
    /// Time spent in training, all attempts together.
    pub hours: f64,
    /// A checkpoint of it has been on disk. False may be late, true is true.
    #[serde(default)]
    pub checkpointed: bool,
    pub recipe: BTreeMap<String, String>,
}

/// The output folder, locked for this process until dropped.
pub struct Output {
    pub folder: PathBuf,
    _lock: FolderLock,
}

impl Output {
    pub fn open(folder: &Path) -> Result<Self> {
        let lock = FolderLock::take(folder)?;
        files::remove_temporaries(folder, |name| ["run.json", "config.toml"].contains(&name))?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    fn run_path(&self) -> PathBuf {
        self.folder.join("run.json")
    }

    /// The run that was here, if its file is readable. Nothing that a resume needs depends on it.
    pub fn previous_run(&self) -> Option<RunFile> {
        serde_json::from_slice(&fs::read(self.run_path()).ok()?).ok()
    }

    pub fn write_run(&self, run: &RunFile) -> Result<()> {
        let text = serde_json::to_string_pretty(run).expect("plain fields");
        files::write_bytes_atomically("run_json", &self.run_path(), (text + "\n").as_bytes())
    }

    pub fn write_config(&self, config: &Config) -> Result<()> {
        files::write_bytes_atomically("config", &self.folder.join("config.toml"), config.to_toml().as_bytes())
    }
}

impl RunFile {
    pub fn new(config: &Config, recipe: &BTreeMap<String, String>) -> Self {
        let now = SystemTime::now();
        let started = timestamp(now);
        let unique = format!("{recipe:?} {now:?} {}", std::process::id());
        let digest = Sha256::digest(unique.as_bytes());
        let id = hex(&digest[..6]);
        Self {
            id,
            name: config.name.clone(),
            started,
            hours: 0.0,
            checkpointed: false,
            recipe: recipe.clone(),
        }
    }
}
