//! The model file: everything between a trained checkpoint and the numbers that a program computes with, in one
//! safetensors container (`layout` has its bytes, `description` its JSON).
//!
//! Tensors are the unfused f32 state dict under torchvision's names, which the reference runs on, and beside it, where
//! the model was calibrated, what 8-bit products take:
//!
//! | name | type | shape |
//! |---|---|---|
//! | `int8.<convolution>.weight` | i8 | [k, r, s, c] |
//! | `int8.fc.weight` | i8 | [classes, features] |
//! | `int8.<layer>.scale`, `.bias` | f32 | [k] |
//! | `int8.conv1.padding` | u8 | [3] |
//!
//! The file is mapped, not read: lengths and header are checked when it is opened, a tensor's checksum when it is used,
//! so that an 8-bit program never touches the f32 pages. Nobody may shorten or rewrite a file that is in use, since
//! touching what is no longer there kills the process (SIGBUS): write a new file and rename it over the old one, as
//! `engine export` does; then programs that have the old one open keep it.

pub mod description;
pub mod layout;
#[cfg(test)]
mod tests;

pub use description::{Calibration, Description, Source};

use super::fold::{BatchNorm, factors};
use super::weights::{Folded, Normalisation, Quantised, Weights};
use crate::error::{Error, Result};
use crate::model::graph::{BufferId, Graph, Op, ParamId, TensorId, lower};
use crate::model::units::{ConvUnit, Unit, units};
use crate::simd::filters::Filters;
use layout::{Entry, Header};
use memmap2::Mmap;
use safetensors::Dtype;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Sorts `entries` into the order of the file and gives what stands before their bytes; `description.crc32c` is filled in.
pub fn head(entries: &mut [Entry], description: &Description) -> Vec<u8> {
    layout::sort(entries);
    let crc32c = entries.iter().map(|entry| (entry.name.to_string(), layout::digits(&entry.bytes))).collect();
    let description = Description { crc32c, ..description.clone() };
    layout::encode(entries, &description.to_json())
}

#[cfg(target_endian = "big")]
compile_error!("model files are little-endian and are used where they lie");

/// A model file, open and checked as far as its header goes.
pub struct ModelFile {
    path: PathBuf,
    map: Mmap,
    header: Header,
    description: Description,
    graph: Graph,
}

impl ModelFile {
    pub fn open(path: &Path) -> Result<Self> {
        let expected = "a model file that `engine export --format cpu` wrote";
        let cannot = |error: std::io::Error| Error::unreadable(path, &error, expected);
        let file = File::open(path).map_err(cannot)?;
        if file.metadata().map_err(cannot)?.is_dir() {
            return Err(Error::input_file(path, format!("is a folder; expected {expected}")));
        }
        // SAFETY: the map is read-only, and that nobody changes the file underneath is the rule in the module's head.
        let map = unsafe { Mmap::map(&file) }.map_err(cannot)?;
        Self::from_map(path, map).map_err(|reason| Error::input_file(path, reason))
    }

    fn from_map(path: &Path, map: Mmap) -> Result<Self, String> {
        let header = layout::decode(&map)?;
        let description = Description::parse(&header.model)?;
        let graph = lower(&description.spec()?, description.resolution).map_err(|error| error.message)?;
        let model = Self { path: path.to_owned(), map, header, description, graph };
        model.check_tensors()?;
        Ok(model)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The network at the resolution of the description.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub fn has_int8(&self) -> bool {
        self.description.int8.is_some()
    }

    /// Every tensor that the graph wants is there, in its type and shape.
    fn check_tensors(&self) -> Result<(), String> {
        let graph = &self.graph;
        for param in &graph.params {
            self.expect(&param.name, Dtype::F32, &param.shape)?;
        }
        for buffer in &graph.buffers {
            self.expect(&buffer.name, Dtype::F32, &[buffer.channels])?;
        }
        let Some(calibration) = &self.description.int8 else { return Ok(()) };
        for unit in units(graph) {
            let (layer, shape) = match &unit {
                Unit::Conv(unit) => {
                    let s = &unit.shape;
                    (layer_name(graph, unit.weight), vec![s.k, s.r, s.s, s.c])
                }
                Unit::Linear { weight, .. } => {
                    (layer_name(graph, *weight), graph.params[*weight].shape.clone())
                }
                Unit::MaxPool { .. } | Unit::AvgPool { .. } => continue,
            };
            self.expect(&format!("int8.{layer}.weight"), Dtype::I8, &shape)?;
            self.expect(&format!("int8.{layer}.scale"), Dtype::F32, &shape[..1])?;
            self.expect(&format!("int8.{layer}.bias"), Dtype::F32, &shape[..1])?;
            if let Unit::Conv(unit) = &unit {
                if unit.x == graph.input {
                    self.expect(&format!("int8.{layer}.padding"), Dtype::U8, &shape[3..])?;
                }
                let tensor = &graph.tensors[unit.y].name;
                // What no ReLU follows stays f32.
                if !unit.relu {
                    continue;
                }
                match calibration.scales.get(tensor) {
                    Some(scale) if scale.is_finite() && *scale > 0.0 => {}
                    Some(scale) => return Err(format!("{tensor} has the scale {scale}; export it again")),
                    None => return Err(format!("has no 8-bit scale of {tensor}; export it again")),
                }
            }
        }
        Ok(())
    }

    fn expect(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<(), String> {
        let arch = &self.description.arch;
        match self.header.tensors.info(name) {
            None => Err(format!("{name} is missing, {arch} wants it; export it again")),
            Some(info) if info.dtype != dtype || info.shape != shape => Err(format!(
                "{name} is {} {:?}, {arch} wants {dtype} {shape:?}; export it again",
                info.dtype, info.shape
            )),
            Some(_) => Ok(()),
        }
    }

    /// A tensor's bytes, verified, given to `read`; the pages are handed back afterwards.
    fn tensor<T>(&self, name: &str, dtype: Dtype, read: impl FnOnce(&[u8]) -> T) -> Result<T> {
        let fail = |reason: String| Error::input_file(&self.path, reason);
        let info = self.header.tensors.info(name).filter(|info| info.dtype == dtype);
        let info = info.ok_or_else(|| fail(format!("has no {dtype} tensor {name}; export it again")))?;
        // `layout::decode` has checked that the data end where the file does.
        let (from, to) = (self.header.start + info.data_offsets.0, self.header.start + info.data_offsets.1);
        let bytes = &self.map[from..to];
        if self.description.crc32c.get(name) != Some(&layout::digits(bytes)) {
            return Err(fail(format!(
                "{name} does not have the checksum that was written with it: the file is damaged; copy or export it \
                 again"
            )));
        }
        let value = read(bytes);
        self.release(from, to);
        Ok(value)
    }

    /// What was read lies in memory a second time, packed; the system may have the pages of the file back.
    fn release(&self, from: usize, to: usize) {
        const PAGE: usize = 64 << 10;
        let (from, to) = (from.next_multiple_of(PAGE), to / PAGE * PAGE);
        #[cfg(unix)]
        if from < to {
            // SAFETY: the map is of a file and never written to, so dropped pages come back with the same bytes.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from)
            };
        }
    }

    /// An f32 tensor by its name: a parameter or running statistic of the unfused network.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        self.with_f32(name, <[f32]>::to_vec)
    }

    /// The same, where it lies.
    fn with_f32<T>(&self, name: &str, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
        self.tensor(name, Dtype::F32, |bytes| match bytemuck::try_cast_slice(bytes) {
            Ok(values) => read(values),
            // `export` aligns tensors; safetensors does not ask for it.
            Err(_) => {
                let elements = bytes.as_chunks::<4>().0.iter();
                read(&elements.map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>())
            }
        })
    }

    fn param(&self, id: ParamId) -> Result<Vec<f32>> {
        self.f32(&self.graph.params[id].name)
    }

    fn buffer(&self, id: BufferId) -> Result<Vec<f32>> {
        self.f32(&self.graph.buffers[id].name)
    }

    fn calibration(&self) -> Result<&Calibration> {
        self.description.int8.as_ref().ok_or_else(|| {
            Error::input_file(
                &self.path,
                "has no 8-bit weights: make it with `engine export --format cpu --int8 --calibrate DIR`",
            )
        })
    }

    fn quantised_layer(&self, weight: ParamId, inputs: usize) -> Result<Quantised> {
        self.calibration()?;
        let layer = layer_name(&self.graph, weight);
        let padding = format!("int8.{layer}.padding");
        Ok(Quantised {
            weight: self.tensor(&format!("int8.{layer}.weight"), Dtype::I8, |bytes| {
                bytemuck::cast_slice::<u8, i8>(bytes).to_vec()
            })?,
            scale: self.f32(&format!("int8.{layer}.scale"))?,
            bias: self.f32(&format!("int8.{layer}.bias"))?,
            padding: match self.header.tensors.info(&padding) {
                Some(_) => self.tensor(&padding, Dtype::U8, |bytes| bytes.to_vec())?,
                None => vec![0; inputs],
            },
        })
    }
}

/// `layer1.0.conv2` of `layer1.0.conv2.weight`.
pub fn layer_name(graph: &Graph, weight: ParamId) -> &str {
    graph.params[weight].name.trim_end_matches(".weight")
}

impl Weights for ModelFile {
    fn convolution(&self, unit: &ConvUnit, read: &mut dyn FnMut(Filters, &[f32])) -> Result<()> {
        let (gamma, beta) = (self.param(unit.gamma)?, self.param(unit.beta)?);
        let (mean, var) = (self.buffer(unit.mean)?, self.buffer(unit.var)?);
        let (factor, bias) = factors(&BatchNorm { gamma: &gamma, beta: &beta, mean: &mean, var: &var });
        self.with_f32(&self.graph.params[unit.weight].name, |weight| {
            read(Filters { weight, factor: &factor }, &bias);
        })
    }

    fn classifier(&self, weight: ParamId, bias: ParamId) -> Result<Folded> {
        Ok(Folded { weight: self.param(weight)?, bias: self.param(bias)? })
    }

    fn quantised(&self, unit: &ConvUnit) -> Result<Quantised> {
        self.quantised_layer(unit.weight, unit.shape.c)
    }

    fn quantised_classifier(&self, weight: ParamId, _: ParamId) -> Result<Quantised> {
        self.quantised_layer(weight, self.graph.params[weight].shape[1])
    }

    fn scale(&self, tensor: TensorId) -> Result<f32> {
        if tensor == self.graph.input {
            return Ok(1.0);
        }
        // The largest of u8 values is one of them: the pool's output keeps its input's step.
        let pooled = self.graph.ops.iter().find_map(|op| match *op {
            Op::MaxPool { x, y } if y == tensor => Some(x),
            _ => None,
        });
        let name = &self.graph.tensors[pooled.unwrap_or(tensor)].name;
        let scale = self.calibration()?.scales.get(name).copied();
        scale.ok_or_else(|| Error::input_file(&self.path, format!("has no 8-bit scale of {name}")))
    }

    fn normalisation(&self) -> Normalisation {
        self.description.normalisation()
    }
}
