//! cuDNN's convolutions, NHWC, with fp32 sums.
//!
//! The functions are looked up once and called with plain integers for its enumerations: a status or an algorithm that a
//! newer cuDNN adds is then a number and not undefined behaviour. The constants are those of cuDNN's headers.

use super::driver::{Address, Stream};
use super::libraries::Library;
use crate::backend::cuda::plan::node::Pass;
use crate::backend::cuda::storage::Storage;
use crate::error::{Error, Result};
use crate::model::graph::ConvShape;
use std::ffi::{c_int, c_void};

/// What is looked up, and preflighted.
pub const SYMBOLS: &[&str] = &[
    "cudnnGetVersion",
    "cudnnCreate",
    "cudnnDestroy",
    "cudnnSetStream",
    "cudnnCreateTensorDescriptor",
    "cudnnDestroyTensorDescriptor",
    "cudnnSetTensor4dDescriptor",
    "cudnnCreateFilterDescriptor",
    "cudnnDestroyFilterDescriptor",
    "cudnnSetFilter4dDescriptor",
    "cudnnCreateConvolutionDescriptor",
    "cudnnDestroyConvolutionDescriptor",
    "cudnnSetConvolution2dDescriptor",
    "cudnnSetConvolutionMathType",
    "cudnnConvolutionForward",
    "cudnnConvolutionBackwardData",
    "cudnnConvolutionBackwardFilter",
    "cudnnFindConvolutionForwardAlgorithmEx",
    "cudnnFindConvolutionBackwardDataAlgorithmEx",
    "cudnnFindConvolutionBackwardFilterAlgorithmEx",
];

type Status = c_int;
type Handle = *mut c_void;
type Descriptor = *mut c_void;

const TENSOR_NHWC: c_int = 1;
const CROSS_CORRELATION: c_int = 1;
const DATA_FLOAT: c_int = 0;
const DATA_HALF: c_int = 2;
const DATA_BFLOAT16: c_int = 9;
const DETERMINISTIC: c_int = 1;
/// `cudnnMathType_t`. From Ampere on the default lets fp32 products round their operands to TF32; before, it is FMA.
pub(super) const DEFAULT_MATH: c_int = 0;
/// Tensor cores, on operands of the type that they have.
pub(super) const TENSOR_OP_MATH: c_int = 1;
pub(super) const FMA_MATH: c_int = 3;

/// `cudnnConvolution*AlgoPerf_t`, the same layout for all three.
#[derive(Clone, Copy)]
#[repr(C)]
struct Performance {
    algorithm: c_int,
    status: Status,
    _milliseconds: f32,
    memory: usize,
    determinism: c_int,
    math: c_int,
    _reserved: [c_int; 3],
}

// As cuDNN's header lays it out on 64-bit machines.
const _: () = assert!(size_of::<Performance>() == 48 && std::mem::offset_of!(Performance, memory) == 16);

/// One of cuDNN's ways to compute a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithm {
    /// cuDNN's number of it.
    pub number: i32,
    /// cuDNN's number of what it computes with.
    pub math: i32,
    /// Workspace in bytes.
    pub memory: usize,
    /// Whether it gives the same bits every time.
    pub deterministic: bool,
}

type ForwardCall = unsafe extern "C" fn(
    Handle,
    *const f32,
    Descriptor,
    *const c_void,
    Descriptor,
    *const c_void,
    Descriptor,
    c_int,
    *mut c_void,
    usize,
    *const f32,
    Descriptor,
    *mut c_void,
) -> Status;
type FindCall = unsafe extern "C" fn(
    Handle,
    Descriptor,
    *const c_void,
    Descriptor,
    *const c_void,
    Descriptor,
    Descriptor,
    *mut c_void,
    c_int,
    *mut c_int,
    *mut Performance,
    *mut c_void,
    usize,
) -> Status;

/// Looks a function up and calls it with the types that its header gives it.
macro_rules! call {
    ($name:literal, ($($kind:ty),*), $($value:expr),*) => {{
        let found = Library::Cudnn.address($name)?;
        // SAFETY: the type is the one of cuDNN's header; handles and descriptors are live, and regions are as large as
        // their descriptors say, which the callers check.
        let status = unsafe {
            let function: unsafe extern "C" fn($($kind),*) -> Status = std::mem::transmute(found);
            function($($value),*)
        };
        succeeded($name, status)
    }};
}

/// `CUDNN_STATUS_*` is 0 for success; from cuDNN 9 on the thousands say what kind of failure it is.
fn succeeded(name: &str, status: Status) -> Result<()> {
    match status {
        0 => Ok(()),
        // CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
        4004 => Err(Error::usage(format!("{name}: {}", super::driver::FULL))),
        status => {
            Err(Error::device(format!("{name} failed with cuDNN status {status} (cudnn_graph.h names it)")))
        }
    }
}

/// A handle on one stream. Its workspace is the caller's.
pub struct Cudnn {
    handle: Handle,
}

impl Cudnn {
    pub fn new(stream: &Stream) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        call!("cudnnCreate", (*mut Handle), &raw mut handle)?;
        let cudnn = Self { handle };
        call!("cudnnSetStream", (Handle, *mut c_void), handle, stream.raw())?;
        Ok(cudnn)
    }

    pub(super) fn raw(&self) -> *mut c_void {
        self.handle
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        // Where it fails the card is gone, and nothing is left to free.
        let _ = (|| call!("cudnnDestroy", (Handle), self.handle))();
    }
}

/// Descriptors of one convolution: tensors NHWC, filters KRSC.
pub struct Convolution {
    x: Descriptor,
    w: Descriptor,
    y: Descriptor,
    /// Cross-correlation with fp32 sums.
    convolution: Descriptor,
}

/// Where the operands are, with their sizes checked.
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    pub x: Address,
    pub w: Address,
    pub y: Address,
    /// Of what is fused with the convolution: scales and biases before it, sums behind.
    pub norm: Option<Address>,
    pub sums: Option<Address>,
    pub workspace: Address,
    pub workspace_bytes: usize,
}

impl Convolution {
    /// For `n` images. `tf32` matters for f32 only.
    pub fn new(shape: &ConvShape, n: usize, storage: Storage, tf32: bool) -> Result<Self> {
        let null = std::ptr::null_mut();
        let mut this = Self { x: null, w: null, y: null, convolution: null };
        let kind = match storage {
            Storage::F16 => DATA_HALF,
            Storage::Bf16 => DATA_BFLOAT16,
            Storage::F32 => DATA_FLOAT,
        };
        let ConvShape { h, w, c, k, r, s, stride, pad } = *shape;
        call!("cudnnCreateTensorDescriptor", (*mut Descriptor), &raw mut this.x)?;
        call!("cudnnCreateTensorDescriptor", (*mut Descriptor), &raw mut this.y)?;
        call!("cudnnCreateFilterDescriptor", (*mut Descriptor), &raw mut this.w)?;
        call!("cudnnCreateConvolutionDescriptor", (*mut Descriptor), &raw mut this.convolution)?;
        set_tensor(this.x, kind, [n, c, h, w])?;
        set_tensor(this.y, kind, [n, k, shape.p(), shape.q()])?;
        let [k, c, r, s] = [k, c, r, s].map(|size| size as c_int);
        call!(
            "cudnnSetFilter4dDescriptor",
            (Descriptor, c_int, c_int, c_int, c_int, c_int, c_int),
            this.w,
            kind,
            TENSOR_NHWC,
            k,
            c,
            r,
            s
        )?;
        let (pad, stride) = (pad as c_int, stride as c_int);
        call!(
            "cudnnSetConvolution2dDescriptor",
            (Descriptor, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int),
            this.convolution,
            pad,
            pad,
            stride,
            stride,
            1,
            1,
            CROSS_CORRELATION,
            DATA_FLOAT
        )?;
        this.set_math(match (storage, tf32) {
            (Storage::F16 | Storage::Bf16, _) => TENSOR_OP_MATH,
            (Storage::F32, true) => DEFAULT_MATH,
            (Storage::F32, false) => FMA_MATH,
        })?;
        Ok(this)
    }

    fn set_math(&self, math: c_int) -> Result<()> {
        call!("cudnnSetConvolutionMathType", (Descriptor, c_int), self.convolution, math)
    }

    /// Runs one pass: y, dx or dw = the product, plus what is there with `accumulate`.
    pub fn run(
        &self,
        cudnn: &Cudnn,
        pass: Pass,
        by: &Algorithm,
        at: &Operands,
        accumulate: bool,
    ) -> Result<()> {
        self.set_math(by.math)?;
        let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let [x, w, y, workspace] = [at.x, at.w, at.y, at.workspace].map(|address| address as *mut c_void);
        let (name, [first, second, third]) = match pass {
            Pass::Forward => ("cudnnConvolutionForward", [(self.x, x), (self.w, w), (self.y, y)]),
            Pass::Dgrad => ("cudnnConvolutionBackwardData", [(self.w, w), (self.y, y), (self.x, x)]),
            Pass::Wgrad => ("cudnnConvolutionBackwardFilter", [(self.x, x), (self.y, y), (self.w, w)]),
        };
        let found = Library::Cudnn.address(name)?;
        // SAFETY: the three functions have this one type; the descriptors are live, and the caller's regions are as
        // large as they say. The call is asynchronous, and the plan keeps its regions until it has ended.
        let status = unsafe {
            let function: ForwardCall = std::mem::transmute(found);
            function(
                cudnn.handle,
                &raw const one,
                first.0,
                first.1,
                second.0,
                second.1,
                self.convolution,
                by.number,
                workspace,
                at.workspace_bytes,
                &raw const beta,
                third.0,
                third.1,
            )
        };
        succeeded(name, status)
    }

    /// Times every algorithm on the operands, of which it overwrites the result; fastest first. It tries the
    /// descriptor's kind of arithmetic and the default one, and says of each answer which it was.
    pub fn find(&self, cudnn: &Cudnn, pass: Pass, at: &Operands) -> Result<Vec<Algorithm>> {
        const MOST: usize = 16;
        let empty = Performance {
            algorithm: -1,
            status: -1,
            _milliseconds: f32::INFINITY,
            memory: 0,
            determinism: 0,
            math: 0,
            _reserved: [0; 3],
        };
        let (mut found, mut all) = (0, [empty; MOST]);
        let [x, w, y, workspace] = [at.x, at.w, at.y, at.workspace].map(|address| address as *mut c_void);
        let (name, [first, second, third]) = match pass {
            Pass::Forward => {
                ("cudnnFindConvolutionForwardAlgorithmEx", [(self.x, x), (self.w, w), (self.y, y)])
            }
            Pass::Dgrad => {
                ("cudnnFindConvolutionBackwardDataAlgorithmEx", [(self.w, w), (self.y, y), (self.x, x)])
            }
            Pass::Wgrad => {
                ("cudnnFindConvolutionBackwardFilterAlgorithmEx", [(self.x, x), (self.y, y), (self.w, w)])
            }
        };
        let function = Library::Cudnn.address(name)?;
        // SAFETY: as in `run`; `all` has room for MOST results of cuDNN's own layout.
        let status = unsafe {
            let function: FindCall = std::mem::transmute(function);
            function(
                cudnn.handle,
                first.0,
                first.1,
                second.0,
                second.1,
                self.convolution,
                third.0,
                third.1,
                MOST as c_int,
                &raw mut found,
                all.as_mut_ptr(),
                workspace,
                at.workspace_bytes,
            )
        };
        succeeded(name, status)?;
        let usable = |one: &&Performance| one.status == 0 && one.memory <= at.workspace_bytes;
        let candidate = |one: &Performance| Algorithm {
            number: one.algorithm,
            math: one.math,
            memory: one.memory,
            deterministic: one.determinism == DETERMINISTIC,
        };
        Ok(all[..(found as usize).min(MOST)].iter().filter(usable).map(candidate).collect())
    }
}

impl Drop for Convolution {
    fn drop(&mut self) {
        let _ = (|| call!("cudnnDestroyTensorDescriptor", (Descriptor), self.x))();
        let _ = (|| call!("cudnnDestroyTensorDescriptor", (Descriptor), self.y))();
        let _ = (|| call!("cudnnDestroyFilterDescriptor", (Descriptor), self.w))();
        let _ = (|| call!("cudnnDestroyConvolutionDescriptor", (Descriptor), self.convolution))();
    }
}

fn set_tensor(tensor: Descriptor, kind: c_int, nchw: [usize; 4]) -> Result<()> {
    let [n, c, h, w] = nchw.map(|size| size as c_int);
    call!(
        "cudnnSetTensor4dDescriptor",
        (Descriptor, c_int, c_int, c_int, c_int, c_int, c_int),
        tensor,
        TENSOR_NHWC,
        kind,
        n,
        c,
        h,
        w
    )
}
