//! Weights in the order in which tiles read them: panels of output channels, in each [rows][run][vectors][lanes] units
//! of 4 bytes.

use super::kernel::{CHANNELS, Kernels};
use super::map::Format;
use crate::error::{Error, Result};
use crate::simd::dispatch::multiversion;
use crate::simd::filters::Filters;
use crate::simd::isa::Isa;
use half::bf16;

/// A panel of output channels.
#[derive(Debug, Clone, Copy)]
pub struct Panel {
    pub first: usize,
    /// Index into [`Kernels::widths`].
    pub width: usize,
    /// Bytes from the start of the layer's weights.
    pub offset: usize,
}

/// A filter's extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    pub k: usize,
    pub r: usize,
    pub s: usize,
    pub c: usize,
}

/// Units that are packed side by side, of as many output channels: those of the narrowest panel.
const TILE: usize = CHANNELS;

/// Where the weights of a layer lie.
pub struct Packed {
    pub kernels: &'static Kernels,
    pub filter: Filter,
    /// Units of 4 bytes in a filter row, whose last one zeros fill up.
    pub run: usize,
    pub panels: Vec<Panel>,
    /// Of the layer's weights: whole cache lines.
    pub bytes: usize,
}

/// Weights as they come.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    F32(Filters<'a>),
    /// [k][r][s][c]
    I8(&'a [i8]),
}

impl Packed {
    pub fn new(kernels: &'static Kernels, filter: Filter) -> Result<Self> {
        let Filter { k, r, s, c } = filter;
        if k % CHANNELS != 0 {
            return Err(Error::usage(format!(
                "a convolution has {k} output channels, the kernels take multiples of {CHANNELS}"
            )));
        }
        let run = (s * c * kernels.format.bytes()).div_ceil(4);
        let (mut panels, mut first, mut offset) = (vec![], 0, 0);
        for (width, panel) in kernels.widths.iter().enumerate() {
            let channels = panel.vectors * kernels.lanes;
            while k - first >= channels {
                panels.push(Panel { first, width, offset });
                first += channels;
                offset += r * run * channels * 4;
            }
        }
        assert_eq!(first, k, "the narrowest panel has {CHANNELS} channels at most");
        Ok(Self { kernels, filter, run, panels, bytes: offset })
    }

    /// Output channels of a panel.
    pub fn channels(&self, panel: &Panel) -> usize {
        self.kernels.widths[panel.width].vectors * self.kernels.lanes
    }

    /// `values` by output channel, in the order of the panels' lanes.
    pub fn order(&self, values: &[f32]) -> Vec<f32> {
        self.channels_in_order().into_iter().map(|channel| values[channel]).collect()
    }

    /// The output channel of each lane of the panels.
    pub fn channels_in_order(&self) -> Vec<usize> {
        let mut ordered = Vec::with_capacity(self.filter.k);
        for panel in &self.panels {
            let width = &self.kernels.widths[panel.width];
            for vector in 0..width.vectors {
                for lane in 0..self.kernels.lanes {
                    ordered.push(panel.first + (width.channel)(vector, lane));
                }
            }
        }
        ordered
    }

    /// Fills `out`, `bytes` zeros on a boundary of 4.
    pub fn pack(&self, isa: Isa, source: Source, out: &mut [u8]) {
        let Filter { k, r, s, c } = self.filter;
        let weights = match source {
            Source::F32(Filters { weight, .. }) => weight.len(),
            Source::I8(weight) => weight.len(),
        };
        assert_eq!(weights, k * r * s * c, "length of the weight, {:?}", self.filter);
        assert_eq!(out.len(), self.bytes, "bytes of packed weights, {:?}", self.filter);
        let out: &mut [u32] = bytemuck::cast_slice_mut(out);
        let order = self.channels_in_order();
        // [TILE][run]: a filter row of some output channels.
        let mut rows = vec![0u32; TILE * self.run];
        for panel in &self.panels {
            let channels = &order[panel.first..panel.first + self.channels(panel)];
            let panel = &mut out[panel.offset / 4..][..r * self.run * channels.len()];
            for (y, units) in panel.chunks_exact_mut(self.run * channels.len()).enumerate() {
                for (first, tile) in (0..).step_by(TILE).zip(channels.chunks_exact(TILE)) {
                    for (channel, row) in tile.iter().zip(rows.chunks_exact_mut(self.run)) {
                        self.row(isa, source, *channel, y, row);
                    }
                    interleave(&rows, first, channels.len(), units);
                }
            }
        }
    }

    /// Row `y` of an output channel's filter, [s][c] in the kernels' format.
    fn row(&self, isa: Isa, source: Source, channel: usize, y: usize, to: &mut [u32]) {
        let Filter { r, s, c, .. } = self.filter;
        match (source, self.kernels.format) {
            (Source::F32(filters), Format::F32) => {
                let to = &mut bytemuck::cast_slice_mut(to)[..s * c];
                scaled_row(isa, &self.filter, filters, channel, y, to);
            }
            (Source::F32(filters), Format::Bf16) => {
                let mut row = vec![0.0; s * c];
                scaled_row(isa, &self.filter, filters, channel, y, &mut row);
                round(isa, &row, &mut bytemuck::cast_slice_mut(to)[..s * c]);
            }
            (Source::I8(weight), Format::U8) => {
                let row = &weight[(channel * r + y) * s * c..][..s * c];
                bytemuck::cast_slice_mut(to)[..s * c].copy_from_slice(row);
            }
            (Source::I8(weight), Format::U8In16) => {
                let row = &weight[(channel * r + y) * s * c..][..s * c];
                let to: &mut [i16] = bytemuck::cast_slice_mut(to);
                to.iter_mut().zip(row).for_each(|(to, value)| *to = i16::from(*value));
            }
            (_, format) => unreachable!("floats are multiplied with floats, bytes with bytes: {format:?}"),
        }
    }
}

multiversion! {
    /// Row `y` of `factor weight` of an output channel, [c][r][s] -> [s][c], rounded once.
    fn scaled_row(filter: &Filter, filters: Filters, channel: usize, y: usize, to: &mut [f32]) {
        let Filter { r, s, c, .. } = *filter;
        let weight = &filters.weight[channel * c * r * s..][..c * r * s];
        let scale = |weight: f32| (f64::from(weight) * filters.factor[channel]) as f32;
        if r * s == 1 {
            to.iter_mut().zip(weight).for_each(|(to, weight)| *to = scale(*weight));
            return;
        }
        for (x, to) in to.chunks_exact_mut(c).enumerate() {
            let weight = weight[y * s + x..].iter().step_by(r * s);
            to.iter_mut().zip(weight).for_each(|(to, weight)| *to = scale(*weight));
        }
    }
}

multiversion! {
    fn round(from: &[f32], to: &mut [bf16]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = bf16::from_f32(*from));
    }
}

/// `rows` [TILE][run] -> lanes from `first` on of `units` [run][lanes]. By squares, whose lines stay in L1 until they are
/// full. Never inlined into code for wider registers, which would gather what scalar moves bring sooner.
#[inline(never)]
fn interleave(rows: &[u32], first: usize, lanes: usize, units: &mut [u32]) {
    let run = rows.len() / TILE;
    for (block, units) in units.chunks_mut(TILE * lanes).enumerate() {
        let mut square = [[0; TILE]; TILE];
        for (lane, row) in rows.chunks_exact(run).enumerate() {
            let row = &row[block * TILE..run.min((block + 1) * TILE)];
            for (to, unit) in square.iter_mut().zip(row) {
                to[lane] = *unit;
            }
        }
        for (to, square) in units.chunks_exact_mut(lanes).zip(&square) {
            to[first..first + TILE].copy_from_slice(square);
        }
    }
}
