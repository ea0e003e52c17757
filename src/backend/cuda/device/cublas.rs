//! cuBLAS's matrix product, row-major, with fp32 sums. Called as [`super::cudnn`] is, with plain integers.

use super::driver::{Address, Stream};
use super::libraries::Library;
use crate::backend::cuda::storage::Storage;
use crate::error::{Error, Result};
use std::ffi::{c_int, c_void};

pub const SYMBOLS: &[&str] = &[
    "cublasCreate_v2",
    "cublasDestroy_v2",
    "cublasSetStream_v2",
    "cublasSetWorkspace_v2",
    "cublasGemmEx",
    "cublasGetProperty",
];

type Status = c_int;
type Handle = *mut c_void;

/// `cudaDataType` of library_types.h.
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
/// `cublasComputeType_t`.
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_PEDANTIC: c_int = 69;
const COMPUTE_32F_FAST_TF32: c_int = 77;
/// `CUBLAS_GEMM_DEFAULT`: the heuristic, which depends on the shapes alone.
const GEMM_DEFAULT: c_int = -1;
const NO_TRANSPOSE: c_int = 0;
const TRANSPOSE: c_int = 1;

/// c [m][n] = a [m][k] b [k][n], row-major; a transposed operand lies as [k][m] or [n][k].
#[derive(Debug, Clone, Copy)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Operand,
    pub b: Operand,
    pub c: Address,
    /// c's own type.
    pub result: Storage,
    /// Adds to what c holds.
    pub accumulate: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Operand {
    pub at: Address,
    pub transposed: bool,
}

/// A handle on one stream with a workspace of its own, without which results may differ between runs (cuBLAS manual,
/// "Results reproducibility").
pub struct Cublas {
    handle: Handle,
    storage: Storage,
    compute: c_int,
}

fn address(name: &str) -> Result<*const c_void> {
    Library::Cublas.symbol(name).ok_or_else(|| Error::device(format!("cuBLAS has no {name}")))
}

macro_rules! call {
    ($name:literal, ($($kind:ty),*), $($value:expr),*) => {{
        let found = address($name)?;
        // SAFETY: the type is the one of cuBLAS's header; the handle is live, and regions are as large as the shapes
        // say, which the callers check.
        let status = unsafe {
            let function: unsafe extern "C" fn($($kind),*) -> Status = std::mem::transmute(found);
            function($($value),*)
        };
        match status {
            0 => Ok(()),
            status => Err(Error::device(format!("{} failed with cuBLAS status {status} (cublas_api.h names it)", $name))),
        }
    }};
}

impl Cublas {
    pub fn new(
        stream: &Stream,
        workspace: Address,
        bytes: usize,
        storage: Storage,
        tf32: bool,
    ) -> Result<Self> {
        let compute = match (storage, tf32) {
            (Storage::F32, true) => COMPUTE_32F_FAST_TF32,
            (Storage::F32, false) => COMPUTE_32F_PEDANTIC,
            _ => COMPUTE_32F,
        };
        let mut handle = std::ptr::null_mut();
        call!("cublasCreate_v2", (*mut Handle), &raw mut handle)?;
        let cublas = Self { handle, storage, compute };
        call!("cublasSetStream_v2", (Handle, *mut c_void), handle, stream.raw())?;
        call!(
            "cublasSetWorkspace_v2",
            (Handle, *mut c_void, usize),
            handle,
            workspace as *mut c_void,
            bytes
        )?;
        Ok(cublas)
    }

    /// cuBLAS is column-major: what is row-major [m][n] is its [n][m], so the operands change places.
    pub fn run(&self, product: &Product) -> Result<()> {
        let Product { m, n, k, a, b, c, result, accumulate } = *product;
        let operation = |operand: Operand| if operand.transposed { TRANSPOSE } else { NO_TRANSPOSE };
        let (lda, ldb) = (if a.transposed { m } else { k }, if b.transposed { k } else { n });
        let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let [m, n, k, lda, ldb] = [m, n, k, lda, ldb].map(|size| size as c_int);
        let kind = |storage: Storage| match storage {
            Storage::F16 => R_16F,
            Storage::Bf16 => R_16BF,
            Storage::F32 => R_32F,
        };
        let (from, to) = (kind(self.storage), kind(result));
        call!(
            "cublasGemmEx",
            (
                Handle,
                c_int,
                c_int,
                c_int,
                c_int,
                c_int,
                *const f32,
                *const c_void,
                c_int,
                c_int,
                *const c_void,
                c_int,
                c_int,
                *const f32,
                *mut c_void,
                c_int,
                c_int,
                c_int,
                c_int
            ),
            self.handle,
            operation(b),
            operation(a),
            n,
            m,
            k,
            &raw const one,
            b.at as *const c_void,
            from,
            ldb,
            a.at as *const c_void,
            from,
            lda,
            &raw const beta,
            c as *mut c_void,
            to,
            n,
            self.compute,
            GEMM_DEFAULT
        )
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        let _ = (|| call!("cublasDestroy_v2", (Handle), self.handle))();
    }
}
