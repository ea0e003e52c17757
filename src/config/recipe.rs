//! Which keys make a run what it is: a resumed run must agree in all of them.

use super::{Config, Overrides, load};
use crate::error::Result;
use std::collections::BTreeMap;
use std::path::Path;
use toml::{Table, Value};

/// Keys that do not change a run's result, and may differ between a run and its resumption.
const FREE: [&str; 8] = [
    "name",
    "data.path",
    "data.workers",
    "data.bad_share",
    "device.threads",
    "device.algorithms",
    "device.form.wgrad",
    "eval.batch",
];

/// Every key that the result depends on, with its value as TOML.
pub fn recipe_keys(config: &Config) -> BTreeMap<String, String> {
    let table = Table::try_from(config).expect("a configuration is a table");
    let mut keys = BTreeMap::new();
    collect(&table, "", &mut keys);
    let is_free =
        |key: &str| FREE.contains(&key) || key.starts_with("checkpoint.") || key.starts_with("stop.");
    keys.retain(|key, _| !is_free(key));
    keys
}

fn collect(table: &Table, prefix: &str, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        match value {
            Value::Table(inner) => collect(inner, &format!("{prefix}{key}."), into),
            value => {
                into.insert(format!("{prefix}{key}"), value.to_string());
            }
        }
    }
}

/// How `config` differs from what its file says: the file names a recipe, and what was published is the file's.
pub fn changes(file: &Path, config: &Config) -> Result<Vec<String>> {
    let there = load(Some(file), &Overrides::default())?;
    Ok(differing_keys(&recipe_keys(&there), &recipe_keys(config)))
}

/// `key: A there, B here` for each key in which two recipes differ.
pub fn differing_keys(there: &BTreeMap<String, String>, here: &BTreeMap<String, String>) -> Vec<String> {
    let absent = "absent".to_owned();
    let mut keys: Vec<&String> = there.keys().chain(here.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| {
            format!(
                "{key}: {} there, {} here",
                there.get(key).unwrap_or(&absent),
                here.get(key).unwrap_or(&absent)
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_micro_batch_is_another_recipe() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        std::fs::write(&path, "[data]\nbatch = 1024\nmicro_batch = 128\n").unwrap();
        let set = vec!["data.micro_batch=64".to_owned(), "data.workers=3".to_owned()];
        let config = load(Some(&path), &Overrides { set, ..Overrides::default() }).unwrap();
        assert_eq!(changes(&path, &config).unwrap(), ["data.micro_batch: 128 there, 64 here"]);
    }

    #[test]
    fn only_keys_that_matter_differ() {
        let there = Config::default();
        let mut here = there.clone();
        here.checkpoint.keep = 7;
        here.device.threads = 3;
        assert!(differing_keys(&recipe_keys(&there), &recipe_keys(&here)).is_empty());
        here.optim.lr = 0.2;
        let differing = differing_keys(&recipe_keys(&there), &recipe_keys(&here));
        assert_eq!(differing, ["optim.lr: 0.1 there, 0.2 here"]);
    }
}
