//! Weights in the order in which tiles read them: panels of output channels, in each [rows][run][vectors][lanes] units
//! of 4 bytes.

use super::kernel::{CHANNELS, Kernels};
use super::map::Format;
use super::quads;
use crate::error::{Error, Result};
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

/// Where the weights of a layer lie.
pub struct Packed {
    pub kernels: &'static Kernels,
    pub filter: Filter,
    /// Units of 4 bytes in a filter row, whose last ones zeros fill up: whole steps of the kernels.
    pub run: usize,
    pub panels: Vec<Panel>,
    /// Of the layer's weights: whole cache lines.
    pub bytes: usize,
}

/// Weights as they come: [k][r][s][c].
#[derive(Clone, Copy)]
pub enum Source<'a> {
    F32(&'a [f32]),
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
        let run = (s * c * kernels.format.bytes()).div_ceil(4).next_multiple_of(kernels.units);
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

    /// Takes the kernels that sum these weights, i8 [k][r][s][c], exactly. The packed weights are the same.
    pub fn suit(&mut self, isa: Isa, weight: &[i8]) {
        if let Some(widened) = self.kernels.widened
            && !quads::hold(isa, weight, self.filter.s * self.filter.c)
        {
            self.kernels = widened;
        }
    }

    /// Output channels of a panel.
    pub fn channels(&self, panel: &Panel) -> usize {
        self.kernels.widths[panel.width].vectors * self.kernels.lanes
    }

    /// What sums of these weights, i8 [k][r][s][c], start from, in the order of the panels' lanes; nothing where that is 0.
    pub fn starts(&self, weight: &[i8]) -> Vec<i32> {
        let Filter { k, r, s, c } = self.filter;
        if self.kernels.offset == 0 {
            return vec![];
        }
        let sum = |filter: &[i8]| self.kernels.offset * filter.iter().map(|w| i32::from(*w)).sum::<i32>();
        let sums: Vec<i32> = weight.chunks_exact(r * s * c).map(sum).collect();
        assert_eq!(sums.len(), k, "filters");
        self.order(&sums)
    }

    /// `values` by output channel, in the order of the panels' lanes.
    pub fn order<T: Copy>(&self, values: &[T]) -> Vec<T> {
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

    /// Fills one panel's bytes.
    pub fn pack(&self, panel: &Panel, source: Source, out: &mut [u8]) {
        let Filter { r, s, c, .. } = self.filter;
        let (row, filter) = (s * c, r * s * c);
        let per_unit = 4 / self.kernels.format.bytes();
        let (lanes, width) = (self.kernels.lanes, &self.kernels.widths[panel.width]);
        assert_eq!(out.len(), r * self.run * width.vectors * lanes * 4, "bytes of a panel");
        let step = width.vectors * lanes * 4;
        for vector in 0..width.vectors {
            for lane in 0..lanes {
                let channel = panel.first + (width.channel)(vector, lane);
                let at = (vector * lanes + lane) * 4;
                for y in 0..r {
                    let from = channel * filter + y * row..channel * filter + (y + 1) * row;
                    let units = out[y * self.run * step..(y + 1) * self.run * step].chunks_exact_mut(step);
                    let units = units.map(|unit| &mut unit[at..at + 4]);
                    match source {
                        Source::F32(w) => pack_f32(self.kernels.format, &w[from], units),
                        Source::I8(w) => pack_i8(per_unit, &w[from], units),
                    }
                }
            }
        }
    }
}

fn pack_f32<'a>(format: Format, row: &[f32], units: impl Iterator<Item = &'a mut [u8]>) {
    match format {
        Format::F32 => {
            for (unit, value) in units.zip(row) {
                unit.copy_from_slice(&value.to_ne_bytes());
            }
        }
        Format::Bf16 => {
            for (unit, values) in units.zip(row.chunks(2)) {
                for (to, value) in unit.chunks_exact_mut(2).zip(values) {
                    to.copy_from_slice(&bf16::from_f32(*value).to_ne_bytes());
                }
            }
        }
        Format::F32InLanes | Format::U8 => unreachable!("bytes are multiplied with bytes"),
    }
}

/// Four bytes a unit, or two in 16 bits each.
fn pack_i8<'a>(per_unit: usize, row: &[i8], units: impl Iterator<Item = &'a mut [u8]>) {
    for (unit, values) in units.zip(row.chunks(per_unit)) {
        for (i, &value) in values.iter().enumerate() {
            if per_unit == 4 {
                unit[i] = value as u8;
            } else {
                unit[2 * i..2 * i + 2].copy_from_slice(&i16::from(value).to_ne_bytes());
            }
        }
    }
}
