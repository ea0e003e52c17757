//! File, environment and `--set`, in rising order of precedence. A key that does not exist is an error that names the
//! nearest one, wherever it came from.

use super::Config;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::path::Path;
use toml::{Table, Value};

/// What stands above the file, weakest first.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `ENGINE__OPTIM__LR=0.2` as (`optim.lr`, `0.2`).
    pub environment: Vec<(String, String)>,
    /// `--set optim.lr=0.2`.
    pub set: Vec<String>,
}

impl Overrides {
    /// `--set` arguments and this process's variables: `DATA_DIR`, which is `data.path`, and `OUTPUT_REMOTE`, which is
    /// `checkpoint.remote`, then `ENGINE__SECTION__KEY` in the order of their names.
    pub fn from_process(set: Vec<String>) -> Self {
        Self { environment: from_variables(std::env::vars_os()), set }
    }
}

/// Variables with names of their own.
const NAMED: [(&str, &str); 2] = [("DATA_DIR", "data.path"), ("OUTPUT_REMOTE", "checkpoint.remote")];

fn from_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let (mut environment, mut known) = (vec![], vec![]);
    for (name, value) in variables {
        // A name that is not UTF-8 is none of ours.
        let (Some(name), value) = (name.to_str(), value.to_string_lossy().into_owned()) else { continue };
        if let Some(key) = name.strip_prefix("ENGINE__") {
            environment.push((key.to_lowercase().replace("__", "."), value));
        } else if let Some((_, key)) = NAMED.iter().find(|(named, _)| *named == name && !value.is_empty()) {
            // A path is a string, also where it would read as a number.
            known.push(((*key).to_owned(), Value::String(value).to_string()));
        }
    }
    environment.sort();
    known.extend(environment);
    known
}

/// Reads `path` (defaults alone when `None`), applies the overrides and validates.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Config> {
    let mut table = Table::new();
    if let Some(path) = path {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::usage(format!("cannot read the configuration {}: {error}", path.display()))
        })?;
        table = text.parse::<Table>().map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let reason = error.message().replace('\n', " ");
            Error::usage(format!("{}, line {line}: not valid TOML: {reason}", path.display()))
        })?;
    }
    let source = path.map_or_else(|| "the configuration".to_owned(), |path| path.display().to_string());
    let mut merged = defaults();
    overlay(&mut merged, &table, "", &source)?;
    for (key, text) in &overrides.environment {
        let variable = format!("ENGINE__{}", key.to_uppercase().replace('.', "__"));
        overlay(&mut merged, &nested(key, value_of(text)), "", &variable)?;
    }
    for assignment in &overrides.set {
        let (key, text) = assignment.split_once('=').ok_or_else(|| {
            Error::usage(format!("--set {assignment}: expected KEY=VALUE, as in --set optim.lr=0.2"))
        })?;
        overlay(&mut merged, &nested(key.trim(), value_of(text.trim())), "", &format!("--set {assignment}"))?;
    }
    let config: Config = Value::Table(merged).try_into().map_err(|error: toml::de::Error| {
        let (key, reason) = mistyped(&error);
        let names_it = |set: &&String| set.split('=').next().is_some_and(|name| name.trim() == key);
        let set = overrides.set.iter().rev().find(names_it);
        let source = set.map_or(source.clone(), |set| format!("--set {set}"));
        Error::usage(format!("{source}: {key}: {reason}"))
    })?;
    config.validate().map_err(|error| error.within(&source))?;
    Ok(config)
}

fn defaults() -> Table {
    Table::try_from(Config::default()).expect("the default configuration is a table")
}

/// TOML where it parses as TOML (`0.2`, `true`, `[1, 2]`), a bare string otherwise (`cosine`).
fn value_of(text: &str) -> Value {
    let parsed = format!("x = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("x"));
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Key and reason of toml's `REASON in `KEY``, in words that need no Rust.
fn mistyped(error: &toml::de::Error) -> (String, String) {
    let text = error.to_string().trim_end().replace('\n', " ");
    let reason = error.message().replace("expected usize", "expected 0 or a positive whole number");
    let reason = reason.replace("expected u64", "expected 0 or a positive whole number");
    let key = text.rsplit_once(" in `").and_then(|(_, key)| key.strip_suffix('`'));
    (key.unwrap_or("a key").to_owned(), reason)
}

/// `a.b` and a value as `{a: {b: value}}`.
fn nested(key: &str, value: Value) -> Table {
    let (head, rest) = key.split_once('.').map_or((key, None), |(head, rest)| (head, Some(rest)));
    let inner = rest.map_or(value.clone(), |rest| Value::Table(nested(rest, value)));
    Table::from_iter([(head.to_owned(), inner)])
}

/// Puts `from` over `into`. Every key must exist in `into` with the same type; an integer stands for a float.
fn overlay(into: &mut Table, from: &Table, prefix: &str, source: &str) -> Result<()> {
    for (key, value) in from {
        let full = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if !into.contains_key(key) {
            return Err(unknown_key(&full, source));
        }
        let slot = &mut into[key.as_str()];
        match (slot, value) {
            (Value::Table(inner), Value::Table(value)) => overlay(inner, value, &full, source)?,
            (slot @ Value::Float(_), Value::Integer(value)) => *slot = Value::Float(*value as f64),
            (Value::Array(inner), Value::Array(value)) => *inner = floats(value),
            (slot, value) if slot.same_type(value) || full == "data.workers" => *slot = value.clone(),
            (slot, value) => {
                let (got, wanted) = (value.type_str(), article(slot.type_str()));
                return Err(Error::usage(format!(
                    "{source}: {full} is {value} (a {got}), expected {wanted}"
                )));
            }
        }
    }
    Ok(())
}

/// Every array of the configuration holds floats.
fn floats(values: &[Value]) -> Vec<Value> {
    let float =
        |value: &Value| value.as_integer().map_or(value.clone(), |integer| Value::Float(integer as f64));
    values.iter().map(float).collect()
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    let kind = if kind == "float" { "number" } else { kind };
    format!("{article} {kind}").replace("an number", "a number")
}

/// What other trainers call a key (PyTorch, timm, torchvision's reference scripts).
const OTHER_NAMES: [(&str, &str); 10] = [
    ("learning_rate", "optim.lr"),
    ("batch_size", "data.batch"),
    ("wd", "optim.weight_decay"),
    ("num_workers", "data.workers"),
    ("img_size", "data.resolution"),
    ("train_crop_size", "data.resolution"),
    ("max_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("lr_scheduler", "schedule.kind"),
    ("smoothing", "loss.label_smoothing"),
];

fn unknown_key(key: &str, source: &str) -> Error {
    let bare = key.rsplit('.').next().unwrap_or(key);
    if let Some((_, ours)) = OTHER_NAMES.iter().find(|(theirs, _)| *theirs == bare) {
        return Error::usage(format!("{source}: unknown key {key}; the nearest is {ours}"));
    }
    let mut known = vec![];
    leaves(&defaults(), "", &mut known);
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    // The same last part in another section (`lr` for `optim.lr`) is nearer than any misspelling.
    let distance = |candidate: &str| {
        let whole = strsim::damerau_levenshtein(candidate, key);
        if last(candidate) == last(key) { whole.min(1) } else { whole }
    };
    let nearest = known.iter().min_by_key(|candidate| distance(candidate)).expect("there are keys");
    Error::usage(format!("{source}: unknown key {key}; the nearest is {nearest}"))
}

/// Full names of all keys that hold a value or a table.
fn leaves(table: &Table, prefix: &str, into: &mut Vec<String>) {
    for (key, value) in table {
        let full = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        if let Value::Table(inner) = value {
            leaves(inner, &full, into);
        }
        into.push(full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Auto, ScheduleKind, Workers};

    fn with(set: &[&str]) -> Result<Config> {
        load(None, &Overrides { environment: vec![], set: set.iter().map(|s| (*s).to_owned()).collect() })
    }

    #[test]
    fn precedence_is_set_environment_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        std::fs::write(&path, "epochs = 3\nseed = 1\n[optim]\nlr = 1\n[schedule]\nmilestones = [1, 2.5]\n")
            .unwrap();
        let overrides = Overrides {
            environment: vec![("optim.lr".into(), "2".into()), ("seed".into(), "2".into())],
            set: vec!["optim.lr=3".into(), "schedule.kind=step".into()],
        };
        let config = load(Some(&path), &overrides).unwrap();
        assert_eq!((config.epochs, config.seed, config.optim.lr), (3, 2, 3.0));
        assert_eq!(config.schedule.milestones, [1.0, 2.5]);
        assert_eq!(config.schedule.kind, ScheduleKind::Step);
    }

    #[test]
    fn data_dir_is_an_environment_variable_like_the_others() {
        let path = |variables: &[(&str, &str)], set: &[&str]| {
            let variables =
                variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
            let set = set.iter().map(|s| (*s).to_owned()).collect();
            load(None, &Overrides { environment: from_variables(variables), set }).unwrap().data.path
        };
        assert_eq!(path(&[("DATA_DIR", "2024"), ("HOME", "/")], &[]), "2024");
        assert_eq!(path(&[("ENGINE__DATA__PATH", "/b"), ("DATA_DIR", "/a")], &[]), "/b");
        assert_eq!(path(&[("DATA_DIR", "/a")], &["data.path=/c"]), "/c");
        assert_eq!(path(&[("DATA_DIR", "")], &[]), "");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_utf8_is_no_panic() {
        use std::os::unix::ffi::OsStringExt;
        let odd = || OsString::from_vec(vec![b'A', 0xff]);
        assert!(from_variables([(odd(), odd())].into_iter()).is_empty());
    }

    #[test]
    fn effective_configuration_reads_back() {
        let config = with(&["data.workers=3", "optim.lr=0.25"]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("effective.toml");
        std::fs::write(&path, config.to_toml()).unwrap();
        assert_eq!(load(Some(&path), &Overrides::default()).unwrap(), config);
        assert_eq!(with(&["data.workers=auto"]).unwrap().data.workers, Workers::Auto(Auto::Auto));
    }

    #[test]
    fn errors_name_key_value_and_remedy() {
        let message = |set: &str| with(&[set]).unwrap_err().message;
        assert_eq!(
            message("learning_rate=1"),
            "--set learning_rate=1: unknown key learning_rate; the nearest is optim.lr"
        );
        assert_eq!(
            message("optim.lrr=1"),
            "--set optim.lrr=1: unknown key optim.lrr; the nearest is optim.lr"
        );
        assert_eq!(message("lr=1"), "--set lr=1: unknown key lr; the nearest is optim.lr");
        assert_eq!(
            message("optim.lr=fast"),
            "--set optim.lr=fast: optim.lr is \"fast\" (a string), expected a number"
        );
        assert_eq!(message("epochs=0"), "the configuration: epochs is 0, expected at least 1");
        assert!(message("schedule.kind=cosin").contains("cosin"), "{}", message("schedule.kind=cosin"));
        assert!(message("data.workers=many").contains("workers"), "{}", message("data.workers=many"));
        assert!(message("model.arch=resnet51").contains("expected one of resnet50"));
        assert!(message("data.batch").contains("KEY=VALUE"));
        for bad in
            ["schedule.warmup_epochs=nan", "schedule.end=-1", "data.resolution=100000", "device.threads=9999"]
        {
            let key = bad.split('=').next().unwrap();
            assert!(message(bad).starts_with(&format!("the configuration: {key} is ")), "{}", message(bad));
        }
        assert!(message("epochs=-3").contains("epochs"), "{}", message("epochs=-3"));
    }
}
