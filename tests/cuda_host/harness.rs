//! Compiles `kernels/host/kernels.cpp` once, loads it, and launches kernels as a driver would.

use engine::backend::cuda::plan::geometry::Geometry;
use libloading::{Library, Symbol};
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    Pointer(*mut u8),
    U32(u32),
    U64(u64),
    F32(f32),
}

/// In which order the threads of a block run, and the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
    /// By this seed.
    Shuffled(u32),
}

pub const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Shuffled(7)];

type Launch = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    *mut *mut c_void,
    c_uint,
    c_uint,
    usize,
    c_int,
    *mut c_char,
    usize,
) -> c_int;

/// A library of kernels.
pub struct Host {
    library: Library,
}

impl Host {
    /// The project's kernels; `None`, with a word on stderr, where there is no C++ compiler.
    pub fn kernels() -> Option<&'static Self> {
        static HOST: OnceLock<Option<Host>> = OnceLock::new();
        HOST.get_or_init(|| Self::compile("kernels/host/kernels.cpp")).as_ref()
    }

    /// A library of other kernels, for tests of the harness.
    pub fn compile(source: &str) -> Option<Self> {
        let Some(compiler) = compiler() else {
            eprintln!("skipped: no C++ compiler (CXX, c++ or g++)");
            return None;
        };
        let path = library(&compiler, Path::new(source));
        // SAFETY: the library is our own; its initialisers only fill a table of names.
        let library =
            unsafe { Library::new(&path) }.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Some(Self { library })
    }

    /// Runs a kernel whose blocks wait for nobody to its end; the error names what is wrong with its barriers.
    ///
    /// # Safety
    /// `args` are those of the kernel's declaration, and what they point to is as large as the kernel expects.
    pub unsafe fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        args: &[Arg],
        order: Order,
    ) -> Result<(), String> {
        let geometry = Geometry { grid, block, shared: 0, cooperative: false };
        // SAFETY: the caller's promise.
        unsafe { self.run(name, geometry, args, order) }
    }

    /// The same as a plan launches it.
    ///
    /// # Safety
    /// As of `launch`.
    pub unsafe fn run(
        &self,
        name: &str,
        geometry: Geometry,
        args: &[Arg],
        order: Order,
    ) -> Result<(), String> {
        let mut values: Vec<u64> = args.iter().map(|arg| word(*arg)).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        let (order, seed) = match order {
            Order::Ascending => (0, 0),
            Order::Descending => (1, 0),
            Order::Shuffled(seed) => (2, seed),
        };
        let kernel = CString::new(name).expect("a name has no zero");
        let mut message = [0; 256];
        // SAFETY: the symbol has this type (kernels/host/launch.h); every argument has its own word.
        let failed = unsafe {
            let launch: Symbol<Launch> = self.library.get(b"engine_launch\0").expect("launch.h defines it");
            let Geometry { grid, block, shared, cooperative } = geometry;
            let (grid, block) = (grid.as_ptr(), block.as_ptr());
            let size = message.len();
            launch(
                kernel.as_ptr(),
                grid,
                block,
                pointers.as_mut_ptr(),
                order,
                seed,
                shared as usize,
                c_int::from(cooperative),
                message.as_mut_ptr(),
                size,
            )
        };
        if failed == 0 {
            return Ok(());
        }
        // SAFETY: the library ends its message with a zero.
        Err(unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// Names of all kernels.
    pub fn names(&self) -> Vec<String> {
        unsafe extern "C" fn visit(name: *const c_char, context: *mut c_void) {
            // SAFETY: the library hands over its own names, and the context that `names` gave it.
            unsafe {
                let names = &mut *context.cast::<Vec<String>>();
                names.push(CStr::from_ptr(name).to_string_lossy().into_owned());
            }
        }
        type Names = unsafe extern "C" fn(unsafe extern "C" fn(*const c_char, *mut c_void), *mut c_void);
        let mut names: Vec<String> = vec![];
        // SAFETY: the symbol has this type (kernels/host/launch.h), and `names` outlives the call.
        unsafe {
            let all: Symbol<Names> = self.library.get(b"engine_kernel_names\0").expect("launch.h defines it");
            all(visit, (&raw mut names).cast());
        }
        names
    }
}

/// An argument's value in the low bytes of a word, as a little-endian machine reads it through a pointer.
fn word(arg: Arg) -> u64 {
    match arg {
        Arg::Pointer(pointer) => pointer as u64,
        Arg::U32(value) => u64::from(value),
        Arg::U64(value) => value,
        Arg::F32(value) => u64::from(value.to_bits()),
    }
}

pub fn compiler() -> Option<String> {
    let named = env::var("CXX").ok();
    let works = |name: &String| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    named.into_iter().chain(["c++".to_owned(), "g++".to_owned()]).find(works)
}

pub fn sanitizes() -> bool {
    env::var_os("ENGINE_HOST_SANITIZE").is_some_and(|value| value == "1")
}

/// Flags of every build. Products and sums are rounded one by one, as the kernels say.
pub fn flags() -> Vec<&'static str> {
    let mut flags = vec![
        "-fvisibility=hidden",
        "-std=c++17",
        "-O2",
        "-g1",
        "-ffp-contract=off",
        "-Wall",
        "-Wno-unknown-pragmas",
    ];
    if sanitizes() {
        flags.extend(["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]);
    }
    flags
}

/// The compiled library, made where there is none of these sources yet.
fn library(compiler: &str, source: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join(source);
    let mut hash = Sha256::new();
    hash.update(fs::read(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display())));
    hash.update(flags().join(" "));
    for folder in ["kernels", "kernels/host"] {
        let mut files: Vec<PathBuf> = fs::read_dir(root.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        files.iter().for_each(|file| hash.update(fs::read(file).unwrap()));
    }
    let digest: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = source.file_stem().unwrap().to_string_lossy().into_owned();
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{digest}.so"));
    if target.exists() {
        return target;
    }
    // Renamed when whole, so that tests in parallel never load half a library.
    let partial = target.with_extension(format!("{}.{:?}", std::process::id(), std::thread::current().id()));
    let output = Command::new(compiler)
        .args(flags())
        .args(["-fPIC", "-shared", "-I"])
        .arg(root.join("kernels/host"))
        .arg(&source)
        .arg("-o")
        .arg(&partial)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not compile:\n{errors}", source.display());
    assert!(!errors.contains("warning"), "{}:\n{errors}", source.display());
    fs::rename(&partial, &target).unwrap();
    target
}
