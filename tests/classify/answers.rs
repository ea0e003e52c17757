//! What is answered, and in which form.

use crate::common::{Done, finish, path, temporary};
use crate::{checkpoint, classes, classify, model, objects, picture, plain_model, run};
use engine::data::{Preprocessor, Reading};
use engine::infer::file::ModelFile;
use engine::infer::{Options, Precision, Program};
use engine::simd::isa::Isa;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Stdio;

/// Probabilities by class.
fn probabilities(answer: &Value) -> Vec<f64> {
    let predictions = answer["predictions"].as_array().unwrap();
    let mut by_class: Vec<(u64, f64)> = predictions
        .iter()
        .map(|p| (p["index"].as_u64().unwrap(), p["probability"].as_f64().unwrap()))
        .collect();
    by_class.sort_by_key(|(index, _)| *index);
    by_class.into_iter().map(|(_, probability)| probability).collect()
}

/// Largest difference between two lists of probabilities.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Two implementations of the network, one of them the trainer's, from one checkpoint. Logits of a few units with a
/// relative error of 1e-5 move a probability by less than 1e-4.
#[test]
fn answers_are_those_of_engine_predict() {
    let pictures: Vec<String> = classes().iter().map(|class| picture(class)).collect();
    let pictures: Vec<&str> = pictures.iter().map(String::as_str).collect();
    let args = ["predict", "--checkpoint", path(checkpoint()), "--json", "--top", "10"];
    let want = finish(crate::common::engine(args).args(&pictures)).expect(0);
    for isa in Isa::available() {
        let args = ["--model", model(), "--json", "--top=10", "--precision=fp32", "--isa", isa.name()];
        let got = finish(classify(&args).args(&pictures)).expect(0);
        for (got, want) in objects(&got).iter().zip(objects(&want)) {
            assert_eq!(got["file"], want["file"]);
            let off = distance(&probabilities(got), &probabilities(&want));
            assert!(off < 1e-4, "{}: {}: {off:.2e}", isa.name(), got["file"]);
        }
        assert_eq!(got.out.lines().count(), pictures.len());
    }
}

/// The binary adds nothing to the library and takes nothing away.
#[test]
fn answers_are_the_librarys() {
    let file = ModelFile::open(Path::new(model())).unwrap();
    let description = file.description().clone();
    for precision in [Precision::Fp32, Precision::Int8] {
        let options = Options::new(precision, description.mean, description.std);
        let mut program = Program::compile(file.graph(), &file, &options).unwrap();
        let side = file.graph().resolution;
        let mut pixels = vec![0; side * side * 3];
        let picture = picture(&classes()[4]);
        let mut preprocessor = Preprocessor::new(description.transform(), Reading::Photograph);
        preprocessor.run(&mut fs::read(&picture).unwrap(), &mut pixels).unwrap();
        let logits = program.run(&pixels).unwrap();
        let label = |index: usize| description.classes[index].1.as_str();
        let want = serde_json::json!({
            "file": picture, "predictions": engine::infer::top::top(logits, label, 3),
        });
        let args = ["--model", model(), "--json", "--top=3", "--precision", precision.name(), &picture];
        assert_eq!(run(&args).expect(0).out.trim_end(), want.to_string());
    }
}

#[test]
fn for_a_person_and_for_a_program() {
    let picture = picture(&classes()[0]);
    let done = run(&["--model", model(), "--top", "2", &picture]).expect(0);
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, picture.as_str()), "{}", done.out);
    assert!(lines[1..].iter().all(|line| line.contains('%') && line.ends_with(')')), "{}", done.out);
    assert!(done.err.is_empty());

    let answer = objects(&run(&["--model", model(), "--json", &picture]).expect(0)).remove(0);
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["file", "predictions"]);
    let first = &answer["predictions"][0];
    assert!(
        first["index"].is_u64() && first["label"].is_string() && first["probability"].is_f64(),
        "{first}"
    );
    assert_eq!(answer["predictions"].as_array().unwrap().len(), 5);
    // More classes than there are: all of them.
    let all = objects(&run(&["--model", model(), "--json", "--top", "99", &picture]).expect(0)).remove(0);
    let sum: f64 = probabilities(&all).iter().sum();
    assert!((sum - 1.0).abs() < 1e-9 && probabilities(&all).len() == 10, "{sum}");
}

#[test]
fn a_picture_comes_through_standard_input() {
    let picture = picture(&classes()[1]);
    let from_file = run(&["--model", model(), "--json", &picture]).expect(0);
    let stdin = Stdio::from(fs::File::open(&picture).unwrap());
    let from_stdin = finish(classify(&["--model", model(), "--json", "-"]).stdin(stdin)).expect(0);
    assert_eq!(objects(&from_stdin)[0]["predictions"], objects(&from_file)[0]["predictions"]);
    assert_eq!(objects(&from_stdin)[0]["file"], "-");
}

/// A photograph that lies on its side is answered as the upright one; JPEG's EXIF is put in front of the first marker.
#[test]
fn exif_turns_a_photograph() {
    let upright = fs::read(picture(&classes()[2])).unwrap();
    let exif = |value: u8| {
        let block =
            [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0", &[value][..], b"\0\0\0\0\0\0"].concat();
        let length = (block.len() as u16 + 8).to_be_bytes();
        [&upright[..2], b"\xff\xe1", &length, b"Exif\0\0", &block, &upright[2..]].concat()
    };
    let folder = temporary();
    let answer = |value: u8| {
        let file = folder.path().join(format!("{value}.jpg"));
        fs::write(&file, exif(value)).unwrap();
        let done =
            run(&["--model", model(), "--json", "--top=10", "--precision=fp32", path(&file)]).expect(0);
        probabilities(&objects(&done)[0])
    };
    let stored = answer(1);
    let turned: Vec<f64> = (2..=8).map(|value| distance(&answer(value), &stored)).collect();
    assert!(turned.iter().all(|distance| *distance > 1e-6), "an orientation changed nothing: {turned:?}");
}

#[test]
fn every_precision_says_what_it_ran_on() {
    let picture = picture(&classes()[3]);
    for isa in Isa::available() {
        for precision in Precision::ALL {
            let done = ask(isa, &format!(r#"{{"file":"{picture}","precision":"{}"}}"#, precision.name()));
            let answer = objects(&done).remove(0);
            if answer.get("error").is_some() {
                assert_eq!(precision, Precision::Bf16, "{answer}");
                assert!(answer["error"].as_str().unwrap().contains("bf16"), "{answer}");
            } else {
                assert_eq!(answer["path"], format!("{} {}", isa.name(), precision.name()));
            }
        }
        let answer = objects(&ask(isa, &format!(r#"{{"file":"{picture}","precision":"auto"}}"#))).remove(0);
        let fastest = Precision::fastest(isa, true).name();
        assert_eq!(answer["path"], format!("{} {fastest}", isa.name()));
    }
}

fn ask(isa: Isa, request: &str) -> Done {
    crate::stdio::serve(&["--model", model(), "--isa", isa.name()], request.as_bytes()).expect(0)
}

/// Threads divide the work by the network's shape alone.
#[test]
fn the_number_of_threads_changes_nothing() {
    let picture = picture(&classes()[5]);
    let answer = |threads: &str| {
        run(&["--model", plain_model(), "--json", "--top=10", "--threads", threads, &picture]).expect(0).out
    };
    assert_eq!(answer("1"), answer("2"));
    assert_eq!(answer("1"), answer("5"));
}

#[test]
fn a_profile_lists_every_layer_beside_the_peak() {
    let picture = picture(&classes()[0]);
    let done = run(&["--model", model(), "--json", "--profile", "--precision", "fp32", &picture]).expect(0);
    assert_eq!(objects(&done).len(), 1);
    for word in ["layer1.0.relu1", "maxpool", "fc", "GFLOP/s", "of peak", "sum", "fp32"] {
        assert!(done.err.contains(word), "{word} in\n{}", done.err);
    }
}

#[test]
fn help_and_version() {
    let help = run(&["--help"]).expect(0);
    for word in
        ["--model", "--stdio", "--isa", "--precision", "--profile", "--max-pixels", "explain", "Exit codes"]
    {
        assert!(help.out.contains(word), "{word}");
    }
    assert!(help.out.lines().all(|line| line.len() <= 120));
    assert_eq!(run(&["--version"]).expect(0).out, format!("classify {}\n", env!("CARGO_PKG_VERSION")));
}
