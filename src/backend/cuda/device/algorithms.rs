//! Which of cuDNN's algorithms each convolution runs with: found by timing once, then kept in the run's state and,
//! where asked, in a file.

use super::cudnn::Candidate;
use crate::backend::cuda::plan::node::Convolution;
use crate::backend::cuda::storage::Storage;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A convolution by what its speed depends on: `forward 56x56x64 k64 3x3 s1 p1 n256 f16`.
pub fn key(conv: &Convolution, storage: Storage) -> String {
    let shape = conv.shape;
    format!(
        "{} {}x{}x{} k{} {}x{} s{} p{} n{} {}",
        conv.pass.name(),
        shape.h,
        shape.w,
        shape.c,
        shape.k,
        shape.r,
        shape.s,
        shape.stride,
        shape.pad,
        conv.n,
        storage.suffix()
    )
}

/// What is kept of a candidate: `cudnn algorithm 1 math 1 workspace 0`.
pub fn to_text(candidate: &Candidate) -> String {
    format!("cudnn algorithm {} math {} workspace {}", candidate.algorithm, candidate.math, candidate.memory)
}

/// The inverse; times are not kept.
pub fn from_text(text: &str) -> Option<Candidate> {
    let words: Vec<&str> = text.split(' ').collect();
    let &["cudnn", "algorithm", algorithm, "math", math, "workspace", memory] = &words[..] else {
        return None;
    };
    Some(Candidate {
        algorithm: algorithm.parse().ok()?,
        math: math.parse().ok()?,
        milliseconds: 0.0,
        memory: memory.parse().ok()?,
        deterministic: true,
    })
}

/// The fastest that may be used; cuDNN sorts by time.
pub fn choose(candidates: &[Candidate], deterministic: bool) -> Option<Candidate> {
    candidates.iter().find(|candidate| candidate.deterministic || !deterministic).copied()
}

/// `device.algorithms = "file:PATH"`.
#[derive(Debug, Clone)]
pub struct File(pub PathBuf);

#[derive(Serialize, Deserialize)]
struct Content {
    /// Card, driver and libraries that the choices were made on.
    made_on: String,
    choices: BTreeMap<String, String>,
}

impl File {
    /// What the file has for this card, driver and libraries; nothing where it was made on others or does not exist.
    pub fn read(&self, identity: &str) -> Result<BTreeMap<String, String>> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(Error::unreadable(&self.0, &error, "a file of algorithms")),
        };
        let content: Content = serde_json::from_str(&text).map_err(|error| {
            Error::input_file(
                &self.0,
                format!("not a file of algorithms: {error}; delete it, and it is made anew"),
            )
        })?;
        Ok(if content.made_on == identity { content.choices } else { BTreeMap::new() })
    }

    pub fn write(&self, identity: &str, choices: &BTreeMap<String, String>) -> Result<()> {
        let content = Content { made_on: identity.to_owned(), choices: choices.clone() };
        let text = serde_json::to_string_pretty(&content).expect("plain strings");
        fs::write(&self.0, text).map_err(|error| Error::output_file(&self.0, "write", &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(algorithm: i32, deterministic: bool) -> Candidate {
        Candidate { algorithm, math: 1, milliseconds: 0.0, memory: 4096, deterministic }
    }

    #[test]
    fn the_fastest_that_is_deterministic() {
        let all = [candidate(0, false), candidate(1, true), candidate(3, true)];
        assert_eq!(choose(&all, true).map(|one| one.algorithm), Some(1));
        assert_eq!(choose(&all, false).map(|one| one.algorithm), Some(0));
        assert_eq!(choose(&all[..1], true), None);
    }

    #[test]
    fn texts_are_read_back() {
        let one = candidate(5, true);
        assert_eq!(from_text(&to_text(&one)), Some(one));
        assert_eq!(from_text("cublas"), None);
    }

    #[test]
    fn a_file_of_another_card_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = File(folder.path().join("algorithms.json"));
        assert_eq!(file.read("a").unwrap(), BTreeMap::new());
        let choices = BTreeMap::from([("forward".to_owned(), to_text(&candidate(1, true)))]);
        file.write("a", &choices).unwrap();
        assert_eq!(file.read("a").unwrap(), choices);
        assert_eq!(file.read("b").unwrap(), BTreeMap::new());
        fs::write(&file.0, "no json").unwrap();
        assert!(file.read("a").unwrap_err().message.contains("delete it"));
    }
}
