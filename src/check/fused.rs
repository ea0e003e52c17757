//! What the library does in the same call as a convolution: a batch norm and its ReLU before it, sums of its output.

use super::compare::{Allowed, UNIT, Want, largest, rounding, to_f64};
use super::layers::Layers;
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::network::{from_stored, to_stored};
use crate::backend::cuda::plan::node::{Call, Fused};
use crate::backend::cuda::plan::region::Region;
use crate::error::Result;
use crate::model::graph::TensorId;
use crate::model::units::{ConvUnit, Unit};

/// What a convolution multiplies, and how far the library's own may be from it.
pub struct Operand {
    pub x: Vec<f32>,
    pub doubt: f64,
}

impl<M: Machine> Layers<'_, M> {
    /// What is fused with one of a unit's convolutions.
    pub fn fused(&self, raw: TensorId, what: &str) -> Fused {
        let name = self.seen.node(raw, what);
        let found = self.seen.plan.nodes.iter().find(|node| node.name == name);
        match found.map(|node| &node.call) {
            Some(Call::Convolution(conv)) => conv.fused,
            _ => Fused::NONE,
        }
    }

    /// Whether a unit's output is stored.
    pub fn is_stored(&self, tensor: TensorId) -> bool {
        self.seen.plan.buffer(self.seen.name(tensor)).is_some()
    }

    /// The unit's input as the convolution multiplies it. A product and a sum that the library rounds once instead of twice move
    /// a value here and there to the next one of the storage type.
    pub fn operand(&self, unit: &ConvUnit, what: &str) -> Result<Operand> {
        let Some(map) = self.fused(unit.raw, what).norm else {
            return Ok(Operand { x: self.seen.activation(unit.x)?, doubt: 0.0 });
        };
        let norm = self.norm_before(unit);
        let (raw, (scale, bias)) = (self.seen.activation(norm.raw)?, self.map(map)?);
        let channels = scale.len();
        let of = |(e, x): (usize, &f32)| (x * scale[e % channels] + bias[e % channels]).max(0.0);
        let mapped: Vec<f32> = raw.iter().enumerate().map(of).collect();
        let storage = self.seen.storage();
        let x = from_stored(storage, &to_stored(storage, &mapped));
        let doubt = rounding(storage, largest(&x));
        Ok(Operand { x, doubt })
    }

    fn norm_before(&self, reader: &ConvUnit) -> ConvUnit {
        let norm = self.units.iter().find_map(|unit| match unit {
            Unit::Conv(unit) if unit.y == reader.x => Some(unit.clone()),
            _ => None,
        });
        norm.expect("a fused batch norm is a unit's")
    }

    fn map(&self, region: Region) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut scale = self.seen.stored(region)?;
        let bias = scale.split_off(scale.len() / 2);
        Ok((scale, bias))
    }

    /// Of a batch norm that the convolution behind it applies: scale, and bias = beta - mean scale, as halves.
    pub fn mapped(&mut self, unit: &ConvUnit) -> Result<()> {
        let reader = self.units.iter().find_map(|other| match other {
            Unit::Conv(other) if other.x == unit.y => self.fused(other.raw, "forward").norm,
            _ => None,
        });
        let Some(region) = reader else { return Ok(()) };
        let (affine, (scale, bias)) = (self.affine(unit)?, self.map(region)?);
        let shift: Vec<(f64, f64)> = (0..unit.shape.k)
            .map(|c| {
                let [mean, scale, beta] = [affine.mean[c], affine.scale[c], affine.beta[c]].map(f64::from);
                let value = beta - mean * scale;
                (value, 2.0 * UNIT * (value.abs() + (mean * scale).abs()))
            })
            .collect();
        let storage = self.seen.storage();
        let values = to_f64(&affine.scale).into_iter().chain(shift.iter().map(|of| of.0)).collect::<Vec<_>>();
        let doubts = vec![0.0; scale.len()].into_iter().chain(shift.iter().map(|of| of.1));
        let allowed = values.iter().zip(doubts).map(|(&value, doubt)| rounding(storage, value) + doubt);
        let allowed = Allowed::Each(allowed.collect());
        let got: Vec<f64> = to_f64(&scale).into_iter().chain(to_f64(&bias)).collect();
        let nodes = [self.seen.node(unit.raw, "bn_finalize")];
        let what = format!("{}.map", self.seen.name(unit.y));
        self.note("batch norm map", &nodes, &what, &got, &Want { values, allowed });
        Ok(())
    }
}
