//! cuBLASLt's matrix products: the same products as [`super::cublas`]'s, with every algorithm that its heuristic offers instead
//! of the first. Where an algorithm splits a product's sum, the parts are added in fp32 and in fixed order
//! (`CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`): no other scheme is asked for, so that all give the same bits every time.

use super::cublas::{ColumnMajor, Product, TRANSPOSE, compute_type, data_type, succeeded};
use super::driver::{Address, Stream};
use super::libraries::Library;
use crate::backend::cuda::storage::Storage;
use crate::error::Result;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::str::FromStr;

pub const SYMBOLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmul",
    "cublasLtGetProperty",
];

type Status = c_int;
type Handle = *mut c_void;

/// `cublasLtMatmulDescAttributes_t`.
const TRANSA: c_int = 3;
const TRANSB: c_int = 4;
/// `cublasLtMatmulPreferenceAttributes_t`.
const MAX_WORKSPACE_BYTES: c_int = 1;
const REDUCTION_SCHEME_MASK: c_int = 3;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`.
const IN_COMPUTE_TYPE: u32 = 2;
/// Algorithms that are asked for.
const MOST: usize = 8;

/// `cublasLtMatmulAlgo_t`: the manual lets it be kept as bytes and used again with the same version of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithm {
    pub data: [u64; 8],
    /// Workspace in bytes.
    pub workspace: usize,
}

/// `cublaslt 1f 0 0 0 0 0 0 0 workspace 4096`: words in hexadecimal.
impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cublaslt")?;
        self.data.iter().try_for_each(|word| write!(f, " {word:x}"))?;
        write!(f, " workspace {}", self.workspace)
    }
}

impl FromStr for Algorithm {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let ["cublaslt", ref data @ .., "workspace", workspace] = words[..] else { return Err(()) };
        let data = data.iter().map(|word| u64::from_str_radix(word, 16)).collect::<Result<Vec<_>, _>>();
        let data = data.map_err(drop)?.try_into().map_err(drop)?;
        Ok(Self { data, workspace: workspace.parse().map_err(drop)? })
    }
}

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Offer {
    data: [u64; 8],
    workspace: usize,
    state: Status,
    _waves: f32,
    _reserved: [c_int; 4],
}

// As cuBLASLt's header lays it out on 64-bit machines.
const _: () = assert!(size_of::<Offer>() == 96 && std::mem::offset_of!(Offer, state) == 72);

macro_rules! call {
    ($name:literal, ($($kind:ty),*), $($value:expr),*) => {{
        let found = Library::CublasLt.address($name)?;
        // SAFETY: the type is the one of cublasLt.h; handles and descriptors are live, and regions are as large as the
        // shapes say, which the callers check.
        let status = unsafe {
            let function: unsafe extern "C" fn($($kind),*) -> Status = std::mem::transmute(found);
            function($($value),*)
        };
        succeeded($name, status)
    }};
}

/// A handle, which is bound to no stream.
pub struct CublasLt {
    handle: Handle,
    storage: Storage,
    compute: c_int,
}

/// Where the workspace is.
#[derive(Debug, Clone, Copy)]
pub struct Workspace {
    pub at: Address,
    pub bytes: usize,
}

/// A product's descriptors: the operation, then the layouts of a, b and c, column-major.
struct Descriptors {
    operation: Handle,
    layouts: [Handle; 3],
}

impl Descriptors {
    fn new(product: &ColumnMajor, operand: Storage, result: Storage, compute: c_int) -> Result<Self> {
        let mut this = Self { operation: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 3] };
        let factors = data_type(Storage::F32);
        call!(
            "cublasLtMatmulDescCreate",
            (*mut Handle, c_int, c_int),
            &raw mut this.operation,
            compute,
            factors
        )?;
        for (attribute, operation) in [TRANSA, TRANSB].into_iter().zip(&product.operations) {
            call!(
                "cublasLtMatmulDescSetAttribute",
                (Handle, c_int, *const c_void, usize),
                this.operation,
                attribute,
                std::ptr::from_ref(operation).cast(),
                size_of::<c_int>()
            )?;
        }
        let ColumnMajor { operations, m, n, k, lda, ldb, ldc, .. } = *product;
        let of =
            |operation, rows, columns| if operation == TRANSPOSE { (columns, rows) } else { (rows, columns) };
        let sides = [of(operations[0], m, k), of(operations[1], k, n), (m, n)];
        for (index, ((rows, columns), leading)) in sides.into_iter().zip([lda, ldb, ldc]).enumerate() {
            let kind = data_type(if index == 2 { result } else { operand });
            call!(
                "cublasLtMatrixLayoutCreate",
                (*mut Handle, c_int, u64, u64, i64),
                &raw mut this.layouts[index],
                kind,
                rows as u64,
                columns as u64,
                i64::from(leading)
            )?;
        }
        Ok(this)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
            let _ = (|| call!("cublasLtMatrixLayoutDestroy", (Handle), layout))();
        }
        if !self.operation.is_null() {
            let _ = (|| call!("cublasLtMatmulDescDestroy", (Handle), self.operation))();
        }
    }
}

impl CublasLt {
    pub fn new(storage: Storage, tf32: bool) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        call!("cublasLtCreate", (*mut Handle), &raw mut handle)?;
        Ok(Self { handle, storage, compute: compute_type(storage, tf32) })
    }

    fn descriptors(&self, product: &Product) -> Result<(ColumnMajor, Descriptors)> {
        let by = ColumnMajor::of(product);
        let descriptors = Descriptors::new(&by, self.storage, product.result, self.compute)?;
        Ok((by, descriptors))
    }

    /// What the heuristic offers for a product within `workspace` bytes, its own favourite first.
    pub fn offers(&self, product: &Product, workspace: usize) -> Result<Vec<Algorithm>> {
        let (_, Descriptors { operation, layouts: [a, b, c] }) = &self.descriptors(product)?;
        let preference = Preference::new(workspace as u64)?;
        let none = Offer { data: [0; 8], workspace: 0, state: -1, _waves: 0.0, _reserved: [0; 4] };
        let (mut all, mut found) = ([none; MOST], 0);
        call!(
            "cublasLtMatmulAlgoGetHeuristic",
            (Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Offer, *mut c_int),
            self.handle,
            *operation,
            *a,
            *b,
            *c,
            *c,
            preference.0,
            MOST as c_int,
            all.as_mut_ptr(),
            &raw mut found
        )?;
        let usable = |offer: &&Offer| offer.state == 0 && offer.workspace <= workspace;
        let algorithm = |offer: &Offer| Algorithm { data: offer.data, workspace: offer.workspace };
        Ok(all[..(found as usize).min(MOST)].iter().filter(usable).map(algorithm).collect())
    }

    pub fn run(
        &self,
        product: &Product,
        by: &Algorithm,
        workspace: Workspace,
        stream: &Stream,
    ) -> Result<()> {
        let (columns, Descriptors { operation, layouts: [a, b, c] }) = &self.descriptors(product)?;
        let (one, beta) = (1.0f32, if product.accumulate { 1.0f32 } else { 0.0 });
        call!(
            "cublasLtMatmul",
            (
                Handle,
                Handle,
                *const f32,
                *const c_void,
                Handle,
                *const c_void,
                Handle,
                *const f32,
                *const c_void,
                Handle,
                *mut c_void,
                Handle,
                *const u64,
                *mut c_void,
                usize,
                *mut c_void
            ),
            self.handle,
            *operation,
            &raw const one,
            columns.a as *const c_void,
            *a,
            columns.b as *const c_void,
            *b,
            &raw const beta,
            product.c as *const c_void,
            *c,
            product.c as *mut c_void,
            *c,
            by.data.as_ptr(),
            workspace.at as *mut c_void,
            workspace.bytes,
            stream.raw()
        )
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        let _ = (|| call!("cublasLtDestroy", (Handle), self.handle))();
    }
}

/// What the heuristic may offer.
struct Preference(Handle);

impl Preference {
    fn new(workspace: u64) -> Result<Self> {
        let mut this = Self(std::ptr::null_mut());
        call!("cublasLtMatmulPreferenceCreate", (*mut Handle), &raw mut this.0)?;
        this.set(MAX_WORKSPACE_BYTES, &workspace)?;
        this.set(REDUCTION_SCHEME_MASK, &IN_COMPUTE_TYPE)?;
        Ok(this)
    }

    fn set<T>(&self, attribute: c_int, value: &T) -> Result<()> {
        call!(
            "cublasLtMatmulPreferenceSetAttribute",
            (Handle, c_int, *const c_void, usize),
            self.0,
            attribute,
            std::ptr::from_ref(value).cast(),
            size_of::<T>()
        )
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        let _ = (|| call!("cublasLtMatmulPreferenceDestroy", (Handle), self.0))();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_are_read_back() {
        let one = Algorithm { data: [0x1f, u64::MAX, 0, 1, 2, 3, 4, 5], workspace: 4096 };
        assert_eq!(one.to_string(), "cublaslt 1f ffffffffffffffff 0 1 2 3 4 5 workspace 4096");
        assert_eq!(one.to_string().parse(), Ok(one));
        for other in ["cublaslt", "cublaslt 1 workspace 0", "cublaslt 0 0 0 0 0 0 0 x workspace 0", "cublas"]
        {
            assert_eq!(other.parse::<Algorithm>(), Err(()), "{other}");
        }
    }
}
