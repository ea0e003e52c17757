//! Weights from a file of another program, or of this one.

pub mod op;
pub mod pickle;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use zip::ZipArchive;

use super::{Checkpoint, StateDict, Tensor, Values, header};
use crate::error::{Error, Result};
use pickle::{Kind, Pickle, Value, View};

/// Pickles of weights are some hundred kilobytes.
const MAX_PICKLE: u64 = 256 << 20;
/// Folder of a `.pth` for what is no tensor (caffe2/serialize/inline_container.cc: extra files).
pub const EXTRA: &str = "extra/";
/// Descriptions are some hundred kilobytes where there are many classes.
const MAX_EXTRA: u64 = 64 << 20;
/// Under these keys training scripts keep the state dict.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "model_state_dict", "model_ema"];

/// Reads a state dict: safetensors (F32, F16, BF16, I64), a checkpoint of this program (verified; with `ema.*`, without
/// `optim.*`), the f32 weights of a model file for the CPU, or a `.pth` / `.pt` of PyTorch 1.6 or later. Halves become f32; a
/// `module.` in front of every name is dropped.
pub fn read_weights(path: &Path) -> Result<Checkpoint> {
    let Checkpoint { tensors, metadata } = read(path).map_err(|reason| Error::input_file(path, reason))?;
    let is_parallel = !tensors.is_empty() && tensors.keys().all(|name| name.starts_with("module."));
    let rename =
        |name: String| name.strip_prefix("module.").filter(|_| is_parallel).unwrap_or(&name).to_owned();
    let is_kept = |name: &str| !name.starts_with("optim.");
    let state: StateDict =
        tensors.into_iter().map(|(name, t)| (rename(name), t)).filter(|(name, _)| is_kept(name)).collect();
    match state.is_empty() {
        true => Err(Error::input_file(path, "has no tensor")),
        false => Ok(Checkpoint { tensors: state, metadata }),
    }
}

fn read(path: &Path) -> Result<Checkpoint, String> {
    let cannot = |source: std::io::Error| {
        format!("cannot read it: {source}; expected an engine checkpoint, a safetensors or a .pth state dict")
    };
    let mut file = File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    let mut head = Vec::new();
    (&mut file).take(16).read_to_end(&mut head).map_err(cannot)?;
    file.seek(SeekFrom::Start(0)).map_err(cannot)?;
    match head.as_slice() {
        [b'P', b'K', 3, 4, ..] => read_pth(file, size),
        [0x80, 2..=5, ..] if head.get(8) != Some(&b'{') => {
            Err("is a pickle from PyTorch before 1.6, which is not read; write it again with \
             `python -c 'import torch; torch.save(torch.load(\"old.pth\", weights_only=True), \"new.pth\")'`"
                .into())
        }
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            let mut bytes = Vec::with_capacity(size as usize);
            file.read_to_end(&mut bytes).map_err(cannot)?;
            read_safetensors(path, &bytes)
        }
        _ => Err("is neither safetensors nor a .pth; its first bytes are those of another format".into()),
    }
}

fn read_safetensors(path: &Path, bytes: &[u8]) -> Result<Checkpoint, String> {
    let malformed = |source| format!("is not a whole safetensors file: {source}");
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    if metadata.metadata().as_ref().is_some_and(|map| map.contains_key(header::HEADER_DIGEST)) {
        let name = path.display().to_string() + ": ";
        let checkpoint = Checkpoint::read(path);
        let strip = |error: Error| error.message.strip_prefix(&name).unwrap_or(&error.message).to_owned();
        return checkpoint.map_err(strip);
    }
    let found = metadata.metadata().as_ref().into_iter().flatten();
    let metadata = found.map(|(key, value)| (key.clone(), value.clone())).collect();
    let tensors = SafeTensors::deserialize(bytes).map_err(malformed)?;
    let mut state = StateDict::new();
    // A model file for the CPU has 8-bit numbers beside the state dict.
    for (name, view) in tensors.tensors().into_iter().filter(|(name, _)| !name.starts_with("int8.")) {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::I64 => Kind::Long,
            other => return Err(unsupported(&name, &other.to_string())),
        };
        let tensor = Tensor { shape: view.shape().to_vec(), values: values(kind, view.data(), 0..) };
        state.insert(name, tensor);
    }
    Ok(Checkpoint { tensors: state, metadata })
}

fn unsupported(name: &str, kind: &str) -> String {
    format!("{name} is {kind}; weights are read from float32, float16, bfloat16 and int64")
}

fn element_bytes(kind: Kind) -> Option<usize> {
    match kind {
        Kind::Float => Some(4),
        Kind::Half | Kind::BFloat16 => Some(2),
        Kind::Long => Some(8),
        Kind::Other(_) => None,
    }
}

/// The elements of `bytes` at `indices`, as far as they are there: all of them for an open range.
fn values(kind: Kind, bytes: &[u8], indices: impl IntoIterator<Item = usize>) -> Values {
    fn pick<const N: usize, T>(
        bytes: &[u8],
        indices: impl IntoIterator<Item = usize>,
        decode: impl Fn([u8; N]) -> T,
    ) -> Vec<T> {
        let (elements, _) = bytes.as_chunks::<N>();
        indices.into_iter().map_while(|i| elements.get(i).copied()).map(decode).collect()
    }
    match kind {
        Kind::Long => Values::I64(pick(bytes, indices, i64::from_le_bytes)),
        Kind::Half => Values::F32(pick(bytes, indices, |b| f16::from_le_bytes(b).to_f32())),
        Kind::BFloat16 => Values::F32(pick(bytes, indices, |b| bf16::from_le_bytes(b).to_f32())),
        Kind::Float | Kind::Other(_) => Values::F32(pick(bytes, indices, f32::from_le_bytes)),
    }
}

/// The entries of a `.pth` that are needed, each at most as long as the file.
struct Archive {
    zip: ZipArchive<File>,
    folder: String,
    size: u64,
}

impl Archive {
    fn open(file: File, size: u64) -> Result<Self, String> {
        let zip = ZipArchive::new(file).map_err(|source| format!("is not a whole .pth: {source}"))?;
        let names = zip.file_names().filter_map(|name| Some(name.ok()?.strip_suffix("data.pkl")?.to_owned()));
        let folder = names.filter(|folder| folder.ends_with('/')).min_by_key(String::len);
        let folder = folder.ok_or("is a ZIP without data.pkl: not a file of torch.save")?;
        Ok(Self { zip, folder, size })
    }

    /// `engine.*` among the extra entries.
    fn extra(&mut self) -> Result<BTreeMap<String, String>, String> {
        let prefix = format!("{}{EXTRA}", self.folder);
        let names =
            self.zip.file_names().filter_map(|name| Some(name.ok()?.strip_prefix(&prefix)?.to_owned()));
        let keys: Vec<String> = names.filter(|key| key.starts_with("engine.")).collect();
        let mut extra = BTreeMap::new();
        for key in keys {
            let name = format!("{EXTRA}{key}");
            let text = String::from_utf8(self.entry(&name, MAX_EXTRA)?);
            extra.insert(key, text.map_err(|_| format!("{name}: is no UTF-8 text"))?);
        }
        Ok(extra)
    }

    fn entry(&mut self, name: &str, limit: u64) -> Result<Vec<u8>, String> {
        let cannot = |reason: String| format!("{name}: {reason}");
        let entry = self.zip.by_name(&format!("{}{name}", self.folder));
        let entry = entry.map_err(|source| cannot(source.to_string()))?;
        let limit = limit.min(self.size);
        if entry.size() > limit {
            return Err(cannot(format!("says it has {} bytes, {limit} are possible", entry.size())));
        }
        let mut bytes = Vec::with_capacity(entry.size() as usize);
        entry.take(limit + 1).read_to_end(&mut bytes).map_err(|source| cannot(source.to_string()))?;
        Ok(bytes)
    }
}

/// Tensors, and this program's own extra entries as metadata.
fn read_pth(file: File, size: u64) -> Result<Checkpoint, String> {
    let mut archive = Archive::open(file, size)?;
    if archive.entry("byteorder", 64).is_ok_and(|order| order == b"big") {
        return Err("was saved on a big-endian machine, which is not read".into());
    }
    let pickle = pickle::read(&archive.entry("data.pkl", MAX_PICKLE)?)?;
    let mut state = StateDict::new();
    // Views may share a storage, but not so often that a small file fills the memory.
    let mut budget = size.saturating_mul(4);
    for (name, view) in find_state_dict(&pickle)? {
        let tensor = read_view(&mut archive, &view, &mut budget).map_err(|reason| match view.kind {
            Kind::Other(kind) => unsupported(&name, kind),
            _ => format!("{name}: {reason}"),
        })?;
        state.insert(name, tensor);
    }
    Ok(Checkpoint { tensors: state, metadata: archive.extra()? })
}

/// The dict whose values are tensors, through wrappers like `{'state_dict': ..., 'epoch': 90}`.
fn find_state_dict(pickle: &Pickle) -> Result<Vec<(String, View)>, String> {
    let mut value = pickle.root;
    for _ in 0..4 {
        let Some(dict) = pickle.dict(value) else { break };
        let items: Option<Vec<(String, View)>> = dict
            .iter()
            .map(|&(key, value)| Some((pickle.text(key)?.to_owned(), pickle.tensor(value)?.clone())))
            .collect();
        if let Some(items) = items {
            return Ok(items);
        }
        let inside = |wanted: &str| dict.iter().find(|(key, _)| pickle.text(*key) == Some(wanted));
        value = match WRAPPERS.into_iter().find_map(inside) {
            Some(&(_, value)) => value,
            None => return Err(not_found(pickle, dict)),
        };
    }
    Err("is not a dict of tensors; save it with torch.save(model.state_dict(), ...)".into())
}

fn not_found(pickle: &Pickle, dict: &[(Value, Value)]) -> String {
    let names = dict.iter().filter_map(|(key, _)| pickle.text(*key)).take(8).collect::<Vec<_>>().join(", ");
    format!("is a dict of other things ({names}); the weights are looked for under {}", WRAPPERS.join(", "))
}

fn read_view(archive: &mut Archive, view: &View, budget: &mut u64) -> Result<Tensor, String> {
    let wrong = || {
        format!("shape {:?}, stride {:?} do not fit in {} elements", view.shape, view.stride, view.elements)
    };
    let width = element_bytes(view.kind).ok_or("unsupported")? as u64;
    let elements =
        view.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size)).ok_or_else(wrong)?;
    let reach = view.shape.iter().zip(&view.stride).try_fold(view.offset, |reach, (&size, &stride)| {
        reach.checked_add(size.saturating_sub(1).checked_mul(stride)?)
    });
    let is_inside = elements == 0 || reach.is_some_and(|reach| reach < view.elements);
    if !is_inside || elements > view.elements {
        return Err(wrong());
    }
    *budget =
        budget.checked_sub(elements * width).ok_or("more tensors share its storages than weights do")?;
    let bytes = archive.entry(&format!("data/{}", view.key), u64::MAX)?;
    if (bytes.len() as u64) < view.elements.saturating_mul(width) {
        return Err(format!(
            "its storage has {} bytes, wanted {}",
            bytes.len(),
            view.elements.saturating_mul(width)
        ));
    }
    let shape: Vec<usize> = view.shape.iter().map(|&size| size as usize).collect();
    let values = values(view.kind, &bytes, Indices::new(view, elements));
    Ok(Tensor { shape, values })
}

/// Storage indices of a view's elements, row-major.
struct Indices<'a> {
    view: &'a View,
    counter: Vec<u64>,
    at: u64,
    left: u64,
}

impl<'a> Indices<'a> {
    fn new(view: &'a View, elements: u64) -> Self {
        Self { view, counter: vec![0; view.shape.len()], at: view.offset, left: elements }
    }
}

impl Iterator for Indices<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let now = self.at;
        for (d, counter) in self.counter.iter_mut().enumerate().rev() {
            *counter += 1;
            // Past the end only after the last element, whose successor is never asked for.
            self.at = self.at.wrapping_add(self.view.stride[d]);
            if *counter < self.view.shape[d] {
                break;
            }
            self.at = self.at.wrapping_sub(self.view.stride[d].wrapping_mul(self.view.shape[d]));
            *counter = 0;
        }
        Some(now as usize)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}
