//! Writing a model file.

use crate::checkpoint::{StateDict, Values};
use crate::error::Result;
use crate::files;
use crate::infer::file::layout::Entry;
use crate::infer::file::{self, Description, layer_name};
use crate::infer::weights::Quantised;
use crate::model::graph::Graph;
use crate::model::units::{Unit, units};
use safetensors::Dtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// The tensors of 8-bit layers, by layer name.
pub fn entries(layers: &BTreeMap<String, Quantised>, graph: &Graph) -> Vec<Entry<'static>> {
    let mut entries = vec![];
    for unit in units(graph) {
        let (weight, shape) = match &unit {
            Unit::Conv(unit) => {
                let s = &unit.shape;
                (unit.weight, vec![s.k, s.r, s.s, s.c])
            }
            Unit::Linear { weight, .. } => (*weight, graph.params[*weight].shape.clone()),
            Unit::MaxPool { .. } | Unit::AvgPool { .. } => continue,
        };
        let layer = layer_name(graph, weight);
        let Quantised { weight, scale, bias, padding } = &layers[layer];
        let mut add = |part: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]| {
            let name = format!("int8.{layer}.{part}").into();
            entries.push(Entry { name, dtype, shape: shape.to_vec(), bytes: bytes.to_vec().into() });
        };
        add("weight", Dtype::I8, &shape, bytemuck::cast_slice(weight));
        add("scale", Dtype::F32, &shape[..1], bytemuck::cast_slice(scale));
        add("bias", Dtype::F32, &shape[..1], bytemuck::cast_slice(bias));
        if matches!(&unit, Unit::Conv(unit) if unit.x == graph.input) {
            add("padding", Dtype::U8, &[padding.len()], padding);
        }
    }
    entries
}

/// Writes `state` and the 8-bit tensors beside it (none, or those of [`entries`]); `description.crc32c` is filled in. Through
/// a temporary file that is renamed once `check` has seen it: a program that has an older file of this name open keeps it.
pub fn export_cpu(
    state: &StateDict,
    quantised: Vec<Entry>,
    description: &Description,
    path: &Path,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let plain = state.iter().map(|(name, tensor)| Entry {
        name: Cow::from(name),
        dtype: match tensor.values {
            Values::F32(_) => Dtype::F32,
            Values::I64(_) => Dtype::I64,
            Values::U8(_) => Dtype::U8,
        },
        shape: tensor.shape.clone(),
        bytes: tensor.values.bytes().into(),
    });
    let mut entries: Vec<Entry> = plain.chain(quantised).collect();
    let head = file::head(&mut entries, description);
    let write = |file: &mut File| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&head)?;
        entries.iter().try_for_each(|entry| out.write_all(&entry.bytes))?;
        out.flush()
    };
    files::write_checked("export", path, write, check)
}
