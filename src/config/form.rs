//! How a training step is laid out on a GPU. Every form computes the same step, up to the roundings of its sums; which one
//! is fastest, a card tells: `engine bench step --variants` times them in turn.

use super::{Chip, Norm, Slabs};
use serde::{Deserialize, Serialize};
use std::fmt;

/// `[device.form]`. The default is what a card has not yet shown to be slower than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Form {
    pub stem: Stem,
    pub wgrad: Wgrad,
    pub residual: Residual,
    pub pointwise: Pointwise,
    pub fusion: Fusion,
    pub slabs: Slabs,
    pub norm: Norm,
    pub chip: Chip,
}

/// What the first convolution reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Stem {
    /// Pixels of 4 channels, the last of them zero: 7x7, stride 2.
    #[default]
    #[serde(rename = "padded-4")]
    Padded4,
    /// Pixels of 8 channels, the last five zero.
    #[serde(rename = "padded-8")]
    Padded8,
    /// 2x2 pixels of 4 channels as one of 16, with a margin: 4x4, stride 1 (Ying et al., arXiv:1811.06992). Filters and
    /// their gradients are moved to this order and back within the pass.
    #[serde(rename = "space-to-depth")]
    SpaceToDepth,
}

/// When a convolution's weight gradient is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wgrad {
    /// On a stream of its own, as soon as the gradient of the output is there: beside the same layer's dgrad.
    #[default]
    Beside,
    /// On a stream of its own, after the same layer's dgrad: beside the batch norm of the layer below, which is bound by
    /// bytes.
    Behind,
    /// On the stream of everything else, before the dgrad.
    Inline,
}

/// How two gradients that meet at a block's input are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Residual {
    /// The dgrad adds to what is there.
    #[default]
    InDgrad,
    /// The dgrad writes a buffer of its own, and a kernel adds it: more bytes, for routines that are slow at adding.
    Added,
}

/// `[device.search]`: which routines of NVIDIA's libraries are timed for each convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Search {
    pub routines: Routines,
    /// And the engines of cuDNN's graph API: as many as eight more for each convolution.
    pub cudnn_graph: bool,
    /// MiB of each stream, for cuDNN and cuBLAS; routines that want more are not considered.
    pub workspace: usize,
}

/// Whose routines are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routines {
    /// cuDNN's convolutions alone.
    Cudnn,
    /// And, where a convolution is a matrix product, cuBLAS's own choice.
    #[default]
    Cublas,
    /// And what cuBLASLt offers for that product, each timed; sums are split in fixed order only.
    CublasLt,
}

impl Search {
    pub const BASE: Self = Self { routines: Routines::Cublas, cudnn_graph: false, workspace: 256 };

    pub fn workspace_bytes(&self) -> u64 {
        (self.workspace as u64) << 20
    }
}

impl Default for Search {
    fn default() -> Self {
        Self::BASE
    }
}

/// Who computes 1x1 convolutions of stride 1 that are bound by bytes, forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pointwise {
    #[default]
    Libraries,
    /// Our own kernel, which sums the output's statistics and applies the batch norm before it; fp16 alone.
    Fused,
}

/// What cuDNN's graph API does in the same call as a convolution, on cards that can (compute capability 8.0; where it has no
/// engine for a shape, each is done by itself).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fusion {
    #[default]
    None,
    /// It sums its output and the squares of it, forward; fp16 and bf16.
    Statistics,
    /// And takes its input through the batch norm and the ReLU before it, whose output is never stored: forward, and again for
    /// the weight gradient; fp16 alone.
    Norm,
}

impl Form {
    /// The default.
    pub const BASE: Self = Self {
        stem: Stem::Padded4,
        wgrad: Wgrad::Beside,
        residual: Residual::InDgrad,
        pointwise: Pointwise::Libraries,
        fusion: Fusion::None,
        slabs: Slabs::NONE,
        norm: Norm::TwoPass,
        chip: Chip::AS_IT_IS,
    };

    /// For such a card, where nothing else is said.
    pub fn on(self, card: Chip) -> Self {
        Self { chip: self.chip.or(card), ..self }
    }
}

impl Default for Form {
    fn default() -> Self {
        Self::BASE
    }
}

impl Stem {
    /// Channels of a pixel in memory.
    pub fn pixel(self) -> usize {
        match self {
            Self::Padded4 | Self::SpaceToDepth => 4,
            Self::Padded8 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Padded4 => "padded-4",
            Self::Padded8 => "padded-8",
            Self::SpaceToDepth => "space-to-depth",
        }
    }
}

/// What differs from the default, as `--set` takes it; empty for the default.
impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wgrad = match self.wgrad {
            Wgrad::Beside => None,
            Wgrad::Behind => Some("behind"),
            Wgrad::Inline => Some("inline"),
        };
        let fusion = match self.fusion {
            Fusion::None => None,
            Fusion::Statistics => Some("statistics"),
            Fusion::Norm => Some("norm"),
        };
        let parts = [
            ("stem", (self.stem != Stem::default()).then(|| self.stem.name())),
            ("wgrad", wgrad),
            ("residual", (self.residual == Residual::Added).then_some("added")),
            ("pointwise", (self.pointwise == Pointwise::Fused).then_some("fused")),
            ("fusion", fusion),
            ("norm", (self.norm == Norm::OnePass).then_some("one-pass")),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter_map(|(key, value)| value.map(|value| format!("device.form.{key}={value}")))
            .chain(self.slabs.said())
            .chain(self.chip.said())
            .collect();
        f.write_str(&said.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed is what a configuration takes.
    #[test]
    fn forms_are_read_back() {
        for stem in [Stem::Padded4, Stem::Padded8, Stem::SpaceToDepth] {
            for wgrad in [Wgrad::Beside, Wgrad::Behind, Wgrad::Inline] {
                for residual in [Residual::InDgrad, Residual::Added] {
                    let (slabs, pointwise) = match residual {
                        Residual::InDgrad => (Slabs::NONE, Pointwise::Fused),
                        Residual::Added => {
                            (Slabs { cache_kb: 20_000, launch_kb: 5000 }, Pointwise::Libraries)
                        }
                    };
                    let fusion = match wgrad {
                        Wgrad::Beside => Fusion::None,
                        Wgrad::Behind => Fusion::Statistics,
                        Wgrad::Inline => Fusion::Norm,
                    };
                    let (norm, chip) = match wgrad {
                        Wgrad::Inline => (Norm::OnePass, Chip::AS_IT_IS),
                        Wgrad::Behind => {
                            (Norm::OnePass, Chip { multiprocessors: 100, shared_kib: 64, pause_kb: 2 })
                        }
                        Wgrad::Beside => (Norm::TwoPass, Chip::AS_IT_IS),
                    };
                    let form = Form { stem, wgrad, residual, pointwise, fusion, slabs, norm, chip };
                    let set: Vec<String> = form.to_string().split_whitespace().map(str::to_owned).collect();
                    let overrides = crate::config::Overrides { set, ..Default::default() };
                    assert_eq!(crate::config::load(None, &overrides).unwrap().device.form, form);
                }
            }
        }
        assert_eq!(Form::default().to_string(), "");
    }
}
