//! What a program computes with: the numbers of each of the graph's units ([`crate::model::units`]), asked for layer
//! by layer, so that no more than one layer a thread exists unpacked.

use crate::error::Result;
use crate::model::graph::{ParamId, TensorId};
use crate::model::spec::{MEAN, STD};
use crate::model::units::ConvUnit;
use crate::simd::filters::Filters;

/// A convolution or the classifier in f32, batch norm folded in: y = conv(x, weight) + bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// f32 [k][r][s][c]; the classifier's [classes][features].
    pub weight: Vec<f32>,
    /// f32 [k].
    pub bias: Vec<f32>,
}

/// The same for 8-bit products: y = scale[k] x_scale sum(weight x) + bias, where x is u8 with real value x_scale x, zero
/// at 0. The stem's x is the image's own bytes, with the normalisation folded into weight, scale and bias; what lies
/// outside the image has the byte `padding[c]`.
///
/// What becomes of y: the residual's real value is added, then ReLU, and the result is rounded once to the output's
/// u8, `round(y / y_scale)` within 0..=255, ties to even. A shortcut's output has no ReLU and stays f32. Every program
/// does it in the same f32 operations, in steps of the output: scale = scale[k] x_scale / y_scale and bias = bias[k] /
/// y_scale beforehand, then one fused multiply-add, sum scale + bias, and another for the residual, with r_scale /
/// y_scale.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// i8 [k][r][s][c], symmetric: within -127..=127.
    pub weight: Vec<i8>,
    /// f32 [k], by output channel.
    pub scale: Vec<f32>,
    /// f32 [k], in real units; bias correction and the stem's compensation for `padding` are in it.
    pub bias: Vec<f32>,
    /// Bytes outside the feature map, by input channel; zeros everywhere but in the stem.
    pub padding: Vec<u8>,
}

/// The f32 input is (byte / 255 - mean) / std, by channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisation {
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

impl Normalisation {
    pub const IMAGENET: Self = Self { mean: MEAN, std: STD };
}

/// Where numbers come from: a model file, or a test. Several threads ask at once.
pub trait Weights: Sync {
    /// Gives `read` the filters and the bias f32 [k] behind them, where they lie: their pages may go when it returns.
    fn convolution(&self, unit: &ConvUnit, read: &mut dyn FnMut(Filters, &[f32])) -> Result<()>;

    fn classifier(&self, weight: ParamId, bias: ParamId) -> Result<Folded>;

    /// An error that says how to calibrate where the source has no 8-bit numbers.
    fn quantised(&self, unit: &ConvUnit) -> Result<Quantised>;

    /// Only its weights are 8-bit: the features stay f32, x_scale is 1.
    fn quantised_classifier(&self, weight: ParamId, bias: ParamId) -> Result<Quantised>;

    /// The step of a tensor's u8 values: real = scale u8; of outputs of a ReLU and of the max-pool, which has its input's.
    /// The image's is 1: see [`Quantised`].
    fn scale(&self, tensor: TensorId) -> Result<f32>;

    /// How bytes become the f32 network's input.
    fn normalisation(&self) -> Normalisation {
        Normalisation::IMAGENET
    }
}
