//! How the work is cut into blocks of tiles, and the way of a block through the three steps.

use super::kernel::{DataTile, MOST_RESULTS, MOST_TAPS, Product, ResultTile};
use super::{Element, GROUP, Images, Layout, Operands, Winograd};
use crate::model::graph::ConvShape;
use crate::simd::conv::pack::Shared;
use std::ops::Range;

/// Floats of a block's transformed data and products: half of a megabyte of L2, which weights stream through.
const BLOCK_FLOATS: usize = 128 * 1024;
/// A thread that is held up leaves its share to the others, down to this part of it.
const TASKS_OF_A_THREAD: usize = 2;

/// How the work is cut. Results do not depend on it.
pub(super) struct Plan {
    /// Tiles in a column and in a row of an image.
    high: usize,
    wide: usize,
    /// Of all images.
    tiles: usize,
    tiles_of_a_block: usize,
    blocks: usize,
    /// Groups of output channels, and how many tasks share them. Each task transforms the data itself.
    groups: usize,
    group_tasks: usize,
    taps: usize,
    /// Steps of four bytes that a tile's data take at one tap: whole cache lines.
    data_row: usize,
}

impl Plan {
    pub fn new<E: Element>(layer: &Winograd<E>, batch: usize, threads: usize) -> Self {
        let Winograd { ref shape, tile, kernels, .. } = *layer;
        let (high, wide) = (shape.h.div_ceil(tile.results()), shape.w.div_ceil(tile.results()));
        let tiles = batch * high * wide;
        let (taps, data_row) = (tile.taps(), shape.c.next_multiple_of(16 * E::PAIR) / E::PAIR);
        let rows = kernels.multiply.len();
        let most = BLOCK_FLOATS / (taps * (data_row + GROUP));
        let tiles_of_a_block = tiles.div_ceil(tiles.div_ceil(most.max(2 * rows))).next_multiple_of(rows);
        let blocks = tiles.div_ceil(tiles_of_a_block);
        let groups = shape.k.div_ceil(GROUP);
        let wanted = if threads == 1 { 1 } else { TASKS_OF_A_THREAD * threads };
        let group_tasks = groups.min(wanted.div_ceil(blocks));
        Self { high, wide, tiles, tiles_of_a_block, blocks, groups, group_tasks, taps, data_row }
    }

    pub fn tasks(&self) -> usize {
        self.blocks * self.group_tasks
    }

    /// Steps of four bytes from one tap to the next, of data and of products. The line more keeps the taps of a tile
    /// from falling into the same few sets of the cache.
    fn data_pitch(&self) -> usize {
        self.tiles_of_a_block * self.data_row + 16
    }

    fn product_pitch(&self) -> usize {
        self.tiles_of_a_block * GROUP + 16
    }

    /// Floats of the buffer that a task needs.
    pub fn floats(&self) -> usize {
        self.taps * (self.data_pitch() + self.product_pitch())
    }
}

/// A convolution's operands, checked.
pub(super) struct Job<'a, E: Element> {
    layer: &'a Winograd<E>,
    plan: &'a Plan,
    /// In steps of four bytes.
    weights: &'a [f32],
    x: Images<'a, E>,
    residual: Option<Images<'a, E>>,
    relu: bool,
    y: Shared<'a, E>,
    y_layout: Layout,
}

/// A tile's first result in the map of its image.
struct Place {
    image: usize,
    y: usize,
    x: usize,
}

impl<'a, E: Element> Job<'a, E> {
    /// The caller has checked the operands: `Winograd::check`.
    pub fn new(layer: &'a Winograd<E>, plan: &'a Plan, operands: Operands<'a, E>) -> Self {
        let Operands { weights, x, residual, relu, y, .. } = operands;
        let weights = bytemuck::cast_slice(weights);
        Self { layer, plan, weights, x, residual, relu, y: Shared::new(y.data), y_layout: y.layout }
    }

    /// Computes one task's tiles and output channels with a buffer of `Plan::floats`.
    pub fn run(&self, task: usize, buffer: &mut [f32]) {
        let plan = self.plan;
        let (block, part) = (task / plan.group_tasks, task % plan.group_tasks);
        let first = block * plan.tiles_of_a_block;
        let tiles = first..plan.tiles.min(first + plan.tiles_of_a_block);
        let groups = part * plan.groups / plan.group_tasks..(part + 1) * plan.groups / plan.group_tasks;
        let (data, products) = buffer.split_at_mut(plan.taps * plan.data_pitch());
        self.transform_data(tiles.clone(), data);
        for group in groups {
            self.multiply(tiles.len(), group, data, products);
            self.transform_results(tiles.clone(), group, products);
        }
    }

    fn place(&self, tile: usize) -> Place {
        let Plan { high, wide, .. } = *self.plan;
        let results = self.layer.tile.results();
        let (image, rest) = (tile / (high * wide), tile % (high * wide));
        Place { image, y: rest / wide * results, x: rest % wide * results }
    }

    fn transform_data(&self, tiles: Range<usize>, data: &mut [f32]) {
        let plan = self.plan;
        let ConvShape { h, w, c, .. } = self.layer.shape;
        let Layout { first, row, image } = self.x.layout;
        assert!(data.len() >= plan.taps * plan.data_pitch() && tiles.len() <= plan.tiles_of_a_block);
        let (source, zeros): (_, *const E) =
            (self.x.data.as_ptr(), bytemuck::cast_slice(self.layer.zeros.all()).as_ptr());
        let size = self.layer.tile.results() + 2;
        let mut sources = [zeros; MOST_TAPS];
        for (slot, tile) in tiles.enumerate() {
            let place = self.place(tile);
            let start = first + place.image * image;
            for i in 0..size {
                for j in 0..size {
                    // The pixel's coordinates are one less: the filter reaches a pixel beyond its result.
                    let (y, x) = (place.y + i, place.x + j);
                    let is_inside = (1..=h).contains(&y) && (1..=w).contains(&x);
                    let at = || source.wrapping_add(start + (y - 1) * row + (x - 1) * c);
                    sources[i * size + j] = if is_inside { at() } else { zeros };
                }
            }
            let to = data[slot * plan.data_row..].as_mut_ptr().cast();
            let tile = DataTile { sources: &sources, channels: c, to, pitch: plan.data_pitch() * E::PAIR };
            // SAFETY: sources are `c` zeros or pixels inside the map, which `Images::check` found inside the buffer;
            // every tap has `tiles_of_a_block` rows of `data_row` steps, which is `c` rounded up to whole registers,
            // by the assertion above; an `Isa` chose the kernels, so the machine has their set.
            unsafe { (self.layer.transforms().data)(&tile) };
        }
    }

    /// All taps of some tiles by one group of output channels.
    fn multiply(&self, tiles: usize, group: usize, data: &[f32], products: &mut [f32]) {
        let plan = self.plan;
        let Winograd { kernels, shape, .. } = self.layer;
        let depth = shape.c.div_ceil(E::PAIR);
        let most = kernels.multiply.len();
        let chunks = tiles.div_ceil(most);
        let panel_floats = depth * kernels.width;
        // The last group may have no channels for its last panels.
        let used = (shape.k - group * GROUP).div_ceil(kernels.width);
        assert!(tiles <= plan.tiles_of_a_block);
        for tap in 0..plan.taps {
            let data = &data[tap * plan.data_pitch()..][..plan.data_pitch()];
            let products = &mut products[tap * plan.product_pitch()..][..plan.product_pitch()];
            let panels = &self.weights[(group * plan.taps + tap) * depth * GROUP..][..depth * GROUP];
            for (panel, weights) in panels.chunks_exact(panel_floats).take(used).enumerate() {
                // Chunks of like sizes: a last one of a single row would cost as much as one of several.
                for chunk in 0..chunks {
                    let rows = chunk * tiles / chunks..(chunk + 1) * tiles / chunks;
                    let product = Product {
                        a: data[rows.start * plan.data_row..].as_ptr(),
                        a_pitch: plan.data_row,
                        depth,
                        panel: weights.as_ptr(),
                        out: products[rows.start * GROUP + panel * kernels.width..].as_mut_ptr(),
                        out_pitch: GROUP,
                    };
                    // SAFETY: a tap's slice of the data has `tiles_of_a_block` rows of `data_row` steps, at least `depth`,
                    // its slice of the products as many of GROUP, of which a panel takes `width` columns; the panel
                    // is a slice of `depth * width`; an `Isa` chose the kernels, so the machine has their set.
                    unsafe { (kernels.multiply[rows.len() - 1])(&product) };
                }
            }
        }
    }

    fn transform_results(&self, tiles: Range<usize>, group: usize, products: &[f32]) {
        let plan = self.plan;
        let ConvShape { h, w, k, .. } = self.layer.shape;
        let channel = group * GROUP;
        let channels = GROUP.min(k - channel);
        assert!(products.len() >= plan.taps * plan.product_pitch() && tiles.len() <= plan.tiles_of_a_block);
        let bias = self.layer.bias.all()[channel..][..GROUP].as_ptr();
        let size = self.layer.tile.results();
        for (slot, tile) in tiles.enumerate() {
            let place = self.place(tile);
            let mut out = [std::ptr::null_mut(); MOST_RESULTS];
            let mut residual = [std::ptr::null(); MOST_RESULTS];
            for i in 0..size.min(h - place.y) {
                for j in 0..size.min(w - place.x) {
                    let at = |layout: &Layout| {
                        let pixel = (place.y + i) * layout.row + (place.x + j) * k;
                        layout.first + place.image * layout.image + pixel + channel
                    };
                    out[i * size + j] = self.y.at(at(&self.y_layout), channels);
                    if let Some(images) = &self.residual {
                        residual[i * size + j] = images.data[at(&images.layout)..][..channels].as_ptr();
                    }
                }
            }
            let tile = ResultTile {
                from: products[slot * GROUP..].as_ptr(),
                pitch: plan.product_pitch(),
                bias,
                channels,
                relu: self.relu,
                out: &out,
                residual: &residual,
            };
            // SAFETY: every tap has `tiles_of_a_block` rows of GROUP floats, by the assertion above, and the bias a row;
            // `out` and `residual` are sliced here, and these channels of this tile's pixels are this task's own, since
            // `ImagesMut::check` found that no rows overlap; an `Isa` chose the kernels, so the machine has their set.
            unsafe { (self.layer.transforms().result)(&tile) };
        }
    }
}
