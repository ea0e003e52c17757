//! Which tensors a program has, in which format, and where they lie: one arena, in which a tensor takes the first place
//! that no living tensor holds. Places are used again soon, so that activations stay in cache.

use super::Precision;
use super::options::Keep;
use crate::model::graph::{Graph, TensorId};
use crate::model::units::{ConvUnit, Unit};
use crate::simd::direct::map::{Format, Map};
use crate::simd::memory::LINE;

/// A feature map of the program.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placed {
    pub map: Map,
    /// Bytes from the start of the arena.
    pub offset: usize,
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
    if precision == Precision::Int8 && !unit.relu { Format::F32 } else { activations }
}

impl Plan {
    pub fn new(
        graph: &Graph,
        units: &[Unit],
        precision: Precision,
        activations: Format,
        batch: usize,
        keep: &Keep,
    ) -> Self {
        let maps = maps(graph, units, precision, activations, batch);
        let mut tensors: Vec<Option<Placed>> = vec![None; maps.len()];
        let mut bytes = 0;
        let last_use = |tensor: TensorId| {
            let readers = units.iter().rposition(|unit| unit.inputs().contains(&tensor));
            if keep.holds(&graph.tensors[tensor].name) { units.len() } else { readers.unwrap_or(0) }
        };
        let makers = std::iter::once(graph.input).chain(units.iter().map(output));
        for (time, tensor) in makers.enumerate() {
            let Some(map) = maps[tensor] else { continue };
            // The maker of tensor number `time` is unit `time - 1`, which still reads its inputs.
            let now = time.saturating_sub(1);
            let mut living: Vec<&Placed> = tensors
                .iter()
                .enumerate()
                .filter(|(other, _)| last_use(*other) >= now)
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
