//! The small files beside the shards.

use std::collections::BTreeMap;
use std::path::Path;

use super::{PackOptions, Source, Summary};
use crate::base64::hex;
use crate::data::{Class, JPEG_DECODER};
use crate::error::{Error, Result};
use crate::files::write_bytes_atomically;
use sha2::{Digest, Sha256};

const REQUEST: &str = "pack.json";
const SUMMARY: &str = "packed.json";

/// Everything that a shard's bytes depend on, by name.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Request(BTreeMap<String, String>);

impl Request {
    pub fn new(sources: &[Source], classes: &[Class], options: &PackOptions) -> Self {
        let PackOptions { shorter_side, quality, interpolation, per_shard, shuffle, .. } = options;
        let mut keys = vec![
            ("format".into(), "1".into()),
            ("shorter side".into(), shorter_side.map_or("as it is".into(), |side| side.to_string())),
            ("pictures a shard".into(), per_shard.to_string()),
            ("shuffled".into(), shuffle.to_string()),
            ("classes".into(), digest(classes.iter().map(|class| class.id.as_bytes()))),
        ];
        if shorter_side.is_some() {
            keys.push(("quality".into(), quality.to_string()));
            keys.push(("interpolation".into(), format!("{interpolation:?}").to_lowercase()));
            // Decoders differ by a grey level here and there.
            keys.push(("decoder".into(), JPEG_DECODER.into()));
        }
        for Source { name, split, .. } in sources {
            let samples = (0..split.len()).map(|i| format!("{} {}", split.label(i), split.stem(i)));
            keys.push((format!("pictures of {name}"), split.len().to_string()));
            keys.push((format!("names and labels of {name}"), digest(samples)));
        }
        Self(keys.into_iter().collect())
    }

    /// Leaves this in an empty folder; in one that holds another request, says what differs.
    pub fn agree_with(&self, folder: &Path) -> Result<()> {
        let path = folder.join(REQUEST);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let there: Self = serde_json::from_slice(&bytes)
                    .map_err(|e| Error::input_file(&path, format!("{e}; delete the folder to begin anew")))?;
                self.same_as(&there, folder)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                refuse_foreign(folder)?;
                let text = serde_json::to_string_pretty(self).expect("plain strings") + "\n";
                write_bytes_atomically("pack_json", &path, text.as_bytes())
            }
            Err(e) => Err(Error::unreadable(&path, &e, "what was asked for")),
        }
    }

    fn same_as(&self, there: &Self, folder: &Path) -> Result<()> {
        let keys: std::collections::BTreeSet<&String> = there.0.keys().chain(self.0.keys()).collect();
        let value = |of: &Self, key: &String| of.0.get(key).cloned().unwrap_or("absent".into());
        let differing: Vec<String> = keys
            .into_iter()
            .filter(|key| self.0.get(*key) != there.0.get(*key))
            .map(|key| format!("{key}: {} there, {} here", value(there, key), value(self, key)))
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Error::usage(format!(
            "{} holds shards of another request ({}); choose another --output, or delete it",
            folder.display(),
            differing.join("; ")
        )))
    }
}

/// Shards that nothing is known of must not be mixed with new ones.
fn refuse_foreign(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::output_file(folder, "list", &e))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names.filter(|name| !name.starts_with('.')).min() {
        None => Ok(()),
        Some(name) => Err(Error::usage(format!(
            "{} is not empty ({name}) and was not begun by `engine data pack`; choose another --output",
            folder.display()
        ))),
    }
}

fn digest(parts: impl Iterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_ref());
        hash.update([0]);
    }
    hex(&hash.finalize()[..8])
}

pub(super) fn write_classes(folder: &Path, classes: &[Class]) -> Result<()> {
    let text: String = classes.iter().map(|class| format!("{}\t{}\n", class.id, class.label)).collect();
    write_bytes_atomically("classes", &folder.join("classes.txt"), text.as_bytes())
}

pub(super) fn write_summary(folder: &Path, summary: &Summary) -> Result<()> {
    let text = serde_json::to_string_pretty(summary).expect("plain fields") + "\n";
    write_bytes_atomically("packed_json", &folder.join(SUMMARY), text.as_bytes())
}

/// Of a run that ended, where its shards are still as many bytes as they were.
pub(super) fn read_summary(folder: &Path) -> Option<Summary> {
    let summary: Summary = serde_json::from_slice(&std::fs::read(folder.join(SUMMARY)).ok()?).ok()?;
    let is_whole = summary.splits.iter().all(|split| {
        let sizes = (0..split.shards).map(|number| {
            folder.join(format!("{}-{number:06}.tar", split.name)).metadata().map_or(0, |m| m.len())
        });
        sizes.sum::<u64>() == split.bytes
    });
    is_whole.then_some(summary)
}
