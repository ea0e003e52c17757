//! The import order of the modules: a file imports only from its own module and from what stands before it.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules in the order in which data goes through them. Modules of one line may import each other.
const LAYERS: &[&[&str]] = &[
    &["error", "terminal", "leave", "failpoint", "files", "base64", "cpu_time", "tensor", "rng"],
    &["comm"],
    &["model"],
    &["simd"],
    &["data"],
    &["config"],
    &["optim"],
    &["backend"],
    &["check"],
    &["checkpoint", "log"],
    &["remote"],
    &["train"],
    &["infer"],
    &["export"],
    &["classify"],
    &["cli"],
];

/// Pairs that the order alone would allow: (importer, imported, why not).
const NEVER: &[(&str, &str, &str)] = &[
    ("backend/cpu", "backend::cuda", "the backends never meet: what both need goes to backend/mod.rs"),
    ("backend/cuda", "backend::cpu", "the backends never meet: what both need goes to backend/mod.rs"),
    ("infer", "train", "the inference program knows nothing of training"),
    ("infer", "optim", "the inference program knows nothing of training"),
    ("classify", "train", "it is built without the trainer"),
    ("classify", "backend", "it is built without the trainer"),
    ("infer", "checkpoint", "the inference program reads model files alone"),
    ("infer", "backend", "the inference program runs on simd/, not on a training backend"),
];

#[test]
fn every_file_imports_only_what_stands_before_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    assert!(files.len() > 10, "found {} files below {}", files.len(), src.display());
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(&src).unwrap().to_string_lossy().replace('\\', "/");
        wrong.extend(violations(&name, &text));
    }
    let lines: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "imports against the order of tests/layers.rs:\n{}", lines.join("\n"));
}

struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}: {}", self.file, self.line, self.rule)
    }
}

/// What a file, named relative to `src/`, imports against the rules.
fn violations(file: &str, text: &str) -> Vec<Violation> {
    // The roots see everything: they declare the modules.
    if matches!(file, "lib.rs" | "main.rs") || file.starts_with("bin/") {
        return Vec::new();
    }
    let module = file.split('/').next().unwrap().trim_end_matches(".rs");
    let mut found = Vec::new();
    let mut report = |line, rule| found.push(Violation { file: file.to_string(), line, rule });
    let Some(own) = layer(module) else {
        report(1, format!("module '{module}' has no layer; give it its place in LAYERS"));
        return found;
    };
    for Import { path, line } in imports(file, text) {
        let target = path.split("::").next().unwrap();
        if let Some((.., why)) = NEVER.iter().find(|(from, to, _)| within(file, from) && reaches(&path, to)) {
            report(line, format!("imports crate::{path}, but {why}"));
            continue;
        }
        match layer(target) {
            Some(theirs) if theirs <= own => {}
            Some(_) => report(line, format!("{module} imports {target}, which stands after it")),
            // A macro or an item of lib.rs, such as `crate::main_macro!`.
            None => {
                report(line, format!("crate::{path} leads to no module of LAYERS; give '{target}' its place"))
            }
        }
    }
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|line| line.contains(&module))
}

fn within(file: &str, module: &str) -> bool {
    file.strip_prefix(module).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}

fn reaches(path: &str, target: &str) -> bool {
    path.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

struct Import {
    /// At most two segments below `crate::`.
    path: String,
    line: usize,
}

/// Every `crate::` path of a file, groups in braces taken apart, and the `super::` paths that name a sibling module.
fn imports(file: &str, text: &str) -> Vec<Import> {
    let tokens = tokens(text);
    let parent = parent_path(file);
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        if tokens.get(at + 1).is_none_or(|next| next.text != "::") {
            continue;
        }
        let is_start = at == 0 || tokens[at - 1].text != "::";
        match tokens[at].text.as_str() {
            "crate" if is_start => {
                tree(&tokens, at + 2, &[], &mut found);
            }
            "super" if is_start => {
                let mut reached = Vec::new();
                tree(&tokens, at + 2, &parent, &mut reached);
                // From a file below the root, `super::` also stands for the file itself inside its `mod tests`.
                found.extend(
                    reached.into_iter().filter(|i| layer(i.path.split("::").next().unwrap()).is_some()),
                );
            }
            _ => {}
        }
    }
    found
}

/// The module that `super::` means at the top of a file; empty where it is the crate's root, and one level deeper
/// than the truth inside `mod tests`, which only makes a sibling look like the module itself.
fn parent_path(file: &str) -> Vec<String> {
    let mut parts: Vec<String> = file.trim_end_matches(".rs").split('/').map(String::from).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts.pop();
    parts
}

/// Follows a path from token `at` and adds it, or each member of its group; returns the token after it.
fn tree(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Import>) -> usize {
    fn push(path: &[String], line: usize, found: &mut Vec<Import>) {
        if !path.is_empty() {
            found.push(Import { path: path[..path.len().min(2)].join("::"), line });
        }
    }
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(at) {
        if token.text == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|t| t.text != "}") {
                at = match tokens[at].text.as_str() {
                    "," => at + 1,
                    _ => tree(tokens, at, &path, found).max(at + 1),
                };
            }
            return at + 1;
        }
        let line = token.line;
        // `super::super::x` climbs; a glob or `self` means the path so far.
        match token.text.as_str() {
            "super" => drop(path.pop()),
            "*" | "self" => {}
            name => path.push(name.to_string()),
        }
        at += 1;
        if tokens.get(at).is_none_or(|next| next.text != "::") {
            push(&path, line, found);
            // The new name of `x as y` is no path.
            return if tokens.get(at).is_some_and(|t| t.text == "as") { at + 2 } else { at };
        }
        at += 1;
    }
    at
}

struct Token {
    text: String,
    line: usize,
}

/// Names, `::` and single signs; comments and string literals are left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let length = if rest.starts_with("//") {
                break;
            } else if first == '"' {
                string_length(rest)
            } else if rest.starts_with("'\"'") {
                3
            } else if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, tail) = rest.split_at(length.min(rest.len()));
            if !token.trim().is_empty() && first != '"' {
                found.push(Token { text: token.to_string(), line: index + 1 });
            }
            rest = tail;
        }
    }
    found
}

/// Length of the string literal that `rest` begins with, to the end of the line where it has no end there.
fn string_length(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !is_escaped => return at + 1,
            _ => is_escaped = c == '\\' && !is_escaped,
        }
    }
    rest.len()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn planted_imports_are_found_with_file_line_and_rule() {
    for (file, text, expected) in [
        (
            "model/graph.rs",
            "use std::fs;\nuse crate::train::Trainer;",
            "src/model/graph.rs:2: model imports train, which stands after it",
        ),
        (
            "data/mod.rs",
            "use crate::{error::Result,\n  optim::sgd};",
            "src/data/mod.rs:2: data imports optim",
        ),
        (
            "optim/sgd.rs",
            "fn f() { crate::backend::cpu::run() }",
            "src/optim/sgd.rs:1: optim imports backend",
        ),
        (
            "backend/cpu/conv.rs",
            "use crate::backend::{Batch, cuda::Arena};",
            "src/backend/cpu/conv.rs:1: imports crate::backend::cuda, but the backends never meet",
        ),
        ("backend/cuda/mod.rs", "use super::cpu::Conv;", "but the backends never meet"),
        ("infer/run.rs", "use crate::train::metrics;", "but the inference program knows nothing of training"),
        ("rng.rs", "use crate::config::Config;", "src/rng.rs:1: rng imports config"),
        ("rng.rs", "use super::config::Config;", "src/rng.rs:1: rng imports config"),
        ("surprise.rs", "", "src/surprise.rs:1: module 'surprise' has no layer"),
        ("cli/mod.rs", "use crate::surprise::x;", "give 'surprise' its place"),
    ] {
        let found: Vec<String> = violations(file, text).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1, "{file}: {text}: {found:?}");
        assert!(found[0].contains(expected), "{file}: {text}: {found:?}");
    }
}

#[test]
fn allowed_imports_pass() {
    for (file, text) in [
        ("data/synth/mod.rs", "use crate::error::{Error, Result};\nuse crate::rng::{Purpose, Rng as R};"),
        ("data/folder.rs", "use crate::data::tar::{self, Shard};\nuse super::decode;"),
        (
            "data/folder.rs",
            "// crate::train is not here\nlet x = \"crate::train::x\"; // nor use crate::cli::x",
        ),
        ("train/mod.rs", "use crate::{backend::cpu::{Cpu, conv}, optim, model::{graph::*, spec}};"),
        ("model.rs", "let q = ['\"', 'x']; let s = \"a\\\" crate::cli::x\"; let open = \""),
        ("tensor.rs", "use crate::error::Result;\n#[cfg(test)]\nmod tests { use super::*; }"),
        ("infer/compile.rs", "use crate::{model, simd::gemm};"),
        ("lib.rs", "pub use crate::cli::run;"),
    ] {
        let found: Vec<String> = violations(file, text).iter().map(ToString::to_string).collect();
        assert!(found.is_empty(), "{file}: {text}: {found:?}");
    }
}
