//! Kernels as the driver has compiled them for this card.

use super::driver::{Context, failed};
use super::watchdog::watched;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_int};
use std::rc::Rc;

/// A kernel of a loaded module, which has to outlive it.
#[derive(Clone, Copy)]
pub struct Function(pub(super) sys::CUfunction);

impl Function {
    /// Lets a block have so much shared memory.
    pub fn set_shared(self, bytes: u32) -> Result<()> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function's module is loaded.
        unsafe { result::function::set_function_attribute(self.0, attribute, bytes as c_int) }
            .map_err(failed("asking for shared memory"))
    }

    /// How many blocks a multiprocessor runs at once, each with so much shared memory.
    pub fn blocks(self, threads: u32, shared: u32) -> Result<u32> {
        let mut blocks: c_int = 0;
        // SAFETY: the function's module is loaded; `blocks` outlives the call.
        unsafe {
            let (to, threads) = (&raw mut blocks, threads as c_int);
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(to, self.0, threads, shared as usize)
        }
        .result()
        .map_err(failed("asking how many blocks run at once"))?;
        Ok(blocks.max(0) as u32)
    }
}

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

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded in `load`, unloaded once; the machine drops its graphs first, and has waited for its launches.
        let _ = watched("unload kernels", || unsafe { result::module::unload(self.raw) });
    }
}
