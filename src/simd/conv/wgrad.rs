//! dw = the gradient of the loss by w: for every tap, x transposed times dy, summed over the pixels where the tap falls
//! inside x.

use super::kernel::{Kernels, LINE, OuterTile, Runs};
use super::pack::{Aligned, CHUNK, Shared};
use super::window::Window;
use super::{Scratch, kernels, pack};
use crate::model::graph::ConvShape;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;
use std::ops::Range;

/// x [n,h,w,c], dy [n,p,q,k] -> dw [r,s,c,k], all f32; `accumulate` adds to dw, otherwise it is overwritten.
#[allow(clippy::too_many_arguments, reason = "a convolution has three tensors and a place to run")]
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
    if n == 0 {
        if !accumulate {
            dw.fill(0.0);
        }
        return;
    }
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
    let input = Input { source, dy };
    if plan.splits == 1 {
        outer.run(pool, kernels, &plan, input, dw, accumulate);
    } else {
        let partials = partials.floats(plan.splits * dw.len());
        outer.run(pool, kernels, &plan, input, partials, false);
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
pub(super) struct Outer {
    pub images: usize,
    pub h: usize,
    pub w: usize,
    /// Floats from one source pixel to the next.
    pub pitch: usize,
    pub pad: usize,
    pub stride: usize,
    pub taps_down: usize,
    pub taps_across: usize,
    /// Floats of a tap, from the source pixel on.
    pub channels: usize,
    pub p: usize,
    pub q: usize,
    pub k: usize,
}

/// How the work is cut: a function of sizes alone, so that no result depends on the number of threads.
struct Plan {
    /// Parts of the sum, each with a gradient of its own.
    splits: usize,
    panel_tasks: usize,
    tile_tasks: usize,
    /// Tiles of the channels of one tap.
    channel_tiles: usize,
}

/// Tasks that a layer is cut into where it can be, for cores to share.
const TASKS: usize = 16;
/// Pixels of a block: a tile's operands then fill three quarters of an L1 cache.
const BLOCK_PIXELS: usize = 192;

/// Part number `part` of `parts` nearly equal ones.
fn share(total: usize, part: usize, parts: usize) -> Range<usize> {
    part * total / parts..(part + 1) * total / parts
}

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

    /// The cut with the least work a core, where work is multiply-adds (by the vector) and floats moved: x is packed
    /// by every panel task, dy by every tile task, and each split's gradient is written and read.
    fn plan(&self, kernels: &Kernels) -> Plan {
        let panels = self.k.div_ceil(kernels.width);
        let channel_tiles = self.channels.div_ceil(kernels.outer.len());
        let pixels = self.pixels();
        let weights = self.taps() * self.channels * self.k;
        let most_splits = pixels.div_ceil(BLOCK_PIXELS).clamp(1, TASKS);
        let powers = |most: usize| (0..).map(|i| 1 << i).take_while(move |power| *power <= most.min(TASKS));
        let mut best = (u64::MAX, Plan { splits: 1, panel_tasks: 1, tile_tasks: 1, channel_tiles });
        for splits in powers(most_splits) {
            for panel_tasks in powers(panels) {
                for tile_tasks in powers(channel_tiles) {
                    let moved = pixels * (self.channels * panel_tasks + self.k * tile_tasks)
                        + if splits > 1 { 2 * splits * weights } else { 0 };
                    let work = (pixels * weights / kernels.width + moved) as u64;
                    let cores = TASKS.min(splits * panel_tasks * tile_tasks) as u64;
                    if work / cores < best.0 {
                        best = (work / cores, Plan { splits, panel_tasks, tile_tasks, channel_tiles });
                    }
                }
            }
        }
        best.1
    }

    /// Writes (or adds to) `out`: [splits][taps][channels][k].
    fn run(
        &self,
        pool: &Pool,
        kernels: &Kernels,
        plan: &Plan,
        input: Input,
        out: &mut [f32],
        accumulate: bool,
    ) {
        let weights = self.taps() * self.channels * self.k;
        assert_eq!(out.len(), plan.splits * weights);
        let out = Shared::new(out);
        let panels = self.k.div_ceil(kernels.width);
        pool.run(plan.splits * plan.panel_tasks * plan.tile_tasks, &|task| {
            let (split, part) =
                (task / (plan.panel_tasks * plan.tile_tasks), task % (plan.panel_tasks * plan.tile_tasks));
            let part = Part {
                outer: self,
                plan,
                kernels,
                input,
                out: &out,
                start: split * weights,
                panels: share(panels, part / plan.tile_tasks, plan.panel_tasks),
                tiles: share(plan.channel_tiles, part % plan.tile_tasks, plan.tile_tasks),
            };
            part.run(share(self.pixels(), split, plan.splits), accumulate);
        });
    }

    pub(super) fn taps(&self) -> usize {
        self.taps_down * self.taps_across
    }
}

/// What a weight gradient reads: x or its bordered copy, and dy.
#[derive(Clone, Copy)]
struct Input<'a> {
    source: &'a [f32],
    dy: &'a [f32],
}

/// One task's share: some tiles of channels and some panels, for every tap, over one split of the pixels.
struct Part<'a> {
    outer: &'a Outer,
    plan: &'a Plan,
    kernels: &'a Kernels,
    input: Input<'a>,
    out: &'a Shared<'a>,
    /// Where this split's gradient starts in `out`.
    start: usize,
    panels: Range<usize>,
    tiles: Range<usize>,
}

impl Part<'_> {
    fn run(&self, pixels: Range<usize>, accumulate: bool) {
        let width = self.kernels.width;
        let blocks = pixels.len().div_ceil(BLOCK_PIXELS).max(1);
        let (mut panels_of_dy, mut tiles_of_x) = (Aligned::default(), Aligned::default());
        let mut window = Window::default();
        for block in 0..blocks {
            let first = pixels.start + block * pixels.len() / blocks;
            let past = pixels.start + (block + 1) * pixels.len() / blocks;
            window.fill(self.outer, self.input.source.len(), width, &(first..past));
            let gradient = panels_of_dy.floats(self.panels.len() * (past - first) * width);
            self.pack_gradient(first, past - first, gradient);
            let source = tiles_of_x.floats(self.tiles.len() * window.source.len() * LINE);
            self.pack_source(&window.source, source);
            let (tiles, panels) = (self.tiles.len(), self.panels.len());
            for i in 0..tiles * panels {
                // Several taps reuse a panel of dy, which then stays in L1; with a single one, what counts is that
                // whole rows of dw are written one after the other.
                let (tile, panel) =
                    if self.outer.taps() > 1 { (i % tiles, i / tiles) } else { (i / panels, i % panels) };
                let (tile, panel) = (self.tiles.start + tile, self.panels.start + panel);
                self.multiply(tile, panel, &window, source, gradient, accumulate || block > 0);
            }
        }
    }

    /// The channels of a tile.
    fn channels(&self, tile: usize) -> Range<usize> {
        share(self.outer.channels, tile, self.plan.channel_tiles)
    }

    /// dy from pixel `first` on -> [panel][pixel][width], in the order in which memory is read.
    fn pack_gradient(&self, first: usize, count: usize, to: &mut [f32]) {
        let (width, k) = (self.kernels.width, self.outer.k);
        for start in (0..count).step_by(CHUNK) {
            let rows = CHUNK.min(count - start);
            let from = &self.input.dy[(first + start) * k..(first + start + rows) * k];
            for (i, panel) in self.panels.clone().enumerate() {
                let to = &mut to[(i * count + start) * width..][..rows * width];
                pack::copy_panel(self.kernels, from, k, panel * width, to);
            }
        }
    }

    /// The window's pixels -> [tile][pixel][LINE], in the order in which memory is read.
    fn pack_source(&self, pixels: &[u32], to: &mut [f32]) {
        assert_eq!(to.len(), self.tiles.len() * pixels.len() * LINE);
        for start in (0..pixels.len()).step_by(CHUNK) {
            let end = pixels.len().min(start + CHUNK);
            let offsets = &pixels[start..end];
            for (i, tile) in self.tiles.clone().enumerate() {
                let channels = self.channels(tile);
                let to = &mut to[(i * pixels.len() + start) * LINE..][..offsets.len() * LINE];
                let collect = self.kernels.outer[channels.len() - 1].collect;
                let runs = Runs {
                    source: self.input.source[channels.start..].as_ptr(),
                    offsets,
                    ahead: &pixels[end..pixels.len().min(end + CHUNK)],
                    to: to.as_mut_ptr(),
                    pitch: LINE,
                };
                // SAFETY: `Window::fill` has every pixel's channels inside the source; `to` has a line for each.
                unsafe { collect(&runs) };
            }
        }
    }

    /// One tile of channels of every tap by one panel.
    fn multiply(
        &self,
        tile: usize,
        panel: usize,
        window: &Window,
        source: &[f32],
        gradient: &[f32],
        accumulate: bool,
    ) {
        let k = self.outer.k;
        let channels = self.channels(tile);
        let column = panel * self.kernels.width;
        let cols = self.kernels.width.min(k - column);
        let source_floats = window.source.len() * LINE;
        let gradient_floats = gradient.len() / self.panels.len();
        let source = &source[(tile - self.tiles.start) * source_floats..][..source_floats];
        let gradient = &gradient[(panel - self.panels.start) * gradient_floats..][..gradient_floats];
        for tap in 0..self.outer.taps() {
            let pixels = window.of(tap);
            if pixels.is_empty() && accumulate {
                continue;
            }
            let at = self.start + (tap * self.outer.channels + channels.start) * k + column;
            let tile = OuterTile {
                pixels,
                source: source.as_ptr(),
                gradient: gradient.as_ptr(),
                out: self.out.at(at, (channels.len() - 1) * k + cols),
                pitch: k,
                cols,
                accumulate,
            };
            // SAFETY: `Window::fill` has every pixel's line inside `source` and its row inside `gradient`; the output
            // is in bounds by `Shared::at`, and this task's own since its tiles and panels are; an `Isa` chose the
            // kernels, so the machine has their set.
            unsafe { (self.kernels.outer[channels.len() - 1].multiply)(&tile) };
        }
    }
}
