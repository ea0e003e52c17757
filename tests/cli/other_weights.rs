//! Checkpoints that do not belong to the run: of another recipe, another network, or weights alone.

use crate::common::{
    assert_same, checkpoints, contents, copy, data, engine, finish, path, set, temporary, tiny,
};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn interrupted() -> TempDir {
    let folder = temporary();
    assert_eq!(finish(tiny(folder.path()).env("ENGINE_FAILPOINT", "train.step:10")).code, None);
    folder
}

fn export(output: &Path, to: &Path) {
    let last = output.join("checkpoints/last.safetensors");
    let args = ["export", "--checkpoint", path(&last), "--format", "safetensors", "--output", path(to)];
    finish(&mut engine(args)).expect(0);
}

#[test]
fn another_recipe_is_refused_by_its_keys() {
    let folder = interrupted();
    let before = contents(folder.path());
    let refused = |keys: &[&str], words: &[&str]| {
        let done = finish(set(&mut tiny(folder.path()), keys));
        done.fails(2, &[words, &["another recipe", "--output", "--resume none"]].concat());
        assert_same(&contents(folder.path()), &before, "a refused run changes nothing");
    };
    refused(&["optim.lr=0.25", "seed=7"], &["optim.lr: 0.5 there, 0.25 here", "seed: 0 there, 7 here"]);
    refused(&["model.arch=resnet26"], &["model.arch: \"resnet-tiny\" there, \"resnet26\" here"]);
    refused(&["epochs=5"], &["epochs: 4 there, 5 here"]);
    // Keys that the result does not depend on may differ.
    let free = ["name=again", "data.workers=1", "checkpoint.keep=3", "device.threads=1", "eval.batch=5"];
    finish(set(&mut tiny(folder.path()), &free)).expect(0);
}

#[test]
fn other_data_are_another_recipe() {
    let folder = interrupted();
    let other = copy(data());
    for half in ["train", "val"] {
        fs::rename(other.path().join(half).join("star"), other.path().join(half).join("zebra")).unwrap();
    }
    finish(tiny(folder.path()).args(["--data", path(other.path())])).expect(2);
    let mut moved = engine(["train", "--data", path(other.path()), "--output", path(folder.path())]);
    let keys = ["model.arch=resnet-tiny", "data.resolution=32", "data.batch=8", "epochs=4"];
    set(&mut moved, &keys);
    set(&mut moved, &["schedule.warmup_epochs=1", "optim.lr=0.5"]);
    finish(&mut moved).fails(2, &["data: classes and labels"]);
}

#[test]
fn weights_alone_are_for_init() {
    let folder = interrupted();
    let weights = folder.path().join("weights.safetensors");
    export(folder.path(), &weights);
    let new = temporary();
    let wrong = finish(tiny(new.path()).args(["--resume", path(&weights)]));
    wrong.fails(3, &[path(&weights), "not"]);
    finish(tiny(new.path()).args(["--resume", "nowhere"])).fails(3, &["nowhere", "expected a checkpoint"]);
    finish(tiny(new.path()).args(["--init", "nowhere"])).fails(3, &["nowhere", "expected"]);
    finish(tiny(new.path()).args(["--init", path(&weights)])).expect(0);
    let plain = temporary();
    finish(&mut tiny(plain.path())).expect(0);
    assert_ne!(contents(new.path())["last.safetensors"], contents(plain.path())["last.safetensors"]);
    // An interrupted run goes on from its checkpoint, whatever it began with.
    let again = finish(tiny(folder.path()).args(["--init", path(&weights)])).expect(0);
    assert!(again.err.contains("warning: going on from") && again.err.contains("--init"), "{}", again.err);
    assert_eq!(contents(folder.path())["last.safetensors"], contents(plain.path())["last.safetensors"]);
    let both = finish(tiny(plain.path()).args(["--init", path(&weights), "--resume", path(&weights)]));
    both.fails(2, &["--init", "--resume"]);
}

#[test]
fn of_another_network() {
    let folder = interrupted();
    let newest = checkpoints(folder.path()).pop().unwrap();
    let new = temporary();
    let mut command = tiny(new.path());
    set(&mut command, &["model.arch=resnet26"]).args(["--init", path(&newest)]);
    finish(&mut command).fails(3, &[path(&newest), "the network wants"]);
}

/// Weights of ten classes for data with eleven.
#[test]
fn more_classes_than_the_weights() {
    let folder = interrupted();
    let newest = checkpoints(folder.path()).pop().unwrap();
    let more = copy(data());
    for half in ["train", "val"] {
        let class = more.path().join(half).join("unicorn");
        fs::create_dir(&class).unwrap();
        fs::copy(data().join("val/star/0000.jpg"), class.join("0.jpg")).unwrap();
    }
    let new = temporary();
    let mut command = engine(["train", "--data", path(more.path()), "--output", path(new.path())]);
    set(&mut command, &["model.arch=resnet-tiny", "data.resolution=32", "data.batch=8", "epochs=1"]);
    finish(command.args(["--init", path(&newest)])).fails(3, &[path(&newest), "fc.", "10", "11"]);
    // With a classifier of its own.
    finish(command.arg("--reset-head")).expect(0);
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let (folder, files) = (interrupted(), tempfile::tempdir().unwrap());
    let weights = files.path().join("weights.safetensors");
    export(folder.path(), &weights);
    let mut bytes = fs::read(&weights).unwrap();
    // Integers come first, so the last four bytes are an f32.
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let fresh = temporary();
    let words = [path(&weights), " has NaN at index ", "take an earlier checkpoint"];
    finish(tiny(fresh.path()).args(["--init", path(&weights)])).fails(3, &words);
    let eval = ["eval", "--checkpoint", path(&weights), "--data", path(data())];
    finish(&mut engine(eval)).fails(3, &words[1..]);
}
