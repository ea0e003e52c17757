//! eval, predict, export, plot and data on what a training left.

use crate::common::{copy, data, engine, finish, lasting, path, run, temporary, tiny};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The output folder of a finished run.
fn trained() -> &'static Path {
    static TRAINED: OnceLock<PathBuf> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let folder = lasting("trained");
        finish(&mut tiny(&folder)).expect(0);
        folder
    })
}

fn checkpoint() -> String {
    path(&trained().join("checkpoints/last.safetensors")).to_owned()
}

fn picture(class: &str) -> String {
    path(&data().join("val").join(class).join("0000.jpg")).to_owned()
}

#[test]
fn eval_agrees_with_the_log() {
    let done = run(&["eval", "--checkpoint", &checkpoint(), "--data", path(data())]).expect(0);
    let logs = fs::read_to_string(trained().join("logs.md")).unwrap();
    let logged = logs.lines().rfind(|line| line.starts_with("epoch: 4")).unwrap();
    let scores = done.out.split("  images:").next().unwrap();
    assert!(logged.contains(scores), "{} in {logged}", done.out);
    assert!(done.out.contains("images: 20  at 32 px") && done.err.is_empty(), "{done:?}");

    let args = [
        "eval",
        "--checkpoint",
        &checkpoint(),
        "--data",
        path(data()),
        "--json",
        "--flip",
        "--resolution",
        "48",
    ];
    let answer: Value = serde_json::from_str(&run(&args).expect(0).out).unwrap();
    assert_eq!(
        (&answer["images"], &answer["resolution"], &answer["flip"]),
        (&20.into(), &48.into(), &true.into())
    );
    assert!(["val_loss", "val_top1", "val_top5"].iter().all(|key| answer[key].is_f64()), "{answer}");
}

/// Labels go by the classes' names: data with some of the classes give those classes' share of the hits.
#[test]
fn eval_of_some_classes() {
    let hits = |data: &Path| {
        let done = run(&["eval", "--checkpoint", &checkpoint(), "--data", path(data), "--json"]).expect(0);
        let answer: Value = serde_json::from_str(&done.out).unwrap();
        (answer["val_loss"].as_f64().unwrap() * answer["images"].as_f64().unwrap(), answer["images"].clone())
    };
    let (all, _) = hits(data());
    let mut parts = 0.0;
    let classes: Vec<PathBuf> =
        fs::read_dir(data().join("val")).unwrap().map(|entry| entry.unwrap().path()).collect();
    for half in classes.chunks(5) {
        let some = temporary();
        for class in half {
            let to = some.path().join("val").join(class.file_name().unwrap());
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(class).unwrap() {
                let from = entry.unwrap().path();
                fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
            }
        }
        let (loss, images) = hits(some.path());
        assert_eq!(images, 10);
        parts += loss;
    }
    assert!((all - parts).abs() < 1e-6 * all, "{all} {parts}");
}

#[test]
fn eval_of_bad_input() {
    let eval =
        |checkpoint: &str, data: &Path| run(&["eval", "--checkpoint", checkpoint, "--data", path(data)]);
    eval("nowhere.safetensors", data()).fails(3, &["nowhere.safetensors", "expected an engine checkpoint"]);
    eval(&picture("star"), data()).fails(3, &["0000.jpg", "neither safetensors nor a .pth"]);
    eval(&checkpoint(), Path::new("nowhere")).fails(3, &["nowhere", "cannot read the data"]);
    let more = copy(data());
    for half in ["train", "val"] {
        let class = more.path().join(half).join("unicorn");
        fs::create_dir(&class).unwrap();
        fs::copy(picture("star"), class.join("0.jpg")).unwrap();
    }
    eval(&checkpoint(), more.path()).fails(3, &["unicorn", "not trained on", path(more.path())]);
    let half = copy(data());
    fs::remove_dir_all(half.path().join("val")).unwrap();
    eval(&checkpoint(), half.path()).fails(3, &["training images only", path(half.path())]);
}

#[test]
fn predict() {
    let checkpoint = checkpoint();
    let (a, b) = (picture("star"), picture("disc"));
    let done = run(&["predict", "--checkpoint", &checkpoint, &a, &b, "--json", "--top", "3"]).expect(0);
    assert!(done.err.is_empty(), "{}", done.err);
    let answers: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.iter().map(|answer| &answer["file"]).collect::<Vec<_>>(), [&a, &b]);
    for answer in &answers {
        let predictions = answer["predictions"].as_array().unwrap();
        let probabilities: Vec<f64> =
            predictions.iter().map(|p| p["probability"].as_f64().unwrap()).collect();
        assert_eq!(probabilities.len(), 3);
        assert!(probabilities.is_sorted_by(|x, y| x >= y) && probabilities[0] <= 1.0, "{answer}");
        assert!(predictions.iter().all(|p| p["index"].is_u64() && p["label"].is_string()), "{answer}");
        assert_eq!(answer.as_object().unwrap().len(), 2);
    }
    let text = run(&["predict", "--checkpoint", &checkpoint, &a, "--top", "99"]).expect(0).out;
    assert_eq!(text.lines().count(), 1 + 10, "{text}");
}

#[test]
fn predict_of_bad_input() {
    let (checkpoint, good) = (checkpoint(), picture("star"));
    let one = run(&["predict", "--checkpoint", &checkpoint, "nowhere.jpg"]);
    one.fails(3, &["nowhere.jpg", "expected a JPEG, PNG or WebP"]);
    let labels = data().join("classes.txt");
    let some = run(&["predict", "--checkpoint", &checkpoint, "nowhere.jpg", &good, path(&labels), "--json"]);
    let some = some.fails(3, &["2 of 3 pictures"]);
    assert_eq!(some.out.lines().count(), 1, "the good one is answered: {}", some.out);
    assert!(some.err.contains("nowhere.jpg") && some.err.contains("classes.txt"), "{}", some.err);
}

#[test]
fn export() {
    let (folder, checkpoint) = (temporary(), checkpoint());
    let to = |name: &str| path(&folder.path().join(name)).to_owned();
    let export = |checkpoint: &str, format: &str, to: &str| {
        run(&["export", "--checkpoint", checkpoint, "--format", format, "--output", to])
    };
    let eval = |checkpoint: &str| {
        let args = ["eval", "--checkpoint", checkpoint, "--data", path(data()), "--resolution", "32"];
        run(&args).expect(0).out
    };
    for format in ["safetensors", "pth"] {
        let name = to(&format!("x.{format}"));
        let done = export(&checkpoint, format, &name).expect(0);
        assert!(done.out.is_empty() && done.err.contains("wrote"), "{done:?}");
        assert_eq!(eval(&name), eval(&checkpoint), "{format}");
        let again = to(&format!("again.{format}"));
        export(&name, format, &again).expect(0);
    }
    assert_eq!(fs::read(to("x.pth")).unwrap(), fs::read(to("again.pth")).unwrap());
    export(&checkpoint, "pth", &checkpoint).fails(2, &["--output", "is the checkpoint itself"]);
    export(&checkpoint, "pth", &to("no/such/folder.pth")).fails(1, &["folder.pth", "create it first"]);
    export("nowhere", "pth", &to("y.pth")).fails(3, &["nowhere"]);
    assert!(export(&checkpoint, "onnx2", &to("y")).expect(2).err.contains("safetensors"));
    assert!(!folder.path().join("y.pth").exists());
}

#[test]
fn plot() {
    let folder = temporary();
    let svg = folder.path().join("curve.svg");
    let logs = trained().join("logs.md");
    let done = run(&["plot", path(&logs), "-o", path(&svg)]).expect(0);
    assert!(done.out.is_empty(), "{}", done.out);
    let svg = fs::read_to_string(&svg).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    run(&["plot", "nowhere.md"]).fails(3, &["nowhere.md", "expected a logs.md"]);
    let other = data().join("classes.txt");
    run(&["plot", path(&other)]).fails(3, &["classes.txt", "no epoch line"]);
}

#[test]
fn data_commands() {
    let info = run(&["data", "info", path(data())]).expect(0);
    assert!(info.out.contains("60 images") && info.err.is_empty(), "{info:?}");
    assert!(run(&["data", "check", path(data())]).expect(0).out.contains("0 cannot be used"));
    run(&["data", "info", "nowhere"]).fails(3, &["nowhere"]);
    run(&["data", "check", "nowhere"]).fails(3, &["nowhere"]);
    let other = ["data", "synth", path(data()), "--train-per-class", "7"];
    run(&other).fails(2, &[path(data()), "choose another folder"]);
    run(&["data", "synth", path(trained())]).fails(2, &[path(trained()), "not empty"]);
    let folder = temporary();
    let to = folder.path().join("b.safetensors");
    let batches = |count: &str| {
        let args = ["data", "batches", "--data", path(data()), "--count", count, "-o", path(&to)];
        finish(engine(args).args(["--set", "data.batch=8", "--set", "data.resolution=32"]))
    };
    batches("9").fails(2, &["9 batches", "7"]);
    assert!(!to.exists());
    batches("2").expect(0);
    assert!(fs::metadata(&to).unwrap().len() > 2 * 8 * 32 * 32 * 3);
}

/// A reader that has seen enough, and a disk that is full.
#[test]
fn standard_output_that_cannot_be_written() {
    let engine = env!("CARGO_BIN_EXE_engine");
    let shell = |script: String| finish(std::process::Command::new("sh").args(["-c", &script]));
    let (folder, picture, checkpoint) = (path(data()), picture("star"), checkpoint());
    let predict = format!("{engine} predict --checkpoint {checkpoint} {picture}");
    assert_eq!(shell(format!("{predict} {picture} | head -n 1")).expect(0).err, "");
    if Path::new("/dev/full").exists() {
        shell(format!("{engine} data info {folder} > /dev/full")).fails(1, &["standard output"]);
        let output = temporary();
        let train = format!("{engine} train --data {folder} --output {}", path(output.path()));
        let small = "--set model.arch=resnet-tiny --set data.resolution=32 --set data.batch=8 --set epochs=1";
        shell(format!("{train} {small} > /dev/full 2> /dev/full")).expect(0);
        assert!(output.path().join("logs.md").exists());
    }
}
