//! One checkpoint in memory, to and from a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;

use super::header::{self, Header, LENGTH};
use crate::base64::hex;
use crate::error::{Error, Result};
use crate::tensor::{HostTensor, first_non_finite};
use crate::{failpoint, files};

#[cfg(target_endian = "big")]
compile_error!("checkpoints are little-endian and are written from memory as they are");

/// Bytes between two hits of the half-written failpoint, and the size of a write.
const CHUNK: usize = 1 << 20;

/// The elements of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

impl Values {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::U8(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// safetensors' name of the element type.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::F32(_) => "F32",
            Self::I64(_) => "I64",
            Self::U8(_) => "U8",
        }
    }

    pub fn element_bytes(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::I64(_) => 8,
            Self::U8(_) => 1,
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice(v),
            Self::I64(v) => bytemuck::cast_slice(v),
            Self::U8(v) => v,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(v) => bytemuck::cast_slice_mut(v),
            Self::I64(v) => bytemuck::cast_slice_mut(v),
            Self::U8(v) => v,
        }
    }

    /// `elements` zeros of a safetensors type; `None` for types that checkpoints do not have.
    fn zeros(dtype: Dtype, elements: usize) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32(vec![0.0; elements])),
            Dtype::I64 => Some(Self::I64(vec![0; elements])),
            Dtype::U8 => Some(Self::U8(vec![0; elements])),
            _ => None,
        }
    }
}

/// A tensor as it stands in a file. A scalar has an empty shape and one element.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Values,
}

impl Tensor {
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), values: Values::F32(values) }
    }

    pub fn i64_scalar(value: i64) -> Self {
        Self { shape: Vec::new(), values: Values::I64(vec![value]) }
    }
}

impl From<HostTensor> for Tensor {
    fn from(tensor: HostTensor) -> Self {
        Self { shape: tensor.shape, values: Values::F32(tensor.data) }
    }
}

/// A model's weights and buffers under torchvision's names.
pub type StateDict = BTreeMap<String, Tensor>;

/// Everything that a resume needs. `metadata` goes into safetensors' `__metadata__`; the trainer's own state is the JSON
/// under `engine.state`, which nobody here looks into.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checkpoint {
    pub tensors: BTreeMap<String, Tensor>,
    pub metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Refuses what must never be saved: non-finite numbers, shapes that do not hold their values, reserved keys.
    pub fn check(&self) -> Result<()> {
        for (name, tensor) in &self.tensors {
            let (elements, shape) = (tensor.values.len(), &tensor.shape);
            if shape.iter().product::<usize>() != elements {
                return Err(Error::failed(format!(
                    "{name}: {elements} elements do not fill shape {shape:?}"
                )));
            }
            if name == "__metadata__" {
                return Err(Error::failed("a tensor cannot be named __metadata__"));
            }
            if let Values::F32(values) = &tensor.values
                && let Some(at) = first_non_finite(values)
            {
                return Err(Error::failed(format!(
                    "{name}[{at}] is {}: a state with a non-finite number is not saved; the last checkpoint stands, \
                     lower optim.lr or look at the loss",
                    values[at]
                )));
            }
        }
        match self
            .metadata
            .keys()
            .find(|key| key.starts_with(header::TENSOR_DIGEST) || *key == header::HEADER_DIGEST)
        {
            Some(key) => Err(Error::failed(format!("metadata key {key} is reserved for digests"))),
            None => Ok(()),
        }
    }

    /// Writes the file atomically, with `extra` metadata on top of its own. `{"format":"pt"}` is always there: timm's and
    /// Hugging Face's loaders ask for it.
    pub fn write(&self, path: &Path, extra: &[(&str, &str)]) -> Result<()> {
        self.check().map_err(|error| error.within(path.display()))?;
        let mut metadata: BTreeMap<&str, &str> =
            self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        metadata.insert("format", "pt");
        metadata.extend(extra.iter().copied());
        let tensors = header::in_file_order(&self.tensors);
        let digests = in_parallel(tensors.len(), |i| header::sha256(tensors[i].1.values.bytes()));
        let head = header::encode(&metadata, &tensors, &digests);
        files::write_atomically("checkpoint", path, |file| write_all(file, &head, &tensors))
    }

    /// Reads and verifies every byte.
    pub fn read(path: &Path) -> Result<Self> {
        let (header, start) = read_header(path)?;
        let names = header.tensors.offset_keys();
        let read = in_parallel(names.len(), |i| read_tensor(path, &header, start, &names[i]));
        let mut tensors = BTreeMap::new();
        for (name, tensor) in names.into_iter().zip(read) {
            tensors.insert(name, tensor.map_err(|reason| Error::input_file(path, reason))?);
        }
        Ok(Self { tensors, metadata: header.metadata })
    }

    /// The metadata alone: header verified, tensors not.
    pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>> {
        read_header(path).map(|(header, _)| header.metadata)
    }
}

fn write_all(file: &mut File, head: &[u8], tensors: &[(&str, &Tensor)]) -> io::Result<()> {
    let total: usize = tensors.iter().map(|(_, tensor)| tensor.values.bytes().len()).sum();
    let mut out = io::BufWriter::with_capacity(CHUNK, file);
    out.write_all(head)?;
    let (mut written, mut is_past_half) = (0, false);
    for (_, tensor) in tensors {
        for chunk in tensor.values.bytes().chunks(CHUNK) {
            out.write_all(chunk)?;
            written += chunk.len();
            if written * 2 >= total && !is_past_half {
                is_past_half = true;
                out.flush()?;
                failpoint::hit("checkpoint", "tmp_half_written");
            }
        }
    }
    out.flush()
}

/// The verified header, and where the data begins.
fn read_header(path: &Path) -> Result<(Header, u64)> {
    let fail = |reason: String| Error::input_file(path, reason);
    let cannot =
        |source: io::Error| Error::unreadable(path, &source, "a checkpoint that `engine train` wrote");
    let mut file = File::open(path).map_err(cannot)?;
    let size = file.metadata().map_err(cannot)?.len();
    let mut length = [0; LENGTH];
    if size < LENGTH as u64 {
        return Err(fail(format!("{size} bytes are no checkpoint: the file was cut off")));
    }
    file.read_exact(&mut length).map_err(cannot)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > header::MAX_HEADER || header_bytes > size - LENGTH as u64 {
        return Err(fail(format!(
            "a header of {header_bytes} bytes does not fit in a file of {size}: the file was cut off, or is no checkpoint"
        )));
    }
    let mut head = vec![0; LENGTH + header_bytes as usize];
    head[..LENGTH].copy_from_slice(&length);
    file.read_exact(&mut head[LENGTH..]).map_err(cannot)?;
    let header = header::decode(&head).map_err(fail)?;
    let (start, data) = (head.len() as u64, header.tensors.data_len() as u64);
    if start + data != size {
        return Err(fail(format!(
            "is {size} bytes, wanted {}: the file was cut off or added to",
            start + data
        )));
    }
    Ok((header, start))
}

/// One tensor, verified. Its size was checked against the file's by `read_header`.
fn read_tensor(path: &Path, header: &Header, start: u64, name: &str) -> Result<Tensor, String> {
    let info = header.tensors.info(name).ok_or_else(|| format!("{name}: not in the header"))?;
    let Some(mut values) = Values::zeros(info.dtype, info.shape.iter().product()) else {
        return Err(format!("{name} is {}: checkpoints have F32, I64 and U8", info.dtype));
    };
    let mut read = || -> io::Result<()> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(start + info.data_offsets.0 as u64))?;
        file.read_exact(values.bytes_mut())
    };
    read().map_err(|source| format!("{name}: cannot read: {source}"))?;
    if header.digests.get(name) != Some(&hex(&header::sha256(values.bytes()))) {
        return Err(format!("{name} does not have the digest that was written with it: the file is damaged"));
    }
    Ok(Tensor { shape: info.shape.clone(), values })
}

/// `work(0..n)` in order, on a few threads: SHA-256 does 1 to 2 GB/s on one.
fn in_parallel<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(8)).min(n);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(n)));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n {
                        break;
                    }
                    let value = work(i);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((i, value));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, value)| value).collect()
}
