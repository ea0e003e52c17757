//! A folder of stand-ins: what a script calls, under the names that it calls.

#![allow(dead_code)] // Each test program uses a part.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// `engine` and `python` among them are what the scripts take for those.
pub struct StandIns {
    folder: TempDir,
}

impl StandIns {
    /// (name, text) of each; a text begins with its interpreter.
    pub fn new(tools: &[(&str, &str)]) -> Self {
        let stand_ins = Self { folder: tempfile::tempdir().unwrap() };
        tools.iter().for_each(|(name, text)| stand_ins.add(name, text));
        stand_ins
    }

    pub fn add(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A program that finds them.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("ENGINE", self.at("engine")).env("PYTHON", self.at("python"));
        command
    }

    /// `bench/SCRIPT ARGUMENTS.. out`; other programs than engine and Python are found by their names.
    pub fn bench(&self, script: &str, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap_or_default();
        self.command("bash")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(script))
            .args(arguments)
            .arg(self.at("out"))
            .env("PATH", format!("{}:{path}", self.folder.path().display()))
            .output()
            .unwrap()
    }
}

pub fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
