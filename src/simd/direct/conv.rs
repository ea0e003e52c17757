//! A convolution over rows and channels of a feature map.

use super::kernel::{Residual, Strip};
use super::map::{Map, View};
use super::pack::Packed;
use std::ops::Range;

/// y = relu(conv(x) + bias + residual), in int8 y = round(scale conv(x) + bias + r_scale residual).
pub struct Conv {
    pub packed: Packed,
    /// In the order of the panels' lanes ([`Packed::order`]).
    pub bias: Vec<f32>,
    /// The same, in int8; else empty.
    pub scale: Vec<f32>,
    /// The same, where the kernels have an offset ([`Packed::starts`]); else empty.
    pub starts: Vec<i32>,
    pub r_scale: f32,
    pub stride: usize,
    pub pad: usize,
    pub relu: bool,
}

/// The operands of one layer.
#[derive(Clone, Copy)]
pub struct Operands {
    pub x: View,
    pub y: View,
    pub residual: Option<View>,
    /// The layer's packed weights, on a cache line.
    pub w: *const u8,
}

// SAFETY: addresses; `Conv::run` says who may read and write what.
unsafe impl Sync for Operands {}

/// Part of a layer's output.
#[derive(Debug, Clone)]
pub struct Part {
    pub image: usize,
    pub rows: Range<usize>,
    /// Of [`Packed::panels`].
    pub panels: Range<usize>,
}

impl Conv {
    /// Panics unless maps and weights fit each other; `run` relies on it.
    pub fn check(&self, x: &Map, y: &Map, residual: Option<&Map>) {
        let filter = &self.packed.filter;
        let out = |size: usize, taps: usize| (size + 2 * self.pad - taps) / self.stride + 1;
        assert_eq!((x.c, y.c), (filter.c, filter.k), "channels of {x:?} and {y:?}");
        assert_eq!((y.h, y.w), (out(x.h, filter.r), out(x.w, filter.s)), "size of {y:?} from {x:?}");
        assert!(x.border >= self.pad && x.n == y.n, "border and batch of {x:?}, {y:?}");
        assert_eq!(x.format, self.packed.kernels.format, "format of {x:?}");
        assert_eq!(self.bias.len(), filter.k, "biases");
        let starts = if self.packed.kernels.offset == 0 { 0 } else { filter.k };
        assert_eq!(self.starts.len(), starts, "what sums start from");
        if let Some(r) = residual {
            assert_eq!((r.n, r.h, r.w, r.c), (y.n, y.h, y.w, y.c), "residual {r:?} of {y:?}");
        }
    }

    /// Computes a part of the output, and clears the border beside its rows where the part has the first panel.
    ///
    /// # Safety
    /// `check` has passed for the operands' maps; `w` has `packed.bytes` bytes; this thread alone writes the part, nobody
    /// writes `x` or the residual. The processor has the set of `packed.kernels`.
    pub unsafe fn run(&self, operands: &Operands, part: &Part) {
        let Operands { x, y, residual, w } = *operands;
        let Part { image, ref rows, ref panels } = *part;
        // Maps of one row, divided in two, leave such a part.
        if rows.is_empty() {
            return;
        }
        if panels.start == 0 {
            // SAFETY: the rows are this part's own, and so is their border.
            unsafe { y.clear_border(image, rows.clone()) };
        }
        let (lines, width) = self.lines(operands, rows);
        for (index, panel) in self.packed.panels[panels.clone()].iter().enumerate() {
            let kernels = self.packed.kernels;
            let strips = kernels.widths[panel.width].strips;
            let lane = self.packed.panels[panels.start + index].first;
            let first = |view: &View, y: usize| {
                let bytes = panel.first * view.map.format.bytes();
                // SAFETY: a pixel of the map.
                unsafe { view.base.add(view.map.at(image, y, 0) + bytes) }
            };
            let offset = x.map.at(image, 0, 0) + rows.start * self.stride * x.map.row();
            let mut strip = Strip {
                // SAFETY: the border is at least `pad` pixels, so the first tap lies within the map.
                x: unsafe { x.base.add(offset - self.pad * (x.map.row() + x.map.pixel())) },
                x_pixel: self.stride * x.map.pixel(),
                x_line: self.stride * x.map.row(),
                x_tap_row: x.map.row(),
                rows: self.packed.filter.r,
                run: self.packed.run,
                // SAFETY: within the layer's weights.
                w: unsafe { w.add(panel.offset) },
                bias: &raw const self.bias[lane],
                scale: self.scale.get(lane).map_or(std::ptr::null(), |scale| &raw const *scale),
                starts: self.starts.get(lane).map_or(std::ptr::null(), |start| &raw const *start),
                y: first(&y, rows.start),
                y_pixel: y.map.pixel(),
                y_line: y.map.row(),
                residual: match residual {
                    None => Residual::None,
                    Some(r) if r.map.format == kernels.format => Residual::Same,
                    Some(_) => Residual::F32,
                },
                r: residual.map_or(std::ptr::null(), |r| first(&r, rows.start).cast_const()),
                r_pixel: residual.map_or(0, |r| r.map.pixel()),
                r_line: residual.map_or(0, |r| r.map.row()),
                r_scale: self.r_scale,
                is_f32: y.map.format != kernels.format,
                relu: self.relu,
                lines,
                tiles: 0,
            };
            // Tiles of two sizes that differ by one pixel and fill the row.
            let tiles = width.div_ceil(strips.len());
            let (pixels, larger) = (width / tiles, width % tiles);
            for (tiles, pixels) in [(larger, pixels + 1), (tiles - larger, pixels)] {
                if tiles == 0 {
                    continue;
                }
                strip.tiles = tiles;
                // SAFETY: the function's promise; `pixels tiles` pixels of each line are within the row.
                unsafe { strips[pixels - 1](&strip) };
                let done = pixels * tiles;
                strip.x = strip.x.wrapping_add(done * strip.x_pixel);
                strip.y = strip.y.wrapping_add(done * strip.y_pixel);
                strip.r = strip.r.wrapping_add(done * strip.r_pixel);
            }
        }
    }

    /// Lines of pixels at equal distances, and their length: a 1x1 convolution on maps without borders sees one line.
    fn lines(&self, operands: &Operands, rows: &Range<usize>) -> (usize, usize) {
        let Operands { x, y, residual, .. } = operands;
        let is_flat = [Some(x), Some(y), residual.as_ref()].into_iter().flatten().all(|v| v.map.border == 0);
        let width = y.map.w;
        if is_flat && self.packed.filter.r == 1 && self.stride == 1 && width % self.tile() != 0 {
            (1, rows.len() * width)
        } else {
            (rows.len(), width)
        }
    }

    /// Pixels of the largest tile.
    fn tile(&self) -> usize {
        self.packed.kernels.widths[0].strips.len()
    }
}
