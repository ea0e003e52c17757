//! Data that cannot be trained on: exit code 3 and the file; single bad files are named, counted and left out.

use crate::common::{copy, data, engine, finish, path, run, set, temporary};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// One epoch of the smallest network on `data`.
fn train(data: &Path, output: &Path) -> Command {
    let mut command = engine(["train", "--data", path(data), "--output", path(output)]);
    set(
        &mut command,
        &[
            "model.arch=resnet-tiny",
            "data.resolution=32",
            "data.batch=8",
            "epochs=1",
            "schedule.warmup_epochs=0",
        ],
    );
    command
}

#[track_caller]
fn refused(data: &Path, words: &[&str]) {
    let output = temporary();
    finish(&mut train(data, output.path())).fails(3, words);
    assert!(!output.path().join("logs.md").exists(), "a run was begun");
}

#[test]
fn missing_or_empty() {
    let folder = temporary();
    let nowhere = folder.path().join("nowhere");
    refused(&nowhere, &[path(&nowhere), "expected train/<class>/"]);
    refused(folder.path(), &[path(folder.path()), "empty", "expected train/<class>/"]);
    let half = copy(data());
    fs::remove_dir_all(half.path().join("val")).unwrap();
    refused(half.path(), &[path(half.path()), "val is not"]);
    let other = temporary();
    fs::create_dir_all(other.path().join("train")).unwrap();
    fs::create_dir_all(other.path().join("val")).unwrap();
    refused(other.path(), &["train", "no class folders"]);
}

#[test]
fn classes() {
    let folder = copy(data());
    fs::create_dir(folder.path().join("train/unicorn")).unwrap();
    refused(folder.path(), &["train/unicorn", "without images", "remove it or fill it"]);
    fs::copy(first(folder.path()), folder.path().join("train/unicorn/0.jpg")).unwrap();
    refused(folder.path(), &["train has 11 classes and val has 10", "unicorn"]);
}

#[test]
fn a_batch_larger_than_the_set() {
    let output = temporary();
    finish(set(&mut train(data(), output.path()), &["data.batch=61"])).fails(2, &["data.batch", "61", "60"]);
}

fn tar(folder: &Path) -> (TempDir, PathBuf) {
    let place = temporary();
    let path = place.path().join("set.tar");
    let done =
        Command::new("tar").arg("-cf").arg(&path).arg("-C").arg(folder).args(["train", "val"]).status();
    assert!(done.unwrap().success());
    (place, path)
}

#[test]
fn tars() {
    let (place, whole) = tar(data());
    let output = temporary();
    finish(&mut train(&whole, output.path())).expect(0);
    let bytes = fs::read(&whole).unwrap();
    for length in [bytes.len() / 2, bytes.len() / 2 / 512 * 512, 700] {
        let cut = place.path().join("cut.tar");
        fs::write(&cut, &bytes[..length]).unwrap();
        refused(&cut, &[path(&cut)]);
    }
    let empty = place.path().join("empty.tar");
    fs::write(&empty, b"").unwrap();
    refused(&empty, &[path(&empty)]);
    let gzip = place.path().join("set.tar.gz");
    fs::write(&gzip, b"\x1f\x8b\x08\0\0\0\0\0").unwrap();
    refused(&gzip, &[path(&gzip), "gzip", "gunzip"]);
}

/// The first training picture of the first class.
fn first(folder: &Path) -> PathBuf {
    let class = fs::read_dir(folder.join("train")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
    class.join("0000.jpg")
}

/// A PNG of a few bytes whose header says 60,000 x 60,000.
fn gigapixel() -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    bytes.extend([60_000u32.to_be_bytes(), 60_000u32.to_be_bytes()].concat());
    bytes.extend([8, 2, 0, 0, 0]);
    let crc = bytes[12..].iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
    });
    bytes.extend((!crc).to_be_bytes());
    bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xae\x42\x60\x82");
    bytes
}

#[test]
fn single_files() {
    let sample = fs::read(first(data())).unwrap();
    let cases: [(&str, Vec<u8>); 4] = [
        ("zero bytes", vec![]),
        ("truncated", sample[..sample.len() / 2].to_vec()),
        ("gigapixel", gigapixel()),
        ("not an image", b"<html>404</html>".repeat(10)),
    ];
    for (what, bytes) in cases {
        let folder = copy(data());
        let bad = first(folder.path());
        fs::write(&bad, bytes).unwrap();
        let output = temporary();
        let two_epochs = &["epochs=2"];
        let done = finish(set(&mut train(folder.path(), output.path()), two_epochs)).expect(0);
        let warnings = done.err.lines().filter(|line| line.starts_with("warning: left out of training"));
        let warnings: Vec<&str> = warnings.collect();
        assert_eq!(warnings.len(), 1, "{what}: named once, not in every epoch: {}", done.err);
        assert!(warnings[0].contains(path(&bad)), "{what}: {}", done.err);

        let none = finish(set(&mut train(folder.path(), temporary().path()), &["data.bad_share=0"]));
        none.fails(3, &[path(&bad), "data.bad_share = 0", "engine data check"]);

        let check = run(&["data", "check", path(folder.path())]).fails(3, &["1 file", "data.bad_share"]);
        assert!(check.out.contains(path(&bad)), "{what}: {}", check.out);
    }
}

#[test]
fn a_whole_class_of_them() {
    let folder = copy(data());
    for class in fs::read_dir(folder.path().join("train")).unwrap() {
        for name in ["0000.jpg", "0001.jpg"] {
            fs::write(class.as_ref().unwrap().path().join(name), b"").unwrap();
        }
    }
    let output = temporary();
    let limit = "data.bad_share = 0.01";
    finish(&mut train(folder.path(), output.path()))
        .fails(3, &[".jpg: the file has no bytes", limit, "engine data check"]);
    finish(set(&mut train(folder.path(), temporary().path()), &["data.bad_share=0.5"])).expect(0);
}

/// A PNG called .jpg is what its bytes say.
#[test]
fn mislabelled() {
    let folder = copy(data());
    let mut png = vec![];
    let mut encoder = png::Encoder::new(&mut png, 40, 40);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[99; 40 * 40 * 3]).unwrap();
    drop(writer);
    fs::write(first(folder.path()), png).unwrap();
    let done = finish(&mut train(folder.path(), temporary().path())).expect(0);
    assert!(!done.err.contains("warning"), "{}", done.err);
    let check = run(&["data", "check", path(folder.path())]).expect(0);
    assert!(check.out.contains("0000.jpg"), "{}", check.out);
}

#[cfg(unix)]
#[test]
fn unreadable() {
    use std::os::unix::fs::PermissionsExt;
    let folder = copy(data());
    let bad = first(folder.path());
    fs::set_permissions(&bad, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&bad).is_ok() {
        return; // root reads everything.
    }
    let done = finish(&mut train(folder.path(), temporary().path())).expect(0);
    assert!(done.err.contains(path(&bad)) && done.err.contains("ermission"), "{}", done.err);
}
