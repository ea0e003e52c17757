//! Lines for a person and lines for a program. Neither ends the process where nobody reads them: a training goes on when
//! its terminal is gone or the disk under its redirected output is full.

use crate::error::{Error, Result};
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// What lines begin with where several ranks share a terminal.
static PREFIX: OnceLock<String> = OnceLock::new();

/// From now on lines say which rank they are of; those of rank 0 do not.
pub fn set_rank(rank: usize) {
    if rank > 0 {
        let _ = PREFIX.set(format!("rank {rank}: "));
    }
}

/// A line on stderr. There is nobody to tell where it cannot be written.
pub fn message(text: impl Display) {
    let prefix = PREFIX.get().map_or("", String::as_str);
    let _ = writeln!(io::stderr(), "{prefix}{text}");
}

/// A line of the answer, on stdout. A reader that has seen enough (`| head -1`) is no error.
pub fn answer(text: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
