//! Which of NVIDIA's libraries are here, and what to do about those that are not. Nothing here needs one of them.

use crate::error::{Error, Result};
use cudarc::{cublas, cublaslt, cudnn, driver, nccl};
use std::ffi::{c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};

/// One of the libraries that are loaded when they are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// `libcuda.so.1`, part of the driver.
    Driver,
    Cublas,
    /// For `device.search.routines = "cublas-lt"` only.
    CublasLt,
    Cudnn,
    /// For several GPUs only.
    Nccl,
}

/// What was found of a library.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// As the loader resolved it; none where the system does not tell.
    pub path: Option<PathBuf>,
    /// 13020 is CUDA 13.2 (driver), 91002 is cuDNN 9.10.2, 120805 is cuBLAS 12.8.5.
    pub version: usize,
}

/// Drivers from CUDA 12.1 on take the kernels' PTX (ISA 8.1).
pub const OLDEST_DRIVER: usize = 12010;

/// cuDNN 9.0.0: the version whose types the calls are declared with.
pub const OLDEST_CUDNN: usize = 90000;

/// cuDNN from 9.11.0 on has no code for cards before Turing (compute capability 7.5): pytorch issue 162574 cites the
/// release notes.
pub const CUDNN_WITHOUT_VOLTA: usize = 91100;

/// Every symbol that the backend calls: one that is missing is an error here, and would be a panic later.
const SYMBOLS: [(Library, &[&str]); 6] = [
    (
        Library::Driver,
        &[
            "cuInit",
            "cuDriverGetVersion",
            "cuDeviceGet",
            "cuDeviceGetCount",
            "cuDeviceGetName",
            "cuDeviceGetAttribute",
            "cuDevicePrimaryCtxRetain",
            "cuDevicePrimaryCtxRelease_v2",
            "cuCtxSetCurrent",
            "cuCtxSynchronize",
            "cuMemGetInfo_v2",
            "cuMemAlloc_v2",
            "cuMemFree_v2",
            "cuMemHostAlloc",
            "cuMemFreeHost",
            "cuMemsetD8_v2",
            "cuMemcpyHtoD_v2",
            "cuMemcpyDtoH_v2",
            "cuMemcpyHtoDAsync_v2",
            "cuMemcpyDtoHAsync_v2",
            "cuMemcpyDtoDAsync_v2",
            "cuModuleLoadData",
            "cuModuleUnload",
            "cuModuleGetFunction",
            "cuFuncSetAttribute",
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            "cuLaunchKernel",
            "cuLaunchCooperativeKernel",
            "cuStreamCreate",
            "cuStreamDestroy_v2",
            "cuStreamSynchronize",
            "cuStreamWaitEvent",
            "cuStreamBeginCapture_v2",
            "cuStreamEndCapture",
            "cuEventCreate",
            "cuEventDestroy_v2",
            "cuEventRecord",
            "cuEventQuery",
            "cuEventElapsedTime",
            "cuGraphInstantiateWithFlags",
            "cuGraphLaunch",
            "cuGraphExecDestroy",
            "cuGraphDestroy",
            "cuGetErrorName",
            "cuGetErrorString",
        ],
    ),
    (Library::Cublas, super::cublas::SYMBOLS),
    (Library::CublasLt, super::cublaslt::SYMBOLS),
    (Library::Cudnn, super::cudnn::SYMBOLS),
    (Library::Cudnn, super::graph_api::SYMBOLS),
    (Library::Nccl, super::nccl::SYMBOLS),
];

impl Library {
    pub const ALL: [Self; 4] = [Self::Driver, Self::Cublas, Self::Cudnn, Self::Nccl];

    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "NVIDIA driver",
            Self::Cublas => "cuBLAS",
            Self::CublasLt => "cuBLASLt",
            Self::Cudnn => "cuDNN",
            Self::Nccl => "NCCL",
        }
    }

    /// What its file's name begins with.
    fn file(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so",
            Self::Cublas => "libcublas.so",
            Self::CublasLt => "libcublasLt.so",
            Self::Cudnn => "libcudnn.so",
            Self::Nccl => "libnccl.so",
        }
    }

    fn is_present(self) -> bool {
        // SAFETY: these load a library of NVIDIA's, whose initialisers run, and answer whether that worked.
        unsafe {
            match self {
                Self::Driver => driver::sys::is_culib_present(),
                Self::Cublas => cublas::sys::is_culib_present(),
                Self::CublasLt => cublaslt::sys::is_culib_present(),
                Self::Cudnn => cudnn::sys::is_culib_present(),
                Self::Nccl => nccl::sys::is_culib_present(),
            }
        }
    }

    /// The address of one of its functions, all of which [`SYMBOLS`] names. The library is present.
    pub(super) fn address(self, name: &str) -> Result<*const c_void> {
        self.symbol(name).ok_or_else(|| Error::device(format!("{} has no {name}", self.name())))
    }

    /// The same; none where it has no such function.
    pub(super) fn symbol(self, name: &str) -> Option<*const c_void> {
        let bytes = format!("{name}\0");
        macro_rules! address {
            ($module:ident) => {
                // SAFETY: the library is present, so `culib` does not panic; the address is not called here.
                unsafe {
                    let found = $module::sys::culib().get::<unsafe extern "C" fn()>(bytes.as_bytes()).ok()?;
                    Some(*found as *const c_void)
                }
            };
        }
        match self {
            Self::Driver => address!(driver),
            Self::Cublas => address!(cublas),
            Self::CublasLt => address!(cublaslt),
            Self::Cudnn => address!(cudnn),
            Self::Nccl => address!(nccl),
        }
    }

    fn version(self) -> usize {
        let mut version: c_int = 0;
        let by_pointer = |name| self.symbol(name);
        // SAFETY: each function has the type that its header gives it.
        unsafe {
            match self {
                Self::Driver => {
                    if let Some(get) = by_pointer("cuDriverGetVersion") {
                        let get: unsafe extern "C" fn(*mut c_int) -> c_int = std::mem::transmute(get);
                        get(&raw mut version);
                    }
                }
                Self::Nccl => {
                    if let Some(get) = by_pointer("ncclGetVersion") {
                        let get: unsafe extern "C" fn(*mut c_int) -> c_int = std::mem::transmute(get);
                        get(&raw mut version);
                    }
                }
                Self::Cudnn => {
                    if let Some(get) = by_pointer("cudnnGetVersion") {
                        let get: unsafe extern "C" fn() -> usize = std::mem::transmute(get);
                        return get();
                    }
                }
                Self::Cublas | Self::CublasLt => {
                    let name = if self == Self::Cublas { "cublasGetProperty" } else { "cublasLtGetProperty" };
                    if let Some(get) = by_pointer(name) {
                        let get: unsafe extern "C" fn(c_int, *mut c_int) -> c_int = std::mem::transmute(get);
                        // MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL of library_types.h.
                        let mut parts = [0; 3];
                        for (property, part) in parts.iter_mut().enumerate() {
                            get(property as c_int, part);
                        }
                        version = parts[0] * 10000 + parts[1] * 100 + parts[2];
                    }
                }
            }
        }
        version as usize
    }

    /// Looks for the library; the error says what to do.
    pub fn find(self) -> Result<Found> {
        if !self.is_present() {
            return Err(Error::device(self.missing()));
        }
        let version = self.version();
        for (_, symbols) in SYMBOLS.iter().filter(|(library, _)| *library == self) {
            if let Some(symbol) = symbols.iter().find(|symbol| self.symbol(symbol).is_none()) {
                let (name, advice) = (self.name(), self.advice());
                return Err(Error::device(format!("{name} (version {version}) has no {symbol}: {advice}")));
            }
        }
        self.check_version(version)?;
        Ok(Found { path: loaded_from(self.file()), version })
    }

    fn check_version(self, version: usize) -> Result<()> {
        match self {
            Self::Driver if version < OLDEST_DRIVER => Err(Error::device(format!(
                "the NVIDIA driver is for CUDA {}.{}, engine wants 12.1 or later: install driver 530 or newer",
                version / 1000,
                version % 1000 / 10
            ))),
            // Up to 8 a version is 1000 major + 100 minor + patch.
            Self::Cudnn if version < OLDEST_CUDNN => Err(Error::device(format!(
                "cuDNN {}.{}.{} is too old, engine wants 9: {}",
                version / 1000,
                version / 100 % 10,
                version % 100,
                self.advice()
            ))),
            _ => Ok(()),
        }
    }

    fn missing(self) -> String {
        let name = self.name();
        match installed_by_pip(self.file()) {
            Some(folder) => format!(
                "{name} lies in {0}, where the loader does not look: export LD_LIBRARY_PATH={0}:$LD_LIBRARY_PATH",
                folder.display()
            ),
            None => format!("{name} ({}) is missing: {}", self.file(), self.advice()),
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Driver => {
                "this machine has no NVIDIA driver, or the container was started without GPUs (docker run --gpus all)"
            }
            Self::Cublas | Self::CublasLt => {
                "install CUDA 12 or 13 (libcublas), or pip install nvidia-cublas-cu12, and put its folder into LD_LIBRARY_PATH"
            }
            Self::Cudnn => {
                "install cuDNN 9, or pip install nvidia-cudnn-cu12 (V100: nvidia-cudnn-cu12==9.10.2.21), and put its folder into LD_LIBRARY_PATH"
            }
            Self::Nccl => {
                "several GPUs want it, one never: install libnccl-dev, or pip install nvidia-nccl-cu12 and, in its folder, ln -s libnccl.so.2 libnccl.so"
            }
        }
    }
}

/// Whether card and cuDNN go together.
pub fn check_card(capability: (i32, i32), cudnn: usize) -> Result<()> {
    let (major, minor) = capability;
    if major < 7 {
        return Err(Error::device(format!(
            "the card has compute capability {major}.{minor}; engine wants 7.0 (V100) or later"
        )));
    }
    if capability < (7, 5) && cudnn >= CUDNN_WITHOUT_VOLTA {
        return Err(Error::device(format!(
            "cuDNN {} has no code for Volta (compute capability {major}.{minor}): install CUDA 12 with cuDNN 9.10.2 or \
             older (pip install nvidia-cudnn-cu12==9.10.2.21)",
            dotted(cudnn)
        )));
    }
    Ok(())
}

/// 91002 -> 9.10.2
pub fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10000, version / 100 % 100, version % 100)
}

/// The file of a loaded library, from the system's list of mappings.
fn loaded_from(file: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(Path::new)
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(file)))?;
    Some(path.to_owned())
}

/// The folder into which pip has put a library, for the Pythons that are usually there.
fn installed_by_pip(file: &str) -> Option<PathBuf> {
    let prefixes = [
        std::env::var_os("VIRTUAL_ENV"),
        std::env::var_os("CONDA_PREFIX"),
        Some("/usr/local".into()),
        Some("/usr".into()),
    ];
    let listed = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder)
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    for prefix in prefixes.into_iter().flatten().map(PathBuf::from) {
        for python in listed(&prefix.join("lib")) {
            for packages in ["site-packages", "dist-packages"] {
                for package in listed(&python.join(packages).join("nvidia")) {
                    let folder = package.join("lib");
                    let holds = |path: &PathBuf| {
                        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(file))
                    };
                    if listed(&folder).iter().any(holds) {
                        return Some(folder);
                    }
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volta_wants_an_older_cudnn() {
        let error = check_card((7, 0), 91100).unwrap_err();
        assert!(error.message.contains("9.10.2"), "{error}");
        assert!(check_card((7, 0), 91002).is_ok() && check_card((7, 5), 92000).is_ok());
        assert!(check_card((6, 1), 91002).unwrap_err().message.contains("7.0"));
    }

    #[test]
    fn old_versions_are_refused() {
        let refused = |library: Library, version| library.check_version(version).unwrap_err();
        for (error, part) in [
            (refused(Library::Driver, 11040), "for CUDA 11.4, engine wants 12.1"),
            (refused(Library::Driver, 12000), "for CUDA 12.0"),
            (refused(Library::Cudnn, 8907), "cuDNN 8.9.7 is too old, engine wants 9"),
        ] {
            assert!(error.exit_code() == 70 && error.message.contains(part), "{error}");
        }
        assert!(Library::Driver.check_version(12010).is_ok() && Library::Cudnn.check_version(90000).is_ok());
    }

    #[test]
    fn what_is_missing_is_said_without_a_panic() {
        for library in Library::ALL {
            if let Err(error) = library.find() {
                assert!(error.message.contains(library.name()), "{error}");
            }
        }
    }
}
