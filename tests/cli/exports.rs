//! Exports that are run again before they get their names: agreement, refusals, the model card.

use crate::common::{Done, data, engine, finish, path, run, temporary, tiny_last};
use crate::outputs::mount;
use serde_json::Value;
use std::fs;
use std::path::Path;

fn export(to: &Path, more: &[&str]) -> Done {
    let args = ["export", "--checkpoint", path(tiny_last()), "--output", path(to)];
    run(&[&args, more].concat())
}

fn rows(done: &Done) -> Vec<Value> {
    done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn all_formats_agree_with_the_checkpoint() {
    let folder = temporary();
    let to = folder.path().join("model");
    let int8 = ["--int8", "--calibrate", path(data()), "--calibration-images", "40", "--max-loss", "100"];
    let done = export(
        &to,
        &[&["--format", "all", "--json", "--card", path(&folder.path().join("README.md"))], &int8[..]]
            .concat(),
    );
    let done = done.expect(0);
    // The tests' run names its data, whose val/ has twenty pictures with labels.
    assert!(done.err.contains("verifying on 20 images of") && done.err.contains("(val)"), "{}", done.err);
    let rows = rows(&done);
    let of = |format: &str| {
        rows.iter().find(|row| row["format"] == format).unwrap_or_else(|| panic!("{format}: {rows:?}"))
    };
    let top1 = |format: &str| of(format)["top1"].as_f64().unwrap();
    for (format, bound) in
        [("checkpoint", 0.0), ("safetensors", 0.0), ("pth", 0.0), ("onnx fp32", 1e-4), ("cpu fp32", 1e-3)]
    {
        assert!(of(format)["relative"].as_f64().unwrap() <= bound, "{format}: {rows:?}");
        assert_eq!(of(format)["same_top1"], 100.0, "{format}");
        assert_eq!(top1(format), top1("checkpoint"), "{format}");
    }
    for format in ["onnx int8", "cpu int8"] {
        assert!(of(format)["relative"].as_f64().unwrap() < 0.5, "{format}: {rows:?}");
    }
    let mut names: Vec<_> = fs::read_dir(&to).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["model-int8.onnx", "model.engine", "model.onnx", "model.pth", "model.safetensors"]);
    let card = fs::read_to_string(folder.path().join("README.md")).unwrap();
    let score = top1("checkpoint");
    for words in [
        "---\nlicense: \"apache-2.0\"\n",
        "pipeline_tag: image-classification",
        "model-index:",
        &format!("value: {:.4}", score / 100.0),
        &format!(
            "| onnx fp32 | 100.00 % | {:.1e} | {score:.2} % |",
            of("onnx fp32")["relative"].as_f64().unwrap()
        ),
        "- model.pth: `torchvision.models.resnet-tiny",
        "| model.arch | \"resnet-tiny\" |",
        "epoch: 4  train_loss:",
        "What this card does not know",
        "The name of the training data",
    ] {
        assert!(card.contains(words), "{words:?} in\n{card}");
    }
    assert!(!card.contains(path(data())), "no path of this machine: {card}");
    assert!(!card.contains("no logs.md") && !card.contains("another last line"), "{card}");
}

/// Whatever the first export said of the checkpoint, the second says again; and each format can be read back but ONNX.
#[test]
fn an_export_of_an_export_keeps_its_origin() {
    let folder = temporary();
    let at = |name: &str| folder.path().join(name);
    export(&at("a.pth"), &["--format", "pth"]).expect(0);
    for (from, to, format) in [
        ("a.pth", "b.engine", "cpu"),
        ("b.engine", "c.safetensors", "safetensors"),
        ("c.safetensors", "d.pth", "pth"),
    ] {
        let (from, to) = (at(from), at(to));
        run(&["export", "--checkpoint", path(&from), "--format", format, "--output", path(&to)]).expect(0);
    }
    assert!(fs::read(at("a.pth")).unwrap() == fs::read(at("d.pth")).unwrap());
    export(&at("e.onnx"), &["--format", "onnx"]).expect(0);
    export(&at("f.onnx"), &["--format", "onnx", "--unfolded"]).expect(0);
    let read = run(&["predict", "--checkpoint", path(&at("e.onnx")), "x.jpg"]);
    read.fails(3, &[path(&at("e.onnx")), "neither safetensors nor a .pth"]);
}

#[test]
fn eight_bits_that_cost_too_much_leave_no_file() {
    let folder = temporary();
    let to = folder.path().join("x.onnx");
    fs::write(&to, b"old").unwrap();
    let int8 = ["--int8", "--calibrate", path(data()), "--calibration-images", "5"];
    for (format, name) in [("onnx", "onnx int8"), ("cpu", "cpu int8")] {
        // No loss is as small as this.
        let done = export(&to, &[&["--format", format, "--max-loss=-101"], &int8[..]].concat());
        let done = done.expect(1);
        let words = [name, "top-1 is", "points are lost", "--max-loss", "nothing was written"];
        let last = done.err.lines().last().unwrap();
        assert!(words.iter().all(|word| last.contains(word)), "{last}");
        assert_eq!(fs::read(&to).unwrap(), b"old", "what was there stays");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary is left");
    }
    for activations in ["s8", "u8"] {
        let more = ["--format", "onnx", "--max-loss", "100", "--activations", activations];
        export(&to, &[&more, &int8[..]].concat()).expect(0);
    }
}

#[test]
fn pictures_without_labels_and_none_at_all() {
    let folder = temporary();
    let to = folder.path().join("x.onnx");
    let loose = folder.path().join("loose");
    fs::create_dir(&loose).unwrap();
    fs::copy(data().join("val/star/0000.jpg"), loose.join("a.jpg")).unwrap();
    fs::write(loose.join("b.jpg"), b"no picture").unwrap();
    let done = export(&to, &["--format", "onnx", "--verify", path(&loose)]).expect(0);
    for words in ["verifying on 1 images", "accuracy is not known", "left out", "b.jpg", "unknown"] {
        assert!(done.err.contains(words), "{words:?} in {}", done.err);
    }
    let int8 = ["--int8", "--calibrate", path(data()), "--calibration-images", "5"];
    let done = export(&to, &[&["--format", "onnx", "--verify", path(&loose)], &int8[..]].concat()).expect(0);
    assert!(done.err.contains("warning: whether 8 bits cost more"), "{}", done.err);
    fs::remove_file(&to).unwrap();
    export(&to, &["--format", "onnx", "--verify", "nowhere"]).fails(3, &["nowhere"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    export(&to, &["--format", "onnx", "--verify", path(&empty)]).fails(3, &[path(&empty)]);
    assert!(!to.exists());
    // Weights whose run is not beside them are shown drawn pictures.
    let alone = folder.path().join("alone.safetensors");
    fs::copy(tiny_last(), &alone).unwrap();
    let args = ["export", "--checkpoint", path(&alone), "--format", "onnx", "--output", path(&to)];
    let done = run(&args).expect(0);
    assert!(done.err.contains("verifying on 200 images of the embedded synthetic set"), "{}", done.err);
}

#[test]
fn bad_input_and_bad_places() {
    let folder = temporary();
    let to = folder.path().join("x.onnx");
    let torn = folder.path().join("torn.safetensors");
    let bytes = fs::read(tiny_last()).unwrap();
    fs::write(&torn, &bytes[..bytes.len() / 2]).unwrap();
    let args = ["export", "--checkpoint", path(&torn), "--format", "onnx", "--output", path(&to)];
    run(&args).fails(3, &[path(&torn)]);
    let nowhere = folder.path().join("no/such/folder.onnx");
    export(&nowhere, &["--format", "onnx"]).expect(1);
    assert!(!to.exists() && !nowhere.exists());
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["torn.safetensors"], "nothing half written is left");
}

#[test]
fn no_space() {
    let folder = temporary();
    let Some(mounted) = mount(&["-t", "tmpfs", "-o", "size=100k", "tmpfs"], folder.path()) else { return };
    for format in ["safetensors", "pth", "onnx", "cpu"] {
        let to = folder.path().join("x");
        export(&to, &["--format", format]).fails(1, &[path(&to), "No space left", "free some space"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{format}: nothing half written is left");
    }
    drop(mounted);
}

#[test]
fn flags_that_do_not_fit() {
    let folder = temporary();
    let to = folder.path().join("x");
    let fails = |more: &[&str], words: &[&str]| {
        let done = export(&to, more).expect(2);
        assert!(words.iter().all(|word| done.err.contains(word)), "{words:?} in {}", done.err);
    };
    let int8 = ["--int8", "--calibrate", path(data())];
    fails(&[&["--format", "safetensors"], &int8[..]].concat(), &["--format cpu, onnx or all"]);
    fails(&[&["--format", "onnx", "--unfolded"], &int8[..]].concat(), &["--unfolded"]);
    fails(&["--format", "cpu", "--unfolded"], &["--unfolded", "onnx"]);
    fails(&["--format", "onnx", "--activations", "u8"], &["--int8"]);
    fails(&["--format", "onnx", "--license", "mit"], &["--card"]);
    let done = finish(&mut engine(["export", "--checkpoint", path(tiny_last())])).expect(2);
    assert!(done.err.contains("--format"), "{}", done.err);
    let done =
        finish(&mut engine(["export", "--checkpoint", path(tiny_last()), "--format", "pth"])).expect(2);
    assert!(done.err.contains("--output"), "{}", done.err);
}

#[test]
fn a_card_alone() {
    let folder = temporary();
    let card = folder.path().join("README.md");
    let args = ["export", "--checkpoint", path(tiny_last()), "--card", path(&card)];
    run(&[&args[..], &["--license", "mit", "--dataset", "me/shapes"]].concat()).expect(0);
    let text = fs::read_to_string(&card).unwrap();
    for words in ["license: \"mit\"", "datasets:\n- \"me/shapes\"", "none was written together with the card"]
    {
        assert!(text.contains(words), "{words:?} in\n{text}");
    }
    assert!(!text.contains("The name of the training data"), "{text}");
    // Weights that say nothing.
    let bare = folder.path().join("bare.pth");
    export(&bare, &["--format", "pth"]).expect(0);
    let from_export = ["export", "--checkpoint", path(&bare), "--card", path(&card)];
    run(&from_export).expect(0);
    let text = fs::read_to_string(&card).unwrap();
    assert!(text.contains("there was no logs.md beside the checkpoint"), "{text}");
}
