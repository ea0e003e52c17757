//! What forward and dgrad share: every output pixel is a sum, over the taps that fall inside the source, of a source
//! pixel's channels times a slice of the weights. A table of source pointers takes the place of im2col.
//!
//! Pixels are computed in an order that puts those with the same taps side by side, the same place in several images
//! one after the other. A tile then seldom multiplies by padding, be the map 2x2 (where five of nine taps are outside),
//! and the four phases of a stride-2 dgrad are no special case.

use super::kernel::{GatherTile, Kernels};
use super::pack::Shared;
use crate::simd::pool::Pool;
use std::ops::Range;

/// An output pixel of one image.
pub(super) struct Site {
    /// Its index in the output image.
    pub pixel: usize,
    /// Bit t: tap t falls inside the source.
    pub taps: u64,
    /// Source pixel of tap t is `origin + offsets[t]`, counted from the image's first.
    pub origin: isize,
}

/// Addresses of a convolution-like operation, in pixels.
pub(super) struct Gather {
    pub images: usize,
    /// One for every output pixel of an image.
    pub sites: Vec<Site>,
    /// For every tap, in source pixels.
    pub offsets: Vec<isize>,
    /// Pixels of a source image.
    pub source_pixels: usize,
    /// Floats from one source pixel to the next.
    pub source_pitch: usize,
    /// Floats that a tap reads, from the source pixel on.
    pub channels: usize,
    /// Floats of an output pixel, all of which are written.
    pub out_channels: usize,
}

/// Tasks that a layer is cut into where it can be, for any number of cores to share.
pub(super) const TASKS: usize = 32;
/// Taps times channels of a panel block: with 32 columns a quarter of a megabyte, which stays in the L2 cache.
const PANEL_ROWS: usize = 2048;
/// The same for the panels that a tile is multiplied by before the next tile's turn.
const GROUP_ROWS: usize = 4096;
/// Channels of a block, so that the source pixels of a task stay in L2 beside the panel.
const BLOCK_CHANNELS: usize = 512;
/// Floats of the source that a task works on at a time.
const SOURCE_FLOATS: usize = 128 * 1024;
/// Pixels of a group of images whose sites are ordered together: enough to fill tiles with like pixels, few enough
/// that their sources stay close.
const GROUP_PIXELS: usize = 1536;

/// How the work is cut: a function of sizes alone, so that no result depends on the number of threads.
struct Plan {
    /// Images ordered together.
    group: usize,
    tiles: usize,
    tiles_of_a_task: usize,
    pixel_tasks: usize,
    panels: usize,
    panel_tasks: usize,
    /// Channels of a block.
    block: usize,
    /// Panels of which a block stays in cache together.
    group_panels: usize,
}

impl Gather {
    pub fn panel_floats(&self, kernels: &Kernels) -> usize {
        self.out_channels.div_ceil(kernels.width) * self.offsets.len() * self.channels * kernels.width
    }

    fn plan(&self, kernels: &Kernels) -> Plan {
        let pixels = self.images * self.sites.len();
        let blocks = (self.channels * self.offsets.len()).div_ceil(PANEL_ROWS);
        let blocks = blocks.max(self.channels.div_ceil(BLOCK_CHANNELS));
        let block = self.channels.div_ceil(blocks).next_multiple_of(16);
        let tiles = pixels.div_ceil(kernels.gather_rows);
        let most = (SOURCE_FLOATS / (kernels.gather_rows * block)).clamp(4, 32);
        let pixel_tasks = tiles.div_ceil(most);
        let panels = self.out_channels.div_ceil(kernels.width);
        Plan {
            group: GROUP_PIXELS.div_ceil(self.sites.len()).min(self.images),
            tiles,
            tiles_of_a_task: tiles.div_ceil(pixel_tasks),
            pixel_tasks,
            panels,
            panel_tasks: panels.min(TASKS.div_ceil(pixel_tasks)),
            block,
            group_panels: (GROUP_ROWS / (block * self.offsets.len())).max(1),
        }
    }

    /// Writes (or adds to) every output pixel. `zeros` holds `channels` of them; `panels` is
    /// [panel][tap][channel][width].
    pub fn run(&mut self, pool: &Pool, kernels: &Kernels, input: &Input, out: &mut [f32], accumulate: bool) {
        assert_eq!(out.len(), self.images * self.sites.len() * self.out_channels);
        assert_eq!(input.panels.len(), self.panel_floats(kernels));
        assert!(input.zeros.len() >= self.channels);
        self.sites.sort_by_key(|site| site.taps);
        self.check_sites(input.source.len());
        let plan = self.plan(kernels);
        let out = Shared::new(out);
        let this = &*self;
        pool.run(plan.pixel_tasks * plan.panel_tasks, &|task| {
            let (pixels, panels) = (task % plan.pixel_tasks, task / plan.pixel_tasks);
            let first = (pixels * plan.tiles_of_a_task).min(plan.tiles);
            let last = (first + plan.tiles_of_a_task).min(plan.tiles);
            let tables = Tables::new(this, &plan, kernels, input, &out, first..last);
            let panels =
                panels * plan.panels / plan.panel_tasks..(panels + 1) * plan.panels / plan.panel_tasks;
            for first in (0..this.channels).step_by(plan.block) {
                let len = plan.block.min(this.channels - first);
                for start in panels.clone().step_by(plan.group_panels) {
                    let panels = start..panels.end.min(start + plan.group_panels);
                    tables.multiply(
                        this,
                        kernels,
                        input,
                        &Block { first, len, panels },
                        accumulate || first > 0,
                    );
                }
            }
        });
    }

    /// Every address that the tables will hold is inside the source: what the kernels rely on.
    fn check_sites(&self, source_len: usize) {
        assert!(self.offsets.len() <= 64, "at most 64 taps; {} wanted", self.offsets.len());
        let last = (self.images - 1) * self.source_pixels;
        for site in &self.sites {
            for (t, offset) in self.offsets.iter().enumerate() {
                if site.taps >> t & 1 == 1 {
                    let pixel = site.origin + offset;
                    assert!(pixel >= 0, "a source pixel before the image");
                    let end = (last + pixel as usize) * self.source_pitch + self.channels;
                    assert!(end <= source_len, "a source pixel beyond the last image");
                }
            }
        }
    }

    /// A cursor at output pixel `index` in the order of computation.
    fn locate(&self, index: usize, group: usize) -> Cursor {
        let first = index / (group * self.sites.len()) * group;
        let rest = index - first * self.sites.len();
        let past = self.images.min(first + group);
        Cursor { group, first, past, image: first + rest % (past - first), site: rest / (past - first) }
    }
}

/// A place in the order of computation: group by group, in each site by site, at each image by image.
struct Cursor {
    group: usize,
    /// The group's images.
    first: usize,
    past: usize,
    image: usize,
    site: usize,
}

impl Cursor {
    fn advance(&mut self, gather: &Gather) {
        self.image += 1;
        if self.image < self.past {
            return;
        }
        self.site += 1;
        if self.site == gather.sites.len() {
            self.site = 0;
            self.first = self.past;
            self.past = gather.images.min(self.first + self.group);
        }
        self.image = self.first;
    }
}

/// What a gather reads.
pub(super) struct Input<'a> {
    pub source: &'a [f32],
    pub panels: &'a [f32],
    pub zeros: &'a [f32],
}

impl Input<'_> {
    fn panel(&self, gather: &Gather, kernels: &Kernels, panel: usize) -> &[f32] {
        let floats = gather.offsets.len() * gather.channels * kernels.width;
        &self.panels[panel * floats..][..floats]
    }
}

/// A range of channels of some panels.
struct Block {
    first: usize,
    len: usize,
    panels: Range<usize>,
}

/// The pointers of a run of tiles, made once and used for every panel.
struct Tables {
    sources: Vec<*const f32>,
    slices: Vec<u32>,
    outs: Vec<*mut f32>,
    tiles: Vec<TileTable>,
}

/// Where a tile's part of the tables ends (it begins where the one before ends), and its pixels.
struct TileTable {
    slices_end: usize,
    rows: usize,
}

impl Tables {
    fn new(
        gather: &Gather,
        plan: &Plan,
        kernels: &Kernels,
        input: &Input,
        out: &Shared,
        tiles: Range<usize>,
    ) -> Self {
        let mr = kernels.gather_rows;
        let taps = gather.offsets.len();
        let mut tables = Self {
            sources: Vec::with_capacity(tiles.len() * taps * mr.next_multiple_of(4)),
            slices: Vec::with_capacity(tiles.len() * taps),
            outs: Vec::with_capacity(tiles.len() * mr),
            tiles: Vec::with_capacity(tiles.len()),
        };
        let pixels = gather.images * gather.sites.len();
        let (mut masks, mut origins) = (vec![0u64; mr], vec![0isize; mr]);
        let mut cursor = gather.locate(tiles.start * mr, plan.group);
        for tile in tiles {
            let rows = mr.min(pixels - tile * mr);
            for m in 0..mr {
                let (image, site) = (cursor.image, &gather.sites[cursor.site]);
                masks[m] = site.taps;
                origins[m] = (image * gather.source_pixels) as isize + site.origin;
                let at = (image * gather.sites.len() + site.pixel) * gather.out_channels;
                tables.outs.push(out.at(at, gather.out_channels));
                // The rows that a last tile lacks read what its last pixel reads; nobody writes them.
                if tile * mr + m + 1 < pixels {
                    cursor.advance(gather);
                }
            }
            tables.push_sources(gather, input, &masks, &origins);
            tables.tiles.push(TileTable { slices_end: tables.slices.len(), rows });
        }
        tables
    }

    /// Pointers of one tile for every tap that any of its pixels has.
    fn push_sources(&mut self, gather: &Gather, input: &Input, masks: &[u64], origins: &[isize]) {
        let union = masks.iter().fold(0, |union, mask| union | mask);
        let (source, zeros) = (input.source.as_ptr(), input.zeros.as_ptr());
        let pitch = gather.source_pitch as isize;
        for (t, offset) in gather.offsets.iter().enumerate() {
            if union >> t & 1 == 0 {
                continue;
            }
            self.slices.push(t as u32);
            self.sources.extend(masks.iter().zip(origins).map(|(mask, origin)| {
                let inside = source.wrapping_offset((origin + offset) * pitch);
                if mask >> t & 1 == 1 { inside } else { zeros }
            }));
            self.sources.resize(self.slices.len() * masks.len().next_multiple_of(4), zeros);
        }
    }

    fn multiply(&self, gather: &Gather, kernels: &Kernels, input: &Input, block: &Block, accumulate: bool) {
        let mr = kernels.gather_rows;
        let mut start = 0;
        for (tile, table) in self.tiles.iter().enumerate() {
            let slices = start..table.slices_end;
            start = table.slices_end;
            if slices.is_empty() && accumulate {
                continue;
            }
            let stride = mr.next_multiple_of(4);
            let sources = |slices: Range<usize>| &self.sources[slices.start * stride..slices.end * stride];
            let own = sources(slices.clone());
            // Where the next tile has other taps, it is not worth the trouble.
            let after = self.tiles.get(tile + 1).map(|next| start..next.slices_end);
            let next = after.filter(|next| next.len() == slices.len()).map_or(own, sources);
            let outs = &self.outs[tile * mr..][..mr];
            for panel in block.panels.clone() {
                let column = panel * kernels.width;
                let tile = GatherTile {
                    sources: own,
                    next: if panel == block.panels.start { next } else { own },
                    slices: &self.slices[slices.clone()],
                    first: block.first,
                    len: block.len,
                    panel: input.panel(gather, kernels, panel).as_ptr(),
                    channels: gather.channels,
                    out: outs,
                    column,
                    rows: table.rows,
                    cols: kernels.width.min(gather.out_channels - column),
                    accumulate,
                };
                // SAFETY: sources are zeros or pixels that `check_sites` found inside the source; the panel is sliced
                // by `Input::panel`; output pixels are in bounds by `Shared::at`, and this task's own since the order
                // of computation names each pixel once; an `Isa` chose the kernels, so the machine has their set.
                unsafe { (kernels.gather)(&tile) };
            }
        }
    }
}
