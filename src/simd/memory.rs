//! Zeroed memory on cache lines, in large pages where the system gives them: a network's weights are streamed once an
//! image, and small pages cost the stream its prefetcher at every 4 KiB.

use crate::error::{Error, Result};
use memmap2::{MmapMut, MmapRaw};

/// A cache line, and the widest vector.
pub const LINE: usize = 64;

/// What Linux gives in one piece under `madvise`.
const LARGE_PAGE: usize = 2 << 20;

/// Owned bytes that several threads write in disjoint parts: only its users know which.
pub struct Memory {
    map: MmapRaw,
    /// Where the bytes begin in the map: on a large page's boundary where they fill one.
    start: usize,
    len: usize,
}

impl Memory {
    /// `bytes` zeros, aligned to a cache line at least. The system makes the pages when they are first written, by
    /// whichever thread does. Fails where it has no memory left.
    pub fn zeroed(bytes: usize) -> Result<Self> {
        let none = |_| Error::failed(format!("no memory for {} MB of the network", bytes >> 20));
        let len = bytes.max(LINE);
        let spare = if len >= LARGE_PAGE { LARGE_PAGE } else { 0 };
        let map = MmapMut::map_anon(len + spare).map_err(none)?;
        // Before the first page is made; nothing depends on the answer.
        #[cfg(target_os = "linux")]
        if spare > 0 {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let start = if spare > 0 { map.as_ptr().align_offset(LARGE_PAGE) } else { 0 };
        Ok(Self { map: map.into(), start, len })
    }

    pub fn ptr(&self) -> *mut u8 {
        // SAFETY: `start` is below the spare large page, or 0.
        unsafe { self.map.as_mut_ptr().add(self.start) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the map is this value's own, `len` bytes from `ptr` on lie in it, and it begins as zeros; the borrow is
        // exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
    }
}
