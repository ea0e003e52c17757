//! Batch norm slab by slab (`kernels/batch_norm_slab.cu`): the convolution's output, and on the way back the gradient too, is
//! read from device memory once, because few enough channels at a time are summed and then applied that they are still in the
//! L2 cache. A layer of n slabs is n + 1 launches where the plain kernels are 3.

use super::builder::{Builder, size};
use super::geometry::{self, SLAB_COLUMN};
use super::node::{Arg, Launch};
use super::params::Statistic;
use super::region::{Access, Arena, Region};
use crate::backend::EPS;
use crate::config::Slabs;
use crate::model::units::ConvUnit;
use std::ops::Range;

/// Bytes of a sector of the cache, the least that device memory moves.
pub const SECTOR: u64 = 32;

/// A batch norm, as far as it decides on slabs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    pub rows: usize,
    pub channels: usize,
    /// Of an element.
    pub bytes: u64,
    /// Tensors that are read twice: the input, and backward the gradient.
    pub operands: u64,
    /// A bit an element goes with them: written forward, read backward.
    pub mask: bool,
}

impl Layer {
    /// Bytes that summing `channels` of it reads.
    fn read(&self, channels: usize) -> u64 {
        self.rows as u64 * channels as u64 * self.bytes * self.operands
    }

    /// Bytes that device memory moves more than the mask has, because a slab's part of a row of it is less than a sector:
    /// backward the rest of the sector is read along, forward it is read and written back.
    pub fn waste(&self, channels: usize) -> u64 {
        let own = channels as u64 / 8;
        if !self.mask || own >= SECTOR {
            return 0;
        }
        let moved = if self.operands == 1 { 2 * SECTOR } else { SECTOR };
        self.rows as u64 * (moved - own)
    }

    /// The channels of each slab; `None` where the plain kernels move less, or take less time: where a slab's bytes are not
    /// worth its launch. The slab that is summed and the one that is applied are in the cache together.
    pub fn slabs(&self, slabs: Slabs) -> Option<Vec<Range<usize>>> {
        let column = 2 * self.read(SLAB_COLUMN);
        if !self.channels.is_multiple_of(SLAB_COLUMN) || column > slabs.cache_bytes() {
            return None;
        }
        let columns = self.channels / SLAB_COLUMN;
        let most = (slabs.cache_bytes() / column) as usize;
        let count = columns.div_ceil(most.min(columns));
        let width = columns.div_ceil(count) * SLAB_COLUMN;
        let all: Vec<_> =
            (0..self.channels).step_by(width).map(|first| first..self.channels.min(first + width)).collect();
        let waste: u64 = all.iter().map(|slab| self.waste(slab.len())).sum();
        let launches = (all.len() as u64 + 1).saturating_sub(geometry::PLAIN_NORM_LAUNCHES);
        (self.read(self.channels) > waste + launches * slabs.launch_bytes()).then_some(all)
    }
}

/// One launch: what is summed, and what is applied.
struct Halves<'a> {
    sums: Option<&'a Range<usize>>,
    applies: Option<&'a Range<usize>>,
}

/// The launches of a layer: a slab is applied in the launch after the one that sums it.
fn halves(slabs: &[Range<usize>]) -> impl Iterator<Item = Halves<'_>> {
    (0..=slabs.len()).map(|k| Halves { sums: slabs.get(k), applies: k.checked_sub(1).map(|k| &slabs[k]) })
}

/// What the launches of one layer share.
struct Shared {
    partials: Region,
    rows: usize,
    channels: usize,
    per_block: usize,
}

impl Shared {
    /// The arguments that say what is summed.
    fn sums(&self, slab: Option<&Range<usize>>) -> Vec<Arg> {
        let Some(slab) = slab else { return vec![Arg::Null, Arg::Null, size(0), size(0), size(0)] };
        let columns = slab.len() / SLAB_COLUMN;
        let counters = Region::new(Arena::Counters, 0, 4 * columns as u64);
        let scratch = |region| Arg::Region(region, Access::Scratch);
        let sizes = [columns, self.rows.div_ceil(self.per_block), self.per_block].map(size);
        [&[scratch(self.partials), scratch(counters)], &sizes[..]].concat()
    }

    /// The last arguments.
    fn applies(&self, slab: Option<&Range<usize>>) -> [Arg; 3] {
        [slab.map_or(0, |slab| slab.len() / SLAB_COLUMN), self.rows, self.channels].map(size)
    }

    fn geometry(&self, halves: &Halves) -> geometry::Geometry {
        let columns = |slab: Option<&Range<usize>>| slab.map_or(0, |slab| slab.len() / SLAB_COLUMN);
        geometry::bn_slab(self.rows, self.per_block, columns(halves.sums), columns(halves.applies))
    }
}

/// The part of a vector of f32 that a slab has; null where there is none.
fn vector(of: Region, slab: Option<&Range<usize>>, access: Access) -> Arg {
    slab.map_or(Arg::Null, |slab| {
        let (offset, bytes) = (of.offset + 4 * slab.start as u64, 4 * slab.len() as u64);
        Arg::Region(Region { offset, bytes, ..of }, access)
    })
}

/// Bytes of [`Arena::Counters`]: a word for every column of the widest batch norm.
pub fn counters(channels: usize) -> u64 {
    4 * channels.div_ceil(SLAB_COLUMN) as u64
}

impl Builder<'_> {
    /// The slabs of a unit's batch norm, if it has any. Images that skip a branch have their own kernels, and a batch norm of
    /// several ranks needs what the others say between summing and applying.
    pub fn slabs(&self, unit: &ConvUnit, operands: u64) -> Option<Vec<Range<usize>>> {
        if self.factors[unit.y].is_some() || self.synced().is_some() {
            return None;
        }
        self.layer(unit, operands, self.mask[unit.y].is_some()).slabs(self.options.form.slabs)
    }

    /// The layer that a unit's batch norm is, with `operands` tensors to be read.
    pub fn layer(&self, unit: &ConvUnit, operands: u64, mask: bool) -> Layer {
        let (rows, bytes) = (self.rows(unit.raw), self.options.storage.bytes());
        Layer { rows, channels: unit.shape.k, bytes, operands, mask }
    }

    fn norm_shared(&mut self, unit: &ConvUnit, slabs: &[Range<usize>], name: &str) -> Shared {
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let columns = slabs.iter().map(|slab| slab.len() / SLAB_COLUMN).max().unwrap_or(0);
        let per_block = geometry::slab_rows_per_block(rows, columns);
        let bytes = 8 * (columns * SLAB_COLUMN * rows.div_ceil(per_block)) as u64;
        Shared { partials: self.buffer(self.name(unit.raw, name), bytes), rows, channels, per_block }
    }

    /// A slab's part of all rows of a tensor: its pointer is to the slab's first channel.
    fn strip(
        &self,
        of: Region,
        slab: Option<&Range<usize>>,
        rows: usize,
        access: Access,
        from_memory: bool,
    ) -> Arg {
        slab.map_or(Arg::Null, |slab| {
            let bytes = self.options.storage.bytes();
            let skipped = bytes * slab.start as u64;
            let region = Region { offset: of.offset + skipped, bytes: of.bytes - skipped, ..of };
            let moved = if from_memory { bytes * (slab.len() * rows) as u64 } else { 0 };
            Arg::Part(region, access, moved)
        })
    }

    /// Likewise of a mask.
    fn bits(
        &self,
        of: Option<Region>,
        slab: Option<&Range<usize>>,
        rows: usize,
        access: Access,
        from_memory: bool,
    ) -> Arg {
        let (Some(of), Some(slab)) = (of, slab) else { return Arg::Null };
        let skipped = slab.start as u64 / 8;
        let region = Region { offset: of.offset + skipped, bytes: of.bytes - skipped, ..of };
        Arg::Part(region, access, if from_memory { (slab.len() / 8 * rows) as u64 } else { 0 })
    }

    /// Statistics, and batch norm with what follows it.
    pub fn norm_in_slabs(&mut self, unit: &ConvUnit, slabs: &[Range<usize>]) {
        let shared = self.norm_shared(unit, slabs, "partials");
        let y = self.make_activation(unit.y);
        for (k, halves) in halves(slabs).enumerate() {
            let Halves { sums, applies } = halves;
            let rows = shared.rows;
            let mut args = vec![self.strip(self.activation(unit.raw), sums, rows, Access::Read, true)];
            args.push(vector(self.layout.in_f32(self.vectors_arena(), unit.gamma), sums, Access::Read));
            let made = [Statistic::Mean, Statistic::Rstd, Statistic::Scale, Statistic::Variance];
            args.extend(made.map(|kind| vector(self.statistic(unit, kind), sums, Access::Write)));
            args.push(Arg::F32(EPS as f32));
            args.extend(shared.sums(sums));
            args.push(self.strip(self.activation(unit.raw), applies, rows, Access::Read, false));
            args.extend(self.affine(unit).map(|of| vector(of, applies, Access::Read)));
            args.extend(self.addend(unit, applies, rows));
            args.push(self.strip(y, applies, rows, Access::Write, true));
            args.push(self.bits(self.mask[unit.y], applies, rows, Access::Write, true));
            args.push(Arg::U32(u32::from(unit.relu)));
            args.extend(shared.applies(applies));
            let geometry = shared.geometry(&Halves { sums, applies });
            let launch = Launch { kernel: self.storage_kernel("bn_slab"), geometry, args };
            self.launch(self.name(unit.raw, &format!("bn_slab{k}")), launch);
        }
    }

    /// What a block's sum adds: an activation, or a shortcut's own batch norm.
    fn addend(&self, unit: &ConvUnit, slab: Option<&Range<usize>>, rows: usize) -> [Arg; 4] {
        let Some(z) = unit.residual else { return [Arg::Null; 4] };
        let Some(shortcut) = &self.folded[z] else {
            return [
                self.strip(self.activation(z), slab, rows, Access::Read, true),
                Arg::Null,
                Arg::Null,
                Arg::Null,
            ];
        };
        let [mean, scale, beta] = self.affine(shortcut).map(|of| vector(of, slab, Access::Read));
        [self.strip(self.activation(shortcut.raw), slab, rows, Access::Read, true), mean, scale, beta]
    }

    /// The way back: `from` is the gradient that comes, `gate` what the kernels call so.
    pub fn norm_backward_in_slabs(
        &mut self,
        unit: &ConvUnit,
        slabs: &[Range<usize>],
        dy: Region,
        gate: Arg,
    ) -> Region {
        let shared = self.norm_shared(unit, slabs, "backward_partials");
        let (dx, dz) = (self.make_gradient(unit.raw), self.residual_gradient(unit, dy));
        for (k, halves) in halves(slabs).enumerate() {
            let Halves { sums, applies } = halves;
            let rows = shared.rows;
            let mut args = self.gate_of(unit, dy, sums, rows, true);
            args.push(vector(self.statistic(unit, Statistic::Rstd), sums, Access::Read));
            let gradient = |param| self.layout.gradient(self.options.storage, param);
            args.extend([unit.gamma, unit.beta].map(|param| vector(gradient(param), sums, Access::Write)));
            let made = [Statistic::B, Statistic::C];
            args.extend(made.map(|kind| vector(self.statistic(unit, kind), sums, Access::Write)));
            args.extend(shared.sums(sums));
            args.extend(self.gate_of(unit, dy, applies, rows, false));
            args.extend(made.map(|kind| vector(self.statistic(unit, kind), applies, Access::Read)));
            args.push(self.strip(dx, applies, rows, Access::Write, true));
            args.push(dz.map_or(Arg::Null, |dz| self.strip(dz, applies, rows, Access::Write, true)));
            args.push(gate);
            args.extend(shared.applies(applies));
            let geometry = shared.geometry(&Halves { sums, applies });
            let launch = Launch { kernel: self.storage_kernel("bn_backward_slab"), geometry, args };
            self.launch(self.name(unit.raw, &format!("bn_backward_slab{k}")), launch);
        }
        dx
    }

    /// Gradient, input, mask, mean, scale, beta.
    fn gate_of(
        &self,
        unit: &ConvUnit,
        dy: Region,
        slab: Option<&Range<usize>>,
        rows: usize,
        from_memory: bool,
    ) -> Vec<Arg> {
        let mut args = vec![
            self.strip(dy, slab, rows, Access::Read, from_memory),
            self.strip(self.activation(unit.raw), slab, rows, Access::Read, from_memory),
            self.bits(self.mask[unit.y], slab, rows, Access::Read, from_memory),
        ];
        args.extend(self.affine(unit).map(|of| vector(of, slab, Access::Read)));
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: Layer = Layer { rows: 200_704, channels: 512, bytes: 2, operands: 1, mask: false };

    /// In MB.
    fn slabs(cache: u32, launch: u32) -> Slabs {
        Slabs { cache_kb: 1000 * cache, launch_kb: 1000 * launch }
    }

    #[test]
    fn two_slabs_fit_the_cache_and_all_channels_are_in_one() {
        for (layer, cache) in [
            (LAYER, 26),
            (LAYER, 60),
            (Layer { operands: 2, ..LAYER }, 60),
            (Layer { channels: 96, ..LAYER }, 60),
        ] {
            let all = layer.slabs(slabs(cache, 0)).unwrap();
            let width = all.iter().map(|slab| slab.len()).max().unwrap();
            assert!(2 * layer.read(width) <= slabs(cache, 0).cache_bytes(), "{layer:?} {cache}: {all:?}");
            assert!(all.iter().all(|slab| slab.len() % SLAB_COLUMN == 0 && slab.start % SLAB_COLUMN == 0));
            let next =
                all.iter().fold(0, |next, slab| if slab.start == next { slab.end } else { usize::MAX });
            assert_eq!(next, layer.channels, "{all:?}");
        }
    }

    #[test]
    fn slabs_are_left_where_they_do_not_pay() {
        assert_eq!(LAYER.slabs(slabs(0, 0)), None, "the default");
        assert_eq!(LAYER.slabs(slabs(20, 0)), None, "not even two columns fit");
        assert_eq!(Layer { channels: 40, ..LAYER }.slabs(slabs(1000, 0)), None, "not whole columns");
        // 16 slabs of 12.8 MB, 14 launches more: worth it while a launch costs less than 205.5 MB / 14.
        assert_eq!(LAYER.slabs(slabs(26, 14)).unwrap().len(), 16);
        assert_eq!(LAYER.slabs(slabs(26, 15)), None);
        // Forward, a mask's 4 bytes of a row cost 60 more for each slab: 193 of the 205 MB.
        let masked = Layer { mask: true, ..LAYER };
        assert_eq!(masked.waste(32) * 16, 192_675_840);
        assert_eq!(masked.slabs(slabs(26, 1)), None);
        assert_eq!((masked.waste(256), Layer { operands: 2, ..masked }.waste(32)), (0, 28 * 200_704));
    }

    #[test]
    fn a_layer_that_fits_is_one_slab() {
        let small = Layer { rows: 12_544, ..LAYER };
        let whole = 0..small.channels;
        assert_eq!(small.slabs(slabs(26, 100)), Some(vec![whole]));
    }
}
