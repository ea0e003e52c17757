//! PyTorch's file since 1.6: an uncompressed ZIP of `NAME/data.pkl`, the storages `NAME/data/0`, ..., and three small
//! entries (caffe2/serialize/inline_container.cc). Entries begin at multiples of 64 bytes, so that `mmap=True` works.
//!
//! A state dict has no place for anything but tensors: another key would fail `load_state_dict(strict=True)`. What the
//! file says of its network is an entry `NAME/extra/engine.model`, beside which `torch.jit.save` puts its extra files, too.
//! `torch.load` passes over it; `unzip -p model.pth archive/extra/engine.model` shows it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::pickle;
use super::state::in_module_order;
use crate::checkpoint::weights::EXTRA;
use crate::checkpoint::{StateDict, Tensor};
use crate::error::Result;
use crate::files;

/// The folder in the archive; any name will do, this is the one PyTorch uses where there is no file name.
const NAME: &str = "archive";

/// Writes a state dict as a `.pth` that `torch.load(weights_only=True)` reads, with `metadata` as extra entries; `check` sees
/// it before it gets its name. Bytes are a function of the content.
pub fn export_pth(
    state: &StateDict,
    metadata: &BTreeMap<String, String>,
    path: &Path,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let tensors = in_module_order(state);
    // In memory: where a disk is full, the library would write once more when it is dropped, and print that it cannot.
    let write = |file: &mut File| file.write_all(&encode(&tensors, metadata)?);
    files::write_checked("export", path, write, check)
}

fn encode(tensors: &[(&str, &Tensor)], metadata: &BTreeMap<String, String>) -> io::Result<Vec<u8>> {
    // The zip format has no other way to leave a date out than its first one.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::DEFAULT)
        .unix_permissions(0o644)
        .with_alignment(64);
    let mut zip = ZipWriter::new(Cursor::new(vec![]));
    let mut entry = |name: &str, bytes: &[u8]| -> io::Result<()> {
        zip.start_file(format!("{NAME}/{name}"), options.large_file(bytes.len() > u32::MAX as usize))?;
        zip.write_all(bytes)
    };
    entry("data.pkl", &pickle::state_dict(tensors))?;
    entry(".format_version", b"1")?;
    entry(".storage_alignment", b"64")?;
    entry("byteorder", b"little")?;
    for (i, (_, tensor)) in tensors.iter().enumerate() {
        entry(&format!("data/{i}"), tensor.values.bytes())?;
    }
    entry("version", b"3\n")?;
    for (key, value) in metadata {
        entry(&format!("{EXTRA}{key}"), value.as_bytes())?;
    }
    Ok(zip.finish()?.into_inner())
}
