//! A convolution as an operation graph of cuDNN's: alone, or with what stands beside it: a batch norm and its ReLU before, sums
//! of its output behind. Who computes it: [`super::cudnn_engine`].
//!
//! What is asked for follows cuDNN's support surface, as the library itself tells it (`tests/cuda_driver/real_cudnn.rs` asks it
//! for descriptions of cards that are not here; the answers are cuDNN 9.28's): from compute capability 8.0 on, of halves, sums
//! behind a convolution by an engine that is compiled already; before one and its sums, and before a weight gradient, scale, bias and
//! ReLU, where scale and bias are halves too; bf16 and the first convolution have sums alone, by engines that are compiled when the
//! plan is made, a second or two each. Turing has none of it.

use super::cudnn::{Cudnn, Operands};
use super::driver::Address;
use super::graph_api::*;
use crate::backend::cuda::plan::node::{Convolution, Pass};
use crate::backend::cuda::storage::Storage;
use crate::error::{Error, Result};
use crate::model::graph::ConvShape;
use std::ffi::c_int;

/// Bytes that every operand is aligned to.
const ALIGNED: i64 = 16;

/// Tensors by their numbers in the graph.
const X: i64 = 1;
const W: i64 = 2;
const Y: i64 = 3;
const SCALE: i64 = 4;
const BIAS: i64 = 5;
const SCALED: i64 = 6;
const SHIFTED: i64 = 7;
const NORMALISED: i64 = 8;
const SUM: i64 = 9;
const SQUARES: i64 = 10;

/// Which card a graph is for.
pub enum Target<'a> {
    /// The one that a handle belongs to.
    Card(&'a Cudnn),
    /// One that is not here, as `CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION` has it (cuDNN 9.11 and later): its graphs can be planned
    /// and not run.
    Described(&'a str),
}

/// The same, as a graph keeps it.
pub(super) enum For {
    Handle(Raw),
    Device(Descriptor),
}

/// A convolution's operation graph.
pub struct Graph {
    pub(super) graph: Descriptor,
    // What the graph is made of, dropped after it.
    _operations: Vec<Descriptor>,
    _parts: Vec<Descriptor>,
    /// Those that are stored.
    tensors: Vec<i64>,
    pub(super) target: For,
    /// Something is fused with the convolution.
    pub(super) fused: bool,
    /// Of input and output.
    channels: [usize; 2],
}

/// The descriptors of one graph while it is built.
struct Parts {
    parts: Vec<Descriptor>,
    operations: Vec<Descriptor>,
    tensors: Vec<i64>,
}

/// How many bytes, in which order: NCHW extents of a tensor that lies NHWC.
fn strides([_, c, h, w]: [usize; 4]) -> [i64; 4] {
    [c * h * w, 1, c * w, c].map(|stride| stride as i64)
}

fn data_type(storage: Storage) -> c_int {
    match storage {
        Storage::F16 => CUDNN_DATA_HALF,
        Storage::Bf16 => CUDNN_DATA_BFLOAT16,
        Storage::F32 => CUDNN_DATA_FLOAT,
    }
}

impl Parts {
    /// Adds a tensor; its place among the parts.
    fn tensor(&mut self, id: i64, kind: c_int, nchw: [usize; 4], stored: bool) -> Result<usize, Refused> {
        let tensor = Descriptor::new(CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
        tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, &[id])?;
        tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, &[kind])?;
        tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, &[ALIGNED])?;
        tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, &nchw.map(|size| size as i64))?;
        tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, &strides(nchw))?;
        if stored {
            self.tensors.push(id);
        } else {
            tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, &[true])?;
        }
        self.keep(tensor.finalize()?)
    }

    fn keep(&mut self, part: Descriptor) -> Result<usize, Refused> {
        self.parts.push(part);
        Ok(self.parts.len() - 1)
    }

    /// y = mode(x, b), or mode(x), in f32.
    fn pointwise(&mut self, mode: c_int, x: usize, b: Option<usize>, y: usize) -> Result<(), Refused> {
        let how = Descriptor::new(CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
        how.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, &[mode])?;
        how.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, &[CUDNN_DATA_FLOAT])?;
        let how = self.keep(how.finalize()?)?;
        let operation = Descriptor::new(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
        let part = |index: usize| &self.parts[index];
        operation.set_descriptors(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, &[part(how)])?;
        operation.set_descriptors(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &[part(x)])?;
        if let Some(b) = b {
            operation.set_descriptors(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, &[part(b)])?;
        }
        operation.set_descriptors(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &[part(y)])?;
        self.operations.push(operation.finalize()?);
        Ok(())
    }

    /// relu(x scale + bias), which is not stored.
    fn normalise(&mut self, x: usize, storage: Storage, nchw: [usize; 4]) -> Result<usize, Refused> {
        let channels = [1, nchw[1], 1, 1];
        let scale = self.tensor(SCALE, data_type(storage), channels, true)?;
        let bias = self.tensor(BIAS, data_type(storage), channels, true)?;
        let [scaled, shifted, normalised] = [SCALED, SHIFTED, NORMALISED];
        let scaled = self.tensor(scaled, CUDNN_DATA_FLOAT, nchw, false)?;
        let shifted = self.tensor(shifted, CUDNN_DATA_FLOAT, nchw, false)?;
        let normalised = self.tensor(normalised, CUDNN_DATA_FLOAT, nchw, false)?;
        self.pointwise(CUDNN_POINTWISE_MUL, x, Some(scale), scaled)?;
        self.pointwise(CUDNN_POINTWISE_ADD, scaled, Some(bias), shifted)?;
        self.pointwise(CUDNN_POINTWISE_RELU_FWD, shifted, None, normalised)?;
        Ok(normalised)
    }

    /// Padding, strides; sums in f32.
    fn geometry(&mut self, shape: &ConvShape) -> Result<usize, Refused> {
        let conv = Descriptor::new(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
        let [stride, pad] = [shape.stride, shape.pad].map(|size| [size as i64; 2]);
        conv.set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, &[2i64])?;
        conv.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, &[CUDNN_DATA_FLOAT])?;
        conv.set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, &[CUDNN_CROSS_CORRELATION])?;
        conv.set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, &pad)?;
        conv.set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, &pad)?;
        conv.set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, &stride)?;
        conv.set(CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, &[1i64; 2])?;
        self.keep(conv.finalize()?)
    }

    fn convolution(&mut self, conv: &Convolution, [x, w, y]: [usize; 3]) -> Result<(), Refused> {
        let geometry = self.geometry(&conv.shape)?;
        let names = names(conv.pass);
        let operation = Descriptor::new(names.operation)?;
        for (name, part) in [(names.x, x), (names.w, w), (names.y, y), (names.geometry, geometry)] {
            operation.set_descriptors(name, &[&self.parts[part]])?;
        }
        let beta = if conv.accumulate { 1.0f32 } else { 0.0 };
        operation.set(names.alpha, CUDNN_TYPE_FLOAT, &[1.0f32])?;
        operation.set(names.beta, CUDNN_TYPE_FLOAT, &[beta])?;
        self.operations.push(operation.finalize()?);
        Ok(())
    }

    /// Sum, and sum of squares, of every channel of `y`.
    fn sums(&mut self, y: usize, channels: usize) -> Result<(), Refused> {
        let sum = self.tensor(SUM, CUDNN_DATA_FLOAT, [1, channels, 1, 1], true)?;
        let squares = self.tensor(SQUARES, CUDNN_DATA_FLOAT, [1, channels, 1, 1], true)?;
        let operation = Descriptor::new(CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR)?;
        let (mode, precision) = (CUDNN_GENSTATS_SUM_SQSUM, CUDNN_DATA_FLOAT);
        operation.set(CUDNN_ATTR_OPERATION_GENSTATS_MODE, CUDNN_TYPE_GENSTATS_MODE, &[mode])?;
        operation.set(CUDNN_ATTR_OPERATION_GENSTATS_MATH_PREC, CUDNN_TYPE_DATA_TYPE, &[precision])?;
        for (name, part) in [
            (CUDNN_ATTR_OPERATION_GENSTATS_XDESC, y),
            (CUDNN_ATTR_OPERATION_GENSTATS_SUMDESC, sum),
            (CUDNN_ATTR_OPERATION_GENSTATS_SQSUMDESC, squares),
        ] {
            operation.set_descriptors(name, &[&self.parts[part]])?;
        }
        self.operations.push(operation.finalize()?);
        Ok(())
    }
}

/// The attributes of a pass's operation.
struct Names {
    operation: c_int,
    x: c_int,
    w: c_int,
    y: c_int,
    geometry: c_int,
    alpha: c_int,
    beta: c_int,
}

fn names(pass: Pass) -> Names {
    match pass {
        Pass::Forward => Names {
            operation: CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
            x: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
            w: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
            y: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
            geometry: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
            alpha: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
            beta: CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
        },
        Pass::Dgrad => Names {
            operation: CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
            x: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
            w: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
            y: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
            geometry: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
            alpha: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
            beta: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
        },
        Pass::Wgrad => Names {
            operation: CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
            x: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
            w: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
            y: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
            geometry: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
            alpha: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
            beta: CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
        },
    }
}

impl Graph {
    /// `None` where cuDNN takes no such graph at all.
    pub fn new(target: &Target, conv: &Convolution, storage: Storage) -> Result<Option<Self>> {
        match Self::build(target, conv, storage) {
            Ok(graph) => Ok(Some(graph)),
            Err(Refused::NotSupported(_)) => Ok(None),
            Err(Refused::Failed(error)) => Err(error),
        }
    }

    fn build(target: &Target, conv: &Convolution, storage: Storage) -> Result<Self, Refused> {
        let (n, shape, kind) = (conv.n, conv.shape, data_type(storage));
        let mut parts = Parts { parts: vec![], operations: vec![], tensors: vec![] };
        let image = [n, shape.c, shape.h, shape.w];
        let mut x = parts.tensor(X, kind, image, true)?;
        let w = parts.tensor(W, kind, [shape.k, shape.c, shape.r, shape.s], true)?;
        let y = parts.tensor(Y, kind, [n, shape.k, shape.p(), shape.q()], true)?;
        if conv.fused.norm.is_some() {
            x = parts.normalise(x, storage, image)?;
        }
        parts.convolution(conv, [x, w, y])?;
        if conv.fused.sums.is_some() {
            parts.sums(y, shape.k)?;
        }
        let Parts { parts, operations, tensors } = parts;
        let graph = Descriptor::new(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
        let target = For::new(target)?;
        if let For::Handle(handle) = target {
            graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, &[handle])?;
        }
        graph.set_descriptors(CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations.iter().collect::<Vec<_>>())?;
        Ok(Self {
            graph: graph.finalize()?,
            _operations: operations,
            _parts: parts,
            tensors,
            target,
            fused: conv.fused.any(),
            channels: [shape.c, shape.k],
        })
    }

    /// Where each tensor is that is stored.
    pub(super) fn variant_pack(&self, at: &Operands) -> Result<Descriptor> {
        let addresses: Vec<Address> =
            self.tensors.iter().map(|&tensor| self.address(tensor, at)).collect::<Result<_>>()?;
        let pack = || {
            let pack = Descriptor::new(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
            pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, &self.tensors)?;
            pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, &addresses)?;
            pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, &[at.workspace])?;
            pack.finalize()
        };
        pack().map_err(|refused| Error::device(format!("a plan's pointers: {refused}")))
    }

    /// The norm's region holds all scales, then all biases; that of the sums, all sums, then all sums of squares.
    fn address(&self, tensor: i64, at: &Operands) -> Result<Address> {
        let [c, k] = self.channels.map(|channels| channels as u64);
        let address = match tensor {
            X => Some(at.x),
            W => Some(at.w),
            Y => Some(at.y),
            SCALE => at.norm,
            BIAS => at.norm.map(|norm| norm + 2 * c),
            SUM => at.sums,
            SQUARES => at.sums.map(|sums| sums + 4 * k),
            _ => None,
        };
        match address {
            Some(address) if address.is_multiple_of(ALIGNED as u64) => Ok(address),
            Some(address) => Err(Error::failed(format!(
                "tensor {tensor} of a graph lies at {address:x}, wanted a multiple of {ALIGNED}; this is a bug in engine"
            ))),
            None => Err(Error::failed(format!(
                "tensor {tensor} of a graph has no address; this is a bug in engine"
            ))),
        }
    }
}

impl For {
    fn new(target: &Target) -> Result<Self, Refused> {
        match target {
            Target::Card(cudnn) => Ok(Self::Handle(cudnn.raw())),
            Target::Described(json) => {
                let device = Descriptor::new(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
                let text: Vec<u8> = json.bytes().chain([0]).collect();
                device.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, &text)?;
                Ok(Self::Device(device.finalize()?))
            }
        }
    }
}
