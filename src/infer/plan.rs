//! Which tensors a program has, in which format, and where they lie: one arena, in which a tensor takes the first place
//! that no living tensor holds. Places are used again soon, so that activations stay in cache.

use super::Precision;
use super::algorithm::{Algorithm, LARGE_MAP};
use super::options::Keep;
use crate::model::graph::{Graph, TensorId};
use crate::model::units::{ConvUnit, Unit};
use crate::simd::direct::map::{Format, Map};
use crate::simd::memory::LINE;
use std::ops::Range;

/// A feature map of the program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    pub map: Map,
    /// Bytes from the start of the arena.
    pub offset: usize,
}

/// Bytes of weights that a chain may read over and over, once a block of rows: they stay in L2 beside the rows.
const CHAIN_WEIGHTS: usize = 640 << 10;

/// Units that run as one step: each task takes a block of rows through all of them while it lies in cache. What a unit
/// reads of the others in its chain are the same rows that it makes itself.
pub fn chains(
    units: &[Unit],
    algorithm: impl Fn(&ConvUnit) -> Algorithm,
    weight: Format,
) -> Vec<Range<usize>> {
    let weights = |unit: &Unit| match unit {
        Unit::Conv(unit) => unit.shape.weights() * weight.bytes(),
        _ => 0,
    };
    let is_direct = |unit: &ConvUnit| algorithm(unit) == Algorithm::Direct;
    let mut chains: Vec<Range<usize>> = vec![];
    for (index, unit) in units.iter().enumerate() {
        let joins = chains.last().is_some_and(|chain| {
            let made: Vec<TensorId> = units[chain.clone()].iter().map(output).collect();
            match (&units[chain.start], unit) {
                (Unit::Conv(first), Unit::Conv(unit)) => {
                    let is_large = first.shape.p() > LARGE_MAP && unit.shape.p() == first.shape.p();
                    let is_aligned = unit.shape.r == 1 && (unit.shape.stride == 1 || !made.contains(&unit.x));
                    let bytes: usize = units[chain.start..=index].iter().map(weights).sum();
                    is_large && is_aligned && bytes <= CHAIN_WEIGHTS && is_direct(first) && is_direct(unit)
                }
                (Unit::MaxPool { .. }, Unit::Conv(unit)) => {
                    unit.shape.h > LARGE_MAP && (unit.shape.r, unit.shape.stride) == (1, 1) && is_direct(unit)
                }
                _ => false,
            }
        });
        match chains.last_mut() {
            Some(chain) if joins => chain.end = index + 1,
            _ => chains.push(index..index + 1),
        }
    }
    chains
}

/// By tensor; `None` for what fusion leaves unmade and for what lies outside the arena (features, logits).
pub struct Plan {
    pub tensors: Vec<Option<Placed>>,
    pub bytes: usize,
}

/// The tensor that a unit makes.
pub fn output(unit: &Unit) -> TensorId {
    match unit {
        Unit::Conv(unit) => unit.y,
        Unit::MaxPool { y, .. } | Unit::AvgPool { y, .. } | Unit::Linear { y, .. } => *y,
    }
}

/// Of a convolution's output: 8-bit values have no sign, so that what no ReLU follows stays f32 in int8.
fn format(unit: &ConvUnit, precision: Precision, activations: Format) -> Format {
    if precision == Precision::Int8 && !unit.relu { Format::F32InLanes } else { activations }
}

impl Plan {
    /// `chains` of `units`: within one, every tensor lives to its end, for tasks are at different units.
    pub fn new(
        graph: &Graph,
        units: &[Unit],
        chains: &[Range<usize>],
        precision: Precision,
        activations: Format,
        batch: usize,
        keep: &Keep,
    ) -> Self {
        let maps = maps(graph, units, precision, activations, batch);
        let mut tensors: Vec<Option<Placed>> = vec![None; maps.len()];
        let mut bytes = 0;
        let time = |unit: usize| chains.iter().position(|chain| chain.contains(&unit));
        let last_use = |tensor: TensorId| {
            let readers = units.iter().rposition(|unit| unit.inputs().contains(&tensor));
            // What no unit reads lives as long as its own chain does.
            let makers = units.iter().position(|unit| output(unit) == tensor);
            let is_kept = keep.holds(&graph.tensors[tensor].name);
            if is_kept { Some(chains.len()) } else { readers.or(makers).and_then(time) }
        };
        let last_uses: Vec<Option<usize>> = (0..maps.len()).map(last_use).collect();
        let makers = std::iter::once((graph.input, Some(0)));
        for (tensor, now) in makers.chain(units.iter().enumerate().map(|(i, unit)| (output(unit), time(i)))) {
            let Some(map) = maps[tensor] else { continue };
            let mut living: Vec<&Placed> = tensors
                .iter()
                .enumerate()
                .filter(|(other, _)| last_uses[*other] >= now)
                .filter_map(|(_, placed)| placed.as_ref())
                .collect();
            living.sort_by_key(|placed| placed.offset);
            let size = map.bytes();
            let mut offset = 0;
            for other in living {
                if offset + size <= other.offset {
                    break;
                }
                offset = offset.max((other.offset + other.map.bytes()).next_multiple_of(LINE));
            }
            bytes = bytes.max(offset + size);
            tensors[tensor] = Some(Placed { map, offset });
        }
        Self { tensors, bytes }
    }
}

/// Feature maps with the border that their readers want.
fn maps(
    graph: &Graph,
    units: &[Unit],
    precision: Precision,
    activations: Format,
    batch: usize,
) -> Vec<Option<Map>> {
    let mut maps = vec![None; graph.tensors.len()];
    let map = |tensor: TensorId, format: Format| {
        let info = &graph.tensors[tensor];
        Map { n: batch, h: info.h, w: info.w, c: info.c, border: 0, format }
    };
    maps[graph.input] = Some(map(graph.input, activations));
    for unit in units {
        match unit {
            Unit::Conv(conv) => maps[conv.y] = Some(map(conv.y, format(conv, precision, activations))),
            Unit::MaxPool { y, .. } => maps[*y] = Some(map(*y, activations)),
            Unit::AvgPool { .. } | Unit::Linear { .. } => {}
        }
        let (x, border) = match unit {
            Unit::Conv(conv) => (conv.x, conv.shape.pad),
            Unit::MaxPool { x, .. } => (*x, 1),
            Unit::AvgPool { .. } | Unit::Linear { .. } => continue,
        };
        let map = maps[x].as_mut().expect("a unit's input is made before it");
        map.border = map.border.max(border);
    }
    maps
}
