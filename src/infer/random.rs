//! Weights out of a counter, for measuring speed where there is no model file.

use super::weights::{Folded, Quantised, Weights};
use crate::error::Result;
use crate::model::graph::{Graph, ParamId, TensorId};
use crate::model::params::Param;
use crate::model::spec::{MEAN, STD};
use crate::model::units::ConvUnit;
use crate::rng::{Purpose, Rng};
use crate::simd::filters::Filters;

/// A network whose answers mean nothing and whose numbers stay in range: uniform weights of variance 2 over the fan-in
/// (arXiv:1502.01852), a quarter of that deviation where a block's branch joins the shortcut.
pub struct RandomWeights<'a> {
    pub graph: &'a Graph,
    pub seed: u64,
}

/// Largest activation that 8 bits hold: what comes out of these weights reaches about three deviations of 2.
const RANGE: f32 = 6.0;

impl RandomWeights<'_> {
    fn filters(&self, unit: &ConvUnit) -> Vec<f32> {
        let gain = if self.graph.params[unit.gamma].closes_block { 0.25 } else { 1.0 };
        self.weight(unit.weight, gain)
    }

    /// The numbers have no order, so any layout is as good.
    fn weight(&self, id: ParamId, gain: f64) -> Vec<f32> {
        let param: &Param = &self.graph.params[id];
        let fan_in: usize = param.shape[1..].iter().product();
        let bound = gain * (6.0 / fan_in as f64).sqrt();
        let mut rng = Rng::new(self.seed, 0, id as u64, Purpose::Init);
        (0..param.elements()).map(|_| rng.range(-bound, bound) as f32).collect()
    }
}

/// `weight` in rows of one output channel -> i8 and the scale of each row.
fn quantise(weight: &[f32], rows: usize) -> (Vec<i8>, Vec<f32>) {
    let row = weight.len() / rows;
    let largest = |row: &[f32]| row.iter().fold(f32::MIN_POSITIVE, |max, w| max.max(w.abs()));
    let scale: Vec<f32> = weight.chunks_exact(row).map(|row| largest(row) / 127.0).collect();
    let rounded = weight.chunks_exact(row).zip(&scale);
    (rounded.flat_map(|(row, scale)| row.iter().map(move |w| (w / scale).round() as i8)).collect(), scale)
}

impl Weights for RandomWeights<'_> {
    fn convolution(&self, unit: &ConvUnit, read: &mut dyn FnMut(Filters, &[f32])) -> Result<()> {
        let k = unit.shape.k;
        read(Filters { weight: &self.filters(unit), factor: &vec![1.0; k] }, &vec![0.0; k]);
        Ok(())
    }

    fn classifier(&self, weight: ParamId, bias: ParamId) -> Result<Folded> {
        Ok(Folded { weight: self.weight(weight, 1.0), bias: vec![0.0; self.graph.params[bias].elements()] })
    }

    fn quantised(&self, unit: &ConvUnit) -> Result<Quantised> {
        let (mut weight, mut bias) = (self.filters(unit), vec![0.0; unit.shape.k]);
        let c = unit.shape.c;
        let mut padding = vec![0; c];
        if unit.x == self.graph.input {
            // (byte / 255 - mean) / std, folded in: the mean's share goes to the bias, and the mean is what lies outside.
            padding = MEAN.iter().map(|mean| (255.0 * mean).round() as u8).collect();
            let row = weight.len() / unit.shape.k;
            for (filter, bias) in weight.chunks_exact_mut(row).zip(&mut bias) {
                for (i, w) in filter.iter_mut().enumerate() {
                    *w /= 255.0 * STD[i % c];
                    *bias -= *w * 255.0 * MEAN[i % c];
                }
            }
        }
        let (weight, scale) = quantise(&weight, unit.shape.k);
        Ok(Quantised { weight, scale, bias, padding })
    }

    fn quantised_classifier(&self, weight: ParamId, bias: ParamId) -> Result<Quantised> {
        let Folded { weight, bias } = self.classifier(weight, bias)?;
        let (weight, scale) = quantise(&weight, bias.len());
        Ok(Quantised { weight, scale, bias, padding: vec![] })
    }

    fn scale(&self, tensor: TensorId) -> Result<f32> {
        Ok(if tensor == self.graph.input { 1.0 } else { RANGE / 255.0 })
    }
}
