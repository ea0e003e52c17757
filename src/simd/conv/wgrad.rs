//! dw = the gradient of the loss by w: for every tap, x transposed times dy, summed over the pixels where the tap falls
//! inside x.

use super::kernel::{Kernels, OuterTile};
use super::pack::{Aligned, Shared};
use super::{Scratch, kernels, pack};
use crate::model::graph::ConvShape;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;
use std::ops::Range;

/// x [n,h,w,c], dy [n,p,q,k] -> dw [r,s,c,k], all f32; `accumulate` adds to dw, otherwise it is overwritten.
pub fn wgrad(
    pool: &Pool,
    isa: Isa,
    shape: &ConvShape,
    n: usize,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    accumulate: bool,
    scratch: &mut Scratch,
) {
    super::check(shape, n, ("x", x.len()), ("dy", dy.len()), ("dw", dw.len()));
    let kernels = kernels(isa);
    let (shape, n) = one_row(shape, n);
    let bordered = super::wants_border(&shape);
    let outer = Outer::new(&shape, n, bordered);
    let plan = outer.plan(kernels);
    let Scratch { padded, partials, .. } = scratch;
    let source = if bordered {
        let padded = padded.floats(n * outer.h * outer.w * shape.c);
        pack::pad_images(pool, &shape, x, padded);
        padded
    } else {
        x
    };
    assert!(
        u32::try_from(source.len()).is_ok(),
        "x has {} floats; wgrad counts them in 32 bits",
        source.len()
    );
    if plan.splits == 1 {
        outer.run(pool, kernels, &plan, source, dy, dw, accumulate);
    } else {
        let partials = partials.floats(plan.splits * dw.len());
        outer.run(pool, kernels, &plan, source, dy, partials, false);
        sum_partials(pool, partials, dw, accumulate);
    }
}

/// A 1x1 convolution of stride 1 sees no images, only pixels: a single row of them.
fn one_row(shape: &ConvShape, n: usize) -> (ConvShape, usize) {
    let (flat, pixels) = super::flatten(shape, n);
    if (flat.h, flat.w) == (1, 1) && flat.r * flat.s == 1 && flat.pad == 0 {
        (ConvShape { w: pixels, ..flat }, 1)
    } else {
        (*shape, n)
    }
}

/// dw (+)= the partial sums, first to last.
fn sum_partials(pool: &Pool, partials: &[f32], dw: &mut [f32], accumulate: bool) {
    const CHUNK: usize = 4096;
    let len = dw.len();
    let out = Shared::new(dw);
    pool.run(len.div_ceil(CHUNK), &|task| {
        let (first, count) = (task * CHUNK, CHUNK.min(len - task * CHUNK));
        // SAFETY: this chunk is this task's own.
        let out = unsafe { out.part(first, count) };
        if !accumulate {
            out.fill(0.0);
        }
        for partial in partials.chunks_exact(len) {
            for (sum, term) in out.iter_mut().zip(&partial[first..]) {
                *sum += term;
            }
        }
    });
}

/// Addresses of a weight gradient; of x, or of its bordered copy, where a tap is a whole row of the filter.
struct Outer {
    images: usize,
    h: usize,
    w: usize,
    /// Floats from one source pixel to the next.
    pitch: usize,
    pad: usize,
    stride: usize,
    taps_down: usize,
    taps_across: usize,
    /// Floats of a tap, from the source pixel on.
    channels: usize,
    p: usize,
    q: usize,
    k: usize,
}

/// How the work is cut: a function of sizes alone, so that no result depends on the number of threads.
struct Plan {
    /// Parts of the sum, each with a gradient of its own.
    splits: usize,
    panel_tasks: usize,
    row_tasks: usize,
    /// Tiles of the channels of one tap.
    channel_tiles: usize,
    /// Pixels that are summed before results leave the registers.
    block: usize,
}

/// Tasks that a layer is cut into where it can be, for any number of cores to share.
const TASKS: usize = 32;
/// Pixels that make a split worth its partial gradient, which is written and read once.
const SPLIT_PIXELS: usize = 2048;
/// Pixels of a block: a tile's operands then fill three quarters of an L1 cache.
const BLOCK_PIXELS: usize = 192;

impl Outer {
    fn new(shape: &ConvShape, images: usize, bordered: bool) -> Self {
        let ConvShape { h, w, c, k, r, s, stride, pad } = *shape;
        let (pad, h, w) = if bordered { (0, h + 2 * pad, w + 2 * pad) } else { (pad, h, w) };
        let (taps_across, channels) = if bordered { (1, s * c) } else { (s, c) };
        let (p, q) = (shape.p(), shape.q());
        Self { images, h, w, pitch: c, pad, stride, taps_down: r, taps_across, channels, p, q, k }
    }

    fn pixels(&self) -> usize {
        self.images * self.p * self.q
    }

    fn plan(&self, kernels: &Kernels) -> Plan {
        let splits = (self.pixels() / SPLIT_PIXELS).clamp(1, TASKS);
        let panels = self.k.div_ceil(kernels.width);
        let channel_tiles = self.channels.div_ceil(kernels.outer.len());
        let rows = self.taps_down * self.taps_across * channel_tiles;
        // Both operands are packed by every task that reads them: the fewer cuts across both directions the better.
        let wanted = TASKS.div_ceil(splits);
        let row_tasks = rows.min(wanted).min(rows.div_ceil(8));
        let panel_tasks = panels.min(wanted.div_ceil(row_tasks));
        Plan { splits, panel_tasks, row_tasks, channel_tiles, block: BLOCK_PIXELS }
    }

    /// Writes (or adds to) `out`: [splits][taps][channels][k].
    fn run(
        &self,
        pool: &Pool,
        kernels: &Kernels,
        plan: &Plan,
        source: &[f32],
        dy: &[f32],
        out: &mut [f32],
        accumulate: bool,
    ) {
        let weights = self.taps_down * self.taps_across * self.channels * self.k;
        assert_eq!(out.len(), plan.splits * weights);
        let out = Shared::new(out);
        let panels = self.k.div_ceil(kernels.width);
        let rows = self.taps_down * self.taps_across * plan.channel_tiles;
        let share =
            |total: usize, part: usize, parts: usize| part * total / parts..(part + 1) * total / parts;
        pool.run(plan.splits * plan.panel_tasks * plan.row_tasks, &|task| {
            let (split, part) =
                (task / (plan.panel_tasks * plan.row_tasks), task % (plan.panel_tasks * plan.row_tasks));
            let part = Part {
                outer: self,
                plan,
                kernels,
                source,
                dy,
                out: &out,
                start: split * weights,
                panels: share(panels, part / plan.row_tasks, plan.panel_tasks),
                rows: share(rows, part % plan.row_tasks, plan.row_tasks),
            };
            part.run(share(self.pixels(), split, plan.splits), accumulate);
        });
    }

    /// Source offset and gradient offset of those `pixels` where tap (r, s) falls inside the source; gradients are rows
    /// of `width` floats, counted from the first pixel.
    fn push_pixels(&self, tap: usize, pixels: &Range<usize>, width: usize, lists: &mut Lists) {
        let (r, s) = (tap / self.taps_across, tap % self.taps_across);
        let first_q = self.pad.saturating_sub(s).div_ceil(self.stride);
        let past_q = (self.w + self.pad).saturating_sub(s).div_ceil(self.stride).min(self.q);
        for row in pixels.start / self.q..pixels.end.div_ceil(self.q) {
            let (image, p) = (row / self.p, row % self.p);
            let y = p * self.stride + r;
            if y < self.pad || y - self.pad >= self.h {
                continue;
            }
            let first = first_q.max(pixels.start.saturating_sub(row * self.q));
            let past = past_q.min(pixels.end - row * self.q);
            let source_row = (image * self.h + y - self.pad) * self.w;
            lists.source.extend(
                (first..past).map(|q| ((source_row + q * self.stride + s - self.pad) * self.pitch) as u32),
            );
            lists.gradient.extend((first..past).map(|q| ((row * self.q + q - pixels.start) * width) as u32));
        }
    }
}

/// One task's share: some panels and some row tiles (tap-major), over one split of the pixels.
struct Part<'a> {
    outer: &'a Outer,
    plan: &'a Plan,
    kernels: &'a Kernels,
    source: &'a [f32],
    dy: &'a [f32],
    out: &'a Shared<'a>,
    /// Where this split's gradient starts in `out`.
    start: usize,
    panels: Range<usize>,
    rows: Range<usize>,
}

impl Part<'_> {
    fn run(&self, pixels: Range<usize>, accumulate: bool) {
        let (width, k) = (self.kernels.width, self.outer.k);
        let blocks = pixels.len().div_ceil(self.plan.block).max(1);
        let (mut panels_of_dy, mut tile_of_x) = (Aligned::default(), Aligned::default());
        let tile_of_x = tile_of_x.floats(self.plan.block * self.kernels.outer.len());
        let mut lists = Lists::default();
        for block in 0..blocks {
            let first = pixels.start + block * pixels.len() / blocks;
            let past = pixels.start + (block + 1) * pixels.len() / blocks;
            lists.fill(self, &(first..past));
            let floats = (past - first) * width;
            let gradient = panels_of_dy.floats(self.panels.len() * floats);
            for (panel, to) in self.panels.clone().zip(gradient.chunks_exact_mut(floats.max(1))) {
                pack::copy_panel(&self.dy[first * k..], k, panel * width, width, to);
            }
            for row in self.rows.clone() {
                self.multiply(row, &lists, gradient, tile_of_x, accumulate || block > 0);
            }
        }
    }

    /// One tile of rows by every panel.
    fn multiply(&self, row: usize, lists: &Lists, gradient: &[f32], tile_of_x: &mut [f32], accumulate: bool) {
        let Outer { channels, k, .. } = *self.outer;
        let (tiles, width) = (self.plan.channel_tiles, self.kernels.width);
        let (tap, tile) = (row / tiles, row % tiles);
        let first = tile * channels / tiles;
        let count = (tile + 1) * channels / tiles - first;
        let range = lists.of(tap - self.rows.start / tiles);
        if range.is_empty() && accumulate {
            return;
        }
        let kernels = &self.kernels.outer[count - 1];
        let offsets = &lists.source[range.clone()];
        assert!(offsets.len() * count <= tile_of_x.len());
        // SAFETY: `Lists::fill` checks that every pixel's channels are inside the source; room is checked above.
        unsafe { (kernels.collect)(self.source[first..].as_ptr(), offsets, tile_of_x.as_mut_ptr()) };
        let floats = gradient.len() / self.panels.len();
        for (i, panel) in self.panels.clone().enumerate() {
            let column = panel * width;
            let cols = width.min(k - column);
            let at = self.start + (tap * channels + first) * k + column;
            let tile = OuterTile {
                pixels: &lists.gradient[range.clone()],
                source: tile_of_x.as_ptr(),
                gradient: gradient[i * floats..][..floats].as_ptr(),
                out: self.out.at(at, (count - 1) * k + cols),
                pitch: k,
                cols,
                accumulate,
            };
            // SAFETY: the source was filled above; `Lists::fill` checks that gradients are inside the panel; the output
            // is in bounds by `Shared::at`, and this task's own since its rows and panels are; `KERNELS` of a set are
            // chosen only where the machine has it.
            unsafe { (kernels.multiply)(&tile) };
        }
    }
}

/// The pixels of a block for every tap of a part.
#[derive(Default)]
struct Lists {
    /// Offsets of source pixels.
    source: Vec<u32>,
    /// Offsets of rows in a panel of the gradient.
    gradient: Vec<u32>,
    /// Where each tap's end.
    ends: Vec<usize>,
}

impl Lists {
    fn fill(&mut self, part: &Part, pixels: &Range<usize>) {
        let (outer, width, tiles) = (part.outer, part.kernels.width, part.plan.channel_tiles);
        self.source.clear();
        self.gradient.clear();
        self.ends.clear();
        for tap in part.rows.start / tiles..part.rows.end.div_ceil(tiles) {
            outer.push_pixels(tap, pixels, width, self);
            self.ends.push(self.source.len());
        }
        let inside = |list: &[u32], run: usize, len: usize| {
            list.iter().max().is_none_or(|largest| *largest as usize + run <= len)
        };
        assert!(inside(&self.source, outer.channels, part.source.len()));
        assert!(inside(&self.gradient, width, pixels.len() * width));
    }

    fn of(&self, tap: usize) -> Range<usize> {
        let start = if tap == 0 { 0 } else { self.ends[tap - 1] };
        start..self.ends[tap]
    }
}
