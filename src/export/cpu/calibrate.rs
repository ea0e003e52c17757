//! From a trained network and photographs to its 8-bit numbers.
//!
//! 1. The folded f32 network runs on all images; a histogram behind each ReLU gives the step of its u8 values, a sample of
//!    each sum's sides the levels there ([`super::sums`]).
//! 2. Weights are rounded channel by channel.
//! 3. The rounded network runs beside the f32 one on a part of the images, layer by layer. The mean by which a channel is
//!    off, given what the layers before it deliver, goes into its bias (empirical bias correction, arXiv:1906.04721 §4.2
//!    and appendix D), and the noise is measured.

use super::histogram::{Histogram, Method};
use super::levels::Levels;
use super::network::{Layer, Live, Machine, folded, values};
use super::quantise::{Inputs, quantise, quantise_stem};
use super::sums::Sample;
use crate::checkpoint::StateDict;
use crate::data::{EvalOptions, EvalTransform, Loader, Split};
use crate::error::{Error, Result};
use crate::infer::file::{Calibration, layer_name};
use crate::infer::reference::normalise;
use crate::infer::weights::{Folded, Normalisation, Quantised};
use crate::model::graph::{Graph, TensorId};
use crate::model::units::{ConvUnit, Unit, units};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Images in one pass of step 1.
const BATCH: usize = 16;
/// Pixels of the images that step 3 holds in memory at once: 32 images of 224 x 224, some 600 MB.
const PIXELS: usize = 32 * 224 * 224;
/// Above this many images the means of step 3 do not move any more.
const IMAGES: usize = 512;

/// Which values of a network are rounded, besides the outputs of its ReLUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// The model file's: the stem reads the image's bytes, the classifier f32 features; both sides of a sum are added in f32
    /// as far as they come from convolutions.
    Bytes,
    /// That of ONNX's QDQ form, whose operations are joined by 8-bit tensors: the stem reads the normalised image in
    /// [`Levels::of_images`], and what goes into a sum from a convolution has levels of its own.
    Qdq,
}

/// What a unit with a residual adds to it.
pub fn branch(graph: &Graph, unit: &ConvUnit) -> Option<TensorId> {
    unit.residual.map(|_| unit.normed(graph))
}

/// What calibration looks at.
pub struct Photographs {
    pub split: Arc<Split>,
    pub transform: EvalTransform,
    pub normalisation: Normalisation,
    /// How many images are used, of a fixed shuffle.
    pub count: usize,
}

/// The 8-bit numbers of a network.
pub struct Quantisation {
    /// By layer name: `layer1.0.conv2`.
    pub layers: BTreeMap<String, Quantised>,
    /// By the graph's name of a tensor: of all that is rounded behind a convolution.
    pub levels: BTreeMap<String, Levels>,
    pub calibration: Calibration,
    pub report: Vec<Noise>,
}

/// What rounding does to one layer's output. Decibels of 10 log10(signal / noise), squares summed over the images of
/// step 3.
#[derive(Debug, Clone, PartialEq)]
pub struct Noise {
    pub layer: String,
    /// The step of its output; none where that is f32.
    pub step: Option<f32>,
    /// Where the layer alone is rounded: its input, weights and output.
    pub own: f64,
    /// Where the whole network up to it is.
    pub accumulated: f64,
}

struct Calibrator<'a> {
    graph: &'a Graph,
    units: Vec<Unit>,
    machine: Machine,
    /// By unit; batch norm folded.
    folded: Vec<Option<Folded>>,
    normalisation: Normalisation,
    scheme: Scheme,
    /// By tensor.
    levels: Vec<Option<Levels>>,
}

/// What step 1 learns of each tensor.
struct Seen {
    /// Behind a ReLU.
    histograms: Vec<Histogram>,
    /// Of a sum, by its unit's output; where the scheme rounds its sides.
    sums: Vec<Sample>,
    /// Images that there will be at most.
    count: usize,
}

/// `state` fits `graph`.
pub fn calibrate(
    state: &StateDict,
    graph: &Graph,
    photographs: &Photographs,
    method: Method,
    scheme: Scheme,
    threads: usize,
) -> Result<Quantisation> {
    let units = units(graph);
    let folded = units.iter().map(|unit| fold_unit(state, graph, unit)).collect::<Result<_>>()?;
    let mut calibrator = Calibrator {
        graph,
        units,
        machine: Machine::new(threads),
        folded,
        normalisation: photographs.normalisation,
        scheme,
        levels: vec![None; graph.tensors.len()],
    };
    let images = calibrator.choose_levels(photographs, method)?;
    let side = graph.resolution;
    let count = photographs.count.min(IMAGES).min((PIXELS / (side * side)).max(1));
    let part = load(photographs, count, count)?.next().transpose()?.ok_or_else(no_images)?;
    let (layers, report) = calibrator.round(&part.images);
    let made_by_conv = |tensor: TensorId| {
        let makes = |unit: &ConvUnit| unit.y == tensor || branch(graph, unit) == Some(tensor);
        calibrator.units.iter().any(|unit| matches!(unit, Unit::Conv(unit) if makes(unit)))
    };
    let tensors = (0..graph.tensors.len()).filter(|&tensor| made_by_conv(tensor));
    let name = |tensor: TensorId| graph.tensors[tensor].name.clone();
    let levels: BTreeMap<String, Levels> =
        tensors.filter_map(|tensor| Some((name(tensor), calibrator.levels[tensor]?))).collect();
    let scales = levels.iter().map(|(name, levels)| (name.clone(), levels.step)).collect();
    let method = match method {
        Method::Mse => "mse".to_owned(),
        Method::Percentile(share) => format!("percentile {}", 100.0 * share),
    };
    Ok(Quantisation { layers, levels, calibration: Calibration { method, images, scales }, report })
}

fn no_images() -> Error {
    Error::input("there is no image to calibrate with")
}

fn load(photographs: &Photographs, count: usize, batch: usize) -> Result<Loader> {
    let options = EvalOptions::new(photographs.transform, batch);
    Loader::eval(Arc::clone(&photographs.split), EvalOptions { limit: count, ..options })
}

fn fold_unit(state: &StateDict, graph: &Graph, unit: &Unit) -> Result<Option<Folded>> {
    match unit {
        Unit::Conv(unit) => folded(state, graph, unit).map(Some),
        Unit::Linear { weight, bias, .. } => Ok(Some(Folded {
            weight: values(state, &graph.params[*weight].name)?.to_vec(),
            bias: values(state, &graph.params[*bias].name)?.to_vec(),
        })),
        Unit::MaxPool { .. } | Unit::AvgPool { .. } => Ok(None),
    }
}

impl Calibrator<'_> {
    /// Step 1; the number of images that there were.
    fn choose_levels(&mut self, photographs: &Photographs, method: Method) -> Result<usize> {
        let graph = self.graph;
        let layers: Vec<Option<Layer>> =
            self.folded.iter().map(|folded| folded.as_ref().map(Layer::new)).collect();
        let mut seen = Seen {
            histograms: vec![Histogram::default(); graph.tensors.len()],
            sums: vec![Sample::default(); graph.tensors.len()],
            count: photographs.count.min(photographs.split.len()),
        };
        let mut images = 0;
        for batch in load(photographs, photographs.count, BATCH)? {
            let batch = batch?;
            images += batch.labels.len();
            self.look_at(&batch.images, &layers, &mut seen);
        }
        if images == 0 {
            return Err(no_images());
        }
        for unit in &self.units {
            match unit {
                Unit::Conv(unit) => {
                    if unit.relu {
                        self.levels[unit.y] = Some(Levels::from_zero(seen.histograms[unit.y].step(method)));
                    }
                    if let (Some(branch), Some(residual)) = (self.rounded_branch(unit), unit.residual) {
                        let [a, b] = seen.sums[unit.y].levels(self.machine.isa, method);
                        self.levels[branch] = Some(a);
                        // A shortcut's; what comes out of a ReLU has its own.
                        self.levels[residual].get_or_insert(b);
                    }
                }
                Unit::MaxPool { x, y } => self.levels[*y] = self.levels[*x],
                _ => {}
            }
        }
        Ok(images)
    }

    /// Runs the f32 network on `images` u8 [n, resolution, resolution, 3].
    fn look_at(&mut self, images: &[u8], layers: &[Option<Layer>], seen: &mut Seen) {
        let n = images.len() / self.graph.tensors[self.graph.input].elements();
        let mut live = Live::new(self.graph, &self.units, normalise(images, &self.normalisation));
        for (index, (unit, layer)) in self.units.iter().zip(layers).enumerate() {
            let (tensor, y) = match (unit, layer) {
                (Unit::Conv(unit), Some(layer)) => {
                    let mut y = self.machine.convolve(&unit.shape, n, live.get(unit.x), layer);
                    let residual = unit.residual.map(|residual| live.get(residual));
                    if let (Some(_), Some(residual)) = (self.rounded_branch(unit), residual) {
                        let all = seen.count * self.graph.tensors[unit.y].elements();
                        seen.sums[unit.y].add(&y, residual, all);
                    }
                    self.machine.finish(unit, residual, &mut y);
                    if unit.relu {
                        seen.histograms[unit.y].add(&y);
                    }
                    (unit.y, y)
                }
                (Unit::MaxPool { y, .. } | Unit::AvgPool { y, .. }, _) => (*y, live.pool(self.graph, unit)),
                // Nothing behind the classifier is rounded.
                (Unit::Linear { .. } | Unit::Conv(_), _) => continue,
            };
            live.put(index, tensor, y);
        }
    }

    /// Steps 2 and 3 on `images` u8 [n, resolution, resolution, 3].
    fn round(&mut self, images: &[u8]) -> (BTreeMap<String, Quantised>, Vec<Noise>) {
        let n = images.len() / self.graph.tensors[self.graph.input].elements();
        let (mut layers, mut report) = (BTreeMap::new(), vec![]);
        let stem = match self.scheme {
            Scheme::Bytes => quantised_input(images, &self.normalisation),
            Scheme::Qdq => rounded_input(images, &self.normalisation),
        };
        let mut plain = Live::new(self.graph, &self.units, normalise(images, &self.normalisation));
        let mut rounded = Live::new(self.graph, &self.units, stem);
        for index in 0..self.units.len() {
            let unit = self.units[index].clone();
            let tensor = match &unit {
                Unit::Conv(unit) => unit.y,
                Unit::MaxPool { y, .. } | Unit::AvgPool { y, .. } | Unit::Linear { y, .. } => *y,
            };
            let Some(folded) = self.folded[index].take() else {
                plain.put(index, tensor, plain.pool(self.graph, &unit));
                rounded.put(index, tensor, rounded.pool(self.graph, &unit));
                continue;
            };
            let layer = self.round_layer(&unit, n, &folded, [&plain, &rounded]);
            report.push(layer.noise);
            layers.insert(report[report.len() - 1].layer.clone(), layer.quantised);
            plain.put(index, tensor, layer.plain);
            rounded.put(index, tensor, layer.rounded);
        }
        (layers, report)
    }

    fn round_layer(
        &mut self,
        unit: &Unit,
        n: usize,
        folded: &Folded,
        [plain, rounded]: [&Live; 2],
    ) -> Rounded {
        let (x, weight, row) = match unit {
            Unit::Conv(unit) => (unit.x, unit.weight, Some(unit.shape.s * unit.shape.c)),
            Unit::Linear { x, weight, .. } => (*x, *weight, None),
            Unit::MaxPool { .. } | Unit::AvgPool { .. } => unreachable!("pools have no weights"),
        };
        let is_stem = x == self.graph.input;
        // Other programs have no rule about quads, and take the stem's input as any other layer's.
        let row = row.filter(|_| self.scheme == Scheme::Bytes);
        let mut quantised = match row {
            Some(row) if is_stem => quantise_stem(&self.machine.pool, folded, row, &self.normalisation),
            _ => {
                let inputs = Inputs { channels: self.graph.tensors[x].c, row };
                quantise(&self.machine.pool, folded, inputs)
            }
        };
        let layer = Layer::dequantised(&quantised);
        let mut want = self.product(unit, n, plain.get(x), &Layer::new(folded));
        let mut got = self.product(unit, n, rounded.get(x), &layer);
        // The layer alone sees the f32 network's activations, rounded as its input is.
        let mut alone = if is_stem { rounded.get(x).to_vec() } else { plain.get(x).to_vec() };
        if let Some(levels) = self.levels[x] {
            self.machine.round(levels, &mut alone);
        }
        let mut own = self.product(unit, n, &alone, &layer);
        drop(alone);

        let error = channel_means(&got, &want, quantised.bias.len());
        quantised.bias.iter_mut().zip(&error).for_each(|(bias, error)| *bias -= error);
        let correction: Vec<f32> = error.iter().map(|error| -error).collect();
        self.machine.add_channels(&correction, &mut got);
        if let Unit::Conv(unit) = unit {
            let residual = |live| unit.residual.map(|tensor| Live::get(live, tensor));
            self.machine.finish(unit, residual(plain), &mut want);
            self.finish_rounded(unit, residual(plain), &mut own);
            self.finish_rounded(unit, residual(rounded), &mut got);
        }
        let noise = Noise {
            layer: layer_name(self.graph, weight).to_owned(),
            step: match unit {
                Unit::Conv(unit) => self.levels[unit.y].map(|levels| levels.step),
                _ => None,
            },
            own: decibels(&own, &want),
            accumulated: decibels(&got, &want),
        };
        Rounded { quantised, noise, plain: want, rounded: got }
    }

    /// What goes into the unit's sum, where the scheme rounds it.
    fn rounded_branch(&self, unit: &ConvUnit) -> Option<TensorId> {
        branch(self.graph, unit).filter(|_| self.scheme == Scheme::Qdq)
    }

    fn finish_rounded(&self, unit: &ConvUnit, residual: Option<&[f32]>, y: &mut [f32]) {
        if let Some(levels) = self.rounded_branch(unit).and_then(|branch| self.levels[branch]) {
            self.machine.round(levels, y);
        }
        self.machine.finish(unit, residual, y);
        if let Some(levels) = self.levels[unit.y] {
            self.machine.round(levels, y);
        }
    }

    fn product(&mut self, unit: &Unit, n: usize, x: &[f32], layer: &Layer) -> Vec<f32> {
        match unit {
            Unit::Conv(unit) => self.machine.convolve(&unit.shape, n, x, layer),
            _ => self.machine.classify(n, x, layer),
        }
    }
}

/// One layer of both networks.
struct Rounded {
    quantised: Quantised,
    noise: Noise,
    plain: Vec<f32>,
    rounded: Vec<f32>,
}

/// The stem's input in the rounded network: byte - padding (see [`Layer::dequantised`]).
fn quantised_input(images: &[u8], normalisation: &Normalisation) -> Vec<f32> {
    let padding = normalisation.mean.map(|mean| (255.0 * mean).round());
    images.iter().enumerate().map(|(at, byte)| f32::from(*byte) - padding[at % 3]).collect()
}

/// The normalised image in its levels.
fn rounded_input(images: &[u8], normalisation: &Normalisation) -> Vec<f32> {
    let levels = Levels::of_images(normalisation);
    normalise(images, normalisation).into_iter().map(|x| levels.nearest(x)).collect()
}

/// The mean of got - want by channel.
fn channel_means(got: &[f32], want: &[f32], channels: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; channels];
    for (got, want) in got.chunks_exact(channels).zip(want.chunks_exact(channels)) {
        for ((sum, got), want) in sums.iter_mut().zip(got).zip(want) {
            *sum += f64::from(got - want);
        }
    }
    let rows = (got.len() / channels) as f64;
    sums.into_iter().map(|sum| (sum / rows) as f32).collect()
}

/// 10 log10(signal / noise); infinite without noise.
pub fn decibels(got: &[f32], want: &[f32]) -> f64 {
    let (mut signal, mut noise) = (0.0f64, 0.0f64);
    for (got, want) in got.iter().zip(want) {
        signal += f64::from(*want).powi(2);
        noise += f64::from(got - want).powi(2);
    }
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}
