//! Whole networks against plain loops over the unfused graph.

use super::file::ModelFile;
use super::fold::krsc_from_kcrs;
use super::integer::IntegerNetwork;
use super::weights::{Folded, Quantised, Weights};
use super::{Keep, Options, Precision, Program};
use crate::data::{Preprocessor, Reading};
use crate::error::Result;
use crate::model::graph::{Graph, ParamId, TensorId, lower};
use crate::model::spec::{RESNET_TINY, RESNET26, ResNetSpec};
use crate::model::units::{ConvUnit, Unit, units};
use crate::rng::{Purpose, Rng};
use crate::simd::filters::Filters;
use crate::simd::isa::Isa;
use crate::tensor::Difference;
use std::path::PathBuf;

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Random weights that keep the scale of activations: He's for what a ReLU follows, and shortcuts that do not grow.
struct Random<'a> {
    graph: &'a Graph,
    /// By tensor: the largest value of the reference run, for int8.
    largest: Vec<f32>,
}

impl Random<'_> {
    fn normal(&self, param: ParamId, len: usize, std: f32) -> Vec<f32> {
        let mut rng = Rng::new(7, 0, param as u64, Purpose::Init);
        (0..len).map(|_| std * rng.normal() as f32).collect()
    }

    /// [k][c][r][s], and the bias.
    fn numbers(&self, unit: &ConvUnit) -> (Vec<f32>, Vec<f32>) {
        let shape = &unit.shape;
        let gain = if unit.residual.is_some() { 0.5 } else { 2.0 };
        let std = (gain / (shape.c * shape.r * shape.s) as f32).sqrt();
        (self.normal(unit.weight, shape.weights(), std), self.normal(unit.gamma, shape.k, 0.1))
    }

    fn folded(&self, unit: &ConvUnit) -> Folded {
        let (weight, bias) = self.numbers(unit);
        Folded { weight: krsc_from_kcrs(&unit.shape, &weight), bias }
    }

    fn quantise(folded: &Folded) -> Quantised {
        let rows = folded.weight.chunks(folded.weight.len() / folded.bias.len());
        let (mut weight, mut scale) = (vec![], vec![]);
        for row in rows {
            let step = row.iter().fold(0.0f32, |max, w| max.max(w.abs())) / 127.0;
            weight.extend(row.iter().map(|w| (w / step).round() as i8));
            scale.push(step);
        }
        Quantised { weight, scale, bias: folded.bias.clone(), padding: vec![] }
    }
}

impl Weights for Random<'_> {
    fn convolution(&self, unit: &ConvUnit, read: &mut dyn FnMut(Filters, &[f32])) -> Result<()> {
        let (weight, bias) = self.numbers(unit);
        read(Filters { weight: &weight, factor: &vec![1.0; unit.shape.k] }, &bias);
        Ok(())
    }

    fn classifier(&self, weight: ParamId, bias: ParamId) -> Result<Folded> {
        let shape = &self.graph.params[weight].shape;
        let std = (1.0 / shape[1] as f32).sqrt();
        let values = self.normal(weight, shape[0] * shape[1], std);
        Ok(Folded { weight: values, bias: self.normal(bias, shape[0], 0.1) })
    }

    /// The stem takes bytes: w (b / 255 - mean) / std = (w / (255 std)) (b - 255 mean).
    fn quantised(&self, unit: &ConvUnit) -> Result<Quantised> {
        let mut folded = self.folded(unit);
        if unit.x != self.graph.input {
            return Ok(Quantised { padding: vec![0; unit.shape.c], ..Self::quantise(&folded) });
        }
        let padding = MEAN.map(|mean| (255.0 * mean).round() as u8);
        for (i, w) in folded.weight.iter_mut().enumerate() {
            *w /= 255.0 * STD[i % 3];
        }
        let mut quantised = Self::quantise(&folded);
        let filter = quantised.weight.len() / quantised.scale.len();
        for (k, row) in quantised.weight.chunks(filter).enumerate() {
            let sum: f32 = row.iter().enumerate().map(|(i, w)| f32::from(*w) * 255.0 * MEAN[i % 3]).sum();
            quantised.bias[k] -= quantised.scale[k] * sum;
        }
        Ok(Quantised { padding: padding.to_vec(), ..quantised })
    }

    fn quantised_classifier(&self, weight: ParamId, bias: ParamId) -> Result<Quantised> {
        Ok(Self::quantise(&self.classifier(weight, bias)?))
    }

    fn scale(&self, tensor: TensorId) -> Result<f32> {
        Ok(self.largest[tensor] / 255.0)
    }
}

fn pixels(graph: &Graph, n: usize) -> Vec<u8> {
    let mut rng = Rng::new(3, 0, 0, Purpose::Synth);
    // Smooth in places, so that pools and borders see more than noise.
    let mut value = 0;
    let mut next = |i: usize| {
        if i.is_multiple_of(5) {
            value = rng.below(256) as u8;
        }
        value
    };
    (0..n * graph.resolution * graph.resolution * 3).map(&mut next).collect()
}

/// NHWC f32 by tensor: every unit's output, computed by plain loops.
fn reference(graph: &Graph, weights: &Random, images: &[u8], n: usize) -> Vec<Vec<f32>> {
    let mut tensors: Vec<Vec<f32>> = vec![vec![]; graph.tensors.len()];
    let normalise = |(i, v): (usize, &u8)| (f32::from(*v) / 255.0 - MEAN[i % 3]) / STD[i % 3];
    tensors[graph.input] = images.iter().enumerate().map(normalise).collect();
    for unit in units(graph) {
        match unit {
            Unit::Conv(unit) => {
                let Folded { weight, bias } = weights.folded(&unit);
                let residual = unit.residual.map(|r| &tensors[r]);
                let y = convolution(&unit, n, &tensors[unit.x], &weight, &bias, residual);
                tensors[unit.y] = y;
            }
            Unit::MaxPool { x, y } => tensors[y] = max_pool(graph, n, x, y, &tensors[x]),
            Unit::AvgPool { x, y } => {
                let info = &graph.tensors[x];
                let pixels = info.h * info.w;
                for image in tensors[x].clone().chunks(info.elements()) {
                    let mean = |c: usize| image[c..].iter().step_by(info.c).sum::<f32>() / pixels as f32;
                    tensors[y].extend((0..info.c).map(mean));
                }
            }
            Unit::Linear { x, y, weight, bias } => {
                let Folded { weight, bias } = weights.classifier(weight, bias).unwrap();
                let features = graph.tensors[x].c;
                for image in tensors[x].clone().chunks(features) {
                    let rows = weight.chunks(features).zip(&bias);
                    let dot = |(row, bias): (&[f32], &f32)| {
                        f64::from(*bias)
                            + row.iter().zip(image).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                    };
                    tensors[y].extend(rows.map(|row| dot(row) as f32));
                }
            }
        }
    }
    tensors
}

fn convolution(
    unit: &ConvUnit,
    n: usize,
    x: &[f32],
    w: &[f32],
    bias: &[f32],
    residual: Option<&Vec<f32>>,
) -> Vec<f32> {
    let shape = &unit.shape;
    let (p, q) = (shape.p(), shape.q());
    let mut y = Vec::with_capacity(n * p * q * shape.k);
    for at in 0..n * p * q {
        let (image, row, column) = (at / (p * q), at / q % p, at % q);
        for k in 0..shape.k {
            let mut sum = f64::from(bias[k]);
            for r in 0..shape.r {
                let Some(from_y) = (row * shape.stride + r).checked_sub(shape.pad).filter(|y| *y < shape.h)
                else {
                    continue;
                };
                for s in 0..shape.s {
                    let from_x = (column * shape.stride + s).checked_sub(shape.pad);
                    let Some(from_x) = from_x.filter(|x| *x < shape.w) else { continue };
                    let x = &x[((image * shape.h + from_y) * shape.w + from_x) * shape.c..][..shape.c];
                    let w = &w[((k * shape.r + r) * shape.s + s) * shape.c..][..shape.c];
                    sum += x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                }
            }
            sum += residual.map_or(0.0, |r| f64::from(r[at * shape.k + k]));
            y.push(if unit.relu { sum.max(0.0) } else { sum } as f32);
        }
    }
    y
}

fn max_pool(graph: &Graph, n: usize, x: TensorId, y: TensorId, values: &[f32]) -> Vec<f32> {
    let (from, to) = (&graph.tensors[x], &graph.tensors[y]);
    let mut pooled = Vec::with_capacity(n * to.elements());
    for image in values.chunks(from.elements()) {
        for at in 0..to.h * to.w {
            for c in 0..to.c {
                let (row, column) = (2 * (at / to.w), 2 * (at % to.w));
                let rows = row.saturating_sub(1)..(row + 2).min(from.h);
                let columns = |_| column.saturating_sub(1)..(column + 2).min(from.w);
                let taps = rows.flat_map(|y| columns(y).map(move |x| image[(y * from.w + x) * from.c + c]));
                pooled.push(taps.fold(f32::NEG_INFINITY, f32::max));
            }
        }
    }
    pooled
}

struct Case {
    graph: Graph,
    n: usize,
    images: Vec<u8>,
    want: Vec<Vec<f32>>,
    largest: Vec<f32>,
}

impl Case {
    fn new(spec: &ResNetSpec, resolution: usize, n: usize) -> Self {
        let graph = lower(spec, resolution).unwrap();
        let images = pixels(&graph, n);
        let weights = Random { graph: &graph, largest: vec![] };
        let want = reference(&graph, &weights, &images, n);
        let largest = want.iter().map(|t| t.iter().fold(1e-3f32, |max, v| max.max(*v))).collect();
        Self { graph, n, images, want, largest }
    }

    fn program(&self, precision: Precision, isa: Isa, threads: usize, keep: Keep) -> Program {
        let weights = Random { graph: &self.graph, largest: self.largest.clone() };
        let options = Options { isa, threads, batch: self.n, keep, ..Options::new(precision, MEAN, STD) };
        Program::compile(&self.graph, &weights, &options).unwrap()
    }
}

/// Relative error of a whole network: 24 bits a value, of which Winograd's F(4x4) loses three a layer, or 8 bits, and an
/// unlucky layer's growth of 64.
fn tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 512.0 * f64::from(f32::EPSILON),
        Precision::Bf16 => 16.0 / 256.0,
        Precision::Int8 => 32.0 / 255.0,
    }
}

fn runs_on(isa: Isa, precision: Precision) -> bool {
    crate::simd::direct::kernel::Kernels::of(precision, isa).is_ok()
}

#[test]
fn a_small_network_agrees_with_plain_loops_in_every_precision_and_set() {
    for (resolution, n) in [(32, 2), (57, 1), (96, 1)] {
        let case = Case::new(&RESNET_TINY, resolution, n);
        for precision in Precision::ALL {
            for isa in Isa::available().into_iter().filter(|isa| runs_on(*isa, precision)) {
                let mut program = case.program(precision, isa, 2, Keep::All);
                let logits = program.run(&case.images).unwrap().to_vec();
                let what = format!("{} {} {resolution} px", isa.name(), precision.name());
                for (info, want) in case.graph.tensors.iter().zip(&case.want) {
                    if info.name == "input" || want.is_empty() {
                        continue;
                    }
                    let got = program.tensor(&info.name).unwrap();
                    let what = format!("{what}: {}", info.name);
                    Difference::between(&got.data, want).assert_within(&what, tolerance(precision));
                }
                let want = &case.want[case.graph.logits];
                Difference::between(&logits, want).assert_within(&what, tolerance(precision));
            }
        }
    }
}

/// 8-bit layers are integers up to one fused multiply-add and a rounding, which every set does alike.
#[test]
fn int8_gives_the_same_bits_on_every_set_and_any_number_of_threads() {
    let case = Case::new(&RESNET_TINY, 64, 2);
    let run = |isa, threads, keep| {
        case.program(Precision::Int8, isa, threads, keep).run(&case.images).unwrap().to_vec()
    };
    let want = run(Isa::PORTABLE, 1, Keep::All);
    for isa in Isa::available() {
        for (threads, keep) in [(1, Keep::None), (2, Keep::None), (3, Keep::All)] {
            assert_eq!(run(isa, threads, keep), want, "{} with {threads} threads", isa.name());
        }
    }
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn int8_programs_are_the_integer_network_to_the_bit() {
    for (resolution, n) in [(32, 2), (57, 1)] {
        let case = Case::new(&RESNET_TINY, resolution, n);
        let weights = Random { graph: &case.graph, largest: case.largest.clone() };
        let oracle = IntegerNetwork::new(&case.graph, &weights).unwrap();
        let want = bits(&oracle.run(&case.images).unwrap().logits);
        for isa in Isa::available() {
            let mut program = case.program(Precision::Int8, isa, 2, Keep::None);
            let got = bits(program.run(&case.images).unwrap());
            assert_eq!(got, want, "{} at {resolution} px", isa.name());
        }
    }
}

/// The same of a trained model on photographs. `INT8_MODEL` is a file that `engine export --int8` made,
/// `INT8_PHOTOGRAPHS` a folder, of which the first 20 count.
#[test]
#[ignore = "needs a trained model and photographs, in INT8_MODEL and INT8_PHOTOGRAPHS"]
fn int8_of_a_trained_model_is_the_integer_network_to_the_bit() {
    let path = |name: &str| PathBuf::from(std::env::var_os(name).expect(name));
    let model = ModelFile::open(&path("INT8_MODEL")).unwrap();
    let folder = std::fs::read_dir(path("INT8_PHOTOGRAPHS")).unwrap();
    let mut files: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.truncate(20);
    assert_eq!(files.len(), 20, "photographs in INT8_PHOTOGRAPHS");
    let transform = model.description().transform();
    let mut preprocessor = Preprocessor::new(transform, Reading::Photograph);
    let oracle = IntegerNetwork::new(model.graph(), &model).unwrap();
    let description = model.description();
    let options = Options::new(Precision::Int8, description.mean, description.std);
    let sets = Isa::available().into_iter();
    let mut programs: Vec<Program> = sets
        .map(|isa| Program::compile(model.graph(), &model, &Options { isa, ..options.clone() }).unwrap())
        .collect();
    for file in &files {
        let mut pixels = vec![0; transform.crop * transform.crop * 3];
        preprocessor.run(&mut std::fs::read(file).unwrap(), &mut pixels).unwrap();
        let want = bits(&oracle.run(&pixels).unwrap().logits);
        for program in &mut programs {
            let got = bits(program.run(&pixels).unwrap());
            assert_eq!(got, want, "{} of {}", program.isa.name(), file.display());
        }
        println!("{}: {} logits, the same bits on {} sets", file.display(), want.len(), programs.len());
    }
}

#[test]
fn a_program_takes_fewer_images_than_its_batch_and_refuses_others() {
    let case = Case::new(&RESNET_TINY, 32, 3);
    let mut program = case.program(Precision::Fp32, Isa::current(), 2, Keep::None);
    let all = program.run(&case.images).unwrap().to_vec();
    let pixels = 32 * 32 * 3;
    for image in 0..3 {
        let one = program.run(&case.images[image * pixels..(image + 1) * pixels]).unwrap();
        assert_eq!(one, &all[image * 10..(image + 1) * 10], "image {image}");
    }
    for bytes in [0, pixels - 1, 4 * pixels] {
        let error = program.run(&vec![0; bytes]).unwrap_err();
        assert!(error.message.contains("1 to 3 images"), "{}", error.message);
    }
    assert!(program.tensor("maxpool").unwrap_err().message.contains("not kept"));
    assert!(program.tensor("layer1.0.conv1").unwrap_err().message.contains("fused"));
    assert!(program.tensor("layer9").unwrap_err().message.contains("no tensor layer9"));
}

/// Each image of a batch has maps of its own, from the plain loops' last feature map.
#[test]
fn activation_maps_add_up_in_a_batch() {
    let case = Case::new(&RESNET_TINY, 64, 3);
    let last = case.graph.tensors.iter().position(|tensor| tensor.name == "layer2.0.relu").unwrap();
    let (info, classes) = (&case.graph.tensors[last], case.graph.tensors[case.graph.logits].c);
    let weights = Random { graph: &case.graph, largest: vec![] };
    let Some(Unit::Linear { weight, bias, .. }) = units(&case.graph).pop() else {
        panic!("ends in a classifier")
    };
    let rows = weights.classifier(weight, bias).unwrap().weight;
    let all: Vec<usize> = (0..classes).collect();
    for precision in Precision::ALL.into_iter().filter(|precision| runs_on(Isa::current(), *precision)) {
        let mut program = case.program(precision, Isa::current(), 2, Keep::None);
        let logits = program.run(&case.images).unwrap().to_vec();
        for (image, logits) in logits.chunks_exact(classes).enumerate() {
            let maps = program.activation_maps(image, &all).unwrap();
            let sums: Vec<f32> = maps.iter().map(|map| map.logit() as f32).collect();
            // 16 positions and 32 features in a row, each rounded to 24 bits, of terms some times the largest logit.
            let what = format!("{} image {image}", precision.name());
            Difference::between(&sums, logits).assert_within(&what, 512.0 * f64::from(f32::EPSILON));
            let positions =
                case.want[last][image * info.elements()..(image + 1) * info.elements()].chunks(info.c);
            let value = |(row, a): (&[f32], &[f32])| {
                row.iter().zip(a).map(|(w, a)| w * a).sum::<f32>() / (info.h * info.w) as f32
            };
            let want: Vec<f32> =
                rows.chunks(info.c).flat_map(|row| positions.clone().map(move |a| value((row, a)))).collect();
            let got: Vec<f32> = maps.into_iter().flat_map(|map| map.values).collect();
            Difference::between(&got, &want).assert_within(&what, tolerance(precision));
        }
    }
}

/// Every kind of layer of ResNet-50, at a resolution whose maps leave remainders of the tiles.
#[test]
fn resnet26_agrees_between_sets_and_threads() {
    let case = {
        let graph = lower(&RESNET26, 72).unwrap();
        let images = pixels(&graph, 1);
        Case { n: 1, images, want: vec![], largest: vec![8.0; graph.tensors.len()], graph }
    };
    for precision in Precision::ALL {
        let sets: Vec<Isa> = Isa::available().into_iter().filter(|isa| runs_on(*isa, precision)).collect();
        let want = case.program(precision, Isa::PORTABLE, 2, Keep::All).run(&case.images).unwrap().to_vec();
        for isa in sets {
            let got = case.program(precision, isa, 2, Keep::None).run(&case.images).unwrap().to_vec();
            let what = format!("{} {}", isa.name(), precision.name());
            Difference::between(&got, &want).assert_within(&what, tolerance(precision));
        }
    }
}
