//! Zeroed memory on cache lines, in large pages where the system gives them: a network's weights are streamed once an
//! image, and small pages cost the stream its prefetcher at every 4 KiB.

use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// A cache line, and the widest vector.
pub const LINE: usize = 64;

/// What Linux gives in one piece under `madvise`.
const LARGE_PAGE: usize = 2 << 20;

/// Owned bytes that several threads write in disjoint parts: only its users know which.
pub struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain bytes. Every access goes through `ptr`, whose users state which thread writes what.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` zeros, aligned to a cache line at least. Fails where the system has no memory left.
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let none = || Error::failed(format!("no memory for {} MB of the network", bytes >> 20));
        let align = if bytes >= LARGE_PAGE { LARGE_PAGE } else { LINE };
        let layout = Layout::from_size_align(bytes.max(LINE), align).map_err(|_| none())?;
        // SAFETY: the size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(none)?;
        advise(start, layout);
        Ok(Self { start, layout })
    }

    pub fn ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.layout.size()
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory is this value's own, `len` bytes long and initialised; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Asks for large pages; nothing depends on the answer.
#[cfg(target_os = "linux")]
fn advise(start: NonNull<u8>, layout: Layout) {
    unsafe extern "C" {
        fn madvise(start: *mut u8, length: usize, advice: i32) -> i32;
    }
    const MADV_HUGEPAGE: i32 = 14;
    if layout.align() == LARGE_PAGE {
        let whole = layout.size() & !(LARGE_PAGE - 1);
        // SAFETY: the range lies within the allocation, on page boundaries; the advice changes no byte.
        unsafe { madvise(start.as_ptr(), whole, MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: NonNull<u8>, _: Layout) {}
