//! What a file gives back, and every way in which it can be refused.

use super::*;
use crate::data::Interpolation;
use crate::model::spec::{MEAN, RESNET_TINY, STD};
use proptest::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

fn description(int8: Option<Calibration>) -> Description {
    Description {
        arch: RESNET_TINY.name.into(),
        classes: (0..10).map(|i| (format!("n{i:04}"), format!("class {i}"))).collect(),
        resolution: 16,
        crop_ratio: 0.875,
        interpolation: Interpolation::Bilinear,
        mean: MEAN,
        std: STD,
        source: Source::default(),
        int8,
        crc32c: BTreeMap::new(),
    }
}

/// Element `i` of the tensor that comes `at`th.
fn value(at: usize, i: usize) -> f32 {
    ((at * 31 + i * 7) % 1009) as f32 / 1009.0 + 0.001
}

fn graph() -> Graph {
    lower(&RESNET_TINY, 16).unwrap()
}

fn entry<'a>(name: impl Into<Cow<'a, str>>, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Entry<'a> {
    Entry { name: name.into(), dtype, shape: shape.to_vec(), bytes: bytes.into() }
}

fn f32_bytes(at: usize, elements: usize) -> Vec<u8> {
    (0..elements).flat_map(|i| value(at, i).to_le_bytes()).collect()
}

fn state_entries(graph: &Graph) -> Vec<Entry<'static>> {
    let params = graph.params.iter().map(|param| (param.name.clone(), param.shape.clone()));
    let buffers = graph.buffers.iter().map(|buffer| (buffer.name.clone(), vec![buffer.channels]));
    let tensor = |(at, (name, shape)): (usize, (String, Vec<usize>))| {
        let bytes = f32_bytes(at, shape.iter().product());
        entry(name, Dtype::F32, &shape, bytes)
    };
    params.chain(buffers).enumerate().map(tensor).collect()
}

fn int8_entries(graph: &Graph) -> (Vec<Entry<'static>>, Calibration) {
    let (mut entries, mut scales) = (vec![], BTreeMap::new());
    for (at, unit) in units(graph).into_iter().enumerate() {
        let (layer, shape) = match &unit {
            Unit::Conv(unit) => {
                if unit.relu {
                    scales.insert(graph.tensors[unit.y].name.clone(), 0.01 * (at + 1) as f32);
                }
                let s = unit.shape;
                (layer_name(graph, unit.weight).to_owned(), vec![s.k, s.r, s.s, s.c])
            }
            Unit::Linear { weight, .. } => ("fc".to_owned(), graph.params[*weight].shape.clone()),
            _ => continue,
        };
        let bytes = (0..shape.iter().product()).map(|i: usize| (at + 3 * i) as u8).collect();
        entries.push(entry(format!("int8.{layer}.weight"), Dtype::I8, &shape, bytes));
        entries.push(entry(format!("int8.{layer}.scale"), Dtype::F32, &shape[..1], f32_bytes(at, shape[0])));
        entries.push(entry(
            format!("int8.{layer}.bias"),
            Dtype::F32,
            &shape[..1],
            f32_bytes(at + 1, shape[0]),
        ));
        if layer == "conv1" {
            entries.push(entry("int8.conv1.padding", Dtype::U8, &[3], vec![124, 116, 104]));
        }
    }
    (entries, Calibration { method: "mse".into(), images: 1, scales })
}

fn assemble(mut entries: Vec<Entry>, description: &Description) -> Vec<u8> {
    let mut file = head(&mut entries, description);
    entries.iter().for_each(|entry| file.extend_from_slice(&entry.bytes));
    file
}

fn plain() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| assemble(state_entries(&graph()), &description(None)))
}

fn with_int8() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let graph = graph();
        let (int8, calibration) = int8_entries(&graph);
        let entries = state_entries(&graph).into_iter().chain(int8).collect();
        assemble(entries, &description(Some(calibration)))
    })
}

fn open(bytes: &[u8]) -> Result<ModelFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.engine");
    fs::write(&path, bytes).unwrap();
    ModelFile::open(&path)
}

/// Reads everything that a program could ask for.
fn use_all(model: &ModelFile) -> Result<()> {
    let graph = model.graph().clone();
    for unit in units(&graph) {
        match &unit {
            Unit::Conv(unit) => {
                model.convolution(unit, &mut |_, _| {})?;
                if model.has_int8() {
                    model.quantised(unit)?;
                    if unit.relu {
                        model.scale(unit.y)?;
                    }
                }
            }
            Unit::Linear { weight, bias, .. } => {
                model.classifier(*weight, *bias)?;
                if model.has_int8() {
                    model.quantised_classifier(*weight, *bias)?;
                }
            }
            Unit::MaxPool { .. } | Unit::AvgPool { .. } => {}
        }
    }
    Ok(())
}

#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    let error = open(bytes).and_then(|model| use_all(&model)).expect_err("it should be refused");
    assert_eq!(error.exit_code(), 3);
    assert!(!error.message.contains('\n') && error.message.contains("model.engine: "), "{error}");
    for word in words {
        assert!(error.message.contains(word), "{word:?} in {error}");
    }
}

#[test]
fn what_is_written_comes_back() {
    let model = open(with_int8()).unwrap();
    use_all(&model).unwrap();
    let graph = model.graph();
    for (at, param) in graph.params.iter().enumerate() {
        let got = model.f32(&param.name).unwrap();
        let want: Vec<f32> = (0..param.elements()).map(|i| value(at, i)).collect();
        assert_eq!(got, want, "{}", param.name);
    }
    let Unit::Conv(stem) = &units(graph)[0] else { panic!("a ResNet begins with a convolution") };
    let quantised = model.quantised(stem).unwrap();
    assert_eq!(quantised.padding, [124, 116, 104]);
    assert_eq!(quantised.weight[..3], [0, 3, 6]);
    assert_eq!(model.scale(graph.input).unwrap(), 1.0);
    let pooled = graph.tensors.iter().position(|tensor| tensor.name == "maxpool").unwrap();
    assert_eq!(model.scale(pooled).unwrap(), model.scale(stem.y).unwrap());
    let description = model.description();
    assert_eq!((description.classes[3].1.as_str(), description.transform().resize), ("class 3", 18));
}

#[test]
fn tensors_are_aligned_and_bytes_depend_on_the_content_alone() {
    let header = layout::decode(with_int8()).unwrap();
    assert!(header.start.is_multiple_of(layout::ALIGNMENT));
    for name in header.tensors.offset_keys() {
        let info = header.tensors.info(&name).unwrap();
        let (from, to) = info.data_offsets;
        let alignment = if (to - from).is_multiple_of(64) { 64 } else { info.dtype.bitsize() / 8 };
        assert!(from.is_multiple_of(alignment), "{name} at {from}");
    }
    let graph = graph();
    let (int8, calibration) = int8_entries(&graph);
    let entries = int8.into_iter().rev().chain(state_entries(&graph)).collect();
    assert!(assemble(entries, &description(Some(calibration))) == with_int8());
}

#[test]
fn eight_bits_without_calibration_say_how() {
    let model = open(plain()).unwrap();
    let Unit::Conv(stem) = &units(model.graph())[0] else { panic!("a ResNet begins with a convolution") };
    assert!(model.quantised(stem).unwrap_err().message.contains("--int8 --calibrate DIR"));
    assert!(model.scale(stem.y).unwrap_err().message.contains("--int8 --calibrate DIR"));
}

#[test]
fn other_files_are_named_for_what_they_are() {
    let safetensors = |json: &str| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    let make = "engine export --checkpoint";
    refused(b"", &["is empty", make]);
    refused(b"\xff\xd8\xff\xe0 a photograph", &["is no model", make]);
    refused(b"PK\x03\x04 and so on", &["is a .pth", make]);
    refused(&[0; 5000], &["all zeros"]);
    refused(
        &safetensors(r#"{"fc.bias":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#),
        &["is a checkpoint or other safetensors", make],
    );
    refused(&safetensors(r#"{"__metadata__":{"engine.digest":"00","format":"pt"}}"#), &["is a checkpoint"]);
    let folder = tempfile::tempdir().unwrap();
    let error = ModelFile::open(folder.path()).err().unwrap();
    assert!(error.message.contains("is a folder") && error.exit_code() == 3, "{error}");
    let error = ModelFile::open(&folder.path().join("absent")).err().unwrap();
    assert!(error.message.contains("engine export") && error.exit_code() == 3, "{error}");
}

#[test]
fn torn_files_are_refused() {
    let file = plain();
    for length in [1, 8, 20, 41, 45, 50, 100, 1000, file.len() / 2, file.len() - 1] {
        refused(&file[..length], &["export"]);
    }
    refused(&file[..file.len() / 2], &["cut off"]);
    refused(&[file, b"more"].concat(), &["added to"]);
    let mut damaged = file.to_vec();
    *damaged.last_mut().unwrap() ^= 1;
    refused(&damaged, &["checksum", "damaged"]);
    let mut torn = file.to_vec();
    torn[file.len() / 2..].fill(0);
    refused(&torn, &["checksum", "damaged"]);
}

/// A file with another header, rightly checked.
fn with_header(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    let start = layout::decode(file).unwrap().start;
    let json = String::from_utf8(file[8..start].to_vec()).unwrap();
    assert!(json.contains(from), "{from}");
    let json = json.replace(from, to);
    let check = r#"{"__metadata__":{"engine.check":""#.len();
    let mut head = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    head[8 + check..][..8].fill(b'0');
    let digits = layout::digits(&head);
    head[8 + check..][..8].copy_from_slice(digits.as_bytes());
    [&head, &file[start..]].concat()
}

#[test]
fn whole_files_that_do_not_fit_are_refused() {
    let version = |to: &str| with_header(plain(), r#""engine.version":"1""#, to);
    refused(&version(r#""engine.version":"2""#), &["version 2", "reads 1", "newer program"]);
    refused(&version(r#""engine.version":"x""#), &["no format version"]);
    refused(&with_header(plain(), "cpu-model", "cpu-nodel"), &["is no model for the CPU"]);
    refused(
        &with_header(plain(), "resnet-tiny", "resnet-huge"),
        &["resnet-huge", "newer program", "resnet50"],
    );
    refused(&with_header(plain(), "resnet-tiny", "resnet50"), &["resnet50 wants"]);
    refused(&with_header(plain(), r#""fc.bias":"#, r#""fc.bios":"#), &["fc.bias is missing"]);
    refused(&with_header(plain(), r#"\"resolution\":16"#, r#"\"resolution\":0"#), &["resolution 0"]);
    refused(&with_header(plain(), r#"\"std\":[0.229"#, r#"\"std\":[0.0"#), &["std [0.0"]);
    refused(&with_header(plain(), r#"\"std\":[0.229"#, r#"\"std\":[\"a\""#), &["description"]);
    refused(&with_header(with_int8(), "int8.fc.scale", "int8.fc.scala"), &["int8.fc.scale is missing"]);
    refused(&with_header(with_int8(), "layer1.0.relu1", "layer1.0.relu9"), &["scale of layer1.0.relu1"]);
    let swapped = with_header(plain(), "layer1.0.bn1.weight", "layer1.0.bn1.biaz");
    refused(&swapped, &["layer1.0.bn1.weight is missing"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// No bytes make it panic, and no flipped bit goes unseen.
    #[test]
    fn a_changed_file_is_refused(at in any::<proptest::sample::Index>(), bit in 0..8u8, cut in any::<bool>()) {
        let mut file = with_int8().to_vec();
        let at = at.index(file.len());
        if cut {
            file.truncate(at);
        } else {
            file[at] ^= 1 << bit;
        }
        prop_assert!(open(&file).and_then(|model| use_all(&model)).is_err());
    }

    /// Headers are where a reader could trip: rightly checked ones with any of their bytes replaced.
    #[test]
    fn a_forged_header_never_panics(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), prop_oneof![
            Just(b'9'), Just(b'-'), Just(b'"'), Just(b'['), Just(b','), Just(b'0'), any::<u8>()
        ]), 1..4)
    ) {
        let file = with_int8();
        let start = layout::decode(file).unwrap().start;
        let mut forged = file.to_vec();
        let begin = 8 + r#"{"__metadata__":{"engine.check":"00000000""#.len();
        for (at, byte) in edits {
            forged[begin + at.index(start - begin)] = byte;
        }
        forged[begin - 9..begin - 1].fill(b'0');
        let digits = layout::digits(&forged[..start]);
        forged[begin - 9..begin - 1].copy_from_slice(digits.as_bytes());
        let _ = open(&forged).and_then(|model| use_all(&model));
    }
}
