//! Whether a GPU's batch norm keeps what it has read until its sums are known.

use serde::{Deserialize, Serialize};

/// How often batch norm reads its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Once for the sums and once for the output; backward, with the gradient, likewise.
    #[default]
    TwoPass,
    /// Once, by a launch whose blocks keep what they have read on the multiprocessors and wait for each other. Layers where that
    /// would not save time keep the plain kernels; fp16 and bf16 alone. No GPU has run it.
    OnePass,
}

/// `[device.form.chip]`: what `norm = "one-pass"` may take of a card. The bits of its sums depend on the first. 0: what the card
/// says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chip {
    /// Each has one block.
    pub multiprocessors: u32,
    /// KiB of shared memory of a block.
    pub shared_kib: u32,
    /// kB that device memory moves in the time of one launch, or of one wait of all blocks.
    pub pause_kb: u32,
}

impl Chip {
    /// The default.
    pub const AS_IT_IS: Self = Self { multiprocessors: 0, shared_kib: 0, pause_kb: 0 };

    /// Seconds of a launch, or of a wait: what a kernel of a graph takes that does nothing, about. No GPU has been measured.
    pub const PAUSE: f64 = 2.5e-6;

    /// Of a card whose memory moves `bandwidth` bytes a second.
    pub const fn of(multiprocessors: u32, shared_kib: u32, bandwidth: f64) -> Self {
        Self { multiprocessors, shared_kib, pause_kb: (bandwidth * Self::PAUSE / 1e3) as u32 }
    }

    /// What is not said is the card's.
    pub fn or(self, card: Self) -> Self {
        let or = |own: u32, card: u32| if own == 0 { card } else { own };
        Self {
            multiprocessors: or(self.multiprocessors, card.multiprocessors),
            shared_kib: or(self.shared_kib, card.shared_kib),
            pause_kb: or(self.pause_kb, card.pause_kb),
        }
    }

    /// What differs from the default, as `--set` takes it.
    pub(super) fn said(self) -> impl Iterator<Item = String> {
        let parts = [
            ("multiprocessors", self.multiprocessors),
            ("shared_kib", self.shared_kib),
            ("pause_kb", self.pause_kb),
        ];
        let differs = parts.into_iter().filter(|(_, value)| *value != 0);
        differs.map(|(key, value)| format!("device.form.chip.{key}={value}"))
    }

    pub fn pause_bytes(self) -> u64 {
        u64::from(self.pause_kb) * 1000
    }
}
