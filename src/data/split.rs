//! The samples of one split: label, name, and where the bytes lie.
//!
//! A tar is read in place with positioned reads (pread) and not through a memory map: a tar that shrinks, or a
//! network file system that fails, is then an error of the read call and never a SIGBUS, and nothing has to be
//! checked first. The copy that this makes lands in the worker's buffer, which the decoder needs anyway.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Handles that are kept open; shards beyond these are opened for each read, so that a thousand shards stay below
/// the usual limit of 1,024 open files.
const OPEN_SHARDS: usize = 256;

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Tar { path: PathBuf, handle: Option<File> },
}

/// 32 bytes; ImageNet has 1.28 million.
#[derive(Debug, Clone, Copy)]
struct Sample {
    offset: u64,
    /// 0 in a folder, where the file is asked.
    len: u64,
    /// Where the name begins in `Split::names`; it ends where the next one begins.
    name_at: u64,
    label: u32,
    place: u32,
}

/// One split, in its order: by class, then by name (WebDataset: in the order of the shards).
#[derive(Debug, Default)]
pub struct Split {
    places: Vec<Place>,
    samples: Vec<Sample>,
    names: String,
}

impl Split {
    /// Files with their labels, in the order given.
    pub fn from_files<P: AsRef<Path>>(files: impl IntoIterator<Item = (P, u32)>) -> Self {
        let mut split = Self::default();
        let place = split.add_folder(PathBuf::new());
        for (path, label) in files {
            split.push(place, label, &path.as_ref().to_string_lossy(), 0, 0);
        }
        split
    }

    pub(crate) fn add_folder(&mut self, path: PathBuf) -> u32 {
        self.places.push(Place::Folder(path));
        self.places.len() as u32 - 1
    }

    pub(crate) fn add_tar(&mut self, path: PathBuf) -> Result<u32> {
        let handle = if self.places.len() < OPEN_SHARDS { Some(open(&path)?) } else { None };
        self.places.push(Place::Tar { path, handle });
        Ok(self.places.len() as u32 - 1)
    }

    pub(crate) fn push(&mut self, place: u32, label: u32, name: &str, offset: u64, len: u64) {
        self.samples.push(Sample { offset, len, name_at: self.names.len() as u64, label, place });
        self.names.push_str(name);
    }

    pub fn len(&self) -> usize {
        self.samples.len()
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    pub fn label(&self, i: usize) -> u32 {
        self.samples[i].label
    }

    fn member(&self, i: usize) -> &str {
        let end = self.samples.get(i + 1).map_or(self.names.len(), |next| next.name_at as usize);
        &self.names[self.samples[i].name_at as usize..end]
    }

    /// `/path/x.JPEG`, or `a.tar:member`.
    pub fn name(&self, i: usize) -> String {
        match &self.places[self.samples[i].place as usize] {
            Place::Folder(path) => path.join(self.member(i)).display().to_string(),
            Place::Tar { path, .. } => format!("{}:{}", path.display(), self.member(i)),
        }
    }

    /// The name without folders and without what follows the last dot.
    pub fn stem(&self, i: usize) -> &str {
        let base = self.member(i).rsplit('/').next().unwrap_or("");
        base.rsplit_once('.').map_or(base, |(stem, _)| stem)
    }

    /// Size of the file in bytes.
    pub fn bytes(&self, i: usize) -> Result<u64> {
        match &self.places[self.samples[i].place as usize] {
            Place::Folder(path) => {
                let path = path.join(self.member(i));
                path.metadata().map(|m| m.len()).map_err(|e| cannot_read(&path, &e))
            }
            Place::Tar { .. } => Ok(self.samples[i].len),
        }
    }

    /// Tells the system that the file is about to be read, so that the disk works ahead of the workers. A hint: what goes
    /// wrong shows when it is read.
    pub fn will_read(&self, i: usize) {
        let sample = self.samples[i];
        match &self.places[sample.place as usize] {
            Place::Folder(path) => {
                if let Ok(file) = File::open(path.join(self.member(i))) {
                    will_need(&file, 0, 0);
                }
            }
            Place::Tar { handle: Some(file), .. } => will_need(file, sample.offset, sample.len),
            Place::Tar { path, handle: None } => {
                if let Ok(file) = File::open(path) {
                    will_need(&file, sample.offset, sample.len);
                }
            }
        }
    }

    /// The bytes of the file.
    pub fn read(&self, i: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_into(i, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of the file, into a buffer that is used again.
    pub fn read_into(&self, i: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let sample = self.samples[i];
        match &self.places[sample.place as usize] {
            Place::Folder(path) => {
                let path = path.join(self.member(i));
                bytes.clear();
                open(&path)?.read_to_end(bytes).map(|_| ()).map_err(|e| cannot_read(&path, &e))
            }
            Place::Tar { path, handle } => {
                // What is there already is written over, and so need not be zeros.
                bytes.resize(sample.len as usize, 0);
                let read = match handle {
                    Some(file) => file.read_exact_at(bytes, sample.offset),
                    None => open(path)?.read_exact_at(bytes, sample.offset),
                };
                read.map_err(|e| match e.kind() {
                    ErrorKind::UnexpectedEof => Error::input_file(
                        self.name(i),
                        format!(
                            "the tar has become shorter since it was opened: {} bytes at offset {} are gone; \
                             do not change it during a run",
                            sample.len, sample.offset
                        ),
                    ),
                    _ => Error::input_file(self.name(i), format!("cannot read it: {e}")),
                })
            }
        }
    }
}

/// `len` 0: to the end.
#[cfg(target_os = "linux")]
fn will_need(file: &File, offset: u64, len: u64) {
    let _ = rustix::fs::fadvise(file, offset, std::num::NonZeroU64::new(len), rustix::fs::Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
fn will_need(_: &File, _: u64, _: u64) {}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| cannot_read(path, &e))
}

fn cannot_read(path: &Path, e: &std::io::Error) -> Error {
    Error::input_file(path, format!("cannot read it: {e}"))
}
