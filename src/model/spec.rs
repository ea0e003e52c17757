//! The networks, as constants.

use serde::{Deserialize, Serialize};

/// An input is (byte / 255 - mean) / std, by channel. Of ImageNet's training set (torchvision's presets).
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// One stage: `blocks` bottlenecks of inner width `width`; the first block has `stride` on its 3x3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    pub blocks: usize,
    pub width: usize,
    pub stride: usize,
}

/// A bottleneck ResNet: 7x7/2 stem of `stem_width` channels, 3x3/2 max-pool, `stages`, global average pool, and one
/// linear layer to `classes`. A block's output has `expansion` times its width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResNetSpec {
    pub name: &'static str,
    pub stem_width: usize,
    pub expansion: usize,
    pub stages: &'static [Stage],
    pub classes: usize,
    /// What the first weights of a convolution are sized by.
    pub fan: Fan,
}

/// The variance of a convolution's first weights is 2 / fan (He, arXiv:1502.01852).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fan {
    /// K R S: torchvision, timm.
    FanOut,
    /// C R S: NVIDIA's DeepLearningExamples.
    FanIn,
}

const fn stage(blocks: usize, width: usize, stride: usize) -> Stage {
    Stage { blocks, width, stride }
}

/// ResNet-50 v1.5: the stride sits on the 3x3 conv2 (torchvision), not on the 1x1 conv1 of arXiv:1512.03385.
pub const RESNET50: ResNetSpec = ResNetSpec {
    name: "resnet50",
    stem_width: 64,
    expansion: 4,
    stages: &[stage(3, 64, 1), stage(4, 128, 2), stage(6, 256, 2), stage(3, 512, 2)],
    classes: 1000,
    fan: Fan::FanOut,
};

/// timm's `resnet26`: two bottlenecks a stage.
pub const RESNET26: ResNetSpec = ResNetSpec {
    name: "resnet26",
    stages: &[stage(2, 64, 1), stage(2, 128, 2), stage(2, 256, 2), stage(2, 512, 2)],
    ..RESNET50
};

pub const RESNET101: ResNetSpec = ResNetSpec {
    name: "resnet101",
    stages: &[stage(3, 64, 1), stage(4, 128, 2), stage(23, 256, 2), stage(3, 512, 2)],
    ..RESNET50
};

pub const RESNET152: ResNetSpec = ResNetSpec {
    name: "resnet152",
    stages: &[stage(3, 64, 1), stage(8, 128, 2), stage(36, 256, 2), stage(3, 512, 2)],
    ..RESNET50
};

/// For tests: every kind of operation and of block, in milliseconds.
pub const RESNET_TINY: ResNetSpec = ResNetSpec {
    name: "resnet-tiny",
    stem_width: 16,
    expansion: 4,
    stages: &[stage(2, 16, 1), stage(1, 32, 2)],
    classes: 10,
    fan: Fan::FanOut,
};

/// Every network that `model.arch` can name.
pub const ALL: [ResNetSpec; 5] = [RESNET50, RESNET26, RESNET101, RESNET152, RESNET_TINY];

impl ResNetSpec {
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|spec| spec.name == name)
    }

    pub fn with_classes(self, classes: usize) -> Self {
        Self { classes, ..self }
    }

    pub fn with_fan(self, fan: Fan) -> Self {
        Self { fan, ..self }
    }
}
