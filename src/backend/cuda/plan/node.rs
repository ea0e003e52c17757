//! What a plan consists of: calls on regions, with the stream each runs on and what it waits for.

use super::geometry::Geometry;
use super::region::{Access, Region};
use crate::backend::cuda::storage::Storage;
use crate::comm::Element;
use crate::model::graph::ConvShape;

/// Index into a plan's nodes, which stand in an order that is one of the legal ones.
pub type NodeId = usize;

/// 0 is the critical path; 1 runs weight gradients beside it; 2 is what ranks exchange.
pub type Stream = usize;

/// Streams of a plan.
pub const STREAMS: usize = 3;

/// The first of them run kernels and libraries.
pub const COMPUTING: usize = 2;

/// One call, and when it may run: after the node before it on its stream, and after `waits`.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// For messages and traces: `layer1.0.conv1.dgrad`.
    pub name: String,
    pub stream: Stream,
    /// Nodes of other streams.
    pub waits: Vec<NodeId>,
    pub call: Call,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// One of our kernels.
    Kernel(Launch),
    /// A library convolution.
    Convolution(Convolution),
    /// A library matrix product for the classifier.
    Linear(Linear),
    /// What all ranks do together, in the same order.
    Collective(Collective),
}

/// An exchange between the ranks of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collective {
    pub kind: Exchange,
    pub from: Region,
    pub to: Region,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// `to`, which is `from`, becomes the sum over ranks.
    Sum(Element),
    /// `to`, which is `from`, becomes the largest over ranks: u32.
    Max,
    /// `to` becomes every rank's `from`, in their order: f32.
    Gather,
}

impl Exchange {
    pub fn sum(storage: Storage) -> Self {
        Self::Sum(match storage {
            Storage::F16 => Element::F16,
            Storage::Bf16 => Element::Bf16,
            Storage::F32 => Element::F32,
        })
    }
}

/// A kernel of `kernels/`, by its full name, with its arguments in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    pub kernel: String,
    pub geometry: Geometry,
    pub args: Vec<Arg>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// A pointer to the region's first byte.
    Region(Region, Access),
    /// The same where the call moves only so many bytes from or to device memory: the rest of the region is other calls', or is
    /// still in the card's cache.
    Part(Region, Access, u64),
    /// A null pointer.
    Null,
    U32(u32),
    U64(u64),
    F32(f32),
}

/// Which of the three products of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pass {
    /// x, w -> y
    Forward,
    /// w, dy -> dx
    Dgrad,
    /// x, dy -> dw
    Wgrad,
}

impl Pass {
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Dgrad => "dgrad",
            Self::Wgrad => "wgrad",
        }
    }
}

/// x [n][h][w][c], w [k][r][s][c], y [n][p][q][k], all of the storage type; in a backward pass `x` and `w` stand for
/// dx and dw where these are made, and `y` for dy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Convolution {
    pub pass: Pass,
    /// `c` counts the input's padding channel.
    pub shape: ConvShape,
    pub n: usize,
    pub x: Region,
    pub w: Region,
    pub y: Region,
    /// Adds to what the result's region holds; for dgrad.
    pub accumulate: bool,
    /// What the library does in the same call.
    pub fused: Fused,
}

/// What stands beside a convolution and is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fused {
    /// `x` goes through a batch norm and its ReLU first: relu(x scale + bias); of the storage type, [2][c], scales before
    /// biases. Forward, and for wgrad.
    pub norm: Option<Region>,
    /// Sums of `y` and of its squares by channel are left here: f32 [2][k]. Forward.
    pub sums: Option<Region>,
}

impl Fused {
    pub const NONE: Self = Self { norm: None, sums: None };

    pub fn any(&self) -> bool {
        *self != Self::NONE
    }
}

/// A convolution with what is fused with it, as far as a library decides by it whether it has a routine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    pub pass: Pass,
    pub shape: ConvShape,
    pub norm: bool,
    pub sums: bool,
}

impl Convolution {
    /// `None` where nothing is fused.
    pub fn pattern(&self) -> Option<Pattern> {
        let Self { pass, shape, fused, .. } = *self;
        let (norm, sums) = (fused.norm.is_some(), fused.sums.is_some());
        fused.any().then_some(Pattern { pass, shape, norm, sums })
    }
}

/// x [n][features], w [classes][features] of the storage type; y [n][classes] is f32 forward (logits without bias) and
/// of the storage type backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    pub pass: Pass,
    pub n: usize,
    pub features: usize,
    pub classes: usize,
    pub x: Region,
    pub w: Region,
    pub y: Region,
}

impl Call {
    /// Every region that the call touches.
    pub fn accesses(&self) -> Vec<(Region, Access)> {
        let product = |pass: Pass, [x, w, y]: [Region; 3], result: Access| {
            let access = |of: Pass| if pass == of { result } else { Access::Read };
            vec![(x, access(Pass::Dgrad)), (w, access(Pass::Wgrad)), (y, access(Pass::Forward))]
        };
        match self {
            Self::Kernel(launch) => launch
                .args
                .iter()
                .filter_map(|arg| match *arg {
                    Arg::Region(region, access) | Arg::Part(region, access, _) => Some((region, access)),
                    _ => None,
                })
                .collect(),
            Self::Convolution(conv) => {
                let result = if conv.accumulate { Access::Update } else { Access::Write };
                let mut all = product(conv.pass, [conv.x, conv.w, conv.y], result);
                all.extend(conv.fused.norm.map(|norm| (norm, Access::Read)));
                all.extend(conv.fused.sums.map(|sums| (sums, Access::Write)));
                all
            }
            Self::Linear(linear) => product(linear.pass, [linear.x, linear.w, linear.y], Access::Write),
            Self::Collective(Collective { kind: Exchange::Gather, from, to }) => {
                vec![(*from, Access::Read), (*to, Access::Write)]
            }
            Self::Collective(Collective { to, .. }) => vec![(*to, Access::Update)],
        }
    }

    /// Every region, what is done to it, and how many of its bytes the call moves from or to device memory.
    pub fn traffic(&self) -> Vec<(Region, Access, u64)> {
        match self {
            Self::Kernel(launch) => launch
                .args
                .iter()
                .filter_map(|arg| match *arg {
                    Arg::Region(region, access) => Some((region, access, region.bytes)),
                    Arg::Part(region, access, bytes) => Some((region, access, bytes)),
                    _ => None,
                })
                .collect(),
            _ => self.accesses().into_iter().map(|(region, access)| (region, access, region.bytes)).collect(),
        }
    }

    /// Every region, to be moved to where it is placed.
    pub fn regions_mut(&mut self) -> Vec<&mut Region> {
        match self {
            Self::Kernel(launch) => launch
                .args
                .iter_mut()
                .filter_map(|arg| match arg {
                    Arg::Region(region, _) | Arg::Part(region, ..) => Some(region),
                    _ => None,
                })
                .collect(),
            Self::Convolution(Convolution { x, w, y, fused, .. }) => {
                let mut all = vec![x, w, y];
                all.extend(fused.norm.as_mut());
                all.extend(fused.sums.as_mut());
                all
            }
            Self::Linear(Linear { x, w, y, .. }) => vec![x, w, y],
            Self::Collective(Collective { from, to, .. }) => vec![from, to],
        }
    }
}
