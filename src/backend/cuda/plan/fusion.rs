//! What is fused with convolutions: sums of their outputs behind them, batch norms before them. By our own kernel
//! ([`super::pointwise`]), or by the library's.

use super::builder::{Builder, optional, read, size, write};
use super::geometry;
use super::node::{Arg, Fused, Launch, Pass, Pattern};
use super::params::Statistic;
use super::pointwise;
use super::region::{Access, Region};
use crate::backend::EPS;
use crate::backend::cuda::storage::Storage;
use crate::config::{Fusion, Pointwise};
use crate::model::units::{ConvUnit, Unit};

/// Who leaves the statistics of a convolution's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Summing {
    /// `conv1x1.cu`.
    Kernel,
    /// The library's convolution.
    Library,
}

/// A batch norm that the convolution behind it applies.
#[derive(Debug, Clone)]
pub struct Absorbed {
    pub norm: ConvUnit,
    pub by: Summing,
    /// Scales and biases, halves [2][c], where it is the library's.
    pub map: Option<Region>,
}

/// Channels that the library's fused convolutions are asked for in multiples of: operands stay aligned.
const CHANNELS: usize = 8;

impl Builder<'_> {
    /// `None` where a kernel reads the output once more.
    pub fn summing(&self, unit: &ConvUnit) -> Option<Summing> {
        let (form, storage, shape) = (self.options.form, self.options.storage, self.shape(unit));
        if self.takes_running(unit) {
            return None;
        }
        if form.pointwise == Pointwise::Fused && storage == Storage::F16 && pointwise::fits(&shape) {
            return Some(Summing::Kernel);
        }
        // What the library sums is of the rank's own images.
        let wanted = form.fusion != Fusion::None && storage != Storage::F32 && self.synced().is_none();
        let takes = wanted && shape.k.is_multiple_of(CHANNELS) && self.has_sums(unit);
        takes.then_some(Summing::Library)
    }

    /// Whether the library sums, with the batch norm before it or without.
    fn has_sums(&self, unit: &ConvUnit) -> bool {
        let pattern = |norm| Pattern { pass: Pass::Forward, shape: self.shape(unit), norm, sums: true };
        !self.options.without.contains(&pattern(false))
    }

    /// Finds the batch norms that the convolution behind them applies: those with a ReLU alone, whose output it reads and
    /// nobody else does on the way forward.
    pub fn absorb_norms(&mut self, units: &[Unit]) {
        for unit in units {
            let Unit::Conv(norm) = unit else { continue };
            let mut readers = units.iter().filter(|unit| unit.inputs().contains(&norm.y));
            let (Some(Unit::Conv(reader)), None) = (readers.next(), readers.next()) else { continue };
            if !norm.relu || norm.residual.is_some() || reader.x != norm.y {
                continue;
            }
            if let Some(by) = self.absorbs(norm, reader) {
                self.absorbed[norm.y] = Some(Absorbed { norm: norm.clone(), by, map: None });
            }
        }
    }

    fn absorbs(&self, norm: &ConvUnit, reader: &ConvUnit) -> Option<Summing> {
        let by = self.summing(reader)?;
        let can = match by {
            Summing::Kernel => true,
            // The sums of the one are where scale and bias of the other come from.
            Summing::Library => {
                let of = |pass, sums| Pattern { pass, shape: self.shape(reader), norm: true, sums };
                let patterns = [of(Pass::Forward, true), of(Pass::Wgrad, false)];
                self.options.form.fusion == Fusion::Norm
                    && self.options.storage == Storage::F16
                    && reader.shape.c.is_multiple_of(CHANNELS)
                    && self.summing(norm) == Some(Summing::Library)
                    && patterns.iter().all(|pattern| !self.options.without.contains(pattern))
            }
        };
        can.then_some(by)
    }

    /// Where a convolution's input is, and the batch norm that the library takes it through.
    pub fn input_of(&self, unit: &ConvUnit) -> (Region, Option<Region>) {
        match &self.absorbed[unit.x] {
            Some(Absorbed { norm, map: Some(map), .. }) => (self.activation(norm.raw), Some(*map)),
            _ => (self.activation(unit.x), None),
        }
    }

    /// What the library does in the same call as a forward convolution; the sums are taken in by [`Self::finalize_sums`].
    pub fn fused(&mut self, unit: &ConvUnit, norm: Option<Region>) -> Fused {
        let sums = (self.summing(unit) == Some(Summing::Library))
            .then(|| self.buffer(self.name(unit.raw, "sums"), 8 * unit.shape.k as u64));
        Fused { norm, sums }
    }

    /// Mean and variance from the sums over all rows; and, where the batch norm is left to the library, the map that it is.
    pub fn finalize_sums(&mut self, unit: &ConvUnit, sums: Region) {
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let map = self.map_for(unit);
        let mut args = vec![read(sums), self.parameter(unit.gamma), self.parameter(unit.beta)];
        let made = [Statistic::Mean, Statistic::Rstd, Statistic::Scale, Statistic::Variance];
        args.extend(made.map(|kind| write(self.statistic(unit, kind))));
        args.push(optional(map, Access::Write));
        args.extend([size(rows), size(channels), Arg::F32(EPS as f32)]);
        let geometry = geometry::by_channel(channels);
        let launch = Launch { kernel: "bn_finalize_sums".into(), geometry, args };
        self.launch(self.name(unit.raw, "bn_finalize"), launch);
    }

    /// A place for the map where the library applies the unit's batch norm.
    fn map_for(&mut self, unit: &ConvUnit) -> Option<Region> {
        self.absorbed[unit.y].as_ref().filter(|absorbed| absorbed.by == Summing::Library)?;
        let map = self.buffer(self.name(unit.y, "map"), 4 * unit.shape.k as u64);
        self.absorbed[unit.y].as_mut()?.map = Some(map);
        Some(map)
    }
}
