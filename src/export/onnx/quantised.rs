//! The network in 8 bits, in ONNX's QDQ form: f32 operations whose inputs come out of DequantizeLinear and whose outputs
//! go into QuantizeLinear, which runtimes join to integer operations.
//!
//! Weights are i8, symmetric, by output channel; biases i32 in steps of input times weight. Activations behind a ReLU
//! start at 0, those that go into a sum have a zero point of their own, the image covers all that bytes can be. The
//! classifier's features stay f32: it is a thousandth of the work.

use super::builder::{Builder, int};
use super::plain::{Names, kcrs_from_krsc, last_map};
use super::schema::GraphProto;
use crate::error::{Error, Result};
use crate::export::cpu::Quantisation;
use crate::export::cpu::levels::Levels;
use crate::infer::file::layer_name;
use crate::infer::weights::{Normalisation, Quantised};
use crate::model::graph::{Graph, ParamId};
use crate::model::units::{ConvUnit, Unit, units};
use std::collections::HashMap;

/// The type of 8-bit activations. Both hold the same levels: i8 is u8 - 128.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    I8,
    U8,
}

impl Activations {
    /// The zero point that stands for `level` of u8.
    fn zero_point(self, level: u8) -> i16 {
        match self {
            Self::I8 => i16::from(level) - 128,
            Self::U8 => i16::from(level),
        }
    }
}

/// i32 holds a bias with room for the sum of products beside it.
const LARGEST_BIAS: f32 = (1 << 30) as f32;

/// `quantisation` is one of [`crate::export::cpu::Scheme::Qdq`] for `graph`.
pub fn quantised(
    quantisation: &Quantisation,
    graph: &Graph,
    normalisation: &Normalisation,
    activations: Activations,
) -> Result<GraphProto> {
    let builder = Builder::default();
    let mut writer = Writer { builder, quantisation, graph, activations, levels: HashMap::new() };
    writer.through_8_bits(super::INPUT, Levels::of_images(normalisation));
    for unit in units(graph) {
        writer.unit(&unit)?;
    }
    Ok(writer.builder.finish(graph.spec.name, graph.resolution, graph.spec.classes))
}

struct Writer<'a> {
    builder: Builder,
    quantisation: &'a Quantisation,
    graph: &'a Graph,
    activations: Activations,
    /// By a value's name; its 8-bit form is `NAME_dequantized`.
    levels: HashMap<String, Levels>,
}

fn dequantised(name: &str) -> String {
    format!("{name}_dequantized")
}

impl Writer<'_> {
    /// QuantizeLinear and DequantizeLinear behind the value `name`.
    fn through_8_bits(&mut self, name: &str, levels: Levels) {
        let builder = &mut self.builder;
        let scale = builder.constant(format!("{name}_scale"), &[], &[levels.step]);
        let zero_point = self.activations.zero_point(levels.zero);
        let zero = format!("{name}_zero_point");
        let zero = match self.activations {
            Activations::I8 => builder.constant(zero, &[], &[zero_point as i8]),
            Activations::U8 => builder.constant(zero, &[], &[zero_point as u8]),
        };
        let quantised =
            builder.simple("QuantizeLinear", &[name, &scale, &zero], &format!("{name}_quantized"));
        builder.simple("DequantizeLinear", &[&quantised, &scale, &zero], &dequantised(name));
        self.levels.insert(name.to_owned(), levels);
    }

    /// The same with the levels that calibration chose.
    fn calibrated(&mut self, name: &str) -> Result<()> {
        let levels = self.quantisation.levels.get(name).copied();
        let levels = levels.ok_or_else(|| Error::failed(format!("calibration gave no levels of {name}")))?;
        self.through_8_bits(name, levels);
        Ok(())
    }

    fn unit(&mut self, unit: &Unit) -> Result<()> {
        let graph = self.graph;
        match unit {
            Unit::Conv(unit) => self.conv_unit(unit)?,
            Unit::MaxPool { x, y } => {
                let (x, y) = (&graph.tensors[*x].name, &graph.tensors[*y].name);
                // The largest of 8-bit values is one of them.
                let levels = self.levels[x];
                self.builder.max_pool(&dequantised(x), y);
                self.through_8_bits(y, levels);
            }
            // Part of the classifier's nodes.
            Unit::AvgPool { .. } => {}
            Unit::Linear { weight, bias, .. } => self.classifier(*weight, *bias),
        }
        Ok(())
    }

    fn conv_unit(&mut self, unit: &ConvUnit) -> Result<()> {
        let graph = self.graph;
        let Names { x, conv, norm, sum, y } = Names::of(graph, unit);
        let [weight, bias] = self.layer(unit, x, conv);
        let mut made = self.builder.conv(conv, &[&dequantised(x), &weight, &bias], norm, &unit.shape);
        if let Some((residual, sum)) = sum {
            self.calibrated(norm)?;
            made = self.builder.simple("Add", &[&dequantised(norm), &dequantised(residual)], sum);
        }
        if unit.relu {
            self.builder.simple("Relu", &[&made], y);
        }
        self.calibrated(y)
    }

    /// Weight and bias of a convolution of `x`, dequantised.
    fn layer(&mut self, unit: &ConvUnit, x: &str, name: &str) -> [String; 2] {
        let shape = &unit.shape;
        let x_step = self.levels[x].step;
        let layer = fitting(&self.quantisation.layers[name], x_step);
        let kcrs = kcrs_from_krsc([shape.k, shape.r, shape.s, shape.c], &layer.weight);
        let weight = self.weight(name, &self.graph.params[unit.weight].shape.clone(), &kcrs, &layer.scale);
        let steps: Vec<f32> = layer.scale.iter().map(|scale| x_step * scale).collect();
        let levels = layer.bias.iter().zip(&steps).map(|(bias, step)| (bias / step).round_ties_even() as i32);
        let levels: Vec<i32> = levels.collect();
        let builder = &mut self.builder;
        let scale = builder.constant(format!("{name}.bias_scale"), &[shape.k], &steps);
        let levels = builder.constant(format!("{name}.bias_quantized"), &[shape.k], &levels);
        let output = format!("{name}.bias");
        // An i32 has no zero point.
        let bias =
            builder.node("DequantizeLinear", &output, &[&levels, &scale], &output, vec![int("axis", 0)]);
        [weight, bias]
    }

    /// A weight of `dims` by its first axis.
    fn weight(&mut self, name: &str, dims: &[usize], levels: &[i8], scale: &[f32]) -> String {
        let builder = &mut self.builder;
        let output = format!("{name}.weight");
        let levels = builder.constant(format!("{output}_quantized"), dims, levels);
        let zero = builder.constant(format!("{output}_zero_point"), &[scale.len()], &vec![0i8; scale.len()]);
        let scale = builder.constant(format!("{output}_scale"), &[scale.len()], scale);
        builder.node("DequantizeLinear", &output, &[&levels, &scale, &zero], &output, vec![int("axis", 0)])
    }

    fn classifier(&mut self, weight: ParamId, bias: ParamId) {
        let graph = self.graph;
        let name = layer_name(graph, weight);
        let layer = &self.quantisation.layers[name];
        let weight = self.weight(name, &graph.params[weight].shape, &layer.weight, &layer.scale);
        let bias = &graph.params[bias].name;
        let bias = self.builder.constant(bias, &[layer.bias.len()], &layer.bias);
        self.builder.classifier(&dequantised(last_map(graph)), &weight, &bias);
    }
}

/// `layer` with such scales that every bias fits in an i32 of steps `x_step` scale. Where a channel's scale is raised for
/// that, its weights are some hundred-millionth of its bias.
fn fitting(layer: &Quantised, x_step: f32) -> Quantised {
    let mut layer = layer.clone();
    let filter = layer.weight.len() / layer.scale.len();
    let channels = layer.weight.chunks_exact_mut(filter).zip(&mut layer.scale).zip(&layer.bias);
    for ((weight, scale), bias) in channels {
        let least = bias.abs() / (LARGEST_BIAS * x_step);
        if *scale < least {
            let ratio = *scale / least;
            weight.iter_mut().for_each(|level| *level = (f32::from(*level) * ratio).round_ties_even() as i8);
            *scale = least;
        }
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_far_above_its_weights_fits() {
        let layer = Quantised {
            weight: vec![100, -127, 64, 3],
            scale: vec![1e-12, 0.01],
            bias: vec![3.0, -1.5],
            padding: vec![0; 2],
        };
        let fitted = fitting(&layer, 0.02);
        assert_eq!((&fitted.weight[2..], fitted.scale[1]), (&layer.weight[2..], 0.01));
        assert_eq!(fitted.weight[..2], [0, 0]);
        let level = 3.0 / (0.02 * fitted.scale[0]);
        assert!((level / LARGEST_BIAS - 1.0).abs() < 1e-5, "{level}");
    }
}
