//! Shards: the same data as their source, the same bytes however they were made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::super::pack::{Observer, PackOptions, Progress, Summary, pack};
use super::super::*;
use super::{class_folders, encode, jpeg, picture, tar};
use crate::error::{Error, Result};

/// Stops after so many pictures; collects warnings.
struct Watch {
    stop_after: usize,
    warnings: Vec<String>,
}

impl Observer for Watch {
    fn progress(&mut self, progress: Progress) -> Result<()> {
        assert!(progress.done > 0 && progress.done <= progress.of);
        self.stop_after = self.stop_after.saturating_sub(1);
        if self.stop_after == 0 { Err(Error::stopped("stop")) } else { Ok(()) }
    }

    fn warn(&mut self, sentence: &str) {
        self.warnings.push(sentence.into());
    }
}

fn options(output: &Path) -> PackOptions {
    PackOptions {
        output: output.into(),
        shorter_side: None,
        quality: 90,
        interpolation: Interpolation::Bilinear,
        per_shard: 4,
        shuffle: false,
        undivided: "train".into(),
        workers: 2,
        verify: true,
        bad_share: 0.2,
    }
}

fn run(source: &Path, options: &PackOptions) -> (Result<Summary>, Vec<String>) {
    run_until(source, options, usize::MAX)
}

fn run_until(source: &Path, options: &PackOptions, stop_after: usize) -> (Result<Summary>, Vec<String>) {
    let mut watch = Watch { stop_after, warnings: vec![] };
    let summary = pack(Splits::open(source).unwrap(), options, &mut watch);
    (summary, watch.warnings)
}

/// Names and bytes of what a folder holds.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn copied_pictures_load_identically() {
    let dir = tempfile::tempdir().unwrap();
    let (source, packed) = (dir.path().join("source"), dir.path().join("packed"));
    class_folders(&source, 5, 2);
    fs::write(source.join("classes.txt"), "cat\tCat\ndog\tDog\nowl\tOwl, great\n").unwrap();
    let summary = run(&source, &options(&packed)).0.unwrap();
    assert_eq!(summary.verified, 21);
    let shards: Vec<usize> = summary.splits.iter().map(|split| split.shards).collect();
    assert_eq!(shards, [4, 2]);
    let (a, b) = (Dataset::open(&source).unwrap(), Dataset::open(&packed).unwrap());
    assert_eq!(a.classes, b.classes);
    for (a, b) in [(&a.train, &b.train), (&a.val, &b.val)] {
        assert_eq!(a.len(), b.len());
        assert!((0..a.len()).all(|i| a.label(i) == b.label(i) && a.read(i).unwrap() == b.read(i).unwrap()));
    }
    assert!(b.train.name(0).ends_with("train-000000.tar:00000000-cat_000.jpg"), "{}", b.train.name(0));
    // So are the batches.
    let batches = |data: &Dataset| -> Vec<Batch> {
        let options = TrainOptions { workers: 2, ..TrainOptions::new(TrainTransform::new(24), 5) };
        Loader::train(data.train.clone(), options).unwrap().map(Result::unwrap).collect()
    };
    assert!(batches(&a) == batches(&b));
}

#[test]
fn bytes_depend_on_neither_workers_nor_interruptions() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    class_folders(&source, 5, 2);
    let packed = |name: &str| dir.path().join(name);
    let small = |output: &Path, workers| PackOptions { shorter_side: Some(30), workers, ..options(output) };
    run(&source, &small(&packed("one"), 1)).0.unwrap();
    let want = contents(&packed("one"));
    run(&source, &small(&packed("five"), 5)).0.unwrap();
    assert!(contents(&packed("five")) == want);
    // Stopped after every so many pictures, the verification's among them.
    for stop_after in [1, 4, 7, 20, 22, 41] {
        let output = packed(&format!("stopped {stop_after}"));
        let stopped = run_until(&source, &small(&output, 3), stop_after).0.unwrap_err();
        assert_eq!(stopped.exit_code(), 75, "{stopped}");
        assert!(contents(&output).keys().all(|name| !name.ends_with(".tmp")));
        run(&source, &small(&output, 2)).0.unwrap();
        assert!(contents(&output) == want, "stopped after {stop_after}");
    }
    // A shard that the disk tore, one that is gone, and what a killed run left.
    let output = packed("torn");
    run(&source, &small(&output, 2)).0.unwrap();
    let shard = output.join("train-000001.tar");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    fs::remove_file(output.join("val-000000.tar")).unwrap();
    fs::write(output.join("train-000002.tar.77.tmp"), b"half").unwrap();
    run(&source, &small(&output, 2)).0.unwrap();
    assert!(contents(&output) == want);
    // A run that has ended does nothing.
    assert!(run_until(&source, &small(&output, 2), 1).0.is_ok());
}

#[test]
fn shrinking_is_the_resize_and_leaves_small_pictures_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("source"), dir.path().join("packed"));
    let class = source.join("a");
    fs::create_dir_all(&class).unwrap();
    fs::write(class.join("1 large.v2.JPEG"), jpeg(90, 60, 1)).unwrap();
    fs::write(class.join("2.jpg"), jpeg(40, 90, 2)).unwrap();
    let luma: Vec<u8> = picture(80, 70, 3).into_iter().step_by(3).collect();
    fs::write(class.join("3.jpg"), encode(&luma, 80, 70, jpeg_encoder::ColorType::Luma, |_| {})).unwrap();
    let options = PackOptions { shorter_side: Some(48), undivided: "val".into(), ..options(&output) };
    run(&source, &options).0.unwrap();
    let packed = Splits::open(&output).unwrap();
    let (name, split) = &packed.splits[0];
    assert_eq!((name.as_str(), split.len()), ("val", 3));
    assert!(split.name(0).ends_with(":00000000-1_large_v2.jpg"), "{}", split.name(0));
    assert_eq!(split.read(1).unwrap(), jpeg(40, 90, 2), "its shorter side is short enough");
    let read = |i: usize| {
        let bytes = split.read(i).unwrap();
        (
            decode::read_header(&bytes, Limits::default()).unwrap(),
            decode(&bytes, "x", Limits::default()).unwrap(),
        )
    };
    let (header, grey) = read(2);
    assert_eq!((header.channels, grey.height, grey.width), (1, 54, 48));
    let original = decode(&jpeg(90, 60, 1), "x", Limits::default()).unwrap();
    let mut want = vec![0; 72 * 48 * 3];
    let rect = Rect::whole(90, 60);
    let region = decode::Region { pixels: &original.pixels, height: 90, width: 60, rect };
    resize::Resizer::default().resize(region, Interpolation::Bilinear, 72, 48, &mut want).unwrap();
    let want = encode(&want, 72, 48, jpeg_encoder::ColorType::Rgb, |encoder| {
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
        encoder.set_optimized_huffman_tables(true);
    });
    assert!(split.read(0).unwrap() == want, "the resize's pixels at quality 90, 4:2:0");
}

#[test]
fn what_cannot_be_decoded_is_left_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("source"), dir.path().join("packed"));
    class_folders(&source, 4, 1);
    fs::write(source.join("train/dog/dog_001.jpg"), b"\xff\xd8\xff\xe0").unwrap();
    // A PNG by another name.
    let png = super::png(9, 8, png::ColorType::Rgb, png::BitDepth::Eight, None, &[7; 9 * 8 * 3]);
    fs::write(source.join("train/owl/owl_000.jpg"), &png).unwrap();
    let (summary, warnings) = run(&source, &options(&output));
    let summary = summary.unwrap();
    assert_eq!((summary.splits[0].images, summary.splits[0].left_out, summary.verified), (11, 1, 14));
    assert!(warnings[0].starts_with("left out: ") && warnings[0].contains("dog_001.jpg"), "{warnings:?}");
    let packed = Dataset::open(&output).unwrap();
    let owl = (0..packed.train.len()).find(|&i| packed.train.name(i).contains("owl_000")).unwrap();
    assert!(packed.train.name(owl).ends_with("owl_000.png"));
    assert_eq!(packed.train.read(owl).unwrap(), png);
    // A finished shard with a gap is a finished shard.
    fs::remove_file(output.join("packed.json")).unwrap();
    let again = run(&source, &options(&output));
    assert_eq!((again.0.unwrap(), again.1.len()), (summary, 0));
    let strict = PackOptions { bad_share: 0.0, ..options(&dir.path().join("strict")) };
    fs::write(source.join("train/dog/dog_002.jpg"), b"").unwrap();
    let error = run(&source, &strict).0.unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.message.contains("2 of 15 pictures cannot be used, more than the 1"), "{error}");
}

#[test]
fn another_request_in_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("source"), dir.path().join("packed"));
    class_folders(&source, 2, 1);
    run(&source, &options(&output)).0.unwrap();
    let error = run(&source, &PackOptions { per_shard: 3, ..options(&output) }).0.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.message.contains("pictures a shard: 4 there, 3 here"), "{error}");
    fs::write(source.join("train/cat/new.jpg"), jpeg(9, 9, 1)).unwrap();
    let error = run(&source, &options(&output)).0.unwrap_err();
    assert!(error.message.contains("pictures of train: 6 there, 7 here"), "{error}");
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("train-1.tar"), b"x").unwrap();
    let error = run(&source, &options(&foreign)).0.unwrap_err();
    assert!(error.message.contains("is not empty (train-1.tar)"), "{error}");
}

#[test]
fn a_shuffled_pack_keeps_every_sample() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("source"), dir.path().join("packed"));
    class_folders(&source, 5, 1);
    run(&source, &PackOptions { shuffle: true, ..options(&output) }).0.unwrap();
    let (a, b) = (Dataset::open(&source).unwrap(), Dataset::open(&output).unwrap());
    let samples = |data: &Dataset| -> Vec<(u32, Vec<u8>)> {
        (0..data.train.len()).map(|i| (data.train.label(i), data.train.read(i).unwrap())).collect()
    };
    let (mut before, mut after) = (samples(&a), samples(&b));
    assert!(before != after);
    before.sort();
    after.sort();
    assert!(before == after);
}

/// image-net.org's three archives, in small: classes whose ILSVRC ids are not in the order of their wnids.
fn ilsvrc(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let inner = folder.join("inner.tar");
    let mut outer = Vec::new();
    for (wnid, count) in [("n02", 2), ("n01", 3)] {
        let names: Vec<String> = (0..count).map(|i| format!("{wnid}_{i}.JPEG")).collect();
        let seed = |i: usize| (wnid.len() * 100 + i + usize::from(wnid == "n02") * 50) as u64;
        let members: Vec<_> =
            names.iter().enumerate().map(|(i, n)| (n.as_str(), jpeg(20, 24, seed(i)))).collect();
        tar(&inner, &members);
        outer.push((format!("{wnid}.tar"), fs::read(&inner).unwrap()));
    }
    fs::remove_file(inner).unwrap();
    let outer: Vec<_> = outer.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    tar(&folder.join("ILSVRC2012_img_train.tar"), &outer);
    let val: Vec<String> = (1..=3).map(|i| format!("ILSVRC2012_val_{i:08}.JPEG")).collect();
    let val: Vec<_> = val.iter().zip(0..).map(|(n, i)| (n.as_str(), jpeg(20, 24, 900 + i))).collect();
    tar(&folder.join("ILSVRC2012_img_val.tar"), &val);
    let kit = folder.join("kit.tar");
    let truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt";
    tar(&kit, &[(truth, b"2\n1\n2\n".to_vec())]);
    let gz = fs::File::create(folder.join("ILSVRC2012_devkit_t12.tar.gz")).unwrap();
    let mut gz = flate2::write::GzEncoder::new(gz, flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &fs::read(&kit).unwrap()).unwrap();
    gz.finish().unwrap();
    fs::remove_file(kit).unwrap();
    fs::write(folder.join("synsets.tsv"), "1\tn02\tkit fox, Vulpes macrotis\n2\tn01\ttench, Tinca tinca\n")
        .unwrap();
}

#[test]
fn the_ilsvrc_archives_are_read_in_place_and_packed() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (dir.path().join("in"), dir.path().join("packed"));
    ilsvrc(&source);
    let data = Dataset::open(&source).unwrap();
    let labels: Vec<&str> = data.classes.iter().map(|class| class.label.as_str()).collect();
    assert_eq!(labels, ["tench, Tinca tinca", "kit fox, Vulpes macrotis"]);
    assert_eq!((data.train.len(), data.val.len()), (5, 3));
    assert!(data.train.name(4).ends_with("ILSVRC2012_img_train.tar:n02.tar/n02_1.JPEG"));
    assert_eq!(data.train.read(4).unwrap(), jpeg(20, 24, 351));
    // Ground truth 2, 1, 2: images 1 and 3 are n01.
    let val = |i: usize| (data.val.stem(i).to_owned(), data.val.label(i));
    assert_eq!(val(1), ("ILSVRC2012_val_00000003".into(), 0));
    assert_eq!(val(2), ("ILSVRC2012_val_00000002".into(), 1));
    assert_eq!(data.val.read(2).unwrap(), jpeg(20, 24, 901));
    run(&source, &options(&output)).0.unwrap();
    let packed = Dataset::open(&output).unwrap();
    assert_eq!(packed.classes, data.classes);
    for (a, b) in [(&data.train, &packed.train), (&data.val, &packed.val)] {
        assert!((0..a.len()).all(|i| a.label(i) == b.label(i) && a.read(i).unwrap() == b.read(i).unwrap()));
    }
    assert_eq!(ilsvrc::val_number(&packed.val.name(2)), Some(2));

    fs::remove_file(source.join("ILSVRC2012_devkit_t12.tar.gz")).unwrap();
    let error = Dataset::open(&source).unwrap_err();
    assert!(error.message.contains("ILSVRC2012_devkit_t12.tar.gz is not beside it"), "{error}");
}
