//! Whether batch norm reads its input once, through a GPU's cache.

use serde::{Deserialize, Serialize};

/// `[device.form.slabs]`. A batch norm's channels are summed and applied a few at a time, so that the second reading finds them
/// in the L2 cache; for each few there is a launch more. Layers where that would not save time keep the plain kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slabs {
    /// MB of the L2 cache that the channels at hand may take; 0: every batch norm reads twice.
    pub cache_mb: u32,
    /// MB that device memory moves in the time that one launch costs: what a slab must save at least.
    pub launch_mb: u32,
}

impl Slabs {
    pub fn cache_bytes(self) -> u64 {
        u64::from(self.cache_mb) * 1_000_000
    }

    pub fn launch_bytes(self) -> u64 {
        u64::from(self.launch_mb) * 1_000_000
    }
}
