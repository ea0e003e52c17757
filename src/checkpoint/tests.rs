//! Damaged files, full folders, and what a resume finds in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::files;

fn small() -> Checkpoint {
    let tensors = BTreeMap::from([
        (
            "fc.weight".to_owned(),
            Tensor::f32(&[2, 3], vec![1.0, -0.0, 3.5, 4.0, f32::MIN_POSITIVE / 2.0, 6.0]),
        ),
        ("bn1.num_batches_tracked".to_owned(), Tensor::i64_scalar(-7)),
        ("optim.ema \"q\"".to_owned(), Tensor { shape: vec![3], values: Values::U8(vec![0, 128, 255]) }),
        ("empty".to_owned(), Tensor::f32(&[0, 4], Vec::new())),
    ]);
    let metadata = BTreeMap::from([("engine.state".to_owned(), "{\"epoch\":1,\"é\":\"\\n\"}".to_owned())]);
    Checkpoint { tensors, metadata }
}

fn at(epoch: u32, step: u64) -> Position {
    Position { epoch, step, epoch_end: step == u64::from(epoch) * 10 }
}

fn names(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn what_is_written_is_read_back_and_the_crate_reads_it_too() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let checkpoint = small();
    checkpoint.write(&a, &[]).unwrap();
    let mut read = Checkpoint::read(&a).unwrap();
    assert_eq!(read.metadata.remove("format").as_deref(), Some("pt"));
    assert_eq!(read, checkpoint);
    let bits = |checkpoint: &Checkpoint| checkpoint.tensors["fc.weight"].values.bytes().to_vec();
    assert_eq!(bits(&read), bits(&checkpoint), "the sign of zero and subnormals survive");
    read.write(&b, &[]).unwrap();
    let bytes = fs::read(&a).unwrap();
    assert_eq!(bytes, fs::read(&b).unwrap(), "bytes are a function of the content");
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let fc = tensors.tensor("fc.weight").unwrap();
    assert_eq!((fc.shape(), fc.data()), ([2, 3].as_slice(), bits(&checkpoint).as_slice()));
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert_eq!(header % 8, 0);
}

/// Every byte of the file is under a digest.
#[test]
fn any_flipped_byte_and_any_truncation_is_refused() {
    // Thousands of files: in memory where the machine has such a folder.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = folder.path().join("a.safetensors");
    small().write(&path, &[]).unwrap();
    let bytes = fs::read(&path).unwrap();
    for i in 0..bytes.len() {
        for flip in [0x01, 0x20, 0xff] {
            let mut damaged = bytes.clone();
            damaged[i] ^= flip;
            fs::write(&path, &damaged).unwrap();
            let error = Checkpoint::read(&path).expect_err(&format!("byte {i} flipped by {flip:#x}"));
            assert!(error.message.starts_with(path.to_str().unwrap()), "{error}");
        }
        fs::write(&path, &bytes[..i]).unwrap();
        Checkpoint::read(&path).expect_err(&format!("cut to {i} bytes"));
    }
    fs::write(&path, [bytes.as_slice(), b"\0"].concat()).unwrap();
    assert!(Checkpoint::read(&path).unwrap_err().message.contains("added to"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), header in any::<u16>()) {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = folder.path().join("a");
        let length = u64::from(header % 300).to_le_bytes();
        fs::write(&path, [&length[..], &bytes].concat()).unwrap();
        prop_assert!(Checkpoint::read(&path).is_err());
    }
}

#[test]
fn another_programs_file_and_a_huge_header_are_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let data: Vec<(&str, safetensors::tensor::TensorView)> = Vec::new();
    fs::write(&path, safetensors::serialize(data, None).unwrap()).unwrap();
    assert!(Checkpoint::read(&path).unwrap_err().message.contains("--init"));
    fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
    assert!(Checkpoint::read(&path).unwrap_err().message.contains("does not fit"));
    let message = Checkpoint::read(&folder.path().join("none")).unwrap_err().message;
    assert!(message.contains("none: cannot read"), "{message}");
}

#[test]
fn a_non_finite_state_is_never_saved() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoint = small();
        let mut values = vec![0.5; 10_000];
        values[9_001] = bad;
        checkpoint.tensors.insert("layer1.0.bn1.bias".into(), Tensor::f32(&[10_000], values));
        let message = checkpoint.write(&folder.path().join("a"), &[]).unwrap_err().message;
        assert!(message.contains("layer1.0.bn1.bias[9001]"), "{message}");
        assert!(names(folder.path()).is_empty());
    }
}

#[test]
fn retention_keeps_the_newest_the_best_and_every_fifth_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 1, 5).unwrap();
    let mut checkpoint = small();
    for epoch in 1..=12 {
        checkpoint.metadata.insert("engine.state".into(), epoch.to_string());
        let best = at(epoch.min(3), u64::from(epoch.min(3)) * 10);
        // In the middle of epoch 5, too: not an epoch's end, so it goes.
        store.save(at(epoch, u64::from(epoch) * 10), &checkpoint, Some(best)).unwrap();
        store.save(at(epoch, u64::from(epoch) * 10 + 5), &checkpoint, Some(best)).unwrap();
    }
    let want =
        [(3, 30), (5, 50), (10, 100), (12, 120), (12, 125)].map(|(epoch, step)| at(epoch, step).file_name());
    let mut want: Vec<String> =
        want.into_iter().chain(["best", "last"].map(|n| format!("{n}.safetensors"))).collect();
    want.sort();
    assert_eq!(names(folder.path()), want);
    let read = |name: &str| Found::read(&folder.path().join(name)).unwrap().at;
    assert_eq!((read("best.safetensors"), read("last.safetensors")), (at(3, 30), at(12, 125)));
}

#[test]
fn the_newest_that_verifies_is_taken_and_later_ones_are_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 3, 0).unwrap();
    assert!(store.newest().unwrap().found.is_none());
    for step in [9, 10, 11] {
        store.save(at(1, step), &small(), None).unwrap();
    }
    let newest = store.path(at(1, 11));
    let mut bytes = fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&newest, bytes).unwrap();
    fs::write(folder.path().join("e0009-s00000099.safetensors.77.tmp"), b"torn").unwrap();
    fs::write(folder.path().join("mine.tmp"), b"somebody's").unwrap();
    let search = store.newest().unwrap();
    assert_eq!(search.found.unwrap().at, at(1, 10));
    assert!(search.passed_over[0].contains("e0001-s00000011.safetensors: "), "{:?}", search.passed_over);
    let notes = store.resume_at(at(1, 10), None).unwrap();
    assert!(notes[0].contains("e0001-s00000011.safetensors.aside"), "{notes:?}");
    let present = names(folder.path());
    assert!(
        !present.iter().any(|name| name.contains("77.tmp")) && present.contains(&"mine.tmp".into()),
        "{present:?}"
    );
    assert_eq!(Found::read(&folder.path().join("last.safetensors")).unwrap().at, at(1, 10));
    // The same step again, after the resume.
    store.save(at(1, 11), &small(), Some(at(1, 11))).unwrap();
    assert_eq!(store.newest().unwrap().found.unwrap().at, at(1, 11));
}

#[test]
fn a_folder_with_only_last_in_it_is_resumed_from() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Store::open(from.path(), 2, 0).unwrap().save(at(4, 44), &small(), None).unwrap();
    fs::copy(from.path().join("last.safetensors"), to.path().join("last.safetensors")).unwrap();
    let found = Store::open(to.path(), 2, 0).unwrap().newest().unwrap().found.unwrap();
    assert_eq!(found.at, at(4, 44));
}

#[test]
fn a_save_that_fails_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 2, 0).unwrap();
    store.save(at(1, 10), &small(), None).unwrap();
    // A folder in the place of the file: the rename fails.
    fs::create_dir_all(store.path(at(1, 11)).join("x")).unwrap();
    let error = store.save(at(1, 11), &small(), None).unwrap_err();
    assert!(error.message.contains("e0001-s00000011"), "{error}");
    assert!(!names(folder.path()).iter().any(|name| name.ends_with(files::TEMPORARY)));
    assert_eq!(store.newest().unwrap().found.unwrap().at, at(1, 10));
}

/// /dev/full fails writes as a full file system does; nothing can be created in /proc.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_and_an_unwritable_folder_are_sentences() {
    let error = small().write(Path::new("/proc/engine-test"), &[]).unwrap_err();
    assert!(error.message.starts_with("cannot write /proc/engine-test"), "{error}");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let source = std::io::Write::write_all(&mut &full, b"x").unwrap_err();
    let error = crate::error::Error::output_file("a.safetensors", "write", &source);
    assert!(error.message.contains("free some space"), "{error}");
}

#[test]
fn the_background_writer_reports_at_the_next_submit() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = BackgroundWriter::new(Store::open(folder.path(), 2, 0).unwrap());
    assert!(writer.submit(at(1, 1), small(), None).unwrap().is_none());
    let saved = writer.submit(at(1, 2), small(), None).unwrap().unwrap();
    assert_eq!((saved.at, saved.path.exists()), (at(1, 1), true));
    let mut bad = small();
    bad.tensors.insert("x".into(), Tensor::f32(&[1], vec![f32::NAN]));
    writer.submit(at(1, 3), bad, None).unwrap();
    assert!(writer.submit(at(1, 4), small(), None).unwrap_err().message.contains("x[0] is NaN"));
    assert!(writer.wait().unwrap().is_none());
    assert_eq!(writer.store().newest().unwrap().found.unwrap().at, at(1, 2));
}

/// `cargo test --release -- --ignored --nocapture speed`: a ResNet-50 with momentum, 205 MB.
#[test]
#[ignore = "writes 205 MB"]
fn speed_of_a_resnet50_checkpoint() {
    let folder = tempfile::tempdir_in(".").unwrap();
    let values: Vec<f32> = (0..25_557_032u32 / 161).map(|i| (i as f32).sin()).collect();
    let tensors = (0..322).map(|i| (format!("t{i}"), Tensor::f32(&[values.len()], values.clone())));
    let checkpoint = Checkpoint { tensors: tensors.collect(), metadata: BTreeMap::new() };
    let path = folder.path().join("a.safetensors");
    for _ in 0..3 {
        let time = std::time::Instant::now();
        checkpoint.check().unwrap();
        let check = time.elapsed();
        let time = std::time::Instant::now();
        let digests: usize =
            checkpoint.tensors.values().map(|t| usize::from(header::sha256(t.values.bytes())[0])).sum();
        let hash = time.elapsed();
        let time = std::time::Instant::now();
        checkpoint.write(&path, &[]).unwrap();
        let write = time.elapsed();
        let time = std::time::Instant::now();
        assert_eq!(Checkpoint::read(&path).unwrap().tensors.len(), 322);
        println!(
            "check {check:?}, sha on one thread {hash:?} ({digests}), write to durable {write:?}, read and verify {:?}",
            time.elapsed()
        );
    }
}
