//! What is said about GPUs, on machines without one.

use crate::common::{data, path, run, temporary};
use serde_json::Value;
use std::path::Path;

fn has_card() -> bool {
    Path::new("/dev/nvidia0").exists()
}

#[test]
fn training_on_a_card_that_is_not_there_is_a_device_failure() {
    if has_card() {
        return eprintln!("skipped: this machine has a card");
    }
    let folder = temporary();
    let train = |device| {
        let output = path(folder.path());
        run(&[
            "train",
            "--data",
            path(data()),
            "--output",
            output,
            "--set",
            "model.arch=resnet-tiny",
            "--device",
            device,
        ])
    };
    for device in ["cuda", "cuda:1"] {
        train(device).fails(70, &["driver"]);
    }
    run(&["check", "--device", "cuda"]).fails(70, &["driver"]);
    run(&["bench", "kernels"]).fails(70, &["driver"]);
    run(&["bench", "kernels", "--device", "cpu"]).fails(2, &["cargo bench --bench conv"]);
}

#[test]
fn a_copy_is_measured_in_main_memory() {
    let done = run(&["bench", "copy", "--device", "cpu", "--json"]).expect(0);
    let answer: Value = serde_json::from_str(&done.out).unwrap();
    assert!(answer["gigabytes_per_second"].as_f64().unwrap() > 0.1, "{answer}");
    assert!(answer["device"].as_str().unwrap().starts_with("main memory"), "{answer}");
}

#[test]
fn doctor_names_what_is_there_and_what_is_missing() {
    let folder = temporary();
    let output = path(folder.path());
    let done = run(&["doctor", "--output", output]).expect(0);
    for what in ["CPU", "memory", "JPEG decoder", "disk", "NVIDIA driver", "cuBLAS", "cuDNN", "NCCL"] {
        assert!(done.out.contains(what), "{what}: {}", done.out);
    }
    assert!(done.out.lines().last().unwrap().starts_with("engine train would use: "), "{}", done.out);
    if !has_card() {
        assert!(done.out.contains("\noptional NCCL "), "one GPU never needs it: {}", done.out);
        assert!(done.out.lines().last().unwrap().contains("no NVIDIA card is seen here"), "{}", done.out);
        assert!(!done.out.contains("cuDNN (libcudnn.so) is missing"), "a name is said once: {}", done.out);
    }
    let done = run(&["doctor", "--output", output, "--json"]).expect(0);
    let report: Value = serde_json::from_str(&done.out).unwrap();
    assert!(report["findings"].as_array().unwrap().len() >= 8 && report["trains_on"].is_string(), "{report}");
    for finding in report["findings"].as_array().unwrap() {
        let keys: Vec<&String> = finding.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["found", "good", "optional", "what"], "scripts read these");
        assert!(finding["what"].is_string() && finding["good"].is_boolean() && finding["found"].is_string());
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "the disk's measure is taken away again"
    );
    let nowhere = run(&["doctor", "--output", "/nowhere/at/all"]).expect(0);
    assert!(nowhere.out.contains("cannot be written"), "{}", nowhere.out);
}
