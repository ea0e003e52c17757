//! Written graphs against the unfused reference and against bytes that the `onnx` package wrote; files that are no good.

use super::builder::{Builder, float};
use super::schema::{ModelProto, OPSET, OperatorSetIdProto, StringStringEntryProto};
use super::*;
use crate::export::cpu::calibrate::decibels;
use crate::export::cpu::tests::{SIDE, Setting, describe, images, setting};
use crate::export::cpu::{Method, Scheme, calibrate};
use crate::infer::file::Description;
use crate::infer::reference::{Reference, normalise};
use crate::infer::weights::Normalisation;
use crate::model::graph::ConvShape;
use crate::tensor::Difference;
use prost::Message;
use std::path::Path;

fn session(graph: schema::GraphProto, description: &Description) -> Session {
    Session::decode(&encode(graph, description), 1).unwrap()
}

/// The network unfused, every sum in f64.
fn reference_logits(setting: &Setting, images: &[u8]) -> Vec<f32> {
    let Setting { graph, state, .. } = setting;
    let read = |name: &str| crate::export::cpu::network::values(state, name).map(<[f32]>::to_vec);
    let reference = Reference::new(graph, Normalisation::IMAGENET, read).unwrap();
    reference.run(images).unwrap().logits().to_vec()
}

/// Twelve convolutions in a row, f32 sums of up to 576 terms: as in `the_folded_network_is_the_unfused_one`.
#[test]
fn both_f32_graphs_are_the_network() {
    let setting = setting();
    let images = images(&setting.photographs);
    let want = reference_logits(&setting, &images);
    for norms in [Norms::Folded, Norms::Kept] {
        let graph = plain(&setting.state, &setting.graph, norms).unwrap();
        let count = |kind: &str| graph.node.iter().filter(|node| node.op_type() == kind).count();
        let convolutions = count("Conv");
        assert_eq!(count("BatchNormalization"), if norms == Norms::Kept { convolutions } else { 0 });
        let state = &setting.state;
        for tensor in &graph.initializer {
            let name = tensor.name();
            // A folded convolution has a bias, which no state dict of a ResNet has.
            let is_new = norms == Norms::Folded && name.contains("conv") && name.ends_with(".bias")
                || name.ends_with("downsample.0.bias");
            assert!(state.contains_key(name) || is_new, "{norms:?}: {name}");
            if norms == Norms::Kept {
                assert_eq!(tensor.raw_data(), state[name].values.bytes(), "{name}");
            }
        }
        let got = session(graph, &describe(None)).run(normalise(&images, &Normalisation::IMAGENET), SIDE);
        Difference::between(&got.unwrap(), &want).assert_within(&format!("{norms:?}"), 1e-5);
    }
}

/// The file's graph, run node by node, has the noise at the logits that calibration reports, and both types of
/// activations give the same bits.
#[test]
fn the_8_bit_graph_has_the_noise_that_calibration_reports() {
    let setting = setting();
    let Setting { graph, state, photographs, .. } = &setting;
    let images = images(photographs);
    let want = reference_logits(&setting, &images);
    for method in [Method::Mse, Method::Percentile(0.9999)] {
        let quantisation = calibrate(state, graph, photographs, method, Scheme::Qdq, 2).unwrap();
        let description = describe(Some(&quantisation));
        let [i8s, u8s] = [Activations::I8, Activations::U8].map(|activations| {
            let graph = quantised(&quantisation, graph, &Normalisation::IMAGENET, activations).unwrap();
            let count = |kind: &str| graph.node.iter().filter(|node| node.op_type() == kind).count();
            // The image, the pool's output, each unit's, and what goes into each sum from a convolution.
            let (convolutions, sums) = (count("Conv"), count("Add"));
            assert_eq!(count("QuantizeLinear"), 2 + convolutions + sums);
            session(graph, &description).run(normalise(&images, &Normalisation::IMAGENET), SIDE).unwrap()
        });
        assert!(i8s == u8s, "i8 is u8 - 128");
        let measured = decibels(&i8s, &want);
        let last = quantisation.report.last().unwrap();
        println!("{method:?}: {measured:.2} dB, reported {:.2}", last.accumulated);
        // Biases in steps of i32 and values at ties are all that is between the two.
        assert!((measured - last.accumulated).abs() < 0.3, "{measured} dB, reported {}", last.accumulated);
        assert!(measured > 25.0, "{method:?}: {measured} dB");
    }
}

/// `golden/make.py` has the same graph in the words of the `onnx` package, which writes the protobuf library's bytes.
#[test]
fn bytes_are_those_of_the_onnx_package() {
    let want = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/export/onnx/golden/tiny.onnx"))
        .unwrap();
    let decoded = ModelProto::decode(want.as_slice()).unwrap();
    assert!(decoded.encode_to_vec() == want, "decoded and encoded again");

    let mut builder = Builder::default();
    let b = &mut builder;
    let shape = ConvShape { h: 8, w: 8, c: 3, k: 2, r: 3, s: 3, stride: 2, pad: 1 };
    b.constant("input_scale", &[], &[0.25f32]);
    b.constant("input_zero_point", &[], &[-3i8]);
    b.simple("QuantizeLinear", &["input", "input_scale", "input_zero_point"], "input_quantized");
    b.simple(
        "DequantizeLinear",
        &["input_quantized", "input_scale", "input_zero_point"],
        "input_dequantized",
    );
    b.constant("conv1.weight_quantized", &[2, 3, 3, 3], &(-27..27).collect::<Vec<i8>>());
    b.constant("conv1.weight_scale", &[2], &[0.5f32, 0.125]);
    let axis = || vec![builder::int("axis", 0)];
    let weight = ["conv1.weight_quantized", "conv1.weight_scale"];
    b.node("DequantizeLinear", "conv1.weight", &weight, "conv1.weight", axis());
    b.constant("conv1.bias_quantized", &[2], &[-100_000i32, 7]);
    b.constant("conv1.bias_scale", &[2], &[0.125f32, 0.03125]);
    let bias = ["conv1.bias_quantized", "conv1.bias_scale"];
    b.node("DequantizeLinear", "conv1.bias", &bias, "conv1.bias", axis());
    b.conv("conv1", &["input_dequantized", "conv1.weight", "conv1.bias"], "conv1", &shape);
    b.constant("bn1.weight", &[2], &[1.5f32, -2.0]);
    b.constant("bn1.bias", &[2], &[0.0f32, 0.25]);
    b.constant("bn1.running_mean", &[2], &[0.5f32, -0.5]);
    b.constant("bn1.running_var", &[2], &[4.0f32, 0.0625]);
    let norm = ["conv1", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"];
    b.node("BatchNormalization", "bn1", &norm, "bn1", vec![float("epsilon", 1e-5)]);
    b.simple("Relu", &["bn1"], "relu");
    b.simple("Add", &["relu", "bn1"], "add");
    b.max_pool("add", "maxpool");
    b.constant("fc.weight", &[3, 2], &[1.0f32, 2.0, 3.0, 4.0, -5.0, 6.0]);
    b.constant("fc.bias", &[3], &[0.5f32, 0.0, -1.0]);
    b.classifier("maxpool", "fc.weight", "fc.bias");
    let model = ModelProto {
        ir_version: Some(8),
        producer_name: Some("engine".into()),
        producer_version: Some("0.0.0".into()),
        doc_string: Some("a golden file".into()),
        graph: Some(builder.finish("tiny", 8, 3)),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
        metadata_props: vec![StringStringEntryProto {
            key: Some("engine.model".into()),
            value: Some("{}".into()),
        }],
    };
    assert_eq!(model, decoded);
    assert!(model.encode_to_vec() == want, "built here");
}

/// The tiny graph by hand: one pixel of each kind of node.
#[test]
fn the_golden_graph_runs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/export/onnx/golden/tiny.onnx");
    let mut session = Session::open(&path, 1).unwrap();
    // A constant image x is rounded to a multiple of 1/4 within (-128 + 3) / 4 and (127 + 3) / 4.
    let mut logits = |x: f32| session.run(vec![x; 8 * 8 * 3], 8).unwrap();
    assert_eq!(logits(0.3), logits(0.25));
    assert_eq!(logits(100.0), logits(32.5));
    // At 0 the convolution gives its biases, -12500 and 0.21875; batch norm makes of them y = gamma (x - mean) / sqrt(var
    // + 1e-5) + beta; then relu(y) + y; the mean of a constant map is the map; and fc.
    let y =
        |x: f64, gamma: f64, mean: f64, var: f64, beta: f64| gamma * (x - mean) / (var + 1e-5).sqrt() + beta;
    let a = y(-12_500.0, 1.5, 0.5, 4.0, 0.0);
    let b = y(0.21875, -2.0, -0.5, 0.0625, 0.25);
    let [a, b] = [a, b].map(|y| y.max(0.0) + y);
    let want = [a + 2.0 * b + 0.5, 3.0 * a + 4.0 * b, -5.0 * a + 6.0 * b - 1.0].map(|y| y as f32);
    Difference::between(&logits(0.0), &want).assert_within("logits of nothing", 1e-6);
}

#[test]
fn graphs_that_do_not_run_are_sentences() {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/export/onnx/golden/tiny.onnx"))
        .unwrap();
    let whole = ModelProto::decode(bytes.as_slice()).unwrap();
    let fails = |change: &dyn Fn(&mut ModelProto), words: &str| {
        let mut model = whole.clone();
        change(&mut model);
        let result = Session::decode(&model.encode_to_vec(), 1);
        let reason = match result {
            Err(reason) => reason,
            Ok(mut session) => session.run(vec![0.5; 8 * 8 * 3], 8).unwrap_err().message,
        };
        assert!(reason.contains(words), "{words:?} in {reason}");
    };
    let graph = |model: &mut ModelProto| model.graph.take().unwrap();
    fails(&|model| drop(graph(model)), "no graph");
    fails(&|model| model.opset_import[0].version = Some(13), "opset 17");
    let on_graph = |words: &str, change: &dyn Fn(&mut schema::GraphProto)| {
        fails(&|model| change(model.graph.as_mut().unwrap()), words);
    };
    on_graph("reads bn1, which nothing before it makes", &|graph| graph.node.swap(5, 6));
    on_graph("makes bn1, which is there already", &|graph| {
        let twice = graph.node[5].clone();
        graph.node.push(twice);
    });
    on_graph("the kind Clip", &|graph| graph.node[6].op_type = Some("Clip".into()));
    on_graph("the output logits, which no node makes", &|graph| drop(graph.node.pop()));
    on_graph("conv1.bias_scale", &|graph| {
        graph.initializer.retain(|tensor| tensor.name() != "conv1.bias_scale")
    });
    on_graph("bytes for the dims", &|graph| graph.initializer[2].dims[0] = 3);
    on_graph("the attribute group", &|graph| graph.node[4].attribute.push(builder::int("group", 3)));
    on_graph("expected 4 equal numbers", &|graph| graph.node[4].attribute[1].ints = vec![1, 1, 0, 1]);
    on_graph("expected them along axis 0", &|graph| graph.node[2].attribute[0].i = Some(1));
    let torn = Session::decode(&bytes[..bytes.len() / 2], 1).err().unwrap();
    assert!(torn.contains("not a whole ONNX file"), "{torn}");
    for length in 0..bytes.len() {
        // Whatever is cut off, a sentence or a graph, never a panic.
        let _ = Session::decode(&bytes[..length], 1);
    }
}

/// Written files are the same to the byte, and say what they are.
#[test]
fn a_file_describes_itself() {
    let setting = setting();
    let write = |name: &str| {
        let path = setting.folder.path().join(name);
        let graph = plain(&setting.state, &setting.graph, Norms::Folded).unwrap();
        export_onnx(graph, &describe(None), &path, |_| Ok(())).unwrap();
        path
    };
    let (a, b) = (write("a.onnx"), write("b.onnx"));
    assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());
    let session = Session::open(&a, 1).unwrap();
    let said = Description::parse(session.metadata("engine.model").unwrap()).unwrap();
    assert_eq!(said, describe(None));
}
