//! Configuration and flags that make no sense: exit code 2 and the key.

use crate::common::{data, engine, finish, path, run, temporary, tiny};
use std::fs;

#[test]
fn keys_and_values() {
    for (set, words) in [
        ("optim.lrr=1", ["unknown key optim.lrr", "optim.lr"]),
        ("lr=1", ["unknown key lr", "the nearest is optim.lr"]),
        ("optim.lr=fast", ["optim.lr is \"fast\"", "expected a number"]),
        ("epochs=2.5", ["epochs is 2.5", "expected an integer"]),
        ("epochs=-3", ["--set epochs=-3: epochs", "positive whole number"]),
        ("epochs=0", ["epochs is 0", "at least 1"]),
        ("schedule.kind=cosin", ["schedule.kind", "cosine"]),
        ("data.workers=many", ["data.workers", "\"auto\" or a number"]),
        ("model.arch=resnet51", ["model.arch is \"resnet51\"", "resnet50"]),
        ("data.micro_batch=3", ["data.micro_batch is 3", "divisor of data.batch"]),
        ("checkpoint.keep=1", ["checkpoint.keep is 1", "at least 2"]),
        ("optim.lr", ["optim.lr", "KEY=VALUE"]),
        ("optim=3", ["optim is 3", "expected a table"]),
    ] {
        run(&["train", "--set", set]).fails(2, &words);
    }
}

#[test]
fn files() {
    let folder = temporary();
    let file = folder.path().join("x.toml");
    let with = |text: &str| {
        fs::write(&file, text).unwrap();
        run(&["train", "--config", path(&file)])
    };
    with("epochs = 3\n[optim]\nlr = \n").fails(2, &[path(&file), "line 3", "TOML"]);
    with("[optim]\nlearning = 3\n").fails(2, &[path(&file), "unknown key optim.learning"]);
    with("epochs = \"x\"\n").fails(2, &[path(&file), "epochs", "expected an integer"]);
    run(&["train", "--config", "nowhere.toml"]).fails(2, &["nowhere.toml", "cannot read"]);
    let variable = finish(engine(["train"]).env("ENGINE__OPTIM__LRR", "1"));
    variable.fails(2, &["ENGINE__OPTIM__LRR", "optim.lr"]);
}

#[test]
fn flags_beat_set_beats_environment_beats_file() {
    let output = temporary();
    let file = output.path().join("x.toml");
    fs::write(&file, "name = \"file\"\nseed = 1\n[data]\nworkers = 1\n").unwrap();
    let mut command = tiny(output.path());
    command.args([
        "--config",
        path(&file),
        "--set",
        "seed=3",
        "--set",
        "epochs=1",
        "--set",
        "data.path=nowhere",
    ]);
    command.env("ENGINE__SEED", "2").env("ENGINE__DATA__WORKERS", "2");
    let done = finish(&mut command).expect(0);
    let mut lines = done.err.lines();
    let change = lines.next().unwrap();
    assert!(change.starts_with("not the recipe of ") && change.contains("seed: 1 there, 3 here"), "{change}");
    assert!(lines.next().unwrap().starts_with("file: "), "{}", done.err);
    let effective = fs::read_to_string(output.path().join("config.toml")).unwrap();
    for line in ["name = \"file\"", "seed = 3", "workers = 2", &format!("path = \"{}\"", path(data()))] {
        assert!(effective.contains(line), "{line}: {effective}");
    }
}

#[test]
fn data_dir_and_output_dir() {
    let output = temporary();
    let sets = ["model.arch=resnet-tiny", "data.resolution=32", "data.batch=8", "epochs=1"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let mut command = engine(["train"].into_iter().chain(sets));
    finish(command.env("DATA_DIR", data()).env("OUTPUT_DIR", output.path())).expect(0);
    assert!(output.path().join("logs.md").exists());
}

#[test]
fn usage() {
    assert!(run(&["train", "--bogus"]).expect(2).err.contains("--bogus"));
    assert!(run(&["tarin"]).expect(2).err.contains("train"));
    assert!(run(&["predict"]).expect(2).err.contains("--checkpoint"));
    assert!(run(&["train", "--device", "tpu"]).expect(2).err.contains("cpu"));
    run(&["train", "--device", "cpu", "--set", "device.precision=fp16"])
        .fails(2, &["device.precision", "fp32"]);
    run(&["train", "--set", "device.loss_scale=3"]).fails(2, &["device.loss_scale", "power of two"]);
    run(&["train", "--set", "device.algorithms=fast"]).fails(2, &["device.algorithms", "find"]);
    run(&[]).expect(2);
    run(&["bench", "train", "--arch", "vgg"]).fails(2, &["vgg", "resnet50"]);
}

#[test]
fn help() {
    for command in ["train", "eval", "predict", "export", "data", "plot", "doctor", "bench"] {
        let help = run(&[command, "--help"]).expect(0);
        assert!(help.err.is_empty() && !help.out.contains('\x1b'), "{help:?}");
        assert!(help.out.contains("Usage: engine"), "{}", help.out);
        let codes = ["Exit codes:", "75  stopped on request", "3   bad input"];
        assert!(codes.iter().all(|word| help.out.contains(word)), "{command}: {}", help.out);
    }
    let train = run(&["train", "--help"]).out;
    for flag in
        ["--config", "--set", "--data", "--output", "--resume", "--init", "DATA_DIR", "OUTPUT_DIR", "none"]
    {
        assert!(train.contains(flag), "{flag}: {train}");
    }
    assert!(run(&["--version"]).expect(0).out.starts_with("engine "));
}
