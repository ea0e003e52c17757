//! NCCL: what ranks exchange on their cards. Calls are recorded into a pass's graph; nothing here waits but the opening.
//!
//! cudarc's safe communicator panics where its end fails, so the calls are made by hand. A communicator outlives the graphs
//! that name it. Where a rank is lost it is not taken apart at all: the process ends.

use super::driver::{Address, Stream};
use super::libraries::Library;
use super::watchdog::{SETUP, watched, watched_for};
use crate::backend::cuda::plan::node::{Collective, Exchange};
use crate::comm::{Element, Occasion, Ranks};
use crate::error::{Error, Result};
use cudarc::nccl::result;
use cudarc::nccl::sys;
use std::ffi::{CStr, c_int};

/// Every function that is called.
pub(super) const SYMBOLS: &[&str] = &[
    "ncclGetVersion",
    "ncclGetUniqueId",
    "ncclCommInitRank",
    "ncclCommDestroy",
    "ncclCommGetAsyncError",
    "ncclAllReduce",
    "ncclAllGather",
    "ncclGetErrorString",
];

/// Bytes of NCCL's id of a group of ranks.
const ID_BYTES: usize = 128;

/// One rank's end of a group.
pub struct Nccl {
    raw: sys::ncclComm_t,
}

fn failed(what: &str) -> impl Fn(result::NcclError) -> Error {
    move |error| {
        // SAFETY: NCCL's own text, which lives as long as the library.
        let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(error.0)) };
        Error::device(format!(
            "NCCL failed at {what}: {} (NCCL_DEBUG=INFO says more)",
            text.to_string_lossy()
        ))
    }
}

impl Nccl {
    /// All ranks together, each with its own card current on this thread; the library is present and its symbols are
    /// preflighted.
    pub fn open(ranks: &Ranks) -> Result<Self> {
        Library::Nccl.find()?;
        let mut id = [0u8; ID_BYTES];
        if ranks.rank() == 0 {
            let made = result::get_uniqueid().map_err(failed("making an id"))?;
            id = bytemuck::cast(made.internal);
        }
        ranks.broadcast(Occasion::slow("NCCL's id"), &mut id)?;
        let id = sys::ncclUniqueId { internal: bytemuck::cast(id) };
        let mut raw = std::ptr::null_mut();
        let (size, rank) = (ranks.size() as c_int, ranks.rank() as c_int);
        let join = || {
            // SAFETY: `raw` takes the handle; the id is rank 0's. Where another rank does not come, the watchdog ends the
            // process.
            unsafe { result::comm_init_rank(&raw mut raw, size, id, rank) }
        };
        watched_for("join the other ranks' cards", SETUP, join).map_err(failed("joining the other ranks"))?;
        Ok(Self { raw })
    }

    /// Sends an exchange to `stream`, or records it where that captures.
    pub fn exchange(
        &self,
        collective: &Collective,
        from: Address,
        to: Address,
        stream: &Stream,
    ) -> Result<()> {
        let (send, receive) = (from as *const _, to as *mut _);
        let bytes = collective.from.bytes as usize;
        let (kind, stream) = (collective.kind, stream.raw().cast());
        let reduce = |count: usize, element, operation| {
            // SAFETY: both addresses have `count` elements (the card has checked the regions), and all ranks send the same
            // exchanges in the order of their plans.
            unsafe { result::all_reduce(send, receive, count, element, operation, self.raw, stream) }
        };
        match kind {
            Exchange::Sum(element) => {
                reduce(bytes / element.bytes(), data_type(element), sys::ncclRedOp_t::ncclSum)
            }
            Exchange::Max => reduce(bytes / 4, sys::ncclDataType_t::ncclUint32, sys::ncclRedOp_t::ncclMax),
            Exchange::Gather => {
                let float = sys::ncclDataType_t::ncclFloat32;
                // SAFETY: as above; `receive` has as many elements for every rank.
                unsafe { result::all_gather(send, receive, bytes / 4, float, self.raw, stream) }
            }
        }
        .map(drop)
        .map_err(failed("an exchange"))
    }

    /// Whether a link or another rank has failed since.
    pub fn check(&self) -> Result<()> {
        let mut state = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the handle is live.
        let asked = unsafe { sys::ncclCommGetAsyncError(self.raw, &raw mut state) };
        asked.result().map_err(failed("asking for errors"))?;
        match state {
            sys::ncclResult_t::ncclInProgress => Ok(()),
            state => state.result().map(drop).map_err(failed("an exchange under way")),
        }
    }
}

fn data_type(element: Element) -> sys::ncclDataType_t {
    match element {
        Element::F16 => sys::ncclDataType_t::ncclFloat16,
        Element::Bf16 => sys::ncclDataType_t::ncclBfloat16,
        Element::F32 => sys::ncclDataType_t::ncclFloat32,
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, destroyed once; the machine has waited for its work and dropped its graphs.
        let _ = watched("leave the other ranks' cards", || unsafe { result::comm_destroy(self.raw) });
    }
}
