//! Model files for the CPU: export, what is refused, and the way back to f32.

use crate::common::{Done, data, path, run, temporary, tiny_last};
use engine::infer::file::ModelFile;
use std::fs;
use std::path::Path;

fn export(checkpoint: &Path, to: &Path, more: &[&str]) -> Done {
    let args = ["export", "--checkpoint", path(checkpoint), "--format", "cpu", "--output", path(to)];
    run(&[&args, more].concat())
}

#[test]
fn a_calibrated_model() {
    let folder = temporary();
    let (plain, rounded) = (folder.path().join("plain.engine"), folder.path().join("int8.engine"));
    let checkpoint = tiny_last();
    export(checkpoint, &plain, &[]).expect(0);
    let photographs =
        ["--int8", "--calibrate", path(data()), "--calibration-images", "20", "--max-loss", "100"];
    let done = export(checkpoint, &rounded, &photographs).expect(0);
    for word in ["calibrated on 20 images", "layer2.0.downsample.0", "worst", "signal to noise"] {
        assert!(done.err.contains(word), "{word:?} in {}", done.err);
    }
    let (plain, rounded) = (ModelFile::open(&plain).unwrap(), ModelFile::open(&rounded).unwrap());
    assert_eq!((plain.has_int8(), rounded.has_int8()), (false, true));
    let description = rounded.description();
    assert_eq!((description.resolution, description.classes.len()), (32, 10));
    let source = &description.source;
    assert_eq!((source.sha256.len(), source.epoch), (64, Some(4)));
    assert_eq!(source.recipe.get("model.arch").map(String::as_str), Some("\"resnet-tiny\""), "{source:?}");
    assert!((0.0..=100.0).contains(&source.scores["val_top1"]), "{source:?}");
    // The f32 weights come back as they were.
    let json = |checkpoint: &Path| {
        run(&["eval", "--checkpoint", path(checkpoint), "--data", path(data()), "--json"]).expect(0).out
    };
    assert_eq!(json(rounded.path()), json(checkpoint));
    // The same command, the same bytes.
    let again = folder.path().join("again.engine");
    export(checkpoint, &again, &photographs).expect(0);
    assert!(fs::read(&again).unwrap() == fs::read(rounded.path()).unwrap());
}

#[test]
fn flags_that_do_not_fit() {
    let folder = temporary();
    let (to, checkpoint) = (folder.path().join("x.engine"), tiny_last());
    let done = export(checkpoint, &to, &["--int8"]).expect(2);
    assert!(done.err.contains("--calibrate"), "{}", done.err);
    let done = export(checkpoint, &to, &["--calibrate", path(data())]).expect(2);
    assert!(done.err.contains("--int8"), "{}", done.err);
    let pth = ["export", "--checkpoint", path(checkpoint), "--format", "pth", "--output", path(&to)];
    run(&[&pth[..], &["--int8", "--calibrate", path(data())]].concat()).fails(2, &["--format cpu"]);
    export(checkpoint, &to, &["--int8", "--calibrate", "nowhere"]).fails(3, &["nowhere"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    export(checkpoint, &to, &["--int8", "--calibrate", path(&empty)]).fails(3, &[path(&empty)]);
    assert!(!to.exists());
}
