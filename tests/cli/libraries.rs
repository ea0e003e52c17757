//! NVIDIA's libraries as they may be found: missing, too old, for another card; and a card that is lost in the middle.
//! Stand-ins (`stub.cpp`) take their place. Needs a C++ compiler; without one the tests say that they were skipped.

use crate::common::{Done, checkpoints, engine, finish, lasting, path, temporary, tiny};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What is looked up in a library, by the prefix of its names, from the files that look it up.
fn functions(prefix: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda/device");
    let is_function = |text: &&str| {
        let rest = text.strip_prefix(prefix);
        rest.is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_uppercase())
                && rest.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    };
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    files
        .flat_map(|text| text.split('"').filter(is_function).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// A folder with the three libraries; `None` without a compiler.
fn libraries() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = lasting("stubs");
        fs::create_dir_all(&folder).unwrap();
        let stub =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/stub.cpp")).unwrap();
        for (file, define, prefix) in [
            ("libcuda.so", "DRIVER", "cu"),
            ("libcublas.so", "CUBLAS", "cublas"),
            ("libcudnn.so", "CUDNN", "cudnn"),
        ] {
            let own = stub.split(&format!("#ifdef {define}")).nth(1);
            let own = own.and_then(|text| text.split("#endif").next()).unwrap_or("");
            let is_own =
                |name: &String| own.contains(&format!(" {name}(")) || own.contains(&format!("FIND({name})"));
            let generic = functions(prefix).into_iter().filter(|name| !is_own(name));
            let text: String = generic.map(|name| format!("GENERIC({name})\n")).collect();
            let source = folder.join(format!("{define}.cpp"));
            fs::write(&source, format!("#define {define}\n{stub}\n{text}")).unwrap();
            let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
            let made = Command::new(compiler)
                .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-o"])
                .args([&folder.join(file), &source])
                .output();
            let Ok(made) = made else {
                eprintln!("skipped: no C++ compiler (CXX or c++)");
                return None;
            };
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        Some(folder)
    });
    folder.as_deref()
}

/// `command` with the stand-ins of `folder`, which are as `settings` say.
fn with<'c>(command: &'c mut Command, folder: &Path, settings: &[(&str, &str)]) -> &'c mut Command {
    command.env("LD_LIBRARY_PATH", folder).envs(settings.iter().copied())
}

fn train(folder: &Path, settings: &[(&str, &str)], more: &[&str]) -> Done {
    train_on("cuda", folder, settings, more)
}

fn train_on(device: &str, folder: &Path, settings: &[(&str, &str)], more: &[&str]) -> Done {
    let output = temporary();
    finish(with(tiny(output.path()).args(["--device", device]).args(more), folder, settings))
}

#[test]
fn what_does_not_fit_is_said_with_what_to_do() {
    let Some(stubs) = libraries() else { return };
    let refused =
        |settings: &[(&str, &str)], words: &[&str]| drop(train(stubs, settings, &[]).fails(70, words));
    refused(&[("STUB_DRIVER", "11040")], &["driver is for CUDA 11.4", "12.1 or later", "driver 530"]);
    refused(&[("STUB_CARDS", "0")], &["driver finds no card", "nvidia-smi"]);
    refused(&[("STUB_CAPABILITY", "61")], &["compute capability 6.1", "7.0 (V100) or later"]);
    refused(&[("STUB_CUDNN", "8907")], &["cuDNN 8.9.7 is too old", "install cuDNN 9"]);
    refused(
        &[("STUB_CAPABILITY", "70"), ("STUB_CUDNN", "91100")],
        &["cuDNN 9.11.0 has no code for Volta", "9.10.2", "nvidia-cudnn-cu12==9.10.2.21"],
    );
    train_on("cuda:3", stubs, &[], &[]).fails(70, &["cuda:3", "has 1 cards"]);
    // What the configuration asks for, and this card cannot do, is the configuration's fault.
    let volta = [("STUB_CAPABILITY", "70")];
    train(stubs, &volta, &["--set", "device.precision=bf16"]).fails(2, &["bf16", "7.0", "choose \"fp16\""]);
    for (resolution, advice) in
        [(2048, "at most 2 fit: lower data.micro_batch"), (4096, "not even one image fits")]
    {
        let key = format!("data.resolution={resolution}");
        let done = train(stubs, &[], &["--set", &key, "--set", "model.arch=resnet152"]);
        done.fails(2, &[&format!("8 images of {resolution} px want "), "15.62 are free", advice]);
    }
}

#[test]
fn a_library_that_is_missing_or_not_whole_is_named() {
    let Some(stubs) = libraries() else { return };
    for (file, words) in [
        ("libcublas.so", ["cuBLAS", "is missing", "nvidia-cublas-cu12"]),
        ("libcudnn.so", ["cuDNN", "is missing", "nvidia-cudnn-cu12"]),
    ] {
        let folder = temporary();
        for other in ["libcuda.so", "libcublas.so", "libcudnn.so"] {
            fs::copy(stubs.join(other), folder.path().join(other)).unwrap();
        }
        fs::remove_file(folder.path().join(file)).unwrap();
        train(folder.path(), &[], &[]).fails(70, &words);
        // Another library under its name: one function is not there.
        fs::copy(stubs.join("libcuda.so"), folder.path().join(file)).unwrap();
        train(folder.path(), &[], &[]).fails(70, &[words[0], "has no cu"]);
    }
}

#[test]
fn doctor_reads_them() {
    let Some(stubs) = libraries() else { return };
    let output = temporary();
    let args = ["doctor", "--output", path(output.path())];
    let doctor = |settings: &[(&str, &str)]| finish(with(&mut engine(args), stubs, settings)).expect(0).out;
    let fine = doctor(&[]);
    for line in [
        "ok       NVIDIA driver  CUDA 12.8",
        "ok       cuDNN          9.10.2",
        "ok       GPU 0          Stub card",
    ] {
        assert!(fine.contains(line), "{line:?}: {fine}");
    }
    assert!(fine.lines().last().unwrap().starts_with("engine train would use: Stub card"), "{fine}");
    let volta = doctor(&[("STUB_CAPABILITY", "70"), ("STUB_CUDNN", "92000")]);
    assert!(volta.contains("missing  GPU 0          cuDNN 9.20.0 has no code for Volta"), "{volta}");
    assert!(volta.contains("engine train would use: the CPU"), "{volta}");
}

/// Runs until the card goes; what it says, and how long it took. A card has three seconds to answer.
fn lose(setting: (&str, &str)) -> Option<(Done, Duration, PathBuf)> {
    lose_after(setting, "3")
}

fn lose_after(setting: (&str, &str), patience: &str) -> Option<(Done, Duration, PathBuf)> {
    let stubs = libraries()?;
    let output = temporary();
    let began = Instant::now();
    let settings = [setting, ("ENGINE_DEVICE_PATIENCE", patience)];
    let done = finish(with(tiny(output.path()).args(["--device", "cuda"]), stubs, &settings));
    Some((done, began.elapsed(), checkpoints(output.path()).pop().unwrap()))
}

#[track_caller]
fn ends_well(lost: (Done, Duration, PathBuf), sentence: &str) {
    let (done, took, newest) = lost;
    let kept = format!("{} is whole, steps lost since: ", newest.display());
    println!("{took:?}: {}", done.err);
    let last = done.expect(70).err.lines().last().unwrap().to_owned();
    assert!(last.starts_with("engine: ") && last.contains(sentence) && last.contains(&kept), "{last}");
    assert!(took < Duration::from_secs(60), "{took:?}");
}

/// Every call fails, and whatever would take the card apart hangs: exit code 70 all the same, at once.
#[test]
fn a_card_that_fails_in_the_middle() {
    let Some(lost) = lose(("STUB_FAILS", "6")) else { return };
    assert!(lost.1 < Duration::from_secs(20), "{:?}", lost.1);
    ends_well(lost, "CUDA_ERROR_LAUNCH_FAILED");
}

/// Nothing ends any more: given up.
#[test]
fn a_card_that_falls_silent_in_the_middle() {
    let Some(lost) = lose(("STUB_SILENT", "6")) else { return };
    ends_well(lost, "Stub card has not answered for 3 s");
}

/// A call of the driver does not come back, and with it the thread that uses the card: another one ends the process.
#[test]
fn a_driver_that_does_not_return() {
    let Some(lost) = lose(("STUB_BLOCKS", "6")) else { return };
    ends_well(lost, "the card has not answered for 3 s: the driver does not return from \"");
}

/// Without the variable: given up after 50 s, gone within 60.
#[test]
#[ignore = "waits 50 s"]
fn a_card_has_fifty_seconds() {
    for (how, sentence) in
        [("STUB_SILENT", "has not answered for 50 s"), ("STUB_BLOCKS", "for 50 s: the driver")]
    {
        let Some(lost) = lose_after((how, "6"), "") else { return };
        ends_well(lost, sentence);
    }
}
