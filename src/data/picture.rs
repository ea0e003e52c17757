//! A person's picture, from a path or from standard input.

use crate::error::{Error, Result};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The largest picture file: above it lies no photograph, but an endless device or another kind of file.
const MAX_BYTES: u64 = 1 << 30;

/// The bytes of the file at `path`; `-` is standard input.
pub fn read_picture(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let read = if path == Path::new("-") {
        io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
    };
    match read {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            Err(Error::input_file(path, "is a folder; give the pictures in it"))
        }
        Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            Err(Error::input_file(path, "does not fit into this machine's memory"))
        }
        Err(error) => Err(Error::unreadable(path, &error, "a JPEG, PNG or WebP picture")),
        Ok(_) if bytes.len() as u64 > MAX_BYTES => {
            Err(Error::input_file(path, format!("has more than {MAX_BYTES} bytes; a picture is smaller")))
        }
        Ok(_) => Ok(bytes),
    }
}
