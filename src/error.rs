//! One error type: a sentence for a person, and the exit code that scripts branch on.
//!
//! A message says what was being done, what was found, what was expected and what to do next; the file or the
//! configuration key is named in it.

use std::fmt;
use std::path::Path;

/// What went wrong, as far as the exit code tells it apart (`--help` of the binary lists the codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The work itself failed: a non-finite loss, a full disk.
    Failed,
    /// Command line or configuration.
    Usage,
    /// Input data; the message names the file.
    Input,
    /// The device or another rank: run again elsewhere.
    Device,
    /// Stopped on request with a checkpoint on disk: run again to go on.
    Stopped,
}

/// An error with its exit code. `Display` is the sentence; it never ends in a newline.
#[derive(Debug, Clone)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn failed(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }

    pub fn input(message: impl Into<String>) -> Self {
        Self { kind: Kind::Input, message: message.into() }
    }

    pub fn device(message: impl Into<String>) -> Self {
        Self { kind: Kind::Device, message: message.into() }
    }

    pub fn stopped(message: impl Into<String>) -> Self {
        Self { kind: Kind::Stopped, message: message.into() }
    }

    /// An input file that could not be used: `PATH: reason`.
    pub fn input_file(path: impl AsRef<Path>, reason: impl fmt::Display) -> Self {
        Self::input(format!("{}: {reason}", path.as_ref().display()))
    }

    /// An input file that could not be read at all; `expected` says what it should have been.
    pub fn unreadable(path: impl AsRef<Path>, source: &std::io::Error, expected: &str) -> Self {
        Self::input_file(path, format!("cannot read it: {source}; expected {expected}"))
    }

    /// An output that could not be written: `cannot VERB PATH: reason`, with a hint where the reason has one.
    pub fn output_file(path: impl AsRef<Path>, verb: &str, source: &std::io::Error) -> Self {
        let hint = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "; free some space, then run the same command again"
            }
            std::io::ErrorKind::FileTooLarge => {
                "; raise the limit on file sizes (ulimit -f), then run the same command again"
            }
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                "; choose a folder that can be written with --output"
            }
            std::io::ErrorKind::NotFound => "; its folder does not exist: create it first",
            std::io::ErrorKind::NotADirectory | std::io::ErrorKind::AlreadyExists => {
                "; a file stands where a folder is needed: move it, or choose another --output"
            }
            _ => "",
        };
        Self::failed(format!("cannot {verb} {}: {source}{hint}", path.as_ref().display()))
    }

    /// Puts `context: ` in front of the sentence and keeps the exit code.
    pub fn within(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// The process exit code of design contract §3: 1, 2, 3, 70 or 75.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::Input => 3,
            Kind::Device => 70,
            Kind::Stopped => 75,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
