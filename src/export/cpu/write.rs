//! Writing a model file.

use crate::checkpoint::{StateDict, Values};
use crate::error::Result;
use crate::files;
use crate::infer::file::layout::Entry;
use crate::infer::file::{self, Description};
use safetensors::Dtype;
use std::borrow::Cow;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes `state` and whatever 8-bit tensors stand beside it; `description.crc32c` is filled in. Through a temporary file
/// that is renamed: a program that has an older file of this name open keeps it.
pub fn export_cpu(
    state: &StateDict,
    quantised: Vec<Entry>,
    description: &Description,
    path: &Path,
) -> Result<()> {
    let plain = state.iter().map(|(name, tensor)| Entry {
        name: Cow::from(name),
        dtype: match tensor.values {
            Values::F32(_) => Dtype::F32,
            Values::I64(_) => Dtype::I64,
            Values::U8(_) => Dtype::U8,
        },
        shape: tensor.shape.clone(),
        bytes: tensor.values.bytes().into(),
    });
    let mut entries: Vec<Entry> = plain.chain(quantised).collect();
    let head = file::head(&mut entries, description);
    files::write_atomically("export", path, |file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&head)?;
        entries.iter().try_for_each(|entry| out.write_all(&entry.bytes))?;
        out.flush()
    })
}
