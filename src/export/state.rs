//! The state dict: a model's weights under torchvision's names, and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::checkpoint::{Checkpoint, StateDict, Tensor, Values, header};
use crate::error::{Error, Result};
use crate::files;
use crate::model::graph::Graph;

/// Every parameter and buffer of `graph`, with `num_batches_tracked` for each batch norm: 320 entries for ResNet-50.
/// Shapes are checked; `optim.*`, `ema.*` and whatever else a checkpoint has are left out.
pub fn state_dict(checkpoint: &Checkpoint, graph: &Graph) -> Result<StateDict> {
    let find = |name: &str| checkpoint.tensors.get(name);
    let mut state = StateDict::new();
    let params = graph.params.iter().map(|param| (&param.name, param.shape.clone()));
    let buffers = graph.buffers.iter().map(|buffer| (&buffer.name, vec![buffer.channels]));
    for (name, shape) in params.chain(buffers) {
        let tensor = find(name).ok_or_else(|| Error::input(missing(name, graph)))?;
        if tensor.shape != shape || !matches!(tensor.values, Values::F32(_)) {
            return Err(Error::input(format!(
                "{name} is {} {:?}, {} wants F32 {shape:?}; was it trained from another spec?",
                tensor.values.dtype(),
                tensor.shape,
                graph.spec.name
            )));
        }
        state.insert(name.clone(), tensor.clone());
        if let Some(norm) = name.strip_suffix(".running_mean") {
            let counter = format!("{norm}.num_batches_tracked");
            // Nothing but a module with momentum=None reads the counter; a strict load wants it to be there.
            let value = find(&counter).cloned().unwrap_or_else(|| Tensor::i64_scalar(0));
            state.insert(counter, value);
        }
    }
    Ok(state)
}

fn missing(name: &str, graph: &Graph) -> String {
    format!("{name} is missing, {} wants it; was it trained from another spec?", graph.spec.name)
}

/// A safetensors file with `{"format":"pt"}` and `metadata`; `check` sees it before it gets its name. Bytes are a function
/// of the content.
pub fn export_safetensors(
    state: &StateDict,
    metadata: &BTreeMap<String, String>,
    path: &Path,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let mut metadata = metadata.clone();
    metadata.remove("format");
    let tensors = header::in_file_order(state);
    let head = header::encode_plain(&metadata, &tensors);
    let write = |file: &mut File| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&head)?;
        for (_, tensor) in &tensors {
            out.write_all(tensor.values.bytes())?;
        }
        out.flush()
    };
    files::write_checked("export", path, write, check)
}

/// Names in the order in which torchvision's modules register them.
pub fn in_module_order(state: &StateDict) -> Vec<(&str, &Tensor)> {
    let mut order: Vec<_> = state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    order.sort_by_cached_key(|(name, _)| name.split('.').map(rank).collect::<Vec<_>>());
    order
}

/// conv1, bn1, conv2, bn2, conv3, bn3, downsample in a block; stem, layers, fc; weight, bias, buffers in a module.
fn rank(part: &str) -> (u32, u32, String) {
    const LATE: [&str; 5] = ["running_mean", "running_var", "num_batches_tracked", "downsample", "fc"];
    let digits = part.trim_start_matches(|c: char| !c.is_ascii_digit());
    let stem = part.strip_suffix(digits).unwrap_or(part);
    let (group, number) = match (stem, digits.parse().ok()) {
        ("", Some(number)) => (0, number),
        ("conv", Some(number)) => (1, 2 * number),
        ("bn", Some(number)) => (1, 2 * number + 1),
        ("layer", Some(number)) => (2, number),
        ("weight", None) => (0, 0),
        ("bias", None) => (0, 1),
        _ => (3, LATE.iter().position(|late| *late == part).map_or(0, |i| 1 + i as u32)),
    };
    (group, number, part.to_owned())
}

/// Row-major strides, in elements.
pub fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        // As PyTorch does for a dimension of no elements.
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}
