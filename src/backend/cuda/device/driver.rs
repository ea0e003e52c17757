//! The driver: context, memory, streams, events, modules, graphs. Each owns its handle and frees it.
//!
//! Everything runs on the thread that opened the context. [`super::trace`] keeps what is called, where that is asked for.

use super::libraries::Library;
use super::module::Function;
use super::trace::{Class, QUERY, traced};
use super::watchdog::{self, watched};
use crate::backend::cuda::plan::geometry::Geometry;
use crate::config::Chip;
use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{c_int, c_void};
use std::rc::Rc;

/// An address in device memory.
pub type Address = u64;

/// What is said where the driver or a library takes memory of its own and finds none.
pub(super) const FULL: &str = "the card's memory is full; lower data.micro_batch (it divides data.batch)";

/// A driver's error as one of the run: the card or the driver is at fault, and another machine may do better.
pub(super) fn failed(what: &str) -> impl Fn(DriverError) -> Error {
    move |error| {
        use sys::cudaError_enum as Code;
        match error.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => Error::usage(format!("{what}: {FULL}")),
            Code::CUDA_ERROR_NO_DEVICE => {
                Error::device("the NVIDIA driver finds no card (nvidia-smi lists them)")
            }
            _ => Error::device(format!("the card failed at {what}: {error:?}")),
        }
    }
}

/// A card's primary context, current on this thread.
pub struct Context {
    device: sys::CUdevice,
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
}

/// How many cards the driver has. The driver is present.
pub fn cards() -> Result<usize> {
    result::init().map_err(failed("cuInit"))?;
    Ok(result::device::get_count().map_err(failed("counting cards"))? as usize)
}

impl Context {
    /// The driver is present and its symbols are preflighted.
    pub fn open(ordinal: usize) -> Result<Rc<Self>> {
        watchdog::start();
        let count = cards()?;
        if ordinal >= count {
            return Err(Error::device(format!(
                "--device cuda:{ordinal}: this machine has {count} cards, counted from 0"
            )));
        }
        let device = result::device::get(ordinal as c_int).map_err(failed("opening the card"))?;
        let name = result::device::get_name(device).map_err(failed("asking for the card's name"))?;
        use sys::CUdevice_attribute_enum as Attribute;
        // SAFETY: `device` is the driver's own.
        let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        let asked = failed("asking for the compute capability");
        let capability = (major.map_err(&asked)?, minor.map_err(&asked)?);
        // SAFETY: the device is valid; the context is released when this is dropped.
        unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed("making a context"))?;
            result::ctx::set_current(context).map_err(failed("entering the context"))?;
        }
        Ok(Rc::new(Self { device, name, capability }))
    }

    /// Free bytes of device memory, and all.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (free, total) =
            watched("ask for free memory", result::mem_get_info).map_err(failed("asking for free memory"))?;
        Ok((free as u64, total as u64))
    }

    /// Bytes of the cache that all multiprocessors share.
    pub fn cache(&self) -> Result<u64> {
        use sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        // SAFETY: the device is the driver's own.
        unsafe { result::device::get_attribute(self.device, CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE) }
            .map(|bytes| bytes as u64)
            .map_err(failed("asking for the cache's size"))
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<u32> {
        // SAFETY: the device is the driver's own.
        unsafe { result::device::get_attribute(self.device, attribute) }
            .map(|value| value.max(0) as u32)
            .map_err(failed("asking what the card has"))
    }

    /// What its multiprocessors hold of one launch, and what its memory moves meanwhile, by its clock and width: two transfers a
    /// cycle.
    pub fn chip(&self) -> Result<Chip> {
        use sys::CUdevice_attribute_enum as Attribute;
        let multiprocessors = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let kilohertz = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bits = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        let bandwidth = 2e3 * f64::from(kilohertz) * f64::from(bits) / 8.0;
        Ok(Chip::of(multiprocessors, shared / 1024, bandwidth))
    }

    /// Whether all blocks of a launch can be made to run at once.
    pub fn cooperates(&self) -> Result<bool> {
        let attribute = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH;
        Ok(self.attribute(attribute)? != 0)
    }

    pub fn synchronize(&self) -> Result<()> {
        traced("synchronise card", Class::Blocks, 0, result::ctx::synchronize)
            .map_err(failed("waiting for the card"))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; whatever lives in the context holds an `Rc` of it.
        let _ = watched("leave the card", || unsafe { result::primary_ctx::release(self.device) });
    }
}

/// Device memory, zeroed.
pub struct Memory {
    context: Rc<Context>,
    address: Address,
    bytes: u64,
}

impl Memory {
    /// `what` names it where there is too little.
    pub fn new(context: &Rc<Context>, what: &str, bytes: u64) -> Result<Self> {
        let take = || {
            // SAFETY: an address of fresh memory, which nothing else knows.
            unsafe { result::malloc_sync(bytes.max(1) as usize) }
        };
        let address = traced("allocate", Class::Blocks, bytes, take).map_err(|error| match error.0 {
            sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => too_little(context, what, bytes),
            _ => failed("taking device memory")(error),
        })?;
        let memory = Self { context: Rc::clone(context), address, bytes };
        // SAFETY: the range is the one just taken.
        watched("clear memory", || unsafe { result::memset_d8_sync(address, 0, bytes as usize) })
            .map_err(failed("clearing device memory"))?;
        // It is cleared in the legacy stream, which ours do not wait for.
        context.synchronize()?;
        Ok(memory)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The address of `bytes` bytes from `offset` on; panics where they are not all inside, since a plan that asks for
    /// them is wrong.
    pub fn at(&self, offset: u64, bytes: u64) -> Address {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes at {offset} of {}", self.bytes);
        self.address + offset
    }

    /// Does not wait for what the streams still do with the memory: the caller has. The copy has ended when this returns.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        let to = self.at(offset, from.len() as u64);
        let copy = || {
            // SAFETY: the range is inside; `from` is read before this returns.
            unsafe { result::memcpy_htod_sync(to, from) }
        };
        traced("copy to card", Class::Blocks, from.len() as u64, copy)
            .map_err(failed("copying to the card"))?;
        // From pageable memory the call returns when the bytes are staged, and our streams do not wait for the legacy
        // one that moves them on (driver API, "API synchronization behavior").
        self.context.synchronize()
    }

    /// As `write`: the caller has waited for what makes the bytes.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let bytes = to.len() as u64;
        let from = self.at(offset, bytes);
        let copy = || {
            // SAFETY: the range is inside; the copy has ended when this returns.
            unsafe { result::memcpy_dtoh_sync(to, from) }
        };
        traced("copy from card", Class::Blocks, bytes, copy).map_err(failed("copying from the card"))
    }

    /// Copies the first `bytes` of another piece of memory to the start of this one, when the stream gets there.
    pub fn copy(&self, from: &Self, bytes: u64, stream: &Stream) -> Result<()> {
        let (to, from) = (self.at(0, bytes), from.at(0, bytes));
        // SAFETY: both ranges are inside, and memory that is freed is waited for.
        let copied = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, stream.raw) };
        copied.result().map_err(failed("copying on the card"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let address = self.address;
        let free = || {
            // SAFETY: allocated in `new`, freed once; the driver waits for work that uses it.
            unsafe { result::free_sync(address) }
        };
        let _ = traced("free", Class::Blocks, self.bytes, free);
    }
}

/// Too little device memory for a thing with a name.
fn too_little(context: &Context, what: &str, bytes: u64) -> Error {
    let gib = |bytes: u64| bytes as f64 / 2f64.powi(30);
    let free = context.memory().map_or(0, |(free, _)| free);
    Error::usage(format!(
        "{what}: {} cannot give {:.2} GiB, {:.2} are free (nvidia-smi says who holds the rest)",
        context.name,
        gib(bytes),
        gib(free)
    ))
}

/// Page-locked host memory, which the card copies from and to beside its work.
pub struct Pinned {
    _context: Rc<Context>,
    at: *mut u8,
    bytes: usize,
}

impl Pinned {
    pub fn new(context: &Rc<Context>, bytes: usize) -> Result<Self> {
        // SAFETY: plain bytes, zeroed below, freed once.
        let at = unsafe { result::malloc_host(bytes.max(1), 0) }
            .map_err(failed("taking page-locked memory"))?
            .cast::<u8>();
        // SAFETY: `at` has `bytes` bytes.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Self { _context: Rc::clone(context), at, bytes })
    }

    /// The caller has waited for the copy that last used it.
    pub fn slice(&mut self) -> &mut [u8] {
        // SAFETY: `at` has `bytes` initialised bytes, and the borrow is this one's.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.bytes) }
    }

    /// The first four bytes, as the card has written them by now.
    pub fn peek(&self) -> u32 {
        assert!(self.bytes >= 4);
        // SAFETY: the memory is there and aligned to a page; the card writes the word at once.
        unsafe { self.at.cast::<u32>().read_volatile() }
    }

    pub fn upload(&self, bytes: usize, to: Address, stream: &Stream) -> Result<()> {
        assert!(bytes <= self.bytes);
        // SAFETY: both ranges are inside (`Memory::at` has checked `to`), and the memory outlives the copy: its owner
        // waits for an event behind it before the next use, and the driver before it is freed.
        let copy = || unsafe { sys::cuMemcpyHtoDAsync_v2(to, self.at.cast(), bytes, stream.raw) };
        traced("upload", Class::Queues, bytes as u64, copy).result().map_err(failed("copying to the card"))
    }

    pub fn download(&self, offset: usize, bytes: usize, from: Address, stream: &Stream) -> Result<()> {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: as in `upload`.
        let copy =
            || unsafe { sys::cuMemcpyDtoHAsync_v2(self.at.add(offset).cast(), from, bytes, stream.raw) };
        traced("download", Class::Queues, bytes as u64, copy)
            .result()
            .map_err(failed("copying from the card"))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once.
        let _ = watched("free page-locked memory", || unsafe { result::free_host(self.at.cast()) });
    }
}

/// A stream that does not wait for the legacy one.
pub struct Stream {
    _context: Rc<Context>,
    raw: sys::CUstream,
}

impl Stream {
    pub fn new(context: &Rc<Context>) -> Result<Self> {
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("making a stream"))?;
        Ok(Self { _context: Rc::clone(context), raw })
    }

    pub fn raw(&self) -> *mut c_void {
        self.raw.cast()
    }

    /// Everything later on this stream waits for the event.
    pub fn wait(&self, event: &Event) -> Result<()> {
        use sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT;
        let wait = || {
            // SAFETY: both handles are live.
            unsafe { result::stream::wait_event(self.raw, event.raw, CU_EVENT_WAIT_DEFAULT) }
        };
        traced("wait", Class::Queues, 0, wait).map_err(failed("waiting for a stream"))
    }

    pub fn synchronize(&self) -> Result<()> {
        let wait = || {
            // SAFETY: the handle is live.
            unsafe { result::stream::synchronize(self.raw) }
        };
        traced("synchronise stream", Class::Blocks, 0, wait).map_err(failed("waiting for the card"))
    }

    /// Launches a kernel. `args` are pointers to its arguments' values.
    ///
    /// # Safety
    /// The arguments are those of the kernel's declaration, and the regions they point to are as large as it expects.
    pub unsafe fn launch(
        &self,
        function: Function,
        geometry: Geometry,
        args: &mut [*mut c_void],
    ) -> Result<()> {
        let Geometry { grid: [x, y, z], block: [u, v, w], shared, cooperative } = geometry;
        // SAFETY: the caller's promise; the function's module is loaded as long as the machine lives.
        let launch = || unsafe {
            if cooperative {
                result::launch_cooperative_kernel(function.0, (x, y, z), (u, v, w), shared, self.raw, args)
            } else {
                result::launch_kernel(function.0, (x, y, z), (u, v, w), shared, self.raw, args)
            }
        };
        let launched = traced("launch kernel", Class::Queues, 0, launch);
        launched.map_err(|error| if cooperative { alone(error) } else { failed("launching a kernel")(error) })
    }

    /// Records what `record` sends to this stream, and to those that it forks to and joins, without running it.
    pub fn capture(&self, record: impl FnOnce() -> Result<()>) -> Result<Graph> {
        use sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the handle is live; the capture ends below whatever `record` does.
        unsafe { result::stream::begin_capture(self.raw, CU_STREAM_CAPTURE_MODE_RELAXED) }
            .map_err(failed("beginning a graph"))?;
        let recorded = record();
        // SAFETY: this stream captures.
        let graph = unsafe { result::stream::end_capture(self.raw) }.map_err(failed("ending a graph"));
        // SAFETY: the graph is the one just made; its executable form does not need it any longer.
        unsafe {
            if let (Err(error), Ok(graph)) = (&recorded, &graph) {
                let _ = result::graph::destroy(*graph);
                return Err(error.clone());
            }
            recorded?;
            let graph = graph?;
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            Ok(Graph { _context: Rc::clone(&self._context), raw: made.map_err(failed("making a graph"))? })
        }
    }

    pub fn run(&self, graph: &Graph) -> Result<()> {
        let launch = || {
            // SAFETY: both handles are live, and so is the memory that the graph names: the machine that made it drops
            // graphs before it drops or moves memory.
            unsafe { result::graph::launch(graph.raw, self.raw) }
        };
        traced("launch graph", Class::Queues, 0, launch).map_err(failed("starting a step"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once; the driver finishes its work first.
        let _ = watched("destroy a stream", || unsafe { result::stream::destroy(self.raw) });
    }
}

/// A mark in a stream.
pub struct Event {
    _context: Rc<Context>,
    raw: sys::CUevent,
}

impl Event {
    pub fn new(context: &Rc<Context>) -> Result<Self> {
        Self::with(context, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
    }

    /// One that knows when it passed.
    pub fn timed(context: &Rc<Context>) -> Result<Self> {
        Self::with(context, sys::CUevent_flags_enum::CU_EVENT_DEFAULT)
    }

    fn with(context: &Rc<Context>, flags: sys::CUevent_flags) -> Result<Self> {
        let raw = result::event::create(flags).map_err(failed("making an event"))?;
        Ok(Self { _context: Rc::clone(context), raw })
    }

    pub fn record(&self, stream: &Stream) -> Result<()> {
        let record = || {
            // SAFETY: both handles are live.
            unsafe { result::event::record(self.raw, stream.raw) }
        };
        traced("record", Class::Queues, 0, record).map_err(failed("marking a stream"))
    }

    /// Whether everything before the mark has ended.
    pub fn has_ended(&self) -> Result<bool> {
        let query = || {
            // SAFETY: the handle is live.
            unsafe { result::event::query(self.raw) }
        };
        match traced(QUERY, Class::Queues, 0, query) {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::cudaError_enum::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(failed("a training step")(error)),
        }
    }

    /// Seconds from an earlier mark to this one. Both are timed and have passed. The driver's first form of the call: the
    /// second came with CUDA 12.8, and older drivers lack it.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> c_int;
        let found = Library::Driver.symbol("cuEventElapsedTime");
        let found = found.ok_or_else(|| Error::device("the NVIDIA driver has no cuEventElapsedTime"))?;
        let mut milliseconds = 0.0f32;
        // SAFETY: the type is the one of cuda.h; both handles are live.
        let status = unsafe {
            let elapsed: Elapsed = std::mem::transmute(found);
            elapsed(&raw mut milliseconds, earlier.raw, self.raw)
        };
        match status {
            0 => Ok(f64::from(milliseconds) / 1e3),
            status => Err(Error::device(format!("the card failed at timing: CUDA error {status}"))),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = watched("destroy an event", || unsafe { result::event::destroy(self.raw) });
    }
}

/// A captured step.
pub struct Graph {
    _context: Rc<Context>,
    raw: sys::CUgraphExec,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made in `capture`, destroyed once.
        let _ = watched("destroy a graph", || unsafe { result::graph::exec_destroy(self.raw) });
    }
}

/// What to do where a card or its driver does not let all blocks of a launch run at once.
pub(super) const TWO_PASS: &str = "set device.form.norm=two-pass";

/// A driver that refuses a cooperative launch. In graphs they are from CUDA 11.1 on (`CUkernelNodeAttrValue::cooperative`), before
/// any driver that engine takes, but not where several processes share the card through MPS (CUDA runtime API,
/// `cudaLaunchCooperativeKernel`).
fn alone(error: DriverError) -> Error {
    use sys::cudaError_enum as Code;
    match error.0 {
        Code::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
        | Code::CUDA_ERROR_NOT_SUPPORTED
        | Code::CUDA_ERROR_NOT_PERMITTED
        | Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED => Error::usage(format!(
            "the driver refuses a launch whose blocks all run at once ({error:?}; MPS and other programs on the card can be why): \
             {TWO_PASS}"
        )),
        _ => failed("launching a kernel whose blocks all run at once")(error),
    }
}
