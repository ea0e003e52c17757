//! `"explain": true`: where in a picture a logit comes from, against the unfused network; and `"describe": true`.

use crate::common::path;
use crate::{classes, model, objects, picture, plain_model, stdio};
use engine::data::{Preprocessor, Reading};
use engine::infer::explain::ActivationMap;
use engine::infer::file::ModelFile;
use engine::infer::reference::Reference;
use engine::infer::weights::Weights;
use engine::infer::{Options, Precision, Program};
use engine::simd::isa::Isa;
use engine::tensor::Difference;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The last feature map of resnet-tiny and the rows of its classifier.
const LAST: &str = "layer2.0.relu";

struct Case {
    file: ModelFile,
    /// u8 [side][side][3].
    pixels: Vec<u8>,
}

impl Case {
    fn new() -> Self {
        let file = ModelFile::open(Path::new(model())).unwrap();
        let side = file.graph().resolution;
        let mut pixels = vec![0; side * side * 3];
        let transform = file.description().transform();
        let mut preprocessor = Preprocessor::new(transform, Reading::Photograph);
        preprocessor.run(&mut fs::read(picture(&classes()[6])).unwrap(), &mut pixels).unwrap();
        Self { file, pixels }
    }

    /// Logits and maps of all classes.
    fn explained(&self, precision: Precision, isa: Isa) -> Option<(Vec<f32>, Vec<ActivationMap>)> {
        let description = self.file.description();
        let options = Options { isa, ..Options::new(precision, description.mean, description.std) };
        // Not every set has bf16.
        let mut program = Program::compile(self.file.graph(), &self.file, &options).ok()?;
        let logits = program.run(&self.pixels).unwrap().to_vec();
        let all: Vec<usize> = (0..logits.len()).collect();
        Some((logits, program.activation_maps(0, &all).unwrap()))
    }

    /// By class: [position], and sum |w| a / positions; from the network run operation by operation.
    fn unfused(&self) -> Vec<(Vec<f32>, f64)> {
        let reference =
            Reference::new(self.file.graph(), self.file.normalisation(), |name| self.file.f32(name)).unwrap();
        let activations = reference.run(&self.pixels).unwrap();
        let last = activations.read(LAST).unwrap();
        let [_, h, w, c] = last.shape[..] else { panic!("{:?}", last.shape) };
        let weight = self.file.f32("fc.weight").unwrap();
        let of_class = |row: &[f32]| {
            let positions = last.data.chunks_exact(c);
            let products = |a: &[f32], of: fn(f64) -> f64| -> f64 {
                a.iter().zip(row).map(|(a, w)| of(f64::from(*a) * f64::from(*w))).sum::<f64>()
                    / (h * w) as f64
            };
            let map = positions.clone().map(|a| products(a, |x| x) as f32).collect();
            (map, positions.map(|a| products(a, f64::abs)).sum())
        };
        weight.chunks_exact(c).map(of_class).collect()
    }
}

/// The global average pool makes the map exact: sum over positions + bias = logit, in every precision and on every set.
///
/// What separates the two sides is f32 rounding, 2^-24 an operation, of the program's own sums: the positions in a row
/// in the pool, a quarter of the features in a row in the classifier, and a few operations around them; relative to the
/// sum of the terms' magnitudes. 8-bit weights, rounded, may be larger than the f32 ones by half a step of 127.
#[test]
fn maps_and_bias_add_up_to_the_logit() {
    let case = Case::new();
    let unfused = case.unfused();
    let positions = unfused[0].0.len() as f64;
    let features = case.file.f32("fc.weight").unwrap().len() as f64 / unfused.len() as f64;
    let rounding = (positions + features / 4.0 + 8.0) * 2f64.powi(-24) * 1.1;
    let mut checked = 0;
    for precision in Precision::ALL {
        for isa in Isa::available() {
            let Some((logits, maps)) = case.explained(precision, isa) else { continue };
            for (class, (map, logit)) in maps.iter().zip(&logits).enumerate() {
                let magnitude = unfused[class].1 + f64::from(map.bias.abs());
                let off = (map.logit() - f64::from(*logit)).abs();
                let what = format!("{} {} class {class}", isa.name(), precision.name());
                assert!(off <= rounding * magnitude, "{what}: {} of {logit}: off by {off:.2e}", map.logit());
            }
            checked += 1;
        }
    }
    assert!(checked >= 2 * Isa::available().len(), "{checked}");
}

/// Position by position, the fused f32 program says what the unfused network does; bf16 and int8 come near.
#[test]
fn maps_are_those_of_the_unfused_network() {
    let case = Case::new();
    let want: Vec<f32> = case.unfused().into_iter().flat_map(|(map, _)| map).collect();
    for (precision, tolerance) in [
        (Precision::Fp32, 512.0 * f64::from(f32::EPSILON)),
        (Precision::Bf16, 0.0625),
        (Precision::Int8, 0.125),
    ] {
        for isa in Isa::available() {
            let Some((_, maps)) = case.explained(precision, isa) else { continue };
            let got: Vec<f32> = maps.into_iter().flat_map(|map| map.values).collect();
            let what = format!("{} {}", isa.name(), precision.name());
            Difference::between(&got, &want).assert_within(&what, tolerance);
        }
    }
}

#[test]
fn what_was_not_run_cannot_be_explained() {
    let case = Case::new();
    let description = case.file.description();
    let options = Options::new(Precision::Fp32, description.mean, description.std);
    let mut program = Program::compile(case.file.graph(), &case.file, &options).unwrap();
    assert!(program.activation_maps(0, &[0]).unwrap_err().message.contains("the last run had 0"));
    program.run(&case.pixels).unwrap();
    assert!(program.activation_maps(1, &[0]).unwrap_err().message.contains("image 1"));
    assert!(program.activation_maps(0, &[3, 10]).unwrap_err().message.contains("class 10"));
    assert_eq!(program.activation_maps(0, &[]).unwrap(), []);
}

fn ask(model: &str, requests: &[Value]) -> Vec<Value> {
    let lines: Vec<String> = requests.iter().map(Value::to_string).collect();
    objects(&stdio::serve(&["--model", model], lines.join("\n").as_bytes()).expect(0))
}

/// What the page draws: the maps' sums are the logits, whose softmax the predictions are.
#[test]
fn an_answer_explains_each_prediction() {
    let file = picture(&classes()[2]);
    let requests = ["fp32", "int8", "auto"]
        .map(|precision| json!({"file": file, "precision": precision, "explain": true, "top": 3}));
    for answer in ask(model(), &requests) {
        let (predictions, maps) = (&answer["predictions"], &answer["explanation"]["maps"]);
        let number = |value: &Value| value.as_f64().unwrap();
        let logit = |map: &Value| {
            let rows = map["values"].as_array().unwrap().iter().map(|row| row.as_array().unwrap());
            number(&map["bias"]) + rows.flatten().map(number).sum::<f64>()
        };
        assert_eq!(maps.as_array().unwrap().len(), 3, "{answer}");
        for place in 0..3 {
            assert_eq!(maps[place]["index"], predictions[place]["index"]);
            assert!((logit(&maps[place]) - number(&maps[place]["logit"])).abs() < 1e-4, "{answer}");
            let probability = |place: usize| number(&predictions[place]["probability"]);
            let ratio = (logit(&maps[place]) - logit(&maps[0])).exp();
            assert!((probability(place) / probability(0) / ratio - 1.0).abs() < 1e-3, "{answer}");
        }
    }
}

/// The picture that comes back is the one that went in.
#[test]
fn an_answer_shows_what_the_network_saw() {
    let case = Case::new();
    let request = json!({"file": picture(&classes()[6]), "explain": true});
    let answer = ask(model(), &[request]).remove(0);
    let seen = &answer["explanation"]["seen"];
    let side = case.file.graph().resolution;
    assert_eq!((seen["width"].as_u64(), seen["height"].as_u64()), (Some(side as u64), Some(side as u64)));
    assert_eq!(seen["rgb"], stdio::base64(&case.pixels));
}

#[test]
fn unless_it_is_asked_for_nothing_is_explained() {
    let file = picture(&classes()[0]);
    let requests =
        [json!({"file": file}), json!({"file": file, "explain": false}), json!({"file": file, "explain": 1})];
    let answers = ask(model(), &requests);
    assert!(answers[..2].iter().all(|answer| answer.get("explanation").is_none()), "{answers:?}");
    assert!(answers[2]["error"].as_str().unwrap().contains("not understood"), "{}", answers[2]);
}

#[test]
fn a_model_describes_itself() {
    for (file, has_int8) in [(model(), true), (plain_model(), false)] {
        let answer = ask(file, &[json!({"id": 7, "describe": true})]).remove(0);
        let (said, machine) = (&answer["model"], &answer["machine"]);
        assert_eq!((&answer["id"], &said["arch"]), (&json!(7), &json!("resnet-tiny")), "{answer}");
        assert_eq!(said["labels"].as_array().unwrap().len(), 10);
        assert_eq!(said["resolution"], 32);
        assert_eq!(said["source"]["epoch"], 4);
        let scores = said["source"]["scores"].as_object().unwrap();
        assert!(scores.contains_key("val_top1"), "{scores:?}");
        assert_eq!(said.get("int8").is_some(), has_int8);
        let precisions = machine["precisions"].as_array().unwrap();
        assert!(precisions.contains(&json!("fp32")) && precisions.contains(&json!("int8")) == has_int8);
        assert!(precisions.contains(&machine["precision"]), "{machine}");
        assert_eq!(machine["isa"], Isa::current().name());
        assert!(machine["threads"].as_u64().unwrap() >= 1);
    }
    let picture = path(Path::new("a.jpg"));
    let answer = ask(model(), &[json!({"describe": true, "file": picture})]).remove(0);
    assert!(answer["error"].as_str().unwrap().contains("nothing else"), "{answer}");
}
