use super::*;
use crate::error::Kind;

fn small() -> SynthOptions {
    SynthOptions { seed: 5, train_per_class: 3, val_per_class: 2, size: 32, quality: 85 }
}

fn bytes_of(folder: &Path, path: &str) -> Vec<u8> {
    fs::read(folder.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn writes_the_layout_and_decodable_pictures() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("synth");
    let summary = write(&folder, &small()).unwrap();
    assert_eq!((summary.train_images, summary.val_images, summary.reused), (30, 20, false));
    let labels = String::from_utf8(bytes_of(&folder, "classes.txt")).unwrap();
    assert_eq!(labels.lines().count(), 10);
    assert_eq!(labels.lines().nth(7), Some("stripes\tstripes"));
    for class in Class::ALL {
        let jpeg = bytes_of(&folder, &format!("val/{}/0001.jpg", class.id()));
        let mut decoder = zune_jpeg::JpegDecoder::new(std::io::Cursor::new(jpeg));
        let pixels = decoder.decode().unwrap();
        assert_eq!((decoder.dimensions(), pixels.len()), (Some((32, 32)), 32 * 32 * 3));
    }
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["synth"], "no partial folder stays");
}

#[test]
fn a_picture_depends_on_the_options_alone() {
    let home = tempfile::tempdir().unwrap();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| home.path().join(name));
    write(&a, &small()).unwrap();
    write(&b, &small()).unwrap();
    write(&c, &SynthOptions { seed: 6, ..small() }).unwrap();
    write(&d, &SynthOptions { train_per_class: 5, ..small() }).unwrap();
    let star = |folder: &Path, split: &str| bytes_of(folder, &format!("{split}/star/0001.jpg"));
    assert_eq!(star(&a, "train"), star(&b, "train"));
    assert_ne!(star(&a, "train"), star(&c, "train"), "another seed");
    assert_ne!(star(&a, "train"), star(&a, "val"), "another split");
    assert_eq!(star(&a, "train"), star(&d, "train"), "a larger set begins with the smaller one");
}

#[test]
fn a_second_call_reuses_and_a_damaged_set_is_redone() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("synth");
    let first = write(&folder, &small()).unwrap();
    let second = write(&folder, &small()).unwrap();
    assert_eq!((second.reused, second.bytes), (true, first.bytes));
    let path = folder.join("train/disc/0000.jpg");
    let whole = fs::read(&path).unwrap();
    for damage in [|p: &Path| fs::remove_file(p).unwrap(), |p: &Path| fs::write(p, b"short").unwrap()] {
        damage(&path);
        let redone = write(&folder, &small()).unwrap();
        assert!(!redone.reused);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn refuses_what_it_must_not_overwrite() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("synth");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("letter.txt"), "dear").unwrap();
    let error = write(&folder, &small()).unwrap_err();
    assert_eq!(error.kind, Kind::Usage);
    assert!(error.message.contains("holds no synthetic data set"), "{error}");
    assert_eq!(bytes_of(&folder, "letter.txt"), b"dear");

    let other = home.path().join("other");
    write(&other, &small()).unwrap();
    let error = write(&other, &SynthOptions { size: 48, ..small() }).unwrap_err();
    assert!(error.message.contains("32 px") && error.message.contains("48 px"), "{error}");
}

#[test]
fn an_empty_folder_is_filled_and_a_file_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("empty");
    fs::create_dir(&folder).unwrap();
    assert!(!write(&folder, &small()).unwrap().reused);
    let file = home.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(write(&file, &small()).unwrap_err().message.contains("cannot use"));
    let error = write(&file.join("below"), &small()).unwrap_err();
    assert!(error.message.contains("file"), "{error}");
}

#[test]
fn options_out_of_range_name_the_option() {
    for (options, name) in [
        (SynthOptions { size: 8, ..small() }, "size is 8"),
        (SynthOptions { quality: 0, ..small() }, "quality is 0"),
        (SynthOptions { val_per_class: 0, ..small() }, "val_per_class is 0"),
    ] {
        let error = write(Path::new("/nonexistent"), &options).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.message.contains(name), "{error}");
    }
}

#[test]
fn partial_folders_of_killed_runs_are_swept_when_old() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("synth");
    let [old, young] = ["1", "2"].map(|pid| home.path().join(format!(".synth.partial-{pid}")));
    for path in [&old, &young] {
        fs::create_dir(path).unwrap();
    }
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::open(&old).unwrap().set_modified(hour_ago).unwrap();
    write(&folder, &small()).unwrap();
    assert!(!old.exists() && young.exists());
}
