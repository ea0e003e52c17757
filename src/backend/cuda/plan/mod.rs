//! A pass as data: which calls, on which bytes, in which order, before any card is there.
//!
//! | file | says |
//! |---|---|
//! | [`region`], [`node`] | pieces of memory; calls on them |
//! | [`params`] | where everything that outlives a pass lies |
//! | [`chunks`] | that space in pieces of one parameter each |
//! | [`stem`] | the first convolution in its forms |
//! | `builder`, `forward`, `backward`, `finish`, `clip`, `lamb`, `lars` | the graph's units as calls, with fusions |
//! | `fusion` | what is fused with convolutions |
//! | [`pointwise`] | 1x1 convolutions by our own kernel |
//! | `ranks` | what the ranks of a run exchange |
//! | [`slab`] | batch norms that read once, through the cache |
//! | [`one_pass`] | batch norms that read once and keep it on the multiprocessors |
//! | [`geometry`] | grid and block of every kernel |
//! | [`order`] | edges between streams, happens-before |
//! | [`place`] | lifetimes to offsets in one arena |
//!
//! The card runs such a list as one CUDA graph; the tests run the very same list on the host, in any legal order.

mod backward;
mod builder;
pub mod chunks;
mod clip;
mod finish;
pub mod forward;
mod fusion;
pub mod geometry;
mod lamb;
mod lars;
pub mod node;
pub mod one_pass;
pub mod order;
pub mod params;
pub mod place;
pub mod pointwise;
mod ranks;
pub mod region;
pub mod slab;
pub mod stem;

use super::abi;
use super::storage::Storage;
use crate::config::{Decay, Form};
use crate::error::{Error, Result};
use crate::model::freeze::{Demand, Freeze};
use crate::model::graph::{Graph, lower};
use crate::model::spec::ResNetSpec;
use crate::model::units::units;
use builder::Builder;
use chunks::Chunks;
use node::{Node, Pattern};
use params::{ParamLayout, STATISTICS};
use place::{ALIGNMENT, Buffer};
use region::{Arena, Region};
use std::collections::BTreeMap;

/// Slots of [`Arena::Staging`]: one is read while the next is filled.
pub const STAGING_SLOTS: usize = 2;

/// Outcomes that the host may not have read yet.
pub const OUTCOME_RING: usize = 8;

/// What a pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// Forward, loss, backward; gradients are added to those of the optimiser step's earlier passes.
    Accumulate,
    /// The same, then finite check, loss scale and update.
    Finish {
        /// Whether gradients of earlier passes are added; else the pass is the whole step.
        sum: bool,
    },
    /// Forward with the running statistics: logits.
    Evaluate,
    /// The forward pass of training by itself, with the batch's statistics: logits. It changes nothing that outlives a
    /// pass, so that what a training pass has read can be looked at again.
    Replay,
}

impl Purpose {
    /// Whether the pass takes its batch from a training slot and leaves an outcome.
    pub fn trains(self) -> bool {
        match self {
            Self::Accumulate | Self::Finish { .. } => true,
            Self::Evaluate | Self::Replay => false,
        }
    }
}

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    pub spec: ResNetSpec,
    /// Side of an image.
    pub resolution: usize,
    /// Images of a pass.
    pub batch: usize,
    pub storage: Storage,
    pub purpose: Purpose,
    pub form: Form,
    pub decay: Decay,
    pub recipe: Recipe,
    pub scale: ScalePolicy,
    /// No two buffers share bytes, so that every activation and gradient can be read after the pass.
    pub keep: bool,
    /// What is not fused with a convolution, because the machine has no routine for it.
    pub without: Vec<Pattern>,
}

impl PlanOptions {
    /// Whether images may skip the branches of blocks in the pass.
    pub fn drops(&self) -> bool {
        self.recipe.drop_path && self.purpose != Purpose::Evaluate
    }

    /// Residual sums.
    pub fn blocks(&self) -> usize {
        self.spec.stages.iter().map(|stage| stage.blocks).sum()
    }
}

/// What of a training pass is not the network's: plain SGD on softmax cross-entropy, where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recipe {
    pub rule: Rule,
    pub loss: Loss,
    /// Weights and running statistics have moving averages; evaluations are of the averages then.
    pub averages: bool,
    /// The gradient of all parameters together has a longest length; LAMB looks at it in any case.
    pub clip: bool,
    /// Images skip the branches of blocks at random.
    pub drop_path: bool,
    /// Rectangles of images are painted over.
    pub erase: bool,
    /// What is not trained.
    pub freeze: Freeze,
    /// How many ranks train together; with one they exchange what they would among several. `None`: nothing is exchanged.
    pub ranks: Option<usize>,
    /// Batch norm sees the images of all ranks in a pass, not each rank its own.
    pub sync_norms: bool,
}

impl Recipe {
    /// The default.
    pub const PLAIN: Self = Self {
        rule: Rule::Sgd,
        loss: Loss::SoftmaxCrossEntropy,
        averages: false,
        clip: false,
        drop_path: false,
        erase: false,
        freeze: Freeze::NONE,
        ranks: None,
        sync_norms: false,
    };

    /// Whether the update needs the norm of all gradients, or what is computed beside it.
    pub fn needs_norm(&self) -> bool {
        self.clip || self.rule == Rule::Lamb
    }

    /// Whether the update needs sums by parameter.
    pub fn needs_chunks(&self) -> bool {
        matches!(self.rule, Rule::Lamb | Rule::Lars)
    }
}

/// How gradients move the weights; its constants come with each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    /// [`crate::optim::sgd::Sgd`]
    #[default]
    Sgd,
    /// [`crate::optim::lamb::Lamb`]
    Lamb,
    /// [`crate::optim::lars::Lars`]
    Lars,
}

/// Both on soft targets: smoothed, and mixed of two images' labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Loss {
    #[default]
    SoftmaxCrossEntropy,
    /// Of a sigmoid for each class (timm/loss/binary_cross_entropy.py); threshold and reduction come with each step.
    BinaryCrossEntropy,
}

/// How the loss scale moves (Micikevicius et al., arXiv:1710.03740; the constants are PyTorch's `GradScaler`'s).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScalePolicy {
    pub initial: f32,
    /// Factor after `interval` clean steps.
    pub growth: f32,
    /// Factor after an overflow.
    pub backoff: f32,
    pub interval: u32,
    /// An overflow at this scale stops the run.
    pub floor: f32,
    pub ceiling: f32,
}

impl ScalePolicy {
    /// For fp16. Gradients of 2^24 times their size leave half's range long before the ceiling matters.
    pub const FP16: Self = Self {
        initial: 65536.0,
        growth: 2.0,
        backoff: 0.5,
        interval: 2000,
        floor: 1.0,
        ceiling: 16_777_216.0,
    };

    /// For types with the range of f32: a gradient that is not finite stops the run.
    pub const NONE: Self =
        Self { initial: 1.0, growth: 1.0, backoff: 1.0, interval: u32::MAX, floor: 1.0, ceiling: 1.0 };
}

/// Where a slot of the staging arena has what: images, items, constants, and the factors of drop path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingLayout {
    pub images_bytes: u64,
    /// `abi::Item` of every image.
    pub items_offset: u64,
    /// One `abi::Hyper`.
    pub hyper_offset: u64,
    /// f32 [blocks][images]: what the branch of a block is multiplied by.
    pub factors_offset: u64,
    /// None where no image skips a branch.
    pub factors: usize,
    pub slot_bytes: u64,
}

impl StagingLayout {
    pub fn new(options: &PlanOptions) -> Self {
        let PlanOptions { resolution, batch, .. } = *options;
        let factors = if options.drops() { options.blocks() * batch } else { 0 };
        let images_bytes = (batch * resolution * resolution * 3) as u64;
        let items_offset = images_bytes.next_multiple_of(ALIGNMENT);
        let items = (batch * size_of::<abi::Item>()) as u64;
        let hyper_offset = (items_offset + items).next_multiple_of(ALIGNMENT);
        let factors_offset = (hyper_offset + size_of::<abi::Hyper>() as u64).next_multiple_of(ALIGNMENT);
        let slot_bytes = (factors_offset + 4 * factors as u64).next_multiple_of(ALIGNMENT);
        Self { images_bytes, items_offset, hyper_offset, factors_offset, factors, slot_bytes }
    }
}

/// A pass, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub options: PlanOptions,
    pub graph: Graph,
    pub layout: ParamLayout,
    pub staging: StagingLayout,
    pub nodes: Vec<Node>,
    /// What lies in [`Arena::Activations`], in the order in which it was asked for.
    pub buffers: Vec<Buffer>,
    /// Bytes of every arena that the nodes touch.
    pub arenas: BTreeMap<Arena, u64>,
}

impl Plan {
    pub fn new(options: &PlanOptions) -> Result<Self> {
        let graph = lower(&options.spec, options.resolution)?;
        check_size(&graph, options)?;
        let layout = ParamLayout::new(&graph, options.form.stem.pixel(), options.recipe.freeze);
        let units = units(&graph);
        let demand = Demand::new(&graph, &units, options.recipe.freeze);
        let mut builder = Builder::new(&graph, &layout, options, demand);
        match options.purpose {
            Purpose::Evaluate => builder.evaluate(&units),
            Purpose::Replay => builder.replay(&units),
            Purpose::Accumulate | Purpose::Finish { .. } => {
                builder.forward(&units);
                builder.backward(&units);
                builder.finish();
            }
        }
        let Builder { mut nodes, mut buffers, staging, .. } = builder;
        order::connect(&mut nodes);
        let activations = place::place(&mut nodes, &mut buffers, options.keep);
        let arenas = arenas(&graph, &layout, options, &staging, activations);
        Ok(Self { options: options.clone(), graph, layout, staging, nodes, buffers, arenas })
    }

    /// The buffer of that name: an activation (`layer1.0.conv1`), a gradient (`grad.layer1.0.conv1`).
    pub fn buffer(&self, name: &str) -> Option<Region> {
        self.buffers.iter().find(|buffer| buffer.name == name).map(|buffer| buffer.region)
    }

    /// Bytes of device memory in all.
    pub fn bytes(&self) -> u64 {
        self.arenas.values().sum()
    }
}

/// Kernels count elements in 32 bits.
fn check_size(graph: &Graph, options: &PlanOptions) -> Result<()> {
    let (batch, resolution) = (options.batch, options.resolution);
    if batch == 0 {
        return Err(Error::usage("data.batch is 0, a pass wants at least one image"));
    }
    let largest = graph
        .tensors
        .iter()
        .map(|tensor| tensor.elements())
        .max()
        .unwrap_or(0)
        .max(resolution * resolution * 8);
    let most = u32::MAX as usize / largest;
    if batch > most {
        return Err(Error::usage(format!(
            "data.micro_batch is {batch}; at {resolution} px one pass takes at most {most} images; lower it"
        )));
    }
    Ok(())
}

fn arenas(
    graph: &Graph,
    layout: &ParamLayout,
    options: &PlanOptions,
    staging: &StagingLayout,
    activations: u64,
) -> BTreeMap<Arena, u64> {
    let flat = 4 * layout.total as u64;
    let trained = 4 * layout.trained as u64;
    let (matrices, vectors) = layout.all_gradients(options.storage);
    let widest = graph.tensors.iter().map(|tensor| tensor.c).max().unwrap_or(0);
    let mut arenas = BTreeMap::from([
        (Arena::Activations, activations),
        (Arena::Master, flat),
        (Arena::Weights, layout.all_weights(options.storage).bytes),
        (Arena::Channels, 4 * (STATISTICS * layout.channels) as u64),
        (Arena::Running, 4 * (2 * layout.channels) as u64),
        (Arena::Counters, slab::counters(widest)),
        (Arena::State, size_of::<abi::State>() as u64),
    ]);
    if options.recipe.averages {
        arenas.insert(Arena::Ema, flat);
        arenas.insert(Arena::RunningEma, 4 * (2 * layout.channels) as u64);
    }
    if !options.purpose.trains() {
        arenas.insert(Arena::EvalStaging, staging.slot_bytes);
        arenas.insert(Arena::Logits, 4 * (options.batch * options.spec.classes) as u64);
        return arenas;
    }
    arenas.insert(Arena::Momentum, trained);
    if options.recipe.rule == Rule::Lamb {
        arenas.insert(Arena::SecondMoment, trained);
    }
    if options.recipe.needs_chunks() {
        let table = Chunks::new(layout, options.decay);
        arenas.insert(Arena::Chunks, table.regions().iter().map(|region| region.bytes).sum());
    }
    arenas.insert(Arena::GradientMatrices, matrices.bytes);
    arenas.insert(Arena::GradientVectors, vectors.bytes);
    arenas.insert(Arena::Staging, STAGING_SLOTS as u64 * staging.slot_bytes);
    arenas.insert(Arena::Outcomes, (OUTCOME_RING * size_of::<abi::Outcome>()) as u64);
    if options.purpose != (Purpose::Finish { sum: false }) {
        arenas.insert(Arena::GradientSum, trained);
    }
    arenas
}
