//! Shards on disk: written under a temporary name, made durable beside the work, recognised as whole.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::convert::Packed;
use super::{SCOPE, Shard};
use crate::data::shard::{self, webdataset};
use crate::data::split::Split;
use crate::error::{Error, Result};
use crate::files::PendingFile;

const BLOCK: usize = 512;
/// Writes of this size: large for a disk, small beside the memory of a worker.
const BUFFER: usize = 1 << 20;

/// A shard that is being written.
pub(super) struct ShardFile {
    out: BufWriter<PendingWriter>,
}

/// So that a buffer can stand in front of the file.
struct PendingWriter(PendingFile);

impl Write for PendingWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.file.flush()
    }
}

impl ShardFile {
    pub fn create(path: &Path) -> Result<Self> {
        Ok(Self { out: BufWriter::with_capacity(BUFFER, PendingWriter(PendingFile::create(path)?)) })
    }

    /// Adds the sample at `position` of its split's order; returns the bytes that this took.
    pub fn add(&mut self, position: usize, split: &Split, sample: usize, packed: &Packed) -> Result<u64> {
        let key = key(position, split.stem(sample));
        let label = split.label(sample).to_string();
        let picture = self.member(&format!("{key}.{}", packed.extension), &packed.bytes)?;
        Ok(picture + self.member(&format!("{key}.cls"), label.as_bytes())?)
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> Result<u64> {
        let failed = |e: &std::io::Error, out: &BufWriter<PendingWriter>| {
            Error::output_file(out.get_ref().0.target(), "write", e)
        };
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(|e| failed(&e, &self.out))?;
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        let padding = bytes.len().next_multiple_of(BLOCK) - bytes.len();
        let mut write = || {
            self.out.write_all(header.as_bytes())?;
            self.out.write_all(bytes)?;
            self.out.write_all(&[0; BLOCK][..padding])
        };
        write().map_err(|e| failed(&e, &self.out))?;
        Ok((BLOCK + bytes.len() + padding) as u64)
    }

    /// Two blocks of zeros close a tar.
    fn finish(mut self) -> Result<()> {
        let target = self.out.get_ref().0.target().to_owned();
        let failed = |e: &std::io::Error| Error::output_file(&target, "write", e);
        self.out.write_all(&[0; 2 * BLOCK]).map_err(|e| failed(&e))?;
        let PendingWriter(file) = self.out.into_inner().map_err(|e| failed(e.error()))?;
        file.commit(SCOPE)
    }
}

/// A number for the order, and of the source's name what every file system and WebDataset's keys allow: no dot.
fn key(position: usize, stem: &str) -> String {
    const LONGEST: usize = 64;
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let stem: String = stem.chars().take(LONGEST).map(plain).collect();
    format!("{position:08}-{stem}")
}

/// Makes shards durable on a thread of its own: the disk's work beside that of the decoders.
pub(super) struct Closer {
    shards: SyncSender<ShardFile>,
}

impl Closer {
    /// `work` hands shards over; afterwards all of them are on disk, or the first error says why not.
    pub fn run(work: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let (shards, received) = sync_channel::<ShardFile>(1);
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || received.into_iter().try_for_each(ShardFile::finish));
            let closer = Self { shards };
            let worked = work(&closer);
            drop(closer);
            let closed = thread.join().expect("closing a shard does not panic");
            // A disk that is full is the reason, and a queue that is closed its consequence.
            closed.and(worked)
        })
    }

    pub fn close(&self, shard: ShardFile) -> Result<()> {
        self.shards.send(shard).map_err(|_| Error::failed("an earlier shard could not be written"))
    }
}

/// Samples in a shard that an earlier run finished; `None` where it is missing or is not what it should be, and has to be
/// written again.
pub(super) fn finished_samples(wanted: &Shard<'_>) -> Option<usize> {
    let shard = shard::Shard::open(&wanted.path).ok()?;
    let samples = webdataset(&shard).ok()?;
    let mut positions = wanted.range.clone();
    let fits = samples.iter().all(|found| {
        // Some may have been left out; the order stays.
        positions.any(|position| {
            let sample = wanted.source.order[position] as usize;
            let name = key(position, wanted.source.split.stem(sample));
            let is_same = found.member.name.strip_prefix(&name).is_some_and(|rest| rest.starts_with('.'));
            is_same && found.label == wanted.source.split.label(sample)
        })
    });
    fits.then_some(samples.len())
}
