//! Lines for a person and lines for a program. Neither ends the process where nobody reads them: a training goes on when
//! its terminal is gone or the disk under its redirected output is full.

use crate::error::{Error, Result};
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// A line on stderr. There is nobody to tell where it cannot be written.
pub fn message(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
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
