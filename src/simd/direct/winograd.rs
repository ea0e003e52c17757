//! F(2x2, 3x3) in bf16: transforms and sums in f32, products of bf16, 16 multiplications where a direct convolution has
//! 36. The transforms themselves are those of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
//! arXiv:1509.09308: y = At [ (G g Gt) * (Bt d B) ] A. Transformed weights and data are rounded to bf16 once each; sums
//! of four data keep F(2x2) within some twice the error of a direct convolution in bf16. (F(4x4) multiplies data by up to
//! 5 and would not.)
//!
//! The products are 1x1 convolutions, one for each of the 16 taps, by the tiles of `kernel`.

use super::Precision;
use super::kernel::{CHANNELS, Kernels, Residual, Strip};
use super::map::{Format, View};
use super::pack::{Filter, Packed, Source};
use super::transform::{self, DataTile, ResultTile, TAPS};
use crate::error::Result;
use crate::model::graph::ConvShape;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;
use std::ops::Range;

/// A 3x3 convolution of stride 1 and padding 1.
pub struct Winograd {
    transforms: transform::Transforms,
    /// Of one tap.
    packed: Packed,
    bias: Vec<f32>,
    relu: bool,
    /// Zeros: what the products start from, and pixels beyond the border.
    zeros: Vec<f32>,
}

/// Memory of one thread, or of a step: f32 [taps][tiles][channels of a panel] and bf16 [taps][tiles][c], a line apart.
#[derive(Clone, Copy)]
pub struct Scratch {
    pub base: *mut u8,
    /// Tiles that it holds.
    pub tiles: usize,
}

// SAFETY: an address; users state who writes what.
unsafe impl Send for Scratch {}
// SAFETY: as above.
unsafe impl Sync for Scratch {}

impl Winograd {
    pub fn supports(shape: &ConvShape) -> bool {
        (shape.r, shape.s, shape.stride, shape.pad) == (3, 3, 1, 1) && shape.c % CHANNELS == 0
    }

    /// Panics where `supports` says no.
    pub fn new(isa: Isa, shape: &ConvShape, bias: &[f32], relu: bool) -> Result<Self> {
        assert!(
            Self::supports(shape),
            "Winograd is for 3x3 convolutions of stride 1 and padding 1; got {shape:?}"
        );
        let kernels = Kernels::of(Precision::Bf16, isa)?;
        let packed = Packed::new(kernels, Filter { k: shape.k, r: 1, s: 1, c: shape.c })?;
        let transforms = transform::of(isa);
        Ok(Self { transforms, packed, bias: bias.to_vec(), relu, zeros: vec![0.0; shape.c.max(64)] })
    }

    /// Of the packed weights of all taps.
    pub fn packed_bytes(&self) -> usize {
        TAPS * self.packed.bytes
    }

    /// Panels of output channels.
    pub fn panels(&self) -> usize {
        self.packed.panels.len()
    }

    /// `weight` f32 [k][3][3][c] -> `out`, `packed_bytes` long.
    pub fn pack(&self, pool: &Pool, weight: &[f32], out: &mut [u8]) {
        let Filter { k, c, .. } = self.packed.filter;
        assert_eq!(
            (weight.len(), out.len()),
            (k * 9 * c, self.packed_bytes()),
            "weights of {k} x 3 x 3 x {c}"
        );
        let taps = out.chunks_exact_mut(self.packed.bytes).enumerate().collect();
        pool.for_each(taps, |(tap, out)| {
            let transformed = transform::weights(weight, c, tap);
            let mut rest = out;
            for (i, panel) in self.packed.panels.iter().enumerate() {
                let end = self.packed.panels.get(i + 1).map_or(self.packed.bytes, |next| next.offset);
                let (part, tail) = rest.split_at_mut(end - panel.offset);
                self.packed.pack(panel, Source::F32(&transformed), part);
                rest = tail;
            }
        });
    }

    /// Bytes of a `Scratch` for `tiles` tiles.
    pub fn scratch_bytes(&self, tiles: usize) -> usize {
        TAPS * (self.data_pitch(tiles) + product_pitch(tiles))
    }

    /// Between the taps of the data: whole lines, and one more, lest all taps fall into the same sets of the cache.
    fn data_pitch(&self, tiles: usize) -> usize {
        (tiles * self.packed.filter.c * 2).next_multiple_of(64) + 64
    }

    fn data(&self, scratch: &Scratch) -> *mut u8 {
        scratch.base.wrapping_add(TAPS * product_pitch(scratch.tiles))
    }

    /// Transforms the data of the tiles in rows `rows` of tiles of an image; the first goes to place `first` of `scratch`.
    ///
    /// # Safety
    /// `x` is a whole bf16 map of the layer's channels with a border, which nobody writes; `scratch` has `scratch_bytes`
    /// of its tiles, and this thread alone writes the places of these tiles.
    pub unsafe fn transform_data(
        &self,
        x: &View,
        image: usize,
        rows: Range<usize>,
        scratch: &Scratch,
        first: usize,
    ) {
        let map = &x.map;
        assert!(map.border >= 1 && map.c == self.packed.filter.c && map.format == Format::Bf16, "{map:?}");
        let wide = map.w.div_ceil(2);
        assert!(first + rows.len() * wide <= scratch.tiles, "tiles of the scratch");
        let data = self.data(scratch);
        for (row, y) in rows.enumerate() {
            for tile_x in 0..wide {
                let mut sources = [self.zeros.as_ptr().cast::<u8>(); TAPS];
                for (tap, source) in sources.iter_mut().enumerate() {
                    // The filter reaches one pixel beyond the tile's results; the border is there for the first of it.
                    let (from_y, from_x) = (2 * y + tap / 4, 2 * tile_x + tap % 4);
                    if from_y <= map.h + 1 && from_x <= map.w + 1 {
                        let at = map.at(image, 0, 0) - map.row() - map.pixel();
                        // SAFETY: within the map and its border.
                        *source = unsafe { x.base.add(at + from_y * map.row() + from_x * map.pixel()) };
                    }
                }
                let place = first + row * wide + tile_x;
                let tile = DataTile {
                    sources,
                    channels: map.c,
                    to: data.wrapping_add(place * map.c * 2),
                    pitch: self.data_pitch(scratch.tiles),
                };
                // SAFETY: `channels` bf16 at every source, and in each tap's place of this tile.
                unsafe { (self.transforms.data)(&tile) };
            }
        }
    }

    /// Products and results of one panel for the rows of tiles whose data `data` has from its first place on.
    ///
    /// # Safety
    /// As `transform_data`, which has run for these rows; `products` has `scratch_bytes` for as many tiles as `data` and
    /// is this thread's own; `w` has `packed_bytes`; `y` is a whole bf16 map, of which this thread alone writes these
    /// rows and channels.
    #[allow(clippy::too_many_arguments, reason = "operands and the part of them, each with its name")]
    pub unsafe fn results(
        &self,
        data: &Scratch,
        products: &Scratch,
        w: *const u8,
        y: &View,
        image: usize,
        rows: Range<usize>,
        panel: usize,
    ) {
        let wide = y.map.w.div_ceil(2);
        let tiles = rows.len() * wide;
        let panel = &self.packed.panels[panel];
        let channels = self.packed.channels(panel);
        assert!(tiles <= data.tiles && tiles <= products.tiles, "tiles of the scratch");
        assert!(y.map.c == self.packed.filter.k && y.map.format == Format::Bf16, "{:?}", y.map);
        for tap in 0..TAPS {
            // SAFETY: the tap's tiles and weights, as promised.
            unsafe {
                self.multiply(
                    tap,
                    tiles,
                    panel.width,
                    w.add(tap * self.packed.bytes + panel.offset),
                    data,
                    products,
                )
            };
        }
        for tile in 0..tiles {
            let (tile_y, tile_x) = (2 * (rows.start + tile / wide), 2 * (tile % wide));
            let mut out = [std::ptr::null_mut(); 4];
            for (i, out) in out.iter_mut().enumerate() {
                let (to_y, to_x) = (tile_y + i / 2, tile_x + i % 2);
                if to_y < y.map.h && to_x < y.map.w {
                    // SAFETY: a pixel of the map.
                    *out = unsafe { y.base.add(y.map.at(image, to_y, to_x) + 2 * panel.first) };
                }
            }
            let result = ResultTile {
                // SAFETY: the tile's place among the products.
                from: unsafe { products.base.add(tile * channels * 4) },
                pitch: product_pitch(products.tiles),
                bias: &raw const self.bias[panel.first],
                channels,
                relu: self.relu,
                out,
            };
            // SAFETY: `channels` f32 in each tap's place and at the bias, `channels` bf16 at every result.
            unsafe { (self.transforms.result)(&result) };
        }
    }

    /// # Safety
    /// As `results`.
    unsafe fn multiply(
        &self,
        tap: usize,
        tiles: usize,
        width: usize,
        w: *const u8,
        data: &Scratch,
        products: &Scratch,
    ) {
        let kernels = self.packed.kernels;
        let strips = kernels.widths[width].strips;
        let c = self.packed.filter.c;
        let pixel = kernels.widths[width].vectors * kernels.lanes * 4;
        let mut strip = Strip {
            x: self.data(data).wrapping_add(tap * self.data_pitch(data.tiles)),
            x_pixel: 2 * c,
            x_line: 0,
            x_tap_row: 0,
            rows: 1,
            run: self.packed.run,
            w,
            bias: self.zeros.as_ptr(),
            scale: std::ptr::null(),
            y: products.base.wrapping_add(tap * product_pitch(products.tiles)),
            y_pixel: pixel,
            y_line: 0,
            residual: Residual::None,
            r: std::ptr::null(),
            r_pixel: 0,
            r_line: 0,
            r_scale: 1.0,
            is_f32: true,
            relu: false,
            lines: 1,
            tiles: 0,
        };
        let count = tiles.div_ceil(strips.len());
        for (count, pixels) in [(tiles % count, tiles / count + 1), (count - tiles % count, tiles / count)] {
            if count == 0 {
                continue;
            }
            strip.tiles = count;
            // SAFETY: `pixels count` rows of the tap's data and products lie within their scratches; the weights and
            // the zeros have a panel's channels; an `Isa` chose the kernels.
            unsafe { strips[pixels - 1](&strip) };
            strip.x = strip.x.wrapping_add(count * pixels * strip.x_pixel);
            strip.y = strip.y.wrapping_add(count * pixels * strip.y_pixel);
        }
    }
}

/// Between the taps of the products, of at most 64 channels.
fn product_pitch(tiles: usize) -> usize {
    tiles * 64 * 4 + 64
}
