//! The data preparation scripts, offline, on archives of a few bytes made here. Needs bash, tar and gzip.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const WNIDS: [&str; 10] = [
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
    "n03417042",
    "n03425413",
    "n03445777",
    "n03888257",
];

struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// Runs a shell line in the temporary folder; it must succeed.
    fn sh(&self, line: &str) {
        let output =
            Command::new("bash").args(["-ec", line]).current_dir(self.folder.path()).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn script(&self, name: &str, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets").join(name);
        Command::new("bash")
            .arg(script)
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("DATA_DIR")
            .output()
            .unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn must_pass(output: &Output) -> String {
    assert_eq!(code(output), 0, "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The md5 of a file as the script itself would see it.
fn md5(home: &Home, name: &str) -> String {
    let line = format!("(md5sum {name} || openssl dgst -md5 -r {name}) 2>/dev/null | cut -c 1-32");
    let output = Command::new("bash").args(["-c", &line]).current_dir(home.folder.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

fn fake_imagenette(home: &Home, classes: &[&str]) {
    for class in classes {
        home.file(&format!("imagenette2-160/train/{class}/a.JPEG"), class);
        home.file(&format!("imagenette2-160/val/{class}/b.JPEG"), class);
    }
    home.file("imagenette2-160/noisy_imagenette.csv", "x");
    home.sh("tar -czf small.tgz imagenette2-160");
}

#[test]
fn imagenette_from_a_file_and_again() {
    let home = Home::new();
    fake_imagenette(&home, &WNIDS);
    let sum = md5(&home, "small.tgz");
    let arguments = ["--from", "small.tgz", "--md5", &sum, "--output", "data/nette"];
    let said = must_pass(&home.script("prepare_small.sh", &arguments));
    assert!(said.contains("10 training and 10 validation images in data/nette"), "{said}");
    assert!(said.contains("--data data/nette"), "{said}");
    let labels = fs::read_to_string(home.path("data/nette/classes.txt")).unwrap();
    assert_eq!(labels.lines().next(), Some("n01440764\ttench"));
    let ids: Vec<_> = labels.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(ids, WNIDS);
    assert_eq!(fs::read(home.path("data/nette/val/n03888257/b.JPEG")).unwrap(), b"n03888257");
    assert_eq!(fs::read_dir(home.path("data")).unwrap().count(), 1, "nothing temporary stays");
    let again = home.script("prepare_small.sh", &arguments);
    must_pass(&again);
    assert!(stderr(&again).contains("prepared already"));
}

#[test]
fn imagenette_refuses_wrong_archives_by_name() {
    let home = Home::new();
    fake_imagenette(&home, &WNIDS[..9]);
    let published = home.script("prepare_small.sh", &["--from", "small.tgz", "--output", "out"]);
    assert_eq!(code(&published), 3);
    assert!(stderr(&published).contains("wanted e793b78cc4c9e9a4ccc0c1155377a412"), "{}", stderr(&published));
    let sum = md5(&home, "small.tgz");
    let lacking = home.script("prepare_small.sh", &["--from", "small.tgz", "--md5", &sum, "--output", "out"]);
    assert_eq!(code(&lacking), 3);
    assert!(stderr(&lacking).contains("lacks the classes n03888257"), "{}", stderr(&lacking));
    assert!(!home.path("out").exists());
    let bad_sha =
        home.script("prepare_small.sh", &["--from", "small.tgz", "--sha256", "00", "--output", "out"]);
    assert_eq!(code(&bad_sha), 3);
    home.sh("head -c 100 small.tgz >cut.tgz");
    let sum = md5(&home, "cut.tgz");
    let cut = home.script("prepare_small.sh", &["--from", "cut.tgz", "--md5", &sum, "--output", "out"]);
    assert_eq!(code(&cut), 3, "{}", stderr(&cut));
}

#[test]
fn wrong_command_lines_exit_2_and_help_0() {
    let home = Home::new();
    for name in ["prepare_small.sh", "prepare_imagenet.sh"] {
        assert!(must_pass(&home.script(name, &["--help"])).contains("--output DIR"));
        for arguments in [&["--frob"][..], &["--from"], &["--size", "7"]] {
            let output = home.script(name, arguments);
            assert_eq!(code(&output), 2, "{name} {arguments:?}: {}", stderr(&output));
        }
    }
    let both = home.script("prepare_imagenet.sh", &["--from", "a", "--kaggle", "b", "--output", "o"]);
    assert_eq!(code(&both), 2);
}

/// Three classes whose ILSVRC ids are not in the order of their wnids, five validation images.
fn fake_ilsvrc(home: &Home, meta: &[u8]) {
    for (wnid, count) in [("n01", 3), ("n02", 2), ("n03", 1)] {
        for i in 0..count {
            home.file(&format!("inner/{wnid}/{wnid}_{i}.JPEG"), wnid);
        }
        home.sh(&format!("cd inner/{wnid} && tar -cf ../{wnid}.tar *.JPEG"));
    }
    home.sh("mkdir -p in && cd inner && tar -cf ../in/ILSVRC2012_img_train.tar n01.tar n02.tar n03.tar");
    for i in 1..=5 {
        home.file(&format!("flat/ILSVRC2012_val_{i:08}.JPEG"), format!("{i}"));
    }
    home.sh("cd flat && tar -cf ../in/ILSVRC2012_img_val.tar *.JPEG");
    home.file("kit/ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "2\n1\n3\n2\n1\n");
    home.file("kit/ILSVRC2012_devkit_t12/data/meta.mat", meta);
    home.sh("cd kit && tar -czf ../in/ILSVRC2012_devkit_t12.tar.gz ILSVRC2012_devkit_t12");
}

const SYNSETS: [(u8, &str, &str); 3] =
    [(1, "n02", "kit fox, Vulpes macrotis"), (2, "n01", "tench, Tinca tinca"), (3, "n03", "goose")];

const COUNTS: [&str; 6] = ["--expect-train", "6", "--expect-val", "5", "--expect-classes", "3"];

fn ilsvrc_arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["--from", "in", "--output", "out", "--no-checksum"], &COUNTS[..], more].concat()
}

fn assert_ilsvrc_layout(home: &Home) {
    let val = |path: &str| fs::read_to_string(home.path("out/val").join(path)).unwrap();
    assert_eq!(val("n01/ILSVRC2012_val_00000001.JPEG"), "1", "ground truth 2 is n01");
    assert_eq!(val("n02/ILSVRC2012_val_00000002.JPEG"), "2", "ground truth 1 is n02");
    assert_eq!(val("n03/ILSVRC2012_val_00000003.JPEG"), "3");
    assert_eq!(fs::read_to_string(home.path("out/train/n01/n01_2.JPEG")).unwrap(), "n01");
    let labels = fs::read_to_string(home.path("out/classes.txt")).unwrap();
    assert_eq!(labels, "n01\ttench, Tinca tinca\nn02\tkit fox, Vulpes macrotis\nn03\tgoose\n");
    let mut left: Vec<_> = fs::read_dir(home.path("out")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["classes.txt", "train", "val"]);
}

#[test]
fn imagenet_archives_with_a_list_of_synsets() {
    let home = Home::new();
    fake_ilsvrc(&home, b"unused");
    let lines: String = SYNSETS.iter().map(|(id, wnid, words)| format!("{id}\t{wnid}\t{words}\n")).collect();
    home.file("synsets.tsv", lines);
    let arguments = ilsvrc_arguments(&["--synsets", "synsets.tsv"]);
    must_pass(&home.script("prepare_imagenet.sh", &arguments));
    assert_ilsvrc_layout(&home);
    assert!(stderr(&home.script("prepare_imagenet.sh", &arguments)).contains("prepared already"));
}

#[test]
fn imagenet_goes_on_after_an_interruption() {
    let home = Home::new();
    fake_ilsvrc(&home, b"unused");
    let lines: String = SYNSETS.iter().map(|(id, wnid, words)| format!("{id}\t{wnid}\t{words}\n")).collect();
    home.file("synsets.tsv", lines);
    let arguments = ilsvrc_arguments(&["--synsets", "synsets.tsv"]);
    // The archive is whole for two of three classes: the run stops, and keeps them.
    home.sh("cp -r in whole && cd inner && tar -cf ../in/ILSVRC2012_img_train.tar n01.tar n02.tar");
    let stopped = home.script("prepare_imagenet.sh", &arguments);
    assert_eq!(code(&stopped), 3);
    assert!(stderr(&stopped).contains("training classes: 2, wanted 3"), "{}", stderr(&stopped));
    assert!(!home.path("out").exists());
    home.sh("rm -r in && mv whole in");
    let resumed = home.script("prepare_imagenet.sh", &arguments);
    must_pass(&resumed);
    assert!(stderr(&resumed).contains("2 classes were unpacked before"), "{}", stderr(&resumed));
    assert_ilsvrc_layout(&home);
}

#[test]
fn imagenet_reads_the_devkits_meta_mat() {
    let home = Home::new();
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("left out: python3 is not installed, and only it reads meta.mat");
        return;
    }
    for compressed in [false, true] {
        home.sh("rm -rf in out flat inner kit");
        fake_ilsvrc(&home, &meta_mat(compressed));
        must_pass(&home.script("prepare_imagenet.sh", &ilsvrc_arguments(&[])));
        assert_ilsvrc_layout(&home);
    }
    home.sh("rm -rf in out flat inner kit");
    fake_ilsvrc(&home, &meta_mat(true)[..300]);
    let cut = home.script("prepare_imagenet.sh", &ilsvrc_arguments(&[]));
    assert_eq!(code(&cut), 3);
    assert!(stderr(&cut).contains("cannot be read as the devkit's meta.mat"), "{}", stderr(&cut));
}

/// The engine reads the same archives as they are, and finds what the script lays out.
#[cfg(feature = "train")]
#[test]
fn imagenet_is_read_in_place_with_the_same_labels() {
    for compressed in [false, true] {
        let home = Home::new();
        fake_ilsvrc(&home, &meta_mat(compressed));
        let data = engine::data::Dataset::open(&home.path("in")).unwrap();
        let classes: Vec<_> =
            data.classes.iter().map(|class| (class.id.as_str(), class.label.as_str())).collect();
        let want = [("n01", "tench, Tinca tinca"), ("n02", "kit fox, Vulpes macrotis"), ("n03", "goose")];
        assert_eq!(classes, want);
        let contents = |split: &engine::data::Split| -> Vec<(u32, String)> {
            let text = |i| String::from_utf8(split.read(i).unwrap()).unwrap();
            (0..split.len()).map(|i| (split.label(i), text(i))).collect()
        };
        let pairs =
            |pairs: &[(u32, &str)]| -> Vec<_> { pairs.iter().map(|&(l, t)| (l, t.to_owned())).collect() };
        let train = [(0, "n01"), (0, "n01"), (0, "n01"), (1, "n02"), (1, "n02"), (2, "n03")];
        assert_eq!(contents(&data.train), pairs(&train));
        // The ground truth is 2 1 3 2 1, and id 2 is n01.
        assert_eq!(contents(&data.val), pairs(&[(0, "1"), (0, "4"), (1, "2"), (1, "5"), (2, "3")]));
    }
    let home = Home::new();
    fake_ilsvrc(&home, &meta_mat(true)[..300]);
    let error = engine::data::Dataset::open(&home.path("in")).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(
        error.message.contains("its meta.mat cannot be read") && error.message.contains("synsets.tsv"),
        "{error}"
    );
}

#[test]
fn imagenet_checks_the_archives() {
    let home = Home::new();
    fake_ilsvrc(&home, b"unused");
    let output = home.script("prepare_imagenet.sh", &["--from", "in", "--output", "out"]);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("wanted fa75699e90414af021442c21a62c3abf"), "{}", stderr(&output));
    fs::remove_file(home.path("in/ILSVRC2012_img_val.tar")).unwrap();
    let output = home.script("prepare_imagenet.sh", &ilsvrc_arguments(&[]));
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("in/ILSVRC2012_img_val.tar: no such file"), "{}", stderr(&output));
}

#[test]
fn imagenet_from_kaggles_folder() {
    let home = Home::new();
    let images = "kaggle/ILSVRC/Data/CLS-LOC";
    for (wnid, count) in [("n01", 3), ("n02", 2), ("n03", 1)] {
        for i in 0..count {
            home.file(&format!("{images}/train/{wnid}/{wnid}_{i}.JPEG"), wnid);
        }
    }
    let mut solution = String::from("ImageId,PredictionString\n");
    for (i, wnid) in [(4, "n02"), (1, "n01"), (2, "n02"), (5, "n01"), (3, "n03")] {
        home.file(&format!("{images}/val/ILSVRC2012_val_{i:08}.JPEG"), format!("{i}"));
        solution += &format!("ILSVRC2012_val_{i:08},{wnid} 85 1 499 272 {wnid} 1 2 3 4\n");
    }
    home.file("kaggle/LOC_val_solution.csv", solution);
    home.file(
        "kaggle/LOC_synset_mapping.txt",
        "n01 tench, Tinca tinca\nn02 kit fox, Vulpes macrotis\nn03 goose\n",
    );
    let arguments = [&["--kaggle", "kaggle", "--output", "out"], &COUNTS[..]].concat();
    must_pass(&home.script("prepare_imagenet.sh", &arguments));
    assert_ilsvrc_layout(&home);
    assert!(home.path(&format!("{images}/val/ILSVRC2012_val_00000001.JPEG")).exists(), "the source stays");

    let lacking =
        [&["--kaggle", "kaggle", "--output", "out2"], &COUNTS[..4], &["--expect-classes", "4"]].concat();
    let output = home.script("prepare_imagenet.sh", &lacking);
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("classes.txt: 3, wanted 4"), "{}", stderr(&output));
}

/// A level-5 MAT file with the array of structures that the devkit has: the leaves, and one inner node.
fn meta_mat(compressed: bool) -> Vec<u8> {
    const FIELDS: [&str; 4] = ["ILSVRC2012_ID", "WNID", "words", "num_children"];
    const WIDTH: usize = 32;
    let mut names = Vec::new();
    for field in FIELDS {
        names.extend(field.bytes().chain(std::iter::repeat(0)).take(WIDTH));
    }
    let mut body = [flags(2), element(5, &int32s(&[4, 1])), element(1, b"synsets")].concat();
    body.extend(small_element(5, &int32s(&[WIDTH as i32])));
    body.extend(element(1, &names));
    let inner = (4, "n00", "animal");
    for (i, (id, wnid, words)) in SYNSETS.into_iter().chain([inner]).enumerate() {
        body.extend(number(f64::from(id)));
        body.extend(text(wnid));
        body.extend(text(words));
        body.extend(number(if i == 3 { 2.0 } else { 0.0 }));
    }
    let matrix = element(14, &body);
    let mut file = vec![b' '; 124];
    file.extend([0x00, 0x01, b'I', b'M']);
    if compressed {
        let packed = zlib_stored(&matrix);
        file.extend(15u32.to_le_bytes());
        file.extend((packed.len() as u32).to_le_bytes());
        file.extend(packed);
    } else {
        file.extend(matrix);
    }
    file
}

fn element(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = [kind.to_le_bytes(), (data.len() as u32).to_le_bytes()].concat();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// At most four bytes, kept inside the tag.
fn small_element(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = (kind | (data.len() as u32) << 16).to_le_bytes().to_vec();
    bytes.extend(data);
    bytes.resize(8, 0);
    bytes
}

fn int32s(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn flags(class: u32) -> Vec<u8> {
    element(6, &[class.to_le_bytes(), [0; 4]].concat())
}

fn number(value: f64) -> Vec<u8> {
    let parts = [flags(6), element(5, &int32s(&[1, 1])), element(1, b""), element(9, &value.to_le_bytes())];
    element(14, &parts.concat())
}

fn text(value: &str) -> Vec<u8> {
    let units: Vec<u8> = value.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let parts =
        [flags(4), element(5, &int32s(&[1, value.len() as i32])), element(1, b""), element(4, &units)];
    element(14, &parts.concat())
}

/// A zlib stream of one stored block.
fn zlib_stored(data: &[u8]) -> Vec<u8> {
    let (mut a, mut b) = (1u32, 0u32);
    for &byte in data {
        a = (a + u32::from(byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    let length = data.len() as u16;
    let mut stream = vec![0x78, 0x01, 0x01];
    stream.extend(length.to_le_bytes());
    stream.extend((!length).to_le_bytes());
    stream.extend(data);
    stream.extend((b << 16 | a).to_be_bytes());
    stream
}

/// A program of the name `aws` that has the folder `bucket` for a bucket.
fn fake_aws(home: &Home) {
    home.file(
        "bin/aws",
        "#!/bin/sh\ncase \"$1 $2\" in\n\"s3 ls\") du -sb bucket | awk '{ print \"Total Size: \" $1 }';;\n\
         \"s3 sync\") for last; do :; done; cp -r bucket/. \"$last\";;\n*) exit 1;;\nesac\n",
    );
    home.sh("chmod +x bin/aws; mkdir -p bucket; printf data >bucket/train-000.tar; cd bucket; sha256sum train-000.tar >SHA256SUMS");
}

fn sync(home: &Home, arguments: &[&str]) -> Output {
    let path = format!("{}:{}", home.path("bin").display(), std::env::var("PATH").unwrap());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/sync_to_ec2.sh");
    let mut command = Command::new("bash");
    command
        .arg(script)
        .args(arguments)
        .current_dir(home.folder.path())
        .env("PATH", path)
        .env_remove("DATA_DIR");
    command.output().unwrap()
}

#[test]
fn what_comes_from_s3_is_checked_and_what_is_damaged_is_named() {
    let home = Home::new();
    fake_aws(&home);
    let output = sync(&home, &["--from", "s3://b/imagenet", "--to", "here", "--engine", "none"]);
    must_pass(&output);
    assert_eq!(fs::read(home.path("here/train-000.tar")).unwrap(), b"data");
    home.file("bucket/train-000.tar", "dota");
    let output = sync(&home, &["--from", "s3://b/imagenet", "--to", "here", "--engine", "none"]);
    let says = stderr(&output);
    assert!(code(&output) == 3 && says.contains("train-000.tar"), "{says}");
}

#[test]
fn a_wrong_address_and_a_disk_too_small_are_refused_before_anything_is_copied() {
    let home = Home::new();
    fake_aws(&home);
    assert_eq!(code(&sync(&home, &["--from", "bucket"])), 2);
    let output = sync(&home, &["--from", "s3://b/p", "--to", "/proc/there"]);
    let says = stderr(&output);
    assert!(code(&output) == 1 && says.contains("do not fit"), "{says}");
}

#[test]
fn the_log_is_committed_with_its_curve_and_an_unreachable_remote_is_no_end() {
    let home = Home::new();
    home.file("repo/logs.md", "# Training logs\n");
    home.file("repo/.gitignore", "/curve.svg\n");
    home.file("run/logs.md", "# Training logs\n\nepoch: 1  train_loss: 2.0\n");
    home.file("run/curve.svg", "<svg/>");
    home.sh("mkdir repo/experiments; cd repo; git init -q; git config user.name t; git config user.email t@t; git remote add origin /nowhere; git add -A; git commit -qm begin");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/push_logs.sh");
    fs::copy(script, home.path("repo/experiments/push_logs.sh")).unwrap();
    home.sh("OUTPUT_DIR=run bash repo/experiments/push_logs.sh --once 2>says.txt");
    home.sh("grep -q 'push failed' says.txt; cd repo; git show --stat HEAD | grep -q curve.svg; git show HEAD:logs.md | grep -q 'epoch: 1'");
    // Nothing new: no commit.
    home.sh("OUTPUT_DIR=run bash repo/experiments/push_logs.sh --once; [ \"$(git -C repo rev-list --count HEAD)\" = 2 ]");
}
