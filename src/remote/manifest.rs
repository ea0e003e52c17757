//! `manifest.json`: whose a prefix is, and what in it is whole. Written last, in one request.

use super::client::{Answer, Client, Failure};
use super::object::{self, Content};
use super::retry::Patience;
use crate::checkpoint::Position;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const NAME: &str = "manifest.json";
pub const CHECKPOINTS: &str = "checkpoints/";
/// What else a run leaves to read. TensorBoard's events stay on the machine.
pub const FILES: [&str; 5] = ["logs.md", "metrics.jsonl", "run.json", "config.toml", "curve.svg"];

/// Raised when an older program could not go on from what lies beside it.
const FORMAT: u32 = 1;

/// The run that a prefix belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// As in run.json.
    pub run: String,
    pub name: String,
    pub recipe: BTreeMap<String, String>,
}

/// A checkpoint, under the key that its digest is part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub object: String,
    #[serde(flatten)]
    pub at: Position,
    #[serde(flatten)]
    pub content: Content,
}

impl Step {
    pub fn new(at: Position, content: Content) -> Self {
        let object = format!("{CHECKPOINTS}step-{:08}-{}.safetensors", at.step, &content.sha256[..12]);
        Self { object, at, content }
    }

    /// Whether a name has the form of [`Self::object`]: what else lies in the folder is none of ours.
    pub fn is_name(name: &str) -> bool {
        let middle = name
            .strip_prefix(CHECKPOINTS)
            .and_then(|name| name.strip_prefix("step-")?.strip_suffix(".safetensors"));
        middle.and_then(|middle| middle.split_once('-')).is_some_and(|(step, digest)| {
            step.bytes().all(|digit| digit.is_ascii_digit())
                && digest.len() == 12
                && digest.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
    }

    /// The order of training.
    pub fn place(&self) -> (u64, u32) {
        place(self.at)
    }
}

/// What checkpoints are ordered by.
pub fn place(at: Position) -> (u64, u32) {
    (at.step, at.epoch)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    #[serde(flatten)]
    pub owner: Owner,
    /// The process that writes here; one that comes later puts itself in its place.
    pub writer: String,
    pub best: Option<Position>,
    /// Newest first.
    pub checkpoints: Vec<Step>,
    pub files: BTreeMap<String, Content>,
}

impl Manifest {
    pub fn new(owner: Owner, writer: &str) -> Self {
        let writer = writer.to_owned();
        Self { format: FORMAT, owner, writer, best: None, checkpoints: vec![], files: BTreeMap::new() }
    }

    /// Whether a run may write here: its own prefix, or one whose run died before it wrote anything.
    pub fn is_free_for(&self, owner: &Owner) -> bool {
        self.owner.run == owner.run || self.checkpoints.is_empty() && self.files.is_empty()
    }

    pub fn has(&self, at: (u32, u64)) -> bool {
        self.checkpoints.iter().any(|step| (step.at.epoch, step.at.step) == at)
    }

    pub fn add(&mut self, step: Step) {
        self.checkpoints.retain(|old| old.place() != step.place());
        self.checkpoints.push(step);
        self.checkpoints.sort_by_key(|step| std::cmp::Reverse(step.place()));
    }
}

/// A manifest as it lies in the bucket.
#[derive(Debug, Clone)]
pub struct Stored {
    pub manifest: Manifest,
    /// Changes whenever somebody writes it.
    tag: String,
}

/// What must be true of the bucket for a manifest to be written.
#[derive(Debug, Clone, Copy)]
pub enum Over<'a> {
    Nothing,
    This(&'a Stored),
}

/// None: there is none below this prefix.
pub fn read(client: &Client, patience: &Patience) -> Answer<Option<Stored>> {
    let (text, tag) = match object::read(client, &client.address.key(NAME), patience) {
        Err(Failure::Absent) => return Ok(None),
        read => read?,
    };
    let wrong = |reason: String| {
        Failure::Lasting(format!("{NAME} there is none of this engine's ({reason}); choose another prefix"))
    };
    let manifest: Manifest = serde_json::from_str(&text).map_err(|reason| wrong(reason.to_string()))?;
    match manifest.format {
        FORMAT => Ok(Some(Stored { manifest, tag })),
        other => Err(wrong(format!("format {other}, wanted {FORMAT}"))),
    }
}

/// Writes `manifest` where the bucket still is as `over` says; [`Failure::Taken`] where it is not.
pub fn write(client: &Client, manifest: &Manifest, over: Over, patience: &Patience) -> Answer<Stored> {
    let text = serde_json::to_string_pretty(manifest).expect("plain fields") + "\n";
    let key = client.address.key(NAME);
    let condition = match over {
        Over::Nothing => vec![("if-none-match", "*".to_owned())],
        Over::This(stored) => vec![("if-match", stored.tag.clone())],
    };
    let written = match object::put(client, &key, text.as_bytes(), &condition, patience) {
        // Servers that know no such condition say so. What was read just before is then what there is to go by.
        Err(Failure::Lasting(reason)) if reason.starts_with("501") => {
            object::put(client, &key, text.as_bytes(), &vec![], patience)
        }
        written => written,
    };
    match written {
        Ok(()) | Err(Failure::Taken) => {}
        Err(failure) => return Err(failure),
    }
    // Also after Taken: the first answer may have been lost, and this was the second attempt.
    match read(client, patience)? {
        Some(stored) if stored.manifest == *manifest => Ok(stored),
        _ => Err(Failure::Taken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Step {
        Step::new(Position { epoch: 1, step, epoch_end: false }, Content::of(&step.to_le_bytes()))
    }

    #[test]
    fn names_are_known_again() {
        let name = step(1234).object;
        assert!(name.starts_with("checkpoints/step-00001234-") && Step::is_name(&name), "{name}");
        for other in [
            "checkpoints/step-1.safetensors",
            "checkpoints/notes.txt",
            "step-00000001-0123456789ab.safetensors",
            "checkpoints/step-00000001-0123456789ag.safetensors",
            "checkpoints/step-x-0123456789ab.safetensors",
        ] {
            assert!(!Step::is_name(other), "{other}");
        }
    }

    #[test]
    fn the_newest_comes_first_and_reads_back() {
        let owner =
            Owner { run: "a1".into(), name: "run".into(), recipe: [("epochs".into(), "4".into())].into() };
        let mut manifest = Manifest::new(owner, "w");
        for at in [2, 8, 5, 8] {
            manifest.add(step(at));
        }
        let steps: Vec<u64> = manifest.checkpoints.iter().map(|step| step.at.step).collect();
        assert_eq!(steps, [8, 5, 2]);
        assert!(manifest.has((1, 5)) && !manifest.has((2, 5)));
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    }
}
