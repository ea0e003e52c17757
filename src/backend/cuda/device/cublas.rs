//! cuBLAS's matrix product, row-major, with fp32 sums. Called as [`super::cudnn`] is, with plain integers.

use super::driver::{Address, Stream};
use super::libraries::Library;
use crate::backend::cuda::plan::node::Pass;
use crate::backend::cuda::storage::Storage;
use crate::error::{Error, Result};
use std::ffi::{c_int, c_void};

pub const SYMBOLS: &[&str] = &[
    "cublasCreate_v2",
    "cublasDestroy_v2",
    "cublasSetStream_v2",
    "cublasSetWorkspace_v2",
    "cublasSetMathMode",
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
/// `CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION`: partial sums of a product whose k is split stay in fp32, where
/// they would be rounded to the result's type on the way.
const FULL_PRECISION_SUMS: c_int = 16;
/// `CUBLAS_GEMM_DEFAULT`: the heuristic, which depends on the shapes alone.
const GEMM_DEFAULT: c_int = -1;
const NO_TRANSPOSE: c_int = 0;
pub(super) const TRANSPOSE: c_int = 1;

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

/// One of the three products of a layer that multiplies every row by the same matrix: x [rows][inputs],
/// w [outputs][inputs], y [rows][outputs]; in a backward pass with their gradients, as [`Pass`] says. A 1x1 convolution
/// without stride is one, since NHWC has a row for each pixel.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    pub pass: Pass,
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Address,
    pub w: Address,
    pub y: Address,
}

impl Layer {
    /// y = x w', dx = dy w, dw = dy' x.
    pub fn product(&self, result: Storage, accumulate: bool) -> Product {
        let Self { pass, rows, inputs, outputs, x, w, y } = *self;
        let plain = |at| Operand { at, transposed: false };
        let transposed = |at| Operand { at, transposed: true };
        let (m, n, k, a, b, c) = match pass {
            Pass::Forward => (rows, outputs, inputs, plain(x), transposed(w), y),
            Pass::Dgrad => (rows, inputs, outputs, plain(y), plain(w), x),
            Pass::Wgrad => (outputs, inputs, rows, transposed(y), plain(x), w),
        };
        Product { m, n, k, a, b, c, result, accumulate }
    }
}

/// A product as cuBLAS takes it, column-major: what is row-major [m][n] is its [n][m], so the operands change places.
#[derive(Debug, Clone, Copy)]
pub(super) struct ColumnMajor {
    /// Of a and b.
    pub operations: [c_int; 2],
    pub m: c_int,
    pub n: c_int,
    pub k: c_int,
    pub a: Address,
    pub lda: c_int,
    pub b: Address,
    pub ldb: c_int,
    pub ldc: c_int,
}

impl ColumnMajor {
    pub fn of(product: &Product) -> Self {
        let Product { m, n, k, a, b, .. } = *product;
        let operation = |operand: Operand| if operand.transposed { TRANSPOSE } else { NO_TRANSPOSE };
        let (ld_a, ld_b) = (if a.transposed { m } else { k }, if b.transposed { k } else { n });
        let [m, n, k, ld_a, ld_b] = [m, n, k, ld_a, ld_b].map(|size| size as c_int);
        let operations = [operation(b), operation(a)];
        Self { operations, m: n, n: m, k, a: b.at, lda: ld_b, b: a.at, ldb: ld_a, ldc: n }
    }
}

/// `cudaDataType` of a storage type.
pub(super) fn data_type(storage: Storage) -> c_int {
    match storage {
        Storage::F16 => R_16F,
        Storage::Bf16 => R_16BF,
        Storage::F32 => R_32F,
    }
}

/// What sums are computed in.
pub(super) fn compute_type(storage: Storage, tf32: bool) -> c_int {
    match (storage, tf32) {
        (Storage::F32, true) => COMPUTE_32F_FAST_TF32,
        (Storage::F32, false) => COMPUTE_32F_PEDANTIC,
        _ => COMPUTE_32F,
    }
}

/// A handle on one stream with a workspace of its own, without which results may differ between runs (cuBLAS manual,
/// "Results reproducibility").
pub struct Cublas {
    handle: Handle,
    storage: Storage,
    compute: c_int,
}

macro_rules! call {
    ($name:literal, ($($kind:ty),*), $($value:expr),*) => {{
        let found = Library::Cublas.address($name)?;
        // SAFETY: the type is the one of cuBLAS's header; the handle is live, and regions are as large as the shapes
        // say, which the callers check.
        let status = unsafe {
            let function: unsafe extern "C" fn($($kind),*) -> Status = std::mem::transmute(found);
            function($($value),*)
        };
        succeeded($name, status)
    }};
}

/// `cublasStatus_t`, which cuBLASLt answers with as well.
pub(super) fn succeeded(name: &str, status: Status) -> Result<()> {
    match status {
        0 => Ok(()),
        // CUBLAS_STATUS_ALLOC_FAILED
        3 => Err(Error::usage(format!("{name}: {}", super::driver::FULL))),
        status => {
            Err(Error::device(format!("{name} failed with cuBLAS status {status} (cublas_api.h names it)")))
        }
    }
}

impl Cublas {
    pub fn new(
        stream: &Stream,
        workspace: Address,
        bytes: usize,
        storage: Storage,
        tf32: bool,
    ) -> Result<Self> {
        let compute = compute_type(storage, tf32);
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
        if storage != Storage::F32 {
            call!("cublasSetMathMode", (Handle, c_int), handle, FULL_PRECISION_SUMS)?;
        }
        Ok(cublas)
    }

    pub fn run(&self, product: &Product) -> Result<()> {
        let Product { c, result, accumulate, .. } = *product;
        let ColumnMajor { operations, m, n, k, a, lda, b, ldb, ldc } = ColumnMajor::of(product);
        let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let (from, to) = (data_type(self.storage), data_type(result));
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
            operations[0],
            operations[1],
            m,
            n,
            k,
            &raw const one,
            a as *const c_void,
            from,
            lda,
            b as *const c_void,
            from,
            ldb,
            &raw const beta,
            c as *mut c_void,
            to,
            ldc,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::ConvShape;
    use crate::rng::{Purpose, Rng};
    use crate::simd::conv::{Scratch, dgrad, forward, kcrs_from_rsck, rsck_from_kcrs, wgrad};
    use crate::simd::isa::Isa;
    use crate::simd::pool::Pool;
    use crate::tensor::Difference;

    /// cublasGemmEx as its manual defines it, on the buffers whose numbers stand for addresses.
    fn gemm(by: &ColumnMajor, buffers: &[Vec<f32>; 3], c: Address, beta: f32) -> Vec<f32> {
        let element = |at: Address, operation, ld: c_int, row: c_int, column: c_int| {
            let (row, column) = if operation == TRANSPOSE { (column, row) } else { (row, column) };
            buffers[at as usize][(column * ld + row) as usize]
        };
        let mut result = buffers[c as usize].clone();
        for (row, column) in (0..by.m).flat_map(|row| (0..by.n).map(move |column| (row, column))) {
            let sum: f32 = (0..by.k)
                .map(|k| {
                    element(by.a, by.operations[0], by.lda, row, k)
                        * element(by.b, by.operations[1], by.ldb, k, column)
                })
                .sum();
            let to = &mut result[(column * by.ldc + row) as usize];
            *to = sum + beta * *to;
        }
        result
    }

    #[test]
    fn a_1x1_convolution_is_the_product_that_cublas_is_asked_for() {
        let (n, pool, isa) = (2, Pool::new(1), Isa::current());
        let shape = ConvShape { h: 3, w: 5, c: 6, k: 4, r: 1, s: 1, stride: 1, pad: 0 };
        let mut rng = Rng::new(5, 0, 0, Purpose::Init);
        let mut random = |len: usize| (0..len).map(|_| rng.range(-1.0, 1.0) as f32).collect::<Vec<_>>();
        let rows = n * shape.h * shape.w;
        let buffers = [random(rows * shape.c), random(shape.c * shape.k), random(rows * shape.k)];
        for pass in [Pass::Forward, Pass::Dgrad, Pass::Wgrad] {
            for accumulate in [false, pass != Pass::Forward] {
                let [mut x, krsc, mut y] = buffers.clone();
                let (mut w, mut scratch) = (vec![0.0; krsc.len()], Scratch::default());
                // Of a 1x1 KRSC and KCRS are the same; the CPU's are RSCK.
                rsck_from_kcrs(&shape, &krsc, &mut w);
                let want = match pass {
                    Pass::Forward => {
                        forward(&pool, isa, &shape, n, &x, &w, &mut y, &mut scratch);
                        y
                    }
                    Pass::Dgrad => {
                        dgrad(&pool, isa, &shape, n, &y, &w, &mut x, accumulate, &mut scratch);
                        x
                    }
                    Pass::Wgrad => {
                        wgrad(&pool, isa, &shape, n, &x, &y, &mut w, accumulate, &mut scratch);
                        let mut krsc = krsc;
                        kcrs_from_rsck(&shape, &w, &mut krsc);
                        krsc
                    }
                };
                let layer = Layer { pass, rows, inputs: shape.c, outputs: shape.k, x: 0, w: 1, y: 2 };
                let product = layer.product(Storage::F32, accumulate);
                let beta = if accumulate { 1.0 } else { 0.0 };
                let got = gemm(&ColumnMajor::of(&product), &buffers, product.c, beta);
                let worst = Difference::between(&got, &want).norm;
                // Two sums of at most 30 terms in another order: 30 roundings of 2^-24 each.
                assert!(worst < 30.0 * 2f64.powi(-23), "{pass:?} {accumulate}: {worst}");
            }
        }
    }
}
