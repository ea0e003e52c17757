//! What lies in a tar, without unpacking it: names, offsets and lengths of its members.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file or a folder inside a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Without a leading `./` and without a trailing `/`.
    pub name: String,
    pub folder: bool,
    pub offset: u64,
    pub len: u64,
}

/// A tar and what lies in it.
#[derive(Debug)]
pub(crate) struct Shard {
    pub path: PathBuf,
    file: File,
    pub members: Vec<Member>,
}

/// First bytes of compressed files, their name, and the command that unpacks them.
const COMPRESSED: [(&[u8], &str, &str); 4] = [
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
    (b"\xfd7zXZ\0", "xz", "xz -d"),
    (b"BZh", "bzip2", "bunzip2"),
];

/// torchvision's `IMG_EXTENSIONS`: what counts as a sample. What a file really is shows when it is decoded.
const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];

/// Whether a file of this name counts as an image. Hidden files do not: macOS puts a `._x.jpg` beside each `x.jpg`.
pub(crate) fn is_image(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name);
    let extension = base.rsplit_once('.').map_or("", |(_, e)| e);
    !base.starts_with('.') && EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e))
}

/// Folders that hold no class.
pub(crate) fn is_hidden(folder: &str) -> bool {
    folder.starts_with('.') || matches!(folder, "__MACOSX" | "lost+found")
}

impl Shard {
    pub fn open(path: &Path) -> Result<Self> {
        let bad = |reason: String| Error::input_file(path, reason);
        let file = File::open(path).map_err(|e| bad(format!("cannot read it: {e}")))?;
        let size = file.metadata().map_err(|e| bad(format!("cannot read it: {e}")))?.len();
        let mut magic = [0; 6];
        let read = file.read_at(&mut magic, 0).map_err(|e| bad(format!("cannot read it: {e}")))?;
        if let Some((_, name, command)) = COMPRESSED.iter().find(|(m, ..)| magic[..read].starts_with(m)) {
            return Err(bad(format!(
                "compressed with {name}, which cannot be read in place: unpack it with `{command} {}`",
                path.display()
            )));
        }
        let members = list(Section::new(&file, 0, size)).map_err(bad)?;
        Ok(Self { path: path.into(), file, members })
    }

    /// What lies in a member that is a tar itself; offsets are those in the outer file.
    pub fn inner(&self, member: &Member) -> Result<Vec<Member>> {
        let listed = list(Section::new(&self.file, member.offset, member.len));
        listed
            .map_err(|reason| Error::input_file(&self.path, format!("its member {}: {reason}", member.name)))
    }

    /// The bytes of a small member.
    pub fn read(&self, member: &Member) -> Result<Vec<u8>> {
        let mut bytes = vec![0; member.len as usize];
        self.file.read_exact_at(&mut bytes, member.offset).map_err(|e| {
            Error::input_file(&self.path, format!("cannot read its member {}: {e}", member.name))
        })?;
        Ok(bytes)
    }

    pub fn text(&self, member: &Member) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.read(member)?).into_owned())
    }
}

/// A part of a file, read with positioned reads: several threads may read one file.
struct Section<'f> {
    file: &'f File,
    begin: u64,
    len: u64,
    at: u64,
}

impl<'f> Section<'f> {
    fn new(file: &'f File, begin: u64, len: u64) -> Self {
        Self { file, begin, len, at: 0 }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.len.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        let read = self.file.read_at(&mut buffer[..left], self.begin + self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// GNU long names and pax headers are the tar crate's work.
fn list(section: Section<'_>) -> Result<Vec<Member>, String> {
    let (file, begin, size) = (section.file, section.begin, section.len);
    let mut members: Vec<Member> = Vec::new();
    let mut end = 0;
    let last = |members: &[Member]| members.last().map_or("its beginning".into(), |m| m.name.clone());
    let mut archive = tar::Archive::new(section);
    for entry in archive.entries_with_seek().map_err(|e| format!("cannot read it: {e}"))? {
        let entry = entry.map_err(|e| {
            format!("damaged after {} (offset {end}): {e}; is it a tar, and complete?", last(&members))
        })?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let name = name.trim_start_matches("./").trim_end_matches('/').to_string();
        let (offset, len) = (entry.raw_file_position(), entry.size());
        let kind = entry.header().entry_type();
        end = offset.saturating_add(len);
        if end > size {
            return Err(format!(
                "cut short: its member {name} ends at offset {end} and the tar at {size}; fetch it again"
            ));
        }
        if (kind.is_symlink() || kind.is_hard_link() || kind.is_gnu_sparse()) && is_image(&name) {
            return Err(format!(
                "its member {name} is a link or a sparse file, which cannot be read in place: pack with \
                 `tar --dereference --hard-dereference`"
            ));
        }
        if kind.is_file() || kind.is_contiguous() || kind.is_dir() {
            members.push(Member { name, folder: kind.is_dir(), offset: begin + offset, len });
        }
    }
    check_trailer(file, begin, size, end.next_multiple_of(512)).map_err(|()| {
        format!(
            "cut short after {} (offset {end}): the two blocks of zeros that close a tar are missing; fetch it \
             again, or, if it is whole, append them with `truncate -s +1024`",
            last(&members)
        )
    })?;
    Ok(members)
}

/// POSIX closes an archive with two blocks of zeros; one is taken for two, as by GNU tar. Without this check a tar
/// that was cut between two members would pass for a smaller one.
fn check_trailer(file: &File, begin: u64, size: u64, end: u64) -> Result<(), ()> {
    let mut block = [1u8; 512];
    if end + 512 > size || file.read_exact_at(&mut block, begin + end).is_err() {
        return Err(());
    }
    if block.iter().all(|&b| b == 0) { Ok(()) } else { Err(()) }
}

/// An image of a WebDataset shard and its label.
pub(crate) struct Labelled<'a> {
    pub member: &'a Member,
    pub label: u32,
}

/// The key of a WebDataset member and its extension: the base name is cut at its first dot.
fn key(name: &str) -> (&str, &str) {
    let base = name.rfind('/').map_or(0, |i| i + 1);
    name[base..].find('.').map_or((name, ""), |dot| (&name[..base + dot], &name[base + dot + 1..]))
}

/// Whether the shard is WebDataset's: labels in `.cls`, or images in no folder with `.json` beside them.
pub(crate) fn is_webdataset(members: &[Member]) -> bool {
    let files = || members.iter().filter(|m| !m.folder);
    files().any(|m| key(&m.name).1 == "cls")
        || (files().any(|m| key(&m.name).1 == "json")
            && files().filter(|m| is_image(&m.name)).all(|m| !m.name.contains('/')))
}

/// Pairs each image with its label, in the order of the shard.
pub(crate) fn webdataset(shard: &Shard) -> Result<Vec<Labelled<'_>>> {
    let mut labels = HashMap::new();
    for member in shard.members.iter().filter(|m| !m.folder) {
        let bad = |what: &str| Error::input_file(&shard.path, format!("its member {} {what}", member.name));
        let (key, extension) = key(&member.name);
        match extension {
            "cls" => {
                let text = shard.text(member)?;
                let label = text.trim().parse::<u32>();
                labels.insert(key, label.map_err(|_| bad("should hold the class as an integer"))?);
            }
            "json" if !labels.contains_key(key) => {
                let json: Option<serde_json::Value> = serde_json::from_slice(&shard.read(member)?).ok();
                let label = json.as_ref().and_then(|j| j.get("label")?.as_u64());
                if let Some(label) = label {
                    let label = u32::try_from(label).map_err(|_| bad("has a label beyond 32 bits"))?;
                    labels.insert(key, label);
                }
            }
            _ => {}
        }
    }
    let images = shard.members.iter().filter(|m| !m.folder && is_image(&m.name));
    images
        .map(|member| {
            let label = labels.get(key(&member.name).0).copied().ok_or_else(|| {
                let wanted = format!("{0}.cls or {0}.json with \"label\"", key(&member.name).0);
                let reason = format!("no label for its member {}: {wanted} is missing", member.name);
                Error::input_file(&shard.path, reason)
            })?;
            Ok(Labelled { member, label })
        })
        .collect()
}
