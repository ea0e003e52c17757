//! The descriptors of cuDNN's graph API (`cudnn_graph.h`): made, given attributes, finished, read, destroyed. What is built of
//! them: [`super::cudnn_graph`].

use super::libraries::Library;
use crate::error::{Error, Result};
use std::ffi::{c_int, c_void};
use std::fmt;

/// What is looked up, and preflighted.
pub const SYMBOLS: &[&str] = &[
    "cudnnBackendCreateDescriptor",
    "cudnnBackendDestroyDescriptor",
    "cudnnBackendSetAttribute",
    "cudnnBackendGetAttribute",
    "cudnnBackendFinalize",
    "cudnnBackendExecute",
];

/// A value of one of the header's enumerations, under the header's own name: `tests/cuda_driver` compiles [`NAMED`] against
/// the header where there is one.
macro_rules! constants {
    ($($name:ident = $value:literal;)*) => {
        $(#[allow(non_upper_case_globals, reason = "the header's own names")]
        pub(super) const $name: c_int = $value;)*
        /// All of them.
        pub const NAMED: &[(&str, c_int)] = &[$((stringify!($name), $value)),*];
    };
}

constants! {
    // cudnnBackendDescriptorType_t
    CUDNN_BACKEND_POINTWISE_DESCRIPTOR = 0;
    CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR = 1;
    CUDNN_BACKEND_ENGINE_DESCRIPTOR = 2;
    CUDNN_BACKEND_ENGINECFG_DESCRIPTOR = 3;
    CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR = 4;
    CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR = 5;
    CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR = 7;
    CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR = 10;
    CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR = 11;
    CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR = 12;
    CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR = 13;
    CUDNN_BACKEND_OPERATION_GEN_STATS_DESCRIPTOR = 14;
    CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR = 15;
    CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR = 16;
    CUDNN_BACKEND_TENSOR_DESCRIPTOR = 17;
    CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR = 38;
    // cudnnBackendAttributeType_t
    CUDNN_TYPE_HANDLE = 0;
    CUDNN_TYPE_DATA_TYPE = 1;
    CUDNN_TYPE_BOOLEAN = 2;
    CUDNN_TYPE_INT64 = 3;
    CUDNN_TYPE_FLOAT = 4;
    CUDNN_TYPE_VOID_PTR = 6;
    CUDNN_TYPE_CONVOLUTION_MODE = 7;
    CUDNN_TYPE_HEUR_MODE = 8;
    CUDNN_TYPE_KNOB_TYPE = 9;
    CUDNN_TYPE_NUMERICAL_NOTE = 11;
    CUDNN_TYPE_POINTWISE_MODE = 14;
    CUDNN_TYPE_BACKEND_DESCRIPTOR = 15;
    CUDNN_TYPE_GENSTATS_MODE = 16;
    CUDNN_TYPE_BEHAVIOR_NOTE = 19;
    CUDNN_TYPE_CHAR = 24;
    // cudnnBackendAttributeName_t
    CUDNN_ATTR_POINTWISE_MODE = 0;
    CUDNN_ATTR_POINTWISE_MATH_PREC = 1;
    CUDNN_ATTR_CONVOLUTION_COMP_TYPE = 100;
    CUDNN_ATTR_CONVOLUTION_CONV_MODE = 101;
    CUDNN_ATTR_CONVOLUTION_DILATIONS = 102;
    CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES = 103;
    CUDNN_ATTR_CONVOLUTION_POST_PADDINGS = 104;
    CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS = 105;
    CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS = 106;
    CUDNN_ATTR_ENGINEHEUR_MODE = 200;
    CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH = 201;
    CUDNN_ATTR_ENGINEHEUR_RESULTS = 202;
    CUDNN_ATTR_ENGINEHEUR_DEVICEPROP = 204;
    CUDNN_ATTR_ENGINECFG_ENGINE = 300;
    CUDNN_ATTR_ENGINECFG_KNOB_CHOICES = 302;
    CUDNN_ATTR_EXECUTION_PLAN_HANDLE = 400;
    CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG = 401;
    CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE = 402;
    CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION = 405;
    CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP = 407;
    CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE = 600;
    CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE = 601;
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA = 700;
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA = 701;
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC = 702;
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W = 703;
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X = 704;
    CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y = 705;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA = 706;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA = 707;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC = 708;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W = 709;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX = 710;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY = 711;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA = 712;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA = 713;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC = 714;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW = 715;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X = 716;
    CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY = 717;
    CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR = 750;
    CUDNN_ATTR_OPERATION_POINTWISE_XDESC = 751;
    CUDNN_ATTR_OPERATION_POINTWISE_BDESC = 752;
    CUDNN_ATTR_OPERATION_POINTWISE_YDESC = 753;
    CUDNN_ATTR_OPERATION_GENSTATS_MODE = 770;
    CUDNN_ATTR_OPERATION_GENSTATS_MATH_PREC = 771;
    CUDNN_ATTR_OPERATION_GENSTATS_XDESC = 772;
    CUDNN_ATTR_OPERATION_GENSTATS_SUMDESC = 773;
    CUDNN_ATTR_OPERATION_GENSTATS_SQSUMDESC = 774;
    CUDNN_ATTR_OPERATIONGRAPH_HANDLE = 800;
    CUDNN_ATTR_OPERATIONGRAPH_OPS = 801;
    CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT = 900;
    CUDNN_ATTR_TENSOR_DATA_TYPE = 901;
    CUDNN_ATTR_TENSOR_DIMENSIONS = 902;
    CUDNN_ATTR_TENSOR_STRIDES = 903;
    CUDNN_ATTR_TENSOR_UNIQUE_ID = 906;
    CUDNN_ATTR_TENSOR_IS_VIRTUAL = 907;
    CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS = 1000;
    CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS = 1001;
    CUDNN_ATTR_VARIANT_PACK_WORKSPACE = 1003;
    CUDNN_ATTR_ENGINE_OPERATION_GRAPH = 1300;
    CUDNN_ATTR_ENGINE_GLOBAL_INDEX = 1301;
    CUDNN_ATTR_ENGINE_NUMERICAL_NOTE = 1303;
    CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE = 1305;
    CUDNN_ATTR_ENGINE_DEVICEPROP = 1307;
    CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION = 2702;
    // cudnnBackendNumericalNote_t
    CUDNN_NUMERICAL_NOTE_TENSOR_CORE = 0;
    CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS = 1;
    CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION = 2;
    CUDNN_NUMERICAL_NOTE_FFT = 3;
    CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC = 4;
    CUDNN_NUMERICAL_NOTE_WINOGRAD = 5;
    CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4 = 6;
    CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6 = 7;
    CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13 = 8;
    // cudnnBackendBehaviorNote_t
    CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION = 0;
    CUDNN_BEHAVIOR_NOTE_REQUIRES_FILTER_INT8x32_REORDER = 1;
    CUDNN_BEHAVIOR_NOTE_REQUIRES_BIAS_INT8x32_REORDER = 2;
    // cudnnBackendHeurMode_t
    CUDNN_HEUR_MODE_B = 1;
    CUDNN_HEUR_MODE_FALLBACK = 2;
    CUDNN_HEUR_MODE_A = 3;
    // cudnnPointwiseMode_t
    CUDNN_POINTWISE_ADD = 0;
    CUDNN_POINTWISE_MUL = 1;
    CUDNN_POINTWISE_RELU_FWD = 100;
    // cudnnGenStatsMode_t, cudnnConvolutionMode_t, cudnnDataType_t
    CUDNN_GENSTATS_SUM_SQSUM = 0;
    CUDNN_CROSS_CORRELATION = 1;
    CUDNN_DATA_FLOAT = 0;
    CUDNN_DATA_HALF = 2;
    CUDNN_DATA_BFLOAT16 = 9;
}

pub(super) type Raw = *mut c_void;
type Status = c_int;

/// The thousands of `cudnnStatus_t`: `CUDNN_STATUS_NOT_SUPPORTED` and its kinds.
const NOT_SUPPORTED: Status = 3;

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum Refused {
    /// cuDNN has no engine for this, or not with these knobs; the status says what is in the way.
    NotSupported(Status),
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported(status) => write!(f, "cuDNN has nothing for it (status {status})"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

fn answered(name: &str, what: &str, status: Status) -> Result<(), Refused> {
    match status {
        0 => Ok(()),
        status if status / 1000 == NOT_SUPPORTED => Err(Refused::NotSupported(status)),
        // CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
        4004 => Err(Error::usage(format!("{name}: {}", super::driver::FULL)).into()),
        status => Err(Error::device(format!(
            "{name} of {what} failed with cuDNN status {status} (cudnn_graph.h names it)"
        ))
        .into()),
    }
}

macro_rules! call {
    ($name:literal, $what:expr, ($($kind:ty),*), $($value:expr),*) => {{
        let found = Library::Cudnn
            .symbol($name)
            .ok_or_else(|| Error::device(concat!("cuDNN has no ", $name).to_owned()))?;
        // SAFETY: the type is the one of cudnn_graph.h; descriptors are live, and arrays have as many elements of the
        // attribute's type as is said, which `element` checks.
        let status = unsafe {
            let function: unsafe extern "C" fn($($kind),*) -> Status = std::mem::transmute(found);
            function($($value),*)
        };
        answered($name, &format!("{}", $what), status)
    }};
}

/// Bytes of an element of an attribute: enumerations are ints.
fn element(kind: c_int) -> usize {
    match kind {
        CUDNN_TYPE_BOOLEAN | CUDNN_TYPE_CHAR => 1,
        CUDNN_TYPE_HANDLE | CUDNN_TYPE_INT64 | CUDNN_TYPE_VOID_PTR | CUDNN_TYPE_BACKEND_DESCRIPTOR => 8,
        _ => 4,
    }
}

/// A descriptor, of a kind `CUDNN_BACKEND_*_DESCRIPTOR`.
pub(super) struct Descriptor {
    raw: Raw,
    kind: c_int,
}

impl Descriptor {
    pub(super) fn new(kind: c_int) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        call!("cudnnBackendCreateDescriptor", kind, (c_int, *mut Raw), kind, &raw mut raw)
            .map_err(|refused| Error::device(format!("descriptor {kind}: {refused}")))?;
        Ok(Self { raw, kind })
    }

    /// Before [`Self::finalize`] only.
    pub(super) fn set<T: Copy>(&self, name: c_int, kind: c_int, values: &[T]) -> Result<(), Refused> {
        assert_eq!(size_of::<T>(), element(kind), "an element of attribute {name}");
        call!(
            "cudnnBackendSetAttribute",
            format_args!("attribute {name}"),
            (Raw, c_int, c_int, i64, *const c_void),
            self.raw,
            name,
            kind,
            values.len() as i64,
            values.as_ptr().cast()
        )
    }

    pub(super) fn set_descriptors(&self, name: c_int, of: &[&Descriptor]) -> Result<(), Refused> {
        let all: Vec<Raw> = of.iter().map(|one| one.raw).collect();
        self.set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &all)
    }

    pub(super) fn finalize(self) -> Result<Self, Refused> {
        call!("cudnnBackendFinalize", format_args!("descriptor {}", self.kind), (Raw), self.raw)?;
        Ok(self)
    }

    /// How many elements an attribute of a finished descriptor has.
    pub(super) fn count(&self, name: c_int, kind: c_int) -> Result<usize, Refused> {
        self.read::<u64>(name, kind, &mut []).map(|count| count.max(0) as usize)
    }

    /// At most `most` elements of an attribute of a finished descriptor; `empty` is what an element is before.
    pub(super) fn get<T: Copy>(
        &self,
        name: c_int,
        kind: c_int,
        most: usize,
        empty: T,
    ) -> Result<Vec<T>, Refused> {
        assert_eq!(size_of::<T>(), element(kind), "an element of attribute {name}");
        let mut values = vec![empty; most];
        let count = self.read(name, kind, &mut values)?;
        values.truncate(count.clamp(0, most as i64) as usize);
        Ok(values)
    }

    pub(super) fn get_one<T: Copy>(&self, name: c_int, kind: c_int, empty: T) -> Result<T, Refused> {
        let all = self.get(name, kind, 1, empty)?;
        all.first().copied().ok_or_else(|| Error::device(format!("cuDNN has no attribute {name}")).into())
    }

    /// Descriptors of `what` that are an attribute of this one: cuDNN fills them in, and they are the caller's.
    pub(super) fn get_descriptors(
        &self,
        name: c_int,
        what: c_int,
        most: usize,
    ) -> Result<Vec<Self>, Refused> {
        let made = (0..most).map(|_| Self::new(what)).collect::<Result<Vec<_>>>()?;
        let mut all: Vec<Raw> = made.iter().map(|one| one.raw).collect();
        let count = self.read(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &mut all)?;
        Ok(made.into_iter().take(count.max(0) as usize).collect())
    }

    fn read<T>(&self, name: c_int, kind: c_int, to: &mut [T]) -> Result<i64, Refused> {
        let mut count = 0;
        let at = if to.is_empty() { std::ptr::null_mut() } else { to.as_mut_ptr().cast() };
        call!(
            "cudnnBackendGetAttribute",
            format_args!("attribute {name}"),
            (Raw, c_int, c_int, i64, *mut i64, *mut c_void),
            self.raw,
            name,
            kind,
            to.len() as i64,
            &raw mut count,
            at
        )?;
        Ok(count)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // Where it fails nothing is left to free.
        let _ = (|| call!("cudnnBackendDestroyDescriptor", self.kind, (Raw), self.raw))();
    }
}

/// Sends a finished plan to the handle's stream, with the pack's pointers.
pub(super) fn execute(handle: Raw, plan: &Descriptor, pack: &Descriptor) -> Result<()> {
    call!("cudnnBackendExecute", "a plan", (Raw, Raw, Raw), handle, plan.raw, pack.raw)
        .map_err(|refused| Error::device(format!("a plan that was finished is refused: {refused}")))
}
