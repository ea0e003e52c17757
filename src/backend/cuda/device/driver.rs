//! The driver: context, memory, streams, events, modules, graphs. Each owns its handle and frees it.
//!
//! Everything runs on the thread that opened the context.

use crate::error::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use std::ffi::{CString, c_int, c_void};
use std::rc::Rc;

/// An address in device memory.
pub type Address = u64;

/// A driver's error as one of the run: the card or the driver is at fault, and another machine may do better.
fn failed(what: &str) -> impl Fn(DriverError) -> Error {
    move |error| {
        use sys::cudaError_enum as Code;
        match error.0 {
            Code::CUDA_ERROR_OUT_OF_MEMORY => {
                Error::usage(format!("{what}: the card has too little free memory"))
            }
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
        let (free, total) = result::mem_get_info().map_err(failed("asking for free memory"))?;
        Ok((free as u64, total as u64))
    }

    pub fn synchronize(&self) -> Result<()> {
        result::ctx::synchronize().map_err(failed("waiting for the card"))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `open`; whatever lives in the context holds an `Rc` of it.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Device memory, zeroed.
pub struct Memory {
    _context: Rc<Context>,
    address: Address,
    bytes: u64,
}

impl Memory {
    pub fn new(context: &Rc<Context>, bytes: u64) -> Result<Self> {
        // SAFETY: fresh memory, which nothing else knows, is zeroed before anybody reads it.
        let address = unsafe {
            let address =
                result::malloc_sync(bytes.max(1) as usize).map_err(failed("taking device memory"))?;
            result::memset_d8_sync(address, 0, bytes as usize).map_err(failed("clearing device memory"))?;
            address
        };
        Ok(Self { _context: Rc::clone(context), address, bytes })
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

    /// Waits for nothing: the caller has seen to the order.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        let to = self.at(offset, from.len() as u64);
        // SAFETY: the range is inside; the copy has ended when this returns.
        unsafe { result::memcpy_htod_sync(to, from) }.map_err(failed("copying to the card"))
    }

    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let from = self.at(offset, to.len() as u64);
        // SAFETY: the range is inside; the copy has ended when this returns.
        unsafe { result::memcpy_dtoh_sync(to, from) }.map_err(failed("copying from the card"))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the driver waits for work that uses it.
        let _ = unsafe { result::free_sync(self.address) };
    }
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

    pub fn upload(&self, bytes: usize, to: Address, stream: &Stream) -> Result<()> {
        assert!(bytes <= self.bytes);
        // SAFETY: both ranges are inside (`Memory::at` has checked `to`), and the memory outlives the copy: its owner
        // waits for an event behind it before the next use, and the driver before it is freed.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(to, self.at.cast(), bytes, stream.raw) };
        copied.result().map_err(failed("copying to the card"))
    }

    pub fn download(&self, offset: usize, bytes: usize, from: Address, stream: &Stream) -> Result<()> {
        assert!(offset + bytes <= self.bytes);
        // SAFETY: as in `upload`.
        let copied =
            unsafe { sys::cuMemcpyDtoHAsync_v2(self.at.add(offset).cast(), from, bytes, stream.raw) };
        copied.result().map_err(failed("copying from the card"))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_host(self.at.cast()) };
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
        // SAFETY: both handles are live.
        unsafe { result::stream::wait_event(self.raw, event.raw, CU_EVENT_WAIT_DEFAULT) }
            .map_err(failed("waiting for a stream"))
    }

    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle is live.
        unsafe { result::stream::synchronize(self.raw) }.map_err(failed("waiting for the card"))
    }

    /// Launches a kernel. `args` are pointers to its arguments' values.
    ///
    /// # Safety
    /// The arguments are those of the kernel's declaration, and the regions they point to are as large as it expects.
    pub unsafe fn launch(
        &self,
        function: Function,
        grid: [u32; 3],
        block: [u32; 3],
        args: &mut [*mut c_void],
    ) -> Result<()> {
        let (grid, block) = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]));
        // SAFETY: the caller's promise; the function's module is loaded as long as the machine lives.
        unsafe { result::launch_kernel(function.0, grid, block, 0, self.raw, args) }
            .map_err(failed("launching a kernel"))
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
        recorded?;
        let graph = graph?;
        // SAFETY: the graph is the one just made; its executable form does not need it any longer.
        unsafe {
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            Ok(Graph { _context: Rc::clone(&self._context), raw: made.map_err(failed("making a graph"))? })
        }
    }

    pub fn run(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both handles are live, and so is the memory that the graph names: the machine that made it drops
        // graphs before it drops or moves memory.
        unsafe { result::graph::launch(graph.raw, self.raw) }.map_err(failed("starting a step"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once; the driver finishes its work first.
        let _ = unsafe { result::stream::destroy(self.raw) };
    }
}

/// A mark in a stream.
pub struct Event {
    _context: Rc<Context>,
    raw: sys::CUevent,
}

impl Event {
    pub fn new(context: &Rc<Context>) -> Result<Self> {
        use sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
        let raw = result::event::create(CU_EVENT_DISABLE_TIMING).map_err(failed("making an event"))?;
        Ok(Self { _context: Rc::clone(context), raw })
    }

    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both handles are live.
        unsafe { result::event::record(self.raw, stream.raw) }.map_err(failed("marking a stream"))
    }

    /// Whether everything before the mark has ended.
    pub fn has_ended(&self) -> Result<bool> {
        // SAFETY: the handle is live.
        match unsafe { result::event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::cudaError_enum::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(failed("a training step")(error)),
        }
    }

    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle is live.
        unsafe { result::event::synchronize(self.raw) }.map_err(failed("a training step"))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        let _ = unsafe { result::event::destroy(self.raw) };
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
        let _ = unsafe { result::graph::exec_destroy(self.raw) };
    }
}

/// A kernel of a loaded module. Modules stay loaded as long as the context.
#[derive(Clone, Copy)]
pub struct Function(sys::CUfunction);

/// PTX, compiled by the driver for this card.
pub struct Module {
    _context: Rc<Context>,
    raw: sys::CUmodule,
}

impl Module {
    pub fn load(context: &Rc<Context>, name: &str, ptx: &str) -> Result<Self> {
        let text = CString::new(ptx).map_err(|_| Error::failed(format!("{name}.ptx has a zero byte")))?;
        // SAFETY: the image is a text that ends in a zero, which the driver reads before this returns.
        let raw = unsafe { result::module::load_data(text.as_ptr().cast()) };
        Ok(Self { _context: Rc::clone(context), raw: raw.map_err(failed("compiling the kernels"))? })
    }

    pub fn function(&self, name: &str) -> Option<Function> {
        let name = CString::new(name).ok()?;
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.raw, name) }.ok().map(Function)
    }
}
