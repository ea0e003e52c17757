//! Whether batch norm reads its input once, through a GPU's cache.

use serde::{Deserialize, Serialize};

/// `[device.form.slabs]`. A batch norm's channels are summed and applied a few at a time, so that the second reading finds them
/// in the L2 cache; for each few there is a launch more. Layers where that would not save time keep the plain kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slabs {
    /// kB of the L2 cache that the channels at hand may take; 0: every batch norm reads twice.
    pub cache_kb: u32,
    /// kB that device memory moves in the time that one launch costs: what a slab must save at least.
    pub launch_kb: u32,
}

impl Slabs {
    /// The default.
    pub const NONE: Self = Self { cache_kb: 0, launch_kb: 0 };

    /// What differs from the default, as `--set` takes it.
    pub(super) fn said(self) -> impl Iterator<Item = String> {
        let parts = [("cache_kb", self.cache_kb), ("launch_kb", self.launch_kb)];
        let differs = parts.into_iter().filter(|(_, value)| *value != 0);
        differs.map(|(key, value)| format!("device.form.slabs.{key}={value}"))
    }

    pub fn cache_bytes(self) -> u64 {
        u64::from(self.cache_kb) * 1000
    }

    pub fn launch_bytes(self) -> u64 {
        u64::from(self.launch_kb) * 1000
    }
}
