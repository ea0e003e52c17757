//! `lower` turns a spec into the flat list of unfused operations that every reader walks: backends, the inference
//! compiler, the optimiser, checkpoints and benchmarks.

use super::freeze::Part;
use super::params::{Buffer, Init, Param, Role};
use super::spec::{Fan, ResNetSpec};
use crate::error::{Error, Result};

/// Index into [`Graph::tensors`].
pub type TensorId = usize;
/// Index into [`Graph::params`].
pub type ParamId = usize;
/// Index into [`Graph::buffers`].
pub type BufferId = usize;

/// An activation, per image, NHWC without the N.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The torchvision module that makes it: `layer1.0.conv1`; its ReLUs and the sum, which torchvision leaves
    /// unnamed or reuses, are `layer1.0.relu1`, `.relu2`, `.add`, `.relu`.
    pub name: String,
    pub h: usize,
    pub w: usize,
    pub c: usize,
}

impl TensorInfo {
    /// Elements of one image.
    pub fn elements(&self) -> usize {
        self.h * self.w * self.c
    }
}

/// A convolution without its batch size: `c` channels of `h` x `w` in, `k` filters of `r` x `s`, same stride and
/// padding both ways, no dilation, no groups, no bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConvShape {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub stride: usize,
    pub pad: usize,
}

impl ConvShape {
    /// Output height.
    pub fn p(&self) -> usize {
        (self.h + 2 * self.pad - self.r) / self.stride + 1
    }

    /// Output width.
    pub fn q(&self) -> usize {
        (self.w + 2 * self.pad - self.s) / self.stride + 1
    }

    /// Multiply-adds of one image.
    pub fn macs(&self) -> usize {
        self.p() * self.q() * self.k * self.c * self.r * self.s
    }

    /// Elements of the weight.
    pub fn weights(&self) -> usize {
        self.k * self.c * self.r * self.s
    }
}

/// One operation. Tensors are activations; parameters and buffers are named by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Conv {
        x: TensorId,
        y: TensorId,
        weight: ParamId,
        shape: ConvShape,
    },
    /// [`EPS`]; running statistics with momentum 0.1 and the unbiased variance, as PyTorch.
    BatchNorm {
        x: TensorId,
        y: TensorId,
        gamma: ParamId,
        beta: ParamId,
        mean: BufferId,
        var: BufferId,
    },
    Relu {
        x: TensorId,
        y: TensorId,
    },
    Add {
        a: TensorId,
        b: TensorId,
        y: TensorId,
    },
    /// 3x3, stride 2, padding 1.
    MaxPool {
        x: TensorId,
        y: TensorId,
    },
    GlobalAvgPool {
        x: TensorId,
        y: TensorId,
    },
    Linear {
        x: TensorId,
        y: TensorId,
        weight: ParamId,
        bias: ParamId,
    },
    /// The loss on the logits.
    SoftmaxXent {
        logits: TensorId,
    },
}

/// A network at one input resolution: operations in forward order.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    pub spec: ResNetSpec,
    pub resolution: usize,
    pub ops: Vec<Op>,
    pub tensors: Vec<TensorInfo>,
    pub params: Vec<Param>,
    pub buffers: Vec<Buffer>,
    pub input: TensorId,
    pub logits: TensorId,
}

/// Batch norm's addition to the variance: PyTorch's default, which torchvision keeps.
pub const EPS: f64 = 1e-5;

/// Smallest side of a square input: the deepest stage still has one pixel, and every stage something to stride over.
pub const MIN_RESOLUTION: usize = 8;

/// Largest side: far above any recipe, and far below where sizes in bytes leave 64 bits.
pub const MAX_RESOLUTION: usize = 4096;

/// Lowers `spec` for square inputs of `resolution` pixels.
pub fn lower(spec: &ResNetSpec, resolution: usize) -> Result<Graph> {
    if !(MIN_RESOLUTION..=MAX_RESOLUTION).contains(&resolution) {
        return Err(Error::usage(format!(
            "data.resolution is {resolution}, {} wants at least {MIN_RESOLUTION} and at most {MAX_RESOLUTION}",
            spec.name
        )));
    }
    let (ops, tensors, params, buffers) = (vec![], vec![], vec![], vec![]);
    let mut lowering = Lowering { fan: spec.fan, part: Part::Stem, ops, tensors, params, buffers };
    let input = lowering.tensor("input", resolution, resolution, 3);
    let mut x = lowering.conv("conv1", input, Filter { k: spec.stem_width, size: 7, stride: 2 });
    x = lowering.batch_norm("bn1", x, false);
    x = lowering.relu("relu", x);
    x = lowering.max_pool("maxpool", x);
    for (i, stage) in spec.stages.iter().enumerate() {
        lowering.part = Part::Layer(i as u32 + 1);
        for block in 0..stage.blocks {
            let stride = if block == 0 { stage.stride } else { 1 };
            let name = format!("layer{}.{block}", i + 1);
            x = lowering.bottleneck(&name, x, stage.width, stage.width * spec.expansion, stride);
        }
    }
    x = lowering.global_avg_pool("avgpool", x);
    lowering.part = Part::Fc;
    let logits = lowering.linear("fc", x, spec.classes);
    lowering.ops.push(Op::SoftmaxXent { logits });
    let Lowering { ops, tensors, params, buffers, .. } = lowering;
    Ok(Graph { spec: *spec, resolution, ops, tensors, params, buffers, input, logits })
}

/// `k` square filters; the padding keeps the size at stride 1.
#[derive(Clone, Copy)]
struct Filter {
    k: usize,
    size: usize,
    stride: usize,
}

struct Lowering {
    fan: Fan,
    /// Of what is made next.
    part: Part,
    ops: Vec<Op>,
    tensors: Vec<TensorInfo>,
    params: Vec<Param>,
    buffers: Vec<Buffer>,
}

impl Lowering {
    fn tensor(&mut self, name: &str, h: usize, w: usize, c: usize) -> TensorId {
        self.tensors.push(TensorInfo { name: name.to_owned(), h, w, c });
        self.tensors.len() - 1
    }

    fn like(&mut self, name: &str, x: TensorId) -> TensorId {
        let TensorInfo { h, w, c, .. } = self.tensors[x];
        self.tensor(name, h, w, c)
    }

    fn param(&mut self, name: String, shape: Vec<usize>, role: Role, init: Init) -> ParamId {
        self.params.push(Param { name, shape, role, part: self.part, init, closes_block: false });
        self.params.len() - 1
    }

    fn buffer(&mut self, name: String, channels: usize, initial: f32) -> BufferId {
        self.buffers.push(Buffer { name, channels, part: self.part, initial });
        self.buffers.len() - 1
    }

    fn conv(&mut self, name: &str, x: TensorId, filter: Filter) -> TensorId {
        let Filter { k, size, stride } = filter;
        let TensorInfo { h, w, c, .. } = self.tensors[x];
        let shape = ConvShape { h, w, c, k, r: size, s: size, stride, pad: size / 2 };
        let planes = match self.fan {
            Fan::FanOut => k,
            Fan::FanIn => c,
        };
        let std = (2.0 / (planes * size * size) as f64).sqrt() as f32;
        let weight = self.param(
            format!("{name}.weight"),
            vec![k, c, size, size],
            Role::ConvWeight,
            Init::Normal { std },
        );
        let y = self.tensor(name, shape.p(), shape.q(), k);
        self.ops.push(Op::Conv { x, y, weight, shape });
        y
    }

    fn batch_norm(&mut self, name: &str, x: TensorId, closes_block: bool) -> TensorId {
        let c = self.tensors[x].c;
        let gamma = self.param(format!("{name}.weight"), vec![c], Role::Gamma, Init::Constant(1.0));
        self.params[gamma].closes_block = closes_block;
        let beta = self.param(format!("{name}.bias"), vec![c], Role::Beta, Init::Constant(0.0));
        let mean = self.buffer(format!("{name}.running_mean"), c, 0.0);
        let var = self.buffer(format!("{name}.running_var"), c, 1.0);
        let y = self.like(name, x);
        self.ops.push(Op::BatchNorm { x, y, gamma, beta, mean, var });
        y
    }

    fn relu(&mut self, name: &str, x: TensorId) -> TensorId {
        let y = self.like(name, x);
        self.ops.push(Op::Relu { x, y });
        y
    }

    fn add(&mut self, name: &str, a: TensorId, b: TensorId) -> TensorId {
        let y = self.like(name, a);
        self.ops.push(Op::Add { a, b, y });
        y
    }

    fn max_pool(&mut self, name: &str, x: TensorId) -> TensorId {
        let TensorInfo { h, w, c, .. } = self.tensors[x];
        let y = self.tensor(name, (h - 1) / 2 + 1, (w - 1) / 2 + 1, c);
        self.ops.push(Op::MaxPool { x, y });
        y
    }

    fn global_avg_pool(&mut self, name: &str, x: TensorId) -> TensorId {
        let c = self.tensors[x].c;
        let y = self.tensor(name, 1, 1, c);
        self.ops.push(Op::GlobalAvgPool { x, y });
        y
    }

    fn linear(&mut self, name: &str, x: TensorId, classes: usize) -> TensorId {
        let features = self.tensors[x].c;
        let bound = (1.0 / (features as f64).sqrt()) as f32;
        let init = Init::Uniform { bound };
        let weight = self.param(format!("{name}.weight"), vec![classes, features], Role::LinearWeight, init);
        let bias = self.param(format!("{name}.bias"), vec![classes], Role::LinearBias, init);
        let y = self.tensor(name, 1, 1, classes);
        self.ops.push(Op::Linear { x, y, weight, bias });
        y
    }

    /// 1x1 down, 3x3 (with the stride), 1x1 up, and the shortcut: identity, or 1x1 where the shape changes.
    fn bottleneck(&mut self, name: &str, x: TensorId, width: usize, out: usize, stride: usize) -> TensorId {
        let mut y = self.conv(&format!("{name}.conv1"), x, Filter { k: width, size: 1, stride: 1 });
        y = self.batch_norm(&format!("{name}.bn1"), y, false);
        y = self.relu(&format!("{name}.relu1"), y);
        y = self.conv(&format!("{name}.conv2"), y, Filter { k: width, size: 3, stride });
        y = self.batch_norm(&format!("{name}.bn2"), y, false);
        y = self.relu(&format!("{name}.relu2"), y);
        y = self.conv(&format!("{name}.conv3"), y, Filter { k: out, size: 1, stride: 1 });
        y = self.batch_norm(&format!("{name}.bn3"), y, true);
        let mut shortcut = x;
        if stride != 1 || self.tensors[x].c != out {
            shortcut = self.conv(&format!("{name}.downsample.0"), x, Filter { k: out, size: 1, stride });
            shortcut = self.batch_norm(&format!("{name}.downsample.1"), shortcut, false);
        }
        let sum = self.add(&format!("{name}.add"), y, shortcut);
        self.relu(&format!("{name}.relu"), sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::spec::{RESNET26, RESNET50, RESNET101, RESNET152};

    #[test]
    fn resnet50_has_its_published_counts() {
        let graph = lower(&RESNET50, 224).unwrap();
        let convs: Vec<ConvShape> = graph
            .ops
            .iter()
            .filter_map(|op| if let Op::Conv { shape, .. } = op { Some(*shape) } else { None })
            .collect();
        let distinct: std::collections::HashSet<_> = convs.iter().collect();
        assert_eq!((graph.ops.len(), convs.len(), distinct.len()), (175, 53, 23));
        assert_eq!((graph.params.len(), graph.buffers.len()), (161, 106));
        assert_eq!(graph.params.iter().map(Param::elements).sum::<usize>(), 25_557_032);
        let macs = convs.iter().map(ConvShape::macs).sum::<usize>() + 2048 * 1000;
        assert_eq!(macs, 4_089_184_256);
    }

    /// Parameter counts of torchvision 0.28 (101, 152) and timm 1.0 (26).
    #[test]
    fn its_siblings_have_theirs() {
        for (spec, want) in [(RESNET26, 15_995_176), (RESNET101, 44_549_160), (RESNET152, 60_192_808)] {
            let graph = lower(&spec, 224).unwrap();
            assert_eq!(graph.params.iter().map(Param::elements).sum::<usize>(), want, "{}", spec.name);
        }
    }

    #[test]
    fn names_and_shapes_are_torchvisions() {
        let graph = lower(&RESNET50, 224).unwrap();
        let shape = |name: &str| graph.params.iter().find(|p| p.name == name).map(|p| p.shape.clone());
        assert_eq!(shape("layer3.0.conv2.weight"), Some(vec![256, 256, 3, 3]));
        assert_eq!(shape("layer4.0.downsample.0.weight"), Some(vec![2048, 1024, 1, 1]));
        assert_eq!(shape("layer4.0.downsample.1.bias"), Some(vec![2048]));
        assert_eq!(shape("fc.weight"), Some(vec![1000, 2048]));
        let find = |name: &str| graph.tensors.iter().find(|t| t.name == name).map(|t| (t.h, t.w, t.c));
        assert_eq!(find("layer3.0.conv1"), Some((28, 28, 256)));
        assert_eq!(find("layer3.0.conv2"), Some((14, 14, 256)));
        assert_eq!(find("avgpool"), Some((1, 1, 2048)));
    }

    #[test]
    fn small_and_huge_inputs_are_refused() {
        assert!(lower(&RESNET50, 4).unwrap_err().message.contains("at least 8"));
        assert!(lower(&RESNET50, 1 << 40).unwrap_err().message.contains("at most 4096"));
        assert!(lower(&RESNET50, MIN_RESOLUTION).is_ok());
    }
}
