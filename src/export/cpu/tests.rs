//! The folded and the rounded network against the unfused reference, through a file.

use super::calibrate::{calibrate, decibels};
use super::network::{Layer, Live, Machine, folded, values};
use super::*;
use crate::checkpoint::{Checkpoint, StateDict, Tensor};
use crate::data::index::unlabelled;
use crate::data::synth::{self, SynthOptions};
use crate::data::{EvalOptions, EvalTransform, Interpolation, Loader};
use crate::export::state_dict;
use crate::infer::file::{Description, ModelFile, Source};
use crate::infer::integer::IntegerNetwork;
use crate::infer::reference::{Reference, normalise};
use crate::infer::weights::{Folded, Normalisation};
use crate::model::graph::{Graph, lower};
use crate::model::spec::{MEAN, RESNET_TINY, STD};
use crate::model::units::{Unit, units};
use crate::rng::{Purpose, Rng};
use crate::tensor::Difference;
use std::path::Path;
use tempfile::TempDir;

pub const SIDE: usize = 32;

/// Weights as they begin, and batch norms as if they had been trained: every channel with numbers of its own.
pub fn trained(graph: &Graph) -> StateDict {
    let mut checkpoint = Checkpoint::default();
    let mut rng = Rng::new(7, 0, 0, Purpose::Init);
    let mut around = |n: usize, middle: f64, width: f64| -> Vec<f32> {
        (0..n).map(|_| (middle + width * (rng.unit() - 0.5)) as f32).collect()
    };
    for (index, param) in graph.params.iter().enumerate() {
        let values = match param.shape[..] {
            [n] if param.name.ends_with(".weight") => around(n, 1.0, 0.5),
            [n] => around(n, 0.0, 0.5),
            _ => param.initial_values(3, index, false),
        };
        checkpoint.tensors.insert(param.name.clone(), Tensor::f32(&param.shape, values));
    }
    for buffer in &graph.buffers {
        let (middle, width) = if buffer.name.ends_with("mean") { (0.0, 0.5) } else { (1.0, 0.5) };
        let values = around(buffer.channels, middle, width);
        checkpoint.tensors.insert(buffer.name.clone(), Tensor::f32(&[buffer.channels], values));
    }
    state_dict(&checkpoint, graph).unwrap()
}

/// Twenty drawn pictures, in a folder of class folders.
pub fn photographs(folder: &Path) -> Photographs {
    let options = SynthOptions { train_per_class: 2, val_per_class: 1, size: 40, ..SynthOptions::default() };
    synth::write(folder, &options).unwrap();
    Photographs {
        split: unlabelled(folder).unwrap(),
        transform: EvalTransform::new(SIDE, 0.875, Interpolation::Bilinear),
        normalisation: Normalisation::IMAGENET,
        count: 500,
    }
}

pub fn images(photographs: &Photographs) -> Vec<u8> {
    let options = EvalOptions::new(photographs.transform, 100);
    Loader::eval(photographs.split.clone(), options).unwrap().next().unwrap().unwrap().images
}

pub fn describe(quantisation: Option<&Quantisation>) -> Description {
    Description {
        arch: RESNET_TINY.name.into(),
        classes: (0..10).map(|i| (i.to_string(), i.to_string())).collect(),
        resolution: SIDE,
        crop_ratio: 0.875,
        interpolation: Interpolation::Bilinear,
        mean: MEAN,
        std: STD,
        source: Source::default(),
        int8: quantisation.map(|quantisation| quantisation.calibration.clone()),
        crc32c: [].into(),
    }
}

pub struct Setting {
    pub graph: Graph,
    pub state: StateDict,
    pub photographs: Photographs,
    pub folder: TempDir,
}

pub fn setting() -> Setting {
    let graph = lower(&RESNET_TINY, SIDE).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let photographs = photographs(&folder.path().join("data"));
    Setting { state: trained(&graph), graph, photographs, folder }
}

impl Setting {
    fn file(&self, quantisation: Option<&Quantisation>) -> ModelFile {
        let path = self.folder.path().join("model.engine");
        let int8 = quantisation.map_or(vec![], |quantisation| entries(&quantisation.layers, &self.graph));
        export_cpu(&self.state, int8, &describe(quantisation), &path, |_| Ok(())).unwrap();
        ModelFile::open(&path).unwrap()
    }
}

/// Two ways to the same logits: batch norm on its own in f64, and folded into weights that are rounded to f32 once.
/// Each of the 12 convolutions in a row rounds sums of up to 576 terms; 1e-5 holds four times what is seen.
#[test]
fn the_folded_network_is_the_unfused_one() {
    let setting = setting();
    let Setting { graph, state, photographs, .. } = &setting;
    let file = setting.file(None);
    let images = images(photographs);
    let reference = Reference::new(graph, Normalisation::IMAGENET, |name| file.f32(name)).unwrap();
    let want = reference.run(&images).unwrap();
    let units = units(graph);
    let mut machine = Machine::new(1);
    let n = images.len() / (SIDE * SIDE * 3);
    let mut live = Live::new(graph, &units, normalise(&images, &Normalisation::IMAGENET));
    for (index, unit) in units.iter().enumerate() {
        let (tensor, y) = match unit {
            Unit::Conv(unit) => {
                let layer = Layer::new(&folded(state, graph, unit).unwrap());
                let mut y = machine.convolve(&unit.shape, n, live.get(unit.x), &layer);
                machine.finish(unit, unit.residual.map(|residual| live.get(residual)), &mut y);
                (unit.y, y)
            }
            Unit::Linear { x, y, weight, bias } => {
                let weight = values(state, &graph.params[*weight].name).unwrap().to_vec();
                let bias = values(state, &graph.params[*bias].name).unwrap().to_vec();
                (*y, machine.classify(n, live.get(*x), &Layer::new(&Folded { weight, bias })))
            }
            Unit::MaxPool { y, .. } | Unit::AvgPool { y, .. } => (*y, live.pool(graph, unit)),
        };
        Difference::between(&y, want.tensor(tensor)).assert_within(&graph.tensors[tensor].name, 1e-5);
        live.put(index, tensor, y);
    }
}

/// The f32 network with rounded numbers, in which calibration corrects biases and measures noise, is the network in
/// integers that comes back from the file: the noise at the logits is the same up to single values at ties.
#[test]
fn the_integer_network_has_the_noise_that_calibration_reports() {
    let setting = setting();
    let Setting { graph, state, photographs, .. } = &setting;
    for method in [Method::Mse, Method::Percentile(0.9999)] {
        let quantisation = calibrate(state, graph, photographs, method, Scheme::Bytes, 2).unwrap();
        assert_eq!(quantisation.calibration.images, 20);
        let file = setting.file(Some(&quantisation));
        let images = images(photographs);
        let reference = Reference::new(graph, Normalisation::IMAGENET, |name| file.f32(name)).unwrap();
        let want = reference.run(&images).unwrap();
        let got = IntegerNetwork::new(graph, &file).unwrap().run(&images).unwrap();
        let measured = decibels(&got.logits, want.logits());
        let last = quantisation.report.last().unwrap();
        println!("{method:?}: {measured:.2} dB, reported {:.2}", last.accumulated);
        assert_eq!(last.layer, "fc");
        assert!((measured - last.accumulated).abs() < 0.3, "{measured} dB, reported {}", last.accumulated);
        assert!(measured > 25.0, "{method:?}: {measured} dB");
        for noise in &quantisation.report {
            assert!(noise.own > 25.0, "{noise:?}");
        }
    }
}

/// Without it, the mean of a channel's error stays in every layer behind it.
#[test]
fn corrected_biases_leave_no_mean_error() {
    let setting = setting();
    let Setting { graph, state, photographs, .. } = &setting;
    let quantisation = calibrate(state, graph, photographs, Method::Mse, Scheme::Bytes, 1).unwrap();
    let file = setting.file(Some(&quantisation));
    let images = images(photographs);
    let reference = Reference::new(graph, Normalisation::IMAGENET, |name| file.f32(name)).unwrap();
    let want = reference.run(&images).unwrap();
    let got = IntegerNetwork::new(graph, &file).unwrap().run(&images).unwrap();
    let classes = 10;
    let largest = want.logits().iter().fold(0.0f32, |max, logit| max.max(logit.abs()));
    for class in 0..classes {
        let mean = |logits: &[f32]| {
            let of_class: Vec<f32> = logits.iter().skip(class).step_by(classes).copied().collect();
            of_class.iter().sum::<f32>() / of_class.len() as f32
        };
        let error = (mean(&got.logits) - mean(want.logits())).abs();
        // Ties that round to the other side are all that is left.
        assert!(error < 1e-3 * largest, "class {class}: {error} of {largest}");
    }
}
