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
use std::sync::Mutex;

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
        let algorithm = |unit: &ConvUnit| Algorithm::choose(unit, precision, isa, batch);
        let chains = chains(&units, algorithm, kernels.format);
        let plan = Plan::new(graph, &units, &chains, precision, kernels.format, batch, keep);
        let mut compiler = Compiler {
            graph,
            weights,
            precision,
            kernels,
            tensors: &plan.tensors,
            scales: vec![1.0; graph.tensors.len()],
            pool: Pool::new(threads),
            memory: Memory::zeroed(packed_bytes(kernels, &units, algorithm)?)?,
            isa,
            batch,
            used: 0,
            padding: [0; 3],
        };
        let steps = units.iter().map(|unit| compiler.step(unit)).collect::<Result<Vec<Step>>>()?;
        let Compiler { scales, pool, memory, padding, .. } = compiler;
        let input = match precision {
            Precision::Int8 => Input::Bytes { padding },
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

/// Of all convolutions, one after the other.
fn packed_bytes(
    kernels: &'static Kernels,
    units: &[Unit],
    algorithm: impl Fn(&ConvUnit) -> Algorithm,
) -> Result<usize> {
    let mut bytes = 0;
    for unit in units {
        if let Unit::Conv(unit) = unit {
            let layer = match algorithm(unit) {
                Algorithm::Direct => Packed::new(kernels, filter(unit))?.bytes,
                Algorithm::Winograd(tile) if kernels.format == Format::Bf16 => {
                    2 * winograd::packed_len::<bf16>(&unit.shape, tile)
                }
                Algorithm::Winograd(tile) => 4 * winograd::packed_len::<f32>(&unit.shape, tile),
            };
            bytes += layer.next_multiple_of(LINE);
        }
    }
    Ok(bytes)
}

struct Compiler<'a> {
    graph: &'a Graph,
    weights: &'a dyn Weights,
    precision: Precision,
    isa: Isa,
    batch: usize,
    kernels: &'static Kernels,
    tensors: &'a [Option<Placed>],
    scales: Vec<f32>,
    pool: Pool,
    memory: Memory,
    /// Bytes of `memory` that hold weights.
    used: usize,
    /// Bytes outside the image, in int8.
    padding: [u8; 3],
}

impl Compiler<'_> {
    fn step(&mut self, unit: &Unit) -> Result<Step> {
        let name = |tensor: TensorId| self.graph.tensors[tensor].name.clone();
        match *unit {
            Unit::Conv(ref unit) => {
                let (name, macs) = (name(unit.y), unit.shape.macs());
                Ok(Step { name, work: self.conv(unit)?, macs })
            }
            Unit::MaxPool { x, y } => {
                let name = name(y);
                self.scales[y] = self.scales[x];
                Ok(Step { name, work: Work::MaxPool { x, y }, macs: 0 })
            }
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
        if self.precision == Precision::Int8 {
            let Quantised { weight, scale, bias, .. } = self.weights.quantised_classifier(weight, bias)?;
            return Ok(Linear::quantised(&weight, &scale, &bias));
        }
        let Folded { weight, bias } = self.weights.classifier(weight, bias)?;
        Ok(Linear::new(self.precision, &weight, &bias))
    }

    fn conv(&mut self, unit: &ConvUnit) -> Result<Work> {
        if let Algorithm::Winograd(tile) = Algorithm::choose(unit, self.precision, self.isa, self.batch) {
            return Ok(if self.precision == Precision::Bf16 {
                let (layer, w) = self.winograd::<bf16>(unit, tile)?;
                Work::WinogradBf16 { layer, w, unit: unit.clone() }
            } else {
                let (layer, w) = self.winograd::<f32>(unit, tile)?;
                Work::Winograd { layer, w, unit: unit.clone() }
            });
        }
        let packed = Packed::new(self.kernels, filter(unit))?;
        let (w, bytes) = (self.used, packed.bytes);
        let mut conv = Conv {
            packed,
            bias: vec![],
            scale: vec![],
            starts: vec![],
            r_scale: 1.0,
            stride: unit.shape.stride,
            pad: unit.shape.pad,
            relu: unit.relu,
        };
        if self.precision == Precision::Int8 {
            let numbers = self.weights.quantised(unit)?;
            conv.packed.suit(self.isa, &numbers.weight);
            conv.starts = conv.packed.starts(&numbers.weight);
            self.requantise(unit, &numbers, &mut conv)?;
            self.pack(&conv.packed, Source::I8(&numbers.weight));
        } else {
            let Folded { weight, bias } = self.weights.convolution(unit)?;
            conv.bias = conv.packed.order(&bias);
            self.pack(&conv.packed, Source::F32(&weight));
        }
        self.used += bytes.next_multiple_of(LINE);
        let map = |tensor: TensorId| self.tensors[tensor].expect("a convolution's maps are planned").map;
        conv.check(&map(unit.x), &map(unit.y), unit.residual.map(map).as_ref());
        let ConvUnit { x, y, residual, .. } = *unit;
        Ok(Work::Conv { conv, w, x, y, residual })
    }

    fn winograd<E: Element>(&mut self, unit: &ConvUnit, tile: Tile) -> Result<(Winograd<E>, usize)> {
        let Folded { weight, bias } = self.weights.convolution(unit)?;
        let layer = Winograd::<E>::new(self.isa, tile, &unit.shape, &bias);
        let (w, bytes) = (self.used, size_of::<E>() * layer.packed_len());
        let packed = bytemuck::cast_slice_mut(&mut self.memory.bytes_mut()[w..w + bytes]);
        layer.pack(&self.pool, &weight, packed);
        self.used += bytes.next_multiple_of(LINE);
        Ok((layer, w))
    }

    /// y = scale[k] x_scale sum + bias + r_scale r in steps of y's own scale; in real units where y is f32.
    fn requantise(&mut self, unit: &ConvUnit, numbers: &Quantised, conv: &mut Conv) -> Result<()> {
        let x_scale = if unit.x == self.graph.input { 1.0 } else { self.scales[unit.x] };
        let is_f32 = self.tensors[unit.y].is_some_and(|placed| placed.map.format == Format::F32InLanes);
        let y_scale = if is_f32 { 1.0 } else { self.weights.scale(unit.y)? };
        if !(y_scale.is_finite() && y_scale > 0.0) {
            let name = &self.graph.tensors[unit.y].name;
            return Err(Error::input(format!(
                "{name} has the scale {y_scale}, a positive number is wanted; calibrate the model again"
            )));
        }
        self.scales[unit.y] = y_scale;
        if unit.x == self.graph.input {
            self.padding.copy_from_slice(&numbers.padding);
        }
        let scale: Vec<f32> = numbers.scale.iter().map(|scale| scale * x_scale / y_scale).collect();
        let bias: Vec<f32> = numbers.bias.iter().map(|bias| bias / y_scale).collect();
        (conv.scale, conv.bias) = (conv.packed.order(&scale), conv.packed.order(&bias));
        conv.r_scale = unit.residual.map_or(1.0, |residual| self.scales[residual] / y_scale);
        Ok(())
    }

    fn pack(&mut self, packed: &Packed, source: Source) {
        let (from, bytes) = (self.used, packed.bytes);
        let mut rest = &mut self.memory.bytes_mut()[from..from + bytes];
        let mut parts = vec![];
        for (i, panel) in packed.panels.iter().enumerate() {
            let end = packed.panels.get(i + 1).map_or(bytes, |next| next.offset);
            let (part, tail) = rest.split_at_mut(end - panel.offset);
            parts.push(Mutex::new((panel, part)));
            rest = tail;
        }
        self.pool.run(parts.len(), &|i| {
            let mut part = parts[i].lock().expect("a task locks its own panel alone");
            let (panel, out) = &mut *part;
            packed.pack(panel, source, out);
        });
    }
}
