//! Names for pieces of device memory, before any memory exists.

/// A piece of device memory with a purpose of its own. Each is one allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arena {
    /// Activations, their gradients, masks and partial sums of one pass, placed by their lifetimes.
    Activations,
    /// One buffer of a plan that has not been placed yet; never in a finished plan.
    Unplaced(usize),
    /// f32, the flat parameter space of [`super::params::ParamLayout`]; so are the next four.
    Master,
    /// SGD's velocity, LAMB's first moment.
    Momentum,
    /// LAMB's second moment.
    SecondMoment,
    /// Moving averages of the weights.
    Ema,
    /// Gradients summed over the passes of an optimiser step.
    GradientSum,
    /// Storage type: the copy of the weights that convolutions read.
    Weights,
    /// Storage type: the gradients of the matrices of one pass, times the loss scale.
    GradientMatrices,
    /// f32: the gradients of everything that is not a matrix, times the loss scale.
    GradientVectors,
    /// f32: the batch statistics of all batch norms, and what their backward passes derive.
    Channels,
    /// f32: running means, then running variances, of all batch norms.
    Running,
    /// Moving averages of those, as `Ema` has of the weights.
    RunningEma,
    /// LAMB's table: [`super::chunks::Chunks`].
    Chunks,
    /// Slots of images, items and constants that the host fills, for training.
    Staging,
    /// The same for evaluation: one slot.
    EvalStaging,
    /// u32, what blocks of one launch count each other with: zero between launches.
    Counters,
    /// One `abi::State`.
    State,
    /// A ring of `abi::Outcome`.
    Outcomes,
    /// f32 [n, classes] of an evaluation.
    Logits,
}

/// Bytes `offset..offset + bytes` of an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region {
    pub arena: Arena,
    pub offset: u64,
    pub bytes: u64,
}

impl Region {
    pub fn new(arena: Arena, offset: u64, bytes: u64) -> Self {
        Self { arena, offset, bytes }
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.arena == other.arena
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// What a call does to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    /// Writes all of it, or what other calls of the same plan leave of it.
    Write,
    /// Reads and writes.
    Update,
    /// Writes and reads back within the call: what it leaves there is nobody's, or is as it was found.
    Scratch,
}

impl Access {
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}
