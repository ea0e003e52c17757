//! What the parts of a plan are built with: nodes in program order, buffers by name, and where each tensor is.

use super::fusion::Absorbed;
use super::node::{Arg, Call, Launch, Node, Stream};
use super::params::{ParamLayout, Statistic};
use super::place::Buffer;
use super::ranks::Bucket;
use super::region::{Access, Arena, Region};
use super::stem::stem_shape;
use super::{PlanOptions, StagingLayout};
use crate::config::Wgrad;
use crate::model::freeze::Demand;
use crate::model::graph::{ConvShape, Graph, Op, ParamId, TensorId};
use crate::model::units::ConvUnit;

/// The path that everything waits for.
pub const MAIN: Stream = 0;
/// Weight gradients, beside it.
pub const SIDE: Stream = 1;
/// What ranks exchange.
pub const COMM: Stream = 2;

pub struct Builder<'a> {
    pub graph: &'a Graph,
    pub layout: &'a ParamLayout,
    pub options: &'a PlanOptions,
    pub demand: Demand,
    pub staging: StagingLayout,
    pub nodes: Vec<Node>,
    pub buffers: Vec<Buffer>,
    /// Where each activation is, once a node makes it.
    pub activation: Vec<Option<Region>>,
    /// Where each activation's gradient is.
    pub gradient: Vec<Option<Region>>,
    /// One bit an element of a block's sum: whether the ReLU behind it lets it through.
    pub mask: Vec<Option<Region>>,
    /// Whether those bits lie column by column of 32 channels, as batch norm in one pass has them.
    pub mask_in_columns: Vec<bool>,
    /// A shortcut's convolution, by the output of its batch norm, which only the block's sum evaluates.
    pub folded: Vec<Option<ConvUnit>>,
    /// A batch norm that the convolution behind it applies, by its output.
    pub absorbed: Vec<Option<Absorbed>>,
    pub pool_index: Option<Region>,
    /// What images' branches are multiplied by, by the block's sum: f32 [images].
    pub factors: Vec<Option<Region>>,
    /// The storage type's copy of the averaged weights, in an evaluation of those.
    pub averaged_weights: Option<Region>,
    /// Of a pass whose gradients are added up over ranks.
    pub buckets: Vec<Bucket>,
}

impl<'a> Builder<'a> {
    pub fn new(graph: &'a Graph, layout: &'a ParamLayout, options: &'a PlanOptions, demand: Demand) -> Self {
        let tensors = graph.tensors.len();
        Self {
            graph,
            layout,
            options,
            demand,
            staging: StagingLayout::new(options),
            nodes: vec![],
            buffers: vec![],
            activation: vec![None; tensors],
            gradient: vec![None; tensors],
            mask: vec![None; tensors],
            mask_in_columns: vec![false; tensors],
            folded: vec![None; tensors],
            absorbed: vec![None; tensors],
            pool_index: None,
            factors: vec![None; tensors],
            averaged_weights: None,
            buckets: vec![],
        }
    }

    /// A buffer of this pass.
    pub fn buffer(&mut self, name: impl Into<String>, bytes: u64) -> Region {
        let region = Region::new(Arena::Unplaced(self.buffers.len()), 0, bytes);
        self.buffers.push(Buffer { name: name.into(), region, nodes: vec![] });
        region
    }

    /// A buffer for all images' values of `tensor`; the image itself as the stem reads it.
    pub fn tensor_buffer(&mut self, name: impl Into<String>, tensor: TensorId) -> Region {
        let bytes = self.options.storage.bytes() * self.elements(tensor) as u64;
        self.buffer(name, bytes)
    }

    /// Makes the activation `tensor`, under its own name.
    pub fn make_activation(&mut self, tensor: TensorId) -> Region {
        let region = self.tensor_buffer(self.graph.tensors[tensor].name.clone(), tensor);
        self.activation[tensor] = Some(region);
        region
    }

    pub fn make_gradient(&mut self, tensor: TensorId) -> Region {
        let name = format!("grad.{}", self.graph.tensors[tensor].name);
        let region = self.tensor_buffer(name, tensor);
        self.gradient[tensor] = Some(region);
        region
    }

    pub fn activation(&self, tensor: TensorId) -> Region {
        self.activation[tensor].expect("units run in an order in which inputs come first")
    }

    pub fn gradient(&self, tensor: TensorId) -> Region {
        self.gradient[tensor].expect("backward, what reads a tensor comes before what makes it")
    }

    /// Elements of a tensor over the batch.
    pub fn elements(&self, tensor: TensorId) -> usize {
        let info = &self.graph.tensors[tensor];
        if tensor == self.graph.input {
            let shape = self.image_shape();
            return self.options.batch * shape.h * shape.w * shape.c;
        }
        self.options.batch * info.h * info.w * info.c
    }

    /// Pixels of a tensor over the batch: the rows of a batch norm.
    pub fn rows(&self, tensor: TensorId) -> usize {
        let info = &self.graph.tensors[tensor];
        self.options.batch * info.h * info.w
    }

    /// The convolution as the card does it.
    pub fn shape(&self, unit: &ConvUnit) -> ConvShape {
        if unit.x == self.graph.input { stem_shape(self.options.form.stem, &unit.shape) } else { unit.shape }
    }

    /// The stem's: its h, w and c are those of the image in memory.
    pub fn image_shape(&self) -> ConvShape {
        stem_shape(self.options.form.stem, &self.stem())
    }

    /// The network's first convolution.
    pub fn stem(&self) -> ConvShape {
        let first = self.graph.ops.iter().find_map(|op| match *op {
            Op::Conv { x, shape, .. } if x == self.graph.input => Some(shape),
            _ => None,
        });
        first.expect("a network begins with a convolution")
    }

    /// Where weight gradients run.
    pub fn side(&self) -> Stream {
        if self.options.form.wgrad == Wgrad::Inline { MAIN } else { SIDE }
    }

    pub fn name(&self, tensor: TensorId, what: &str) -> String {
        format!("{}.{what}", self.graph.tensors[tensor].name)
    }

    pub fn push(&mut self, name: String, stream: Stream, call: Call) {
        self.nodes.push(Node { name, stream, waits: vec![], call });
    }

    /// A kernel on the main stream.
    pub fn launch(&mut self, name: String, launch: Launch) {
        self.push(name, MAIN, Call::Kernel(launch));
    }

    /// Whether the parameters of a unit are trained.
    pub fn trains_param(&self, param: ParamId) -> bool {
        !self.options.recipe.freeze.has(self.graph.params[param].part)
    }

    /// Reads one statistic of a convolution's batch norm.
    pub fn statistic(&self, unit: &ConvUnit, kind: Statistic) -> Region {
        self.layout.statistic(kind, unit.mean, unit.shape.k)
    }

    /// Reads an f32 parameter.
    pub fn parameter(&self, param: ParamId) -> Arg {
        read(self.layout.in_f32(self.vectors_arena(), param))
    }
}

pub fn read(region: Region) -> Arg {
    Arg::Region(region, Access::Read)
}

pub fn write(region: Region) -> Arg {
    Arg::Region(region, Access::Write)
}

pub fn update(region: Region) -> Arg {
    Arg::Region(region, Access::Update)
}

pub fn optional(region: Option<Region>, access: Access) -> Arg {
    region.map_or(Arg::Null, |region| Arg::Region(region, access))
}

/// A size as a kernel takes it. Plans are made for batches whose tensors have fewer than 2^32 elements.
pub fn size(value: usize) -> Arg {
    Arg::U32(u32::try_from(value).expect("checked when the plan was asked for"))
}
