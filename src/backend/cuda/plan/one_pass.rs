//! Batch norm in one pass (`kernels/batch_norm_one_pass.cu`): the convolution's output, and on the way back the gradient too, is
//! read once, because it stays in registers and shared memory of all multiprocessors until the sums are known. A layer is one
//! launch where the plain kernels are 3, and its blocks wait for each other: once a column of 32 channels.
//!
//! What a column has and the multiprocessors cannot hold is read again, so that a layer of any size gains by what is held. All
//! such launches are on the main stream, one after another: two at a time could wait for each other (`kernels/between_blocks.cuh`).
//! Weight gradients beside them end by themselves, and until then keep the multiprocessors that such a launch waits for.

use super::builder::{Builder, optional, read, size, write};
use super::geometry::{
    self, Geometry, ONE_PASS_HELD, ONE_PASS_PACK_BYTES, ONE_PASS_ROWS, ONE_PASS_SCRATCH, PLAIN_NORM_LAUNCHES,
    SLAB_COLUMN,
};
use super::node::{Arg, Call, Launch};
use super::params::Statistic;
use super::region::{Access, Arena, Region};
use super::slab::{Layer, SECTOR};
use crate::backend::EPS;
use crate::backend::cuda::storage::Storage;
use crate::config::{Chip, Norm};
use crate::model::graph::TensorId;
use crate::model::units::ConvUnit;

/// How the blocks share a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Each takes every `groups`-th column.
    pub groups: usize,
    /// Blocks of a group, which share the rows of its column.
    pub group: usize,
    /// Packs of a thread in shared memory, of each operand.
    pub kept: usize,
    /// Of all rows, how many are read again.
    pub again: usize,
}

/// How often the blocks of a call wait for each other: once for each column of their group.
pub fn waits(call: &Call) -> u64 {
    match call {
        Call::Kernel(Launch { geometry, args, .. }) if geometry.cooperative => match args[..] {
            [.., Arg::U32(group), _, _, Arg::U32(channels)] => {
                let groups = geometry.grid[0] / group;
                u64::from((channels / SLAB_COLUMN as u32).div_ceil(groups))
            }
            _ => unreachable!("a launch whose blocks wait ends in how they share the layer"),
        },
        _ => 0,
    }
}

impl Layer {
    /// The grid that takes the least time; `None` where the plain kernels take less. `in_columns`: the mask lies by columns.
    pub fn one_pass(&self, chip: Chip, in_columns: bool) -> Option<Grid> {
        let columns = self.channels / SLAB_COLUMN;
        if !self.channels.is_multiple_of(SLAB_COLUMN) || self.bytes != 2 || chip.shared_kib == 0 {
            return None;
        }
        let all = (0..).map(|power| 1 << power);
        let grids = all.take_while(|&groups| groups <= columns.min(chip.multiprocessors as usize));
        let grid = grids
            .filter(|&groups| columns.is_multiple_of(groups))
            .map(|groups| self.grid(chip, groups))
            .min_by_key(|grid| self.cost(*grid, chip, in_columns))?;
        let plain = self.second(self.rows) + PLAIN_NORM_LAUNCHES * chip.pause_bytes();
        (self.cost(grid, chip, in_columns) < plain).then_some(grid)
    }

    fn grid(&self, chip: Chip, groups: usize) -> Grid {
        let (group, operands) = (chip.multiprocessors as usize / groups, self.operands as usize);
        let rows = self.rows.div_ceil(group);
        let (packs, held) = (rows.div_ceil(ONE_PASS_ROWS), ONE_PASS_HELD / operands);
        let room = (chip.shared_kib as usize * 1024).saturating_sub(ONE_PASS_SCRATCH);
        let kept = (room / (operands * ONE_PASS_PACK_BYTES)).min(packs.saturating_sub(held));
        let own = |member: usize| self.rows.saturating_sub(member * rows).min(rows);
        let again = (0..group).map(|member| own(member).saturating_sub((held + kept) * ONE_PASS_ROWS)).sum();
        Grid { groups, group, kept, again }
    }

    /// Bytes that a second reading of `rows` moves.
    fn second(&self, rows: usize) -> u64 {
        let mask = if self.mask && self.operands == 2 { self.channels / 8 } else { 0 };
        rows as u64 * (self.channels as u64 * self.bytes * self.operands + mask as u64)
    }

    /// Bytes beyond one reading and writing of everything: those that move, and those that could have moved in the time of the
    /// launch and of the waits.
    fn cost(&self, grid: Grid, chip: Chip, in_columns: bool) -> u64 {
        let columns = (self.channels / SLAB_COLUMN) as u64;
        let waste = if in_columns { 0 } else { columns * self.waste(SLAB_COLUMN) };
        let waits = columns.div_ceil(grid.groups as u64);
        self.second(grid.again) + waste + (1 + waits) * chip.pause_bytes()
    }
}

/// A column's part of a row of the mask is less than a sector, unless the mask lies by columns.
const _: () = assert!((SLAB_COLUMN / 8) < SECTOR as usize);

impl Builder<'_> {
    /// The grid of a unit's batch norm, if it is one of one pass. Images that skip a branch have their own kernels.
    pub fn one_pass(&self, unit: &ConvUnit, operands: u64, mask: Option<bool>) -> Option<Grid> {
        let form = self.options.form;
        let wanted = form.norm == Norm::OnePass && self.options.storage != Storage::F32;
        let apart = self.factors[unit.y].is_some() || self.takes_running(unit) || self.synced().is_some();
        if !wanted || apart {
            return None;
        }
        self.layer(unit, operands, mask.is_some()).one_pass(form.chip, mask == Some(true))
    }

    /// The same of a whole unit on its way forward, whose mask, if it leaves one, lies by columns: that is for a way back in one
    /// pass, of the unit and of a shortcut alike.
    pub fn one_pass_forward(&self, unit: &ConvUnit) -> Option<Grid> {
        let mask = self.leaves_mask(unit).then_some(true);
        let back = mask.is_none() || self.one_pass(unit, 2, mask).is_some();
        self.one_pass(unit, 1, mask).filter(|_| back)
    }

    /// Likewise on its way back.
    pub fn one_pass_backward(&self, unit: &ConvUnit) -> Option<Grid> {
        self.one_pass(unit, 2, self.mask[unit.y].map(|_| self.mask_in_columns[unit.y]))
    }

    /// Statistics, and batch norm with what follows it.
    pub fn norm_in_one_pass(&mut self, unit: &ConvUnit, grid: Grid) {
        let mut args = vec![self.read_again(self.activation(unit.raw), unit, grid)];
        args.extend([unit.gamma, unit.beta].map(|param| self.parameter(param)));
        let made = [Statistic::Mean, Statistic::Rstd, Statistic::Scale, Statistic::Variance];
        args.extend(made.map(|kind| write(self.statistic(unit, kind))));
        args.push(Arg::F32(EPS as f32));
        args.extend(self.waits(unit, grid, "partials"));
        args.extend(self.added(unit));
        args.push(write(self.make_activation(unit.y)));
        args.push(optional(self.mask[unit.y], Access::Write));
        args.extend([self.mask_in_columns[unit.y], unit.relu].map(|flag| Arg::U32(u32::from(flag))));
        args.extend(self.shares(unit, grid));
        let geometry = geometry::bn_one_pass(grid.groups, grid.group, grid.kept, 1);
        self.launch_one_pass(unit, "bn_one_pass", geometry, args);
    }

    /// The way back: `dy` is the gradient that comes, `gate` what the kernels call so.
    pub fn norm_backward_in_one_pass(
        &mut self,
        unit: &ConvUnit,
        grid: Grid,
        dy: Region,
        gate: Arg,
    ) -> Region {
        let mut args = vec![dy, self.activation(unit.raw)];
        args.extend(self.mask[unit.y]);
        let mut args: Vec<Arg> = args.into_iter().map(|of| self.read_again(of, unit, grid)).collect();
        args.resize(3, Arg::Null);
        args.extend(self.affine(unit).args());
        args.push(read(self.statistic(unit, Statistic::Rstd)));
        let gradient = |param| self.layout.gradient(self.options.storage, param);
        args.extend([unit.gamma, unit.beta].map(|param| write(gradient(param))));
        args.extend([Statistic::B, Statistic::C].map(|kind| write(self.statistic(unit, kind))));
        args.extend(self.waits(unit, grid, "backward_partials"));
        let (dx, dz) = (self.make_gradient(unit.raw), self.residual_gradient(unit, dy));
        args.extend([write(dx), optional(dz, Access::Write), gate]);
        args.push(Arg::U32(u32::from(self.mask_in_columns[unit.y])));
        args.extend(self.shares(unit, grid));
        let geometry = geometry::bn_one_pass(grid.groups, grid.group, grid.kept, 2);
        self.launch_one_pass(unit, "bn_backward_one_pass", geometry, args);
        dx
    }

    fn launch_one_pass(&mut self, unit: &ConvUnit, kernel: &str, geometry: Geometry, args: Vec<Arg>) {
        let launch = Launch { kernel: self.storage_kernel(kernel), geometry, args };
        self.launch(self.name(unit.raw, kernel), launch);
    }

    /// An operand, of which some rows are read twice.
    fn read_again(&self, of: Region, unit: &ConvUnit, grid: Grid) -> Arg {
        let rows = self.rows(unit.raw) as u64;
        Arg::Part(of, Access::Read, of.bytes + of.bytes * grid.again as u64 / rows)
    }

    /// Where blocks leave their sums, and what they count each other with: of each column.
    fn waits(&mut self, unit: &ConvUnit, grid: Grid, name: &str) -> [Arg; 2] {
        let partials = self.buffer(self.name(unit.raw, name), 8 * (unit.shape.k * grid.group) as u64);
        let counters = Region::new(Arena::Counters, 0, 4 * (unit.shape.k / SLAB_COLUMN) as u64);
        [partials, counters].map(|region| Arg::Region(region, Access::Scratch))
    }

    /// The last arguments.
    fn shares(&self, unit: &ConvUnit, grid: Grid) -> [Arg; 4] {
        [grid.group, grid.kept, self.rows(unit.raw), unit.shape.k].map(size)
    }

    /// Whether a block's sum leaves a bit an element for the way back.
    pub fn leaves_mask(&self, unit: &ConvUnit) -> bool {
        unit.residual.is_some() && self.trains() && self.demand.wants(unit.y)
    }

    /// The gates of a shortcut's batch norm are those of the block's sum.
    pub fn share_mask(&mut self, residual: TensorId, sum: TensorId) {
        self.mask[residual] = self.mask[sum];
        self.mask_in_columns[residual] = self.mask_in_columns[sum];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 14x14 of 1024 channels, batch 256, on a V100.
    const LAYER: Layer = Layer { rows: 50_176, channels: 1024, bytes: 2, operands: 1, mask: false };
    const V100: Chip = Chip::of(80, 96, 900e9);

    #[test]
    fn blocks_share_all_rows_and_hold_what_they_can() {
        for (layer, chip) in [
            (LAYER, V100),
            (Layer { operands: 2, mask: true, ..LAYER }, V100),
            (Layer { rows: 3_211_264, channels: 64, ..LAYER }, V100),
            (Layer { rows: 32, channels: 2048, ..LAYER }, Chip { multiprocessors: 3, pause_kb: 1, ..V100 }),
        ] {
            let Grid { groups, group, kept, again } = layer.one_pass(chip, true).unwrap();
            let operands = layer.operands as usize;
            assert!(groups * group <= chip.multiprocessors as usize, "{layer:?}");
            assert!(
                (layer.channels / SLAB_COLUMN).is_multiple_of(groups),
                "no group has fewer columns than another"
            );
            let shared = geometry::bn_one_pass(groups, group, kept, operands).shared;
            assert!(shared <= chip.shared_kib * 1024, "{layer:?}: {shared} bytes");
            let held = group * ONE_PASS_ROWS * (ONE_PASS_HELD / operands + kept);
            assert!(again >= layer.rows.saturating_sub(held) && again < layer.rows, "{layer:?}: {again}");
            assert!(
                kept == 0 || again > 0 || held < layer.rows + group * (ONE_PASS_ROWS + 1),
                "{layer:?}: {kept}"
            );
        }
        // By hand: 10 blocks a column of 3.2 MB, 5018 rows of 64 bytes each, of which registers hold 2048 and 92 KiB of shared
        // memory 1472: with 20 blocks a column everything is held.
        assert_eq!(LAYER.one_pass(V100, true), Some(Grid { groups: 4, group: 20, kept: 8, again: 0 }));
    }

    #[test]
    fn what_does_not_pay_keeps_the_plain_kernels() {
        assert_eq!(LAYER.one_pass(Chip::AS_IT_IS, true), None, "no card");
        assert_eq!(Layer { channels: 48, ..LAYER }.one_pass(V100, true), None, "not whole columns");
        assert_eq!(Layer { bytes: 4, ..LAYER }.one_pass(V100, true), None, "packs of 32 bytes");
        // A row's 4 bytes of the mask cost 60 more for each column: nearly all of its 64.
        let masked = Layer { mask: true, ..LAYER };
        assert!(masked.one_pass(V100, true).is_some() && masked.one_pass(V100, false).is_none());
    }
}
