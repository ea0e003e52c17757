//! The compiler: each unit of the graph becomes a step with its weights packed for the machine.

use super::algorithm::Algorithm;
use super::options::Options;
use super::plan::{Placed, Plan, chains};
use super::weights::{Folded, Quantised, Weights};
use super::{Keep, Precision};
use crate::error::{Error, Result};
use crate::model::graph::{Graph, ParamId, TensorId};
use crate::model::units::{ConvUnit, Unit, units};
use crate::simd::direct::conv::Conv;
use crate::simd::direct::input::Input;
use crate::simd::direct::kernel::Kernels;
use crate::simd::direct::linear::Linear;
use crate::simd::direct::map::Format;
use crate::simd::direct::pack::{Filter, Packed, Source};
use crate::simd::isa::Isa;
use crate::simd::memory::{LINE, Memory};
use crate::simd::pool::Pool;
use crate::simd::winograd::{self, Element, Tile, Winograd};
use half::bf16;
use std::ops::Range;
use std::sync::OnceLock;

/// What a step does.
pub(super) enum Work {
    /// `w`: bytes from the start of the packed weights.
    Conv {
        conv: Conv,
        w: usize,
        x: TensorId,
        y: TensorId,
        residual: Option<TensorId>,
    },
    Winograd {
        layer: Winograd<f32>,
        w: usize,
        unit: ConvUnit,
    },
    /// The same in bf16.
    WinogradBf16 {
        layer: Winograd<bf16>,
        w: usize,
        unit: ConvUnit,
    },
    MaxPool {
        x: TensorId,
        y: TensorId,
    },
    AvgPool {
        x: TensorId,
        scale: f32,
    },
    Linear(Linear),
}

pub(super) struct Step {
    /// The tensor that the step makes, by the graph's name.
    pub name: String,
    pub work: Work,
    /// Multiply-adds of an image.
    pub macs: usize,
}

/// A network compiled for one machine, one precision and one resolution.
pub struct Program {
    pub(super) graph: Graph,
    pub(super) precision: Precision,
    pub(super) isa: Isa,
    pub(super) keep: Keep,
    pub(super) batch: usize,
    pub(super) pool: Pool,
    pub(super) input: Input,
    pub(super) steps: Vec<Step>,
    /// Steps whose tasks go through all of them in turn.
    pub(super) chains: Vec<Range<usize>>,
    pub(super) tensors: Vec<Option<Placed>>,
    /// The step of 8-bit values, by tensor; 1 elsewhere.
    pub(super) scales: Vec<f32>,
    pub(super) arena: Memory,
    pub(super) weights: Memory,
    pub(super) scratch: winograd::Scratch,
    /// f32 [n][features], then [n][classes, rounded up to panels], then [n][classes] of the last run.
    pub(super) features: Vec<f32>,
    pub(super) panels: Vec<f32>,
    pub(super) logits: Vec<f32>,
    /// Images of the last run.
    pub(super) images: usize,
    pub(super) nanoseconds: Vec<u64>,
}

impl Program {
    /// Fails where the weights do (see [`Weights`]), where the machine lacks the precision's instructions, and where
    /// memory does not suffice.
    pub fn compile(graph: &Graph, weights: &dyn Weights, options: &Options) -> Result<Self> {
        let Options { precision, isa, threads, batch, ref keep, .. } = *options;
        if batch == 0 {
            return Err(Error::usage("a program for a batch of 0 images was asked for; take at least 1"));
        }
        let kernels = Kernels::of(precision, isa)?;
        let units = units(graph);
        let algorithm = |unit: &ConvUnit| Algorithm::choose(unit, options);
        let chains = chains(&units, algorithm, kernels.format);
        let plan = Plan::new(graph, &units, &chains, precision, kernels.format, batch, keep);
        let pool = Pool::new(threads);
        let sizes = units.iter().map(|unit| packed_bytes(kernels, unit, algorithm));
        let sizes = sizes.collect::<Result<Vec<usize>>>()?;
        let mut memory = Memory::zeroed(sizes.iter().sum())?;
        let mut layers = vec![];
        let (mut w, mut rest) = (0, memory.bytes_mut());
        for (unit, &size) in units.iter().zip(&sizes) {
            let (packed, tail) = rest.split_at_mut(size);
            layers.push(Layer { unit, w, packed });
            (w, rest) = (w + size, tail);
        }
        let compiler = Compiler {
            graph,
            weights,
            options,
            kernels,
            tensors: &plan.tensors,
            scales: scales(graph, weights, &units, &plan, precision)?,
            padding: OnceLock::new(),
        };
        // A thread takes a layer from the file to its packed weights. The last layers are the largest: they come first.
        layers.reverse();
        let steps = pool.map(layers, |layer| compiler.step(layer)).into_iter().rev();
        let steps = steps.collect::<Result<Vec<Step>>>()?;
        let Compiler { scales, padding, .. } = compiler;
        let input = match precision {
            Precision::Int8 => Input::Bytes { padding: padding.into_inner().unwrap_or_default() },
            Precision::Fp32 | Precision::Bf16 => Input::normalised(options.mean, options.std),
        };
        let features = graph.ops.iter().find_map(|op| match op {
            crate::model::graph::Op::GlobalAvgPool { y, .. } => Some(graph.tensors[*y].c),
            _ => None,
        });
        let features = features.expect("every network pools before its classifier");
        let classes = graph.tensors[graph.logits].c;
        let padded = classes.next_multiple_of(crate::simd::direct::linear::LANES);
        Ok(Self {
            precision,
            isa,
            keep: keep.clone(),
            batch,
            pool,
            input,
            nanoseconds: vec![0; steps.len() + 1],
            steps,
            chains,
            arena: Memory::zeroed(plan.bytes)?,
            tensors: plan.tensors,
            scales,
            weights: memory,
            scratch: winograd::Scratch::default(),
            features: vec![0.0; batch * features],
            panels: vec![0.0; batch * padded],
            logits: vec![0.0; batch * classes],
            images: 0,
            graph: graph.clone(),
        })
    }
}

fn filter(unit: &ConvUnit) -> Filter {
    let shape = &unit.shape;
    Filter { k: shape.k, r: shape.r, s: shape.s, c: shape.c }
}

/// Of a layer's packed weights, in the program's memory; whole cache lines.
fn packed_bytes(
    kernels: &'static Kernels,
    unit: &Unit,
    algorithm: impl Fn(&ConvUnit) -> Algorithm,
) -> Result<usize> {
    let Unit::Conv(unit) = unit else { return Ok(0) };
    let bytes = match algorithm(unit) {
        Algorithm::Direct => Packed::new(kernels, filter(unit))?.bytes,
        Algorithm::Winograd(tile) if kernels.format == Format::Bf16 => {
            2 * winograd::packed_len::<bf16>(&unit.shape, tile)
        }
        Algorithm::Winograd(tile) => 4 * winograd::packed_len::<f32>(&unit.shape, tile),
    };
    Ok(bytes.next_multiple_of(LINE))
}

/// By tensor: the step of 8-bit values, 1 elsewhere.
fn scales(
    graph: &Graph,
    weights: &dyn Weights,
    units: &[Unit],
    plan: &Plan,
    precision: Precision,
) -> Result<Vec<f32>> {
    let mut scales = vec![1.0; graph.tensors.len()];
    if precision != Precision::Int8 {
        return Ok(scales);
    }
    for unit in units {
        match unit {
            Unit::Conv(ConvUnit { y, .. }) => {
                let is_f32 = plan.tensors[*y].is_some_and(|placed| placed.map.format == Format::F32InLanes);
                scales[*y] = if is_f32 { 1.0 } else { weights.scale(*y)? };
                if !(scales[*y].is_finite() && scales[*y] > 0.0) {
                    let (name, scale) = (&graph.tensors[*y].name, scales[*y]);
                    return Err(Error::input(format!(
                        "{name} has the scale {scale}, a positive number is wanted; calibrate the model again"
                    )));
                }
            }
            Unit::MaxPool { x, y } => scales[*y] = scales[*x],
            Unit::AvgPool { .. } | Unit::Linear { .. } => {}
        }
    }
    Ok(scales)
}

/// A unit and the place of its packed weights.
struct Layer<'a> {
    unit: &'a Unit,
    /// Bytes from the start of the program's weights.
    w: usize,
    packed: &'a mut [u8],
}

struct Compiler<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    options: &'a Options,
    kernels: &'static Kernels,
    tensors: &'a [Option<Placed>],
    scales: Vec<f32>,
    /// Bytes outside the image, in int8: the first layer has them.
    padding: OnceLock<[u8; 3]>,
}

impl Compiler<'_> {
    fn step(&self, layer: Layer) -> Result<Step> {
        let name = |tensor: TensorId| self.graph.tensors[tensor].name.clone();
        match *layer.unit {
            Unit::Conv(ref unit) => {
                let (name, macs) = (name(unit.y), unit.shape.macs());
                Ok(Step { name, work: self.conv(unit, layer.w, layer.packed)?, macs })
            }
            Unit::MaxPool { x, y } => Ok(Step { name: name(y), work: Work::MaxPool { x, y }, macs: 0 }),
            Unit::AvgPool { x, y } => {
                Ok(Step { name: name(y), work: Work::AvgPool { x, scale: self.scales[x] }, macs: 0 })
            }
            Unit::Linear { x, y, weight, bias } => {
                let macs = self.graph.tensors[x].c * self.graph.tensors[y].c;
                Ok(Step { name: name(y), work: Work::Linear(self.linear(weight, bias)?), macs })
            }
        }
    }

    fn linear(&self, weight: ParamId, bias: ParamId) -> Result<Linear> {
        if self.options.precision == Precision::Int8 {
            let Quantised { weight, scale, bias, .. } = self.weights.quantised_classifier(weight, bias)?;
            return Ok(Linear::quantised(&weight, &scale, &bias));
        }
        let Folded { weight, bias } = self.weights.classifier(weight, bias)?;
        Ok(Linear::new(self.options.precision, &weight, &bias))
    }

    fn conv(&self, unit: &ConvUnit, w: usize, out: &mut [u8]) -> Result<Work> {
        if let Algorithm::Winograd(tile) = Algorithm::choose(unit, self.options) {
            return Ok(if self.options.precision == Precision::Bf16 {
                Work::WinogradBf16 { layer: self.winograd(unit, tile, out)?, w, unit: unit.clone() }
            } else {
                Work::Winograd { layer: self.winograd(unit, tile, out)?, w, unit: unit.clone() }
            });
        }
        let packed = Packed::new(self.kernels, filter(unit))?;
        let mut conv = Conv {
            packed,
            bias: vec![],
            scale: vec![],
            r_scale: 1.0,
            stride: unit.shape.stride,
            pad: unit.shape.pad,
            relu: unit.relu,
        };
        let out = &mut out[..conv.packed.bytes];
        if self.options.precision == Precision::Int8 {
            let numbers = self.weights.quantised(unit)?;
            self.requantise(unit, &numbers, &mut conv);
            conv.packed.pack(self.options.isa, Source::I8(&numbers.weight), out);
        } else {
            self.weights.convolution(unit, &mut |filters, bias| {
                conv.bias = conv.packed.order(bias);
                conv.packed.pack(self.options.isa, Source::F32(filters), out);
            })?;
        }
        let map = |tensor: TensorId| self.tensors[tensor].expect("a convolution's maps are planned").map;
        conv.check(&map(unit.x), &map(unit.y), unit.residual.map(map).as_ref());
        let ConvUnit { x, y, residual, .. } = *unit;
        Ok(Work::Conv { conv, w, x, y, residual })
    }

    fn winograd<E: Element>(&self, unit: &ConvUnit, tile: Tile, out: &mut [u8]) -> Result<Winograd<E>> {
        let mut layer = None;
        self.weights.convolution(unit, &mut |filters, bias| {
            let made = Winograd::<E>::new(self.options.isa, tile, &unit.shape, bias);
            made.pack(filters, bytemuck::cast_slice_mut(&mut out[..size_of::<E>() * made.packed_len()]));
            layer = Some(made);
        })?;
        Ok(layer.expect("a source that does not fail gives its weights"))
    }

    /// y = scale[k] x_scale sum + bias + r_scale r in steps of y's own scale; in real units where y is f32.
    fn requantise(&self, unit: &ConvUnit, numbers: &Quantised, conv: &mut Conv) {
        let (x_scale, y_scale) = (self.scales[unit.x], self.scales[unit.y]);
        if unit.x == self.graph.input {
            let padding = numbers.padding[..].try_into().expect("a byte for each channel of the image");
            self.padding.get_or_init(|| padding);
        }
        let scale: Vec<f32> = numbers.scale.iter().map(|scale| scale * x_scale / y_scale).collect();
        let bias: Vec<f32> = numbers.bias.iter().map(|bias| bias / y_scale).collect();
        (conv.scale, conv.bias) = (conv.packed.order(&scale), conv.packed.order(&bias));
        conv.r_scale = unit.residual.map_or(1.0, |residual| self.scales[residual] / y_scale);
    }
}
