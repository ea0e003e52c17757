use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::*;
use super::{class_folders, jpeg, tar};

fn names(split: &Split) -> Vec<(String, u32)> {
    let base = |name: String| name.rsplit(['/', ':']).next().unwrap_or("").to_string();
    (0..split.len()).map(|i| (base(split.name(i)), split.label(i))).collect()
}

fn refusal(path: &Path) -> String {
    let error = Dataset::open(path).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(!error.message.contains('\n'), "one sentence: {error}");
    error.message
}

#[test]
fn class_folders_in_imagefolder_order() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for name in [
        "train/b/2.jpg",
        "train/b/10.JPEG",
        "train/b/in/1.png",
        "train/a/x.webp",
        "val/a/1.jpg",
        "val/b/1.jpg",
    ] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
    for ignored in ["train/b/._2.jpg", "train/b/notes.txt", "train/stray.jpg"] {
        fs::write(root.join(ignored), b"x").unwrap();
    }
    fs::create_dir_all(root.join("train/.cache")).unwrap();
    symlink(root.join("train/b/2.jpg"), root.join("train/a/link.jpg")).unwrap();
    fs::write(root.join("classes.txt"), "b\tbee\na\tant\n").unwrap();
    let data = Dataset::open(root).unwrap();
    let class = |id: &str, label: &str| Class { id: id.into(), label: label.into() };
    assert_eq!(data.classes, [class("a", "ant"), class("b", "bee")]);
    let want = [("link.jpg", 0), ("x.webp", 0), ("10.JPEG", 1), ("2.jpg", 1), ("1.png", 1)];
    assert_eq!(names(&data.train), want.map(|(n, l)| (n.to_string(), l)));
    assert_eq!(data.train.read(0).unwrap(), b"x");
    assert_eq!(data.train.name(4), root.join("train/b/in/1.png").display().to_string());
}

#[test]
fn the_same_images_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    class_folders(root, 3, 2);
    let folder = Dataset::open(root).unwrap();
    let members = |prefix: &str, split: &Split, class: &[Class]| -> Vec<(String, Vec<u8>)> {
        // Backwards: the order must come from the names.
        let name = |i: usize| split.name(i).rsplit('/').next().unwrap().to_string();
        let path = |i: usize| format!("{prefix}{}/{}", class[split.label(i) as usize].id, name(i));
        (0..split.len()).rev().map(|i| (path(i), split.read(i).unwrap())).collect()
    };
    let write = |path: &Path, members: &[(String, Vec<u8>)]| {
        let members: Vec<(&str, Vec<u8>)> = members.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        tar(path, &members);
    };
    let (train, val, classes) = (&folder.train, &folder.val, &folder.classes);
    // One tar, under a folder; the names are long enough for GNU long names.
    let top = format!("./{}/", "long".repeat(40));
    let mut all = members(&format!("{top}train/"), train, classes);
    all.extend(members(&format!("{top}val/"), val, classes));
    all.push((format!("{top}classes.txt"), b"cat\tCat\ndog\tDog\nowl\tOwl".to_vec()));
    write(&root.join("one.tar"), &all);
    // Shards, the last of a single class.
    let shards = root.join("shards");
    fs::create_dir(&shards).unwrap();
    let list = members("", train, classes);
    write(&shards.join("train-0.tar"), &list[3..]);
    write(&shards.join("train-1.tar"), &list[..3]);
    write(&shards.join("validation.tar"), &members("x/", val, classes));
    for path in [root.join("one.tar"), shards] {
        let other = Dataset::open(&path).unwrap();
        for (a, b) in [(&folder.train, &other.train), (&folder.val, &other.val)] {
            assert_eq!(names(a), names(b), "{}", path.display());
            assert!((0..a.len()).all(|i| a.read(i).unwrap() == b.read(i).unwrap()));
            assert!((0..a.len()).all(|i| a.bytes(i).unwrap() == b.bytes(i).unwrap()));
        }
        assert_eq!(other.classes.len(), 3);
    }
    assert_eq!(Dataset::open(&root.join("one.tar")).unwrap().classes[2].label, "Owl");
}

#[test]
fn webdataset_by_cls_and_by_json() {
    let dir = tempfile::tempdir().unwrap();
    let image = || b"x".to_vec();
    tar(
        &dir.path().join("train-00.tar"),
        &[
            ("a.b.jpg", image()),
            ("a.cls", b"2\n".to_vec()),
            ("k.json", br#"{"label": 1}"#.to_vec()),
            ("k.jpg", image()),
        ],
    );
    tar(&dir.path().join("train-01.tar"), &[("d/z.cls", b"0".to_vec()), ("d/z.png", image())]);
    tar(
        &dir.path().join("val-0.tar"),
        &[("v.jpg", image()), ("v.json", br#"{"label": 1, "id": 7}"#.to_vec())],
    );
    let data = Dataset::open(dir.path()).unwrap();
    assert_eq!(names(&data.train), [("a.b.jpg", 2), ("k.jpg", 1), ("z.png", 0)].map(|(n, l)| (n.into(), l)));
    assert_eq!((data.classes.len(), data.val.label(0)), (3, 1));
    fs::write(dir.path().join("classes.txt"), "x\tEx\ny\tWhy\n").unwrap();
    let message = refusal(dir.path());
    assert!(message.contains("classes.txt names 2 classes, and the shards have class 2"), "{message}");

    tar(&dir.path().join("val-0.tar"), &[("v.jpg", image()), ("w.cls", b"1".to_vec())]);
    let message = refusal(dir.path());
    assert!(message.contains("no label for its member v.jpg: v.cls or v.json"), "{message}");
    tar(&dir.path().join("val-0.tar"), &[("v.jpg", image()), ("v.cls", b"cat".to_vec())]);
    assert!(refusal(dir.path()).contains("its member v.cls should hold the class as an integer"));
}

#[test]
fn what_is_wrong_with_a_folder_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    assert!(refusal(&root.join("none")).contains("cannot read the data"));
    assert!(refusal(root).contains("neither train nor val is in it, it is empty; expected train/<class>/"));
    fs::create_dir_all(root.join("train")).unwrap();
    assert!(refusal(root).contains("no class folders"));
    fs::create_dir_all(root.join("train/a")).unwrap();
    assert!(refusal(root).contains("train/a: a class folder without images"));
    fs::write(root.join("train/a/1.jpg"), b"x").unwrap();
    assert!(refusal(root).contains("train is there, val is not"));
    fs::create_dir_all(root.join("val/b")).unwrap();
    fs::write(root.join("val/b/1.jpg"), b"x").unwrap();
    assert!(refusal(root).contains("train has 1 classes and val has 1: train has a and val does not"));
}

#[test]
fn what_is_wrong_with_a_tar_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.tar");
    let image = || jpeg(16, 16, 0);
    let good = [("train/a/1.jpg", image()), ("train/a/2.jpg", image()), ("val/a/1.jpg", image())];
    tar(&path, &good);
    assert!(Dataset::open(&path).is_ok());
    let whole = fs::read(&path).unwrap();
    let member = 512 + image().len().next_multiple_of(512);
    fs::write(&path, &whole[..2 * member - 300]).unwrap();
    let message = refusal(&path);
    assert!(message.contains("its member train/a/2.jpg ends at offset"), "{message}");
    fs::write(&path, &whole[..2 * member]).unwrap();
    let message = refusal(&path);
    assert!(
        message.contains("cut short after train/a/2.jpg") && message.contains("truncate -s +1024"),
        "{message}"
    );
    // The advice works: now only val is missing.
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(&[0; 1024]).unwrap();
    assert!(refusal(&path).contains("train is there, val is not"));
    fs::write(&path, &whole[..2 * member + 100]).unwrap();
    assert!(refusal(&path).contains("damaged after train/a/2.jpg"), "{}", refusal(&path));

    fs::write(&path, [0x1f, 0x8b, 8, 0]).unwrap();
    assert!(refusal(&path).contains("unpack it with `gunzip "), "{}", refusal(&path));
    tar(&path, &[("train/a/1.jpg", image()), ("train/b/", vec![]), ("val/a/1.jpg", image())]);
    assert!(refusal(&path).contains("its class folder b has no images"), "{}", refusal(&path));
    tar(&path, &[("train/a/1.jpg", image()), ("val/b/1.jpg", image())]);
    assert!(refusal(&path).contains("train has a and val does not"));
    fs::create_dir(dir.path().join("s")).unwrap();
    tar(&dir.path().join("s/train.tar"), &[("n1.tar", vec![0; 512]), ("n2.tar", vec![0; 512])]);
    assert!(refusal(&dir.path().join("s")).contains("a tar of tars (n1.tar)"));
}

#[test]
fn a_tar_that_shrinks_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.tar");
    tar(&path, &[("train/a/1.jpg", jpeg(16, 16, 0)), ("val/a/1.jpg", jpeg(16, 16, 1))]);
    let data = Dataset::open(&path).unwrap();
    assert!(data.val.read(0).is_ok());
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1024).unwrap();
    let message = data.val.read(0).unwrap_err().message;
    assert!(message.contains("d.tar:val/a/1.jpg: the tar has become shorter"), "{message}");
}

#[test]
fn undivided_folders_and_lists_open_for_tools() {
    let dir = tempfile::tempdir().unwrap();
    class_folders(dir.path(), 2, 1);
    let all = Splits::open(&dir.path().join("train")).unwrap();
    assert_eq!((all.splits[0].0.as_str(), all.splits[0].1.len(), all.classes.len()), ("all", 6, 3));
    let both = Splits::open(dir.path()).unwrap();
    assert_eq!(
        both.splits.iter().map(|(n, s)| (n.as_str(), s.len())).collect::<Vec<_>>(),
        [("train", 6), ("val", 3)]
    );
    let list = Split::from_files([(dir.path().join("val/cat/cat_000.jpg"), 7)]);
    assert_eq!((list.len(), list.label(0)), (1, 7));
    assert!(list.read(0).unwrap().starts_with(b"\xff\xd8"));
}
