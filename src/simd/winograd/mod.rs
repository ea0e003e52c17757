//! 3x3 convolutions of stride 1 and padding 1 by Winograd's minimal filtering, with bias, residual sum and ReLU. Feature
//! maps and transformed weights are f32, or bf16 where the machine multiplies it; transforms and sums are f32.
//!
//! A direct convolution multiplies 9 times for a result and an input channel, F(2x2) 4 times, F(4x4) 2.25 times. A block
//! of tiles goes through three steps while it stays in the L2 cache:
//!
//! 1. data: every tile of (O + 2) x (O + 2) pixels is transformed into as many taps, `[tap][tile][c]`;
//! 2. product: at each tap a matrix product with the transformed weights, `[tap][tile][64 output channels]`;
//! 3. result: the taps of a tile become O x O results, and the epilogue is applied on the way out.
//!
//! Steps 2 and 3 take 64 output channels at a time. A block's tiles may belong to several images; a tile that reaches
//! beyond the map reads zeros there, and writes nothing. Tasks are blocks of tiles by groups of channels; however the
//! work is cut, each result is the same sum in the same order, so its bits depend neither on threads nor on the batch.
//!
//! | file | gives |
//! |---|---|
//! | `images` | feature maps inside larger buffers |
//! | `transform` | the algorithms F(2x2, 3x3) and F(4x4, 3x3) |
//! | `element` | the types that maps and weights come in, and their kernels by instruction set |
//! | `weights` | the packed weights |
//! | `kernel` | the three steps over a vector type; one file an instruction set instantiates them |
//! | `block` | the way of a block of tiles through the steps |

mod images;
mod transform;
mod element;
mod weights;
mod kernel;
mod block;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

pub use element::Element;
pub use images::{Images, ImagesMut, Layout, Size};

use crate::model::graph::ConvShape;
use crate::simd::conv::pack::Aligned;
use crate::simd::filters::Filters;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;
use kernel::{Kernels, Transforms};
use std::sync::Mutex;

/// Output channels that are computed together.
const GROUP: usize = 64;

/// How many results a tile has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tile {
    /// 2x2 of 4x4 pixels, 16 taps: as accurate as a direct convolution.
    F2,
    /// 4x4 of 6x6 pixels, 36 taps: relative rms errors some five times those of a direct convolution.
    F4,
}

impl Tile {
    /// Results of a tile in one direction, O.
    pub fn results(self) -> usize {
        match self {
            Self::F2 => 2,
            Self::F4 => 4,
        }
    }

    /// Elements of a transformed tile.
    pub fn taps(self) -> usize {
        (self.results() + 2) * (self.results() + 2)
    }
}

/// Whether a convolution can be computed here: 3x3, stride 1, padding 1, any size, any number of channels.
pub fn supports(shape: &ConvShape) -> bool {
    (shape.r, shape.s, shape.stride, shape.pad) == (3, 3, 1, 1)
        && [shape.h, shape.w, shape.c, shape.k].iter().all(|&size| size > 0)
}

/// The faster tile of a layer, and `None` where the direct convolution is to be preferred or there are no kernels.
///
/// F(4x4) multiplies least, but its weights are four times those of the convolution and come from memory: with fewer
/// than 16 tiles to use them in (ResNet-50's 7x7 maps in batches below 4) F(2x2) is as fast, and half as large. By
/// `cargo bench --bench winograd`, which has no layers narrower than 64 channels: those spend their time in the
/// transforms.
pub fn preferred<E: Element>(isa: Isa, shape: &ConvShape, batch: usize) -> Option<Tile> {
    if !supports(shape) || shape.c < 64 || shape.k < 64 || !E::has(isa, Tile::F2) {
        return None;
    }
    let results = Tile::F4.results();
    let tiles = batch * shape.h.div_ceil(results) * shape.w.div_ceil(results);
    Some(if tiles < 16 || !E::has(isa, Tile::F4) { Tile::F2 } else { Tile::F4 })
}

/// Length of the packed weights, [k / 64][tap][64 / NR][c / PAIR][NR][PAIR] with k rounded up to a multiple of 64 and c to
/// one of PAIR, the elements of four bytes.
pub fn packed_len<E: Element>(shape: &ConvShape, tile: Tile) -> usize {
    tile.taps() * shape.c.next_multiple_of(E::PAIR) * shape.k.next_multiple_of(GROUP)
}

/// A layer. Its packed weights lie where the caller keeps them: a network's are best together, in large pages.
pub struct Winograd<E: Element = f32> {
    isa: Isa,
    kernels: &'static Kernels<E>,
    shape: ConvShape,
    tile: Tile,
    /// f32 [k], zeros up to whole groups.
    bias: Aligned,
    /// [c], what pixels outside of the map have.
    zeros: Aligned,
}

/// Buffers that calls reuse: one a thread, of half a megabyte, or up to two and a half for F(4x4) of 512 channels. They
/// grow to what the largest call needs.
#[derive(Default)]
pub struct Scratch {
    buffers: Vec<Aligned>,
}

/// What one call computes: y = conv(x) + bias + residual, then ReLU if asked for.
pub struct Operands<'a, E = f32> {
    /// Images, N.
    pub batch: usize,
    /// What [`Winograd::pack`] made.
    pub weights: &'a [E],
    /// [n,h,w,c]
    pub x: Images<'a, E>,
    /// [n,h,w,k]
    pub residual: Option<Images<'a, E>>,
    pub relu: bool,
    /// [n,h,w,k]
    pub y: ImagesMut<'a, E>,
}

impl<E: Element> Winograd<E> {
    /// bias f32 [k]. Panics where [`supports`] or [`Element::has`] says no, or where the bias does not fit the shape.
    pub fn new(isa: Isa, tile: Tile, shape: &ConvShape, bias: &[f32]) -> Self {
        assert!(supports(shape), "Winograd is for 3x3 convolutions of stride 1 and padding 1; got {shape:?}");
        assert!(
            E::has(isa, tile),
            "no kernels of {tile:?} in {} for {}",
            isa.name(),
            std::any::type_name::<E>()
        );
        let kernels = E::kernels(isa).expect("asked for above");
        assert_eq!(bias.len(), shape.k, "length of the bias of {shape:?}");
        let (mut padded, mut zeros) = (Aligned::default(), Aligned::default());
        padded.floats(shape.k.next_multiple_of(GROUP))[..shape.k].copy_from_slice(bias);
        zeros.floats(shape.c);
        Self { isa, kernels, shape: *shape, tile, bias: padded, zeros }
    }

    /// See [`packed_len`].
    pub fn packed_len(&self) -> usize {
        packed_len::<E>(&self.shape, self.tile)
    }

    /// f32 [k][c][3][3] -> `packed`, at best on a cache line's boundary: the weights' transforms, computed in f64
    /// and rounded once. Panics where a length does not fit the shape, or where `packed` is not on a boundary of four
    /// bytes.
    pub fn pack(&self, filters: Filters, packed: &mut [E]) {
        let packed = bytemuck::cast_slice_mut(packed);
        weights::pack::<E>(self.isa, self.tile, &self.shape, filters, self.kernels.width, packed);
    }

    pub fn tile(&self) -> Tile {
        self.tile
    }

    /// Panics where an operand does not lie within its buffer or has another length, or where rows of `y` overlap.
    pub fn run(&self, pool: &Pool, scratch: &mut Scratch, operands: Operands<E>) {
        if operands.batch == 0 {
            return;
        }
        self.check(&operands);
        let plan = block::Plan::new(self, operands.batch, pool.threads());
        scratch.buffers.resize_with(pool.threads().max(scratch.buffers.len()), Aligned::default);
        let buffers = scratch.buffers.iter_mut().map(|buffer| buffer.floats(plan.floats())).collect();
        let buffers: Mutex<Vec<&mut [f32]>> = Mutex::new(buffers);
        let job = block::Job::new(self, &plan, operands);
        pool.run(plan.tasks(), &|task| {
            let take = || buffers.lock().expect("nobody panics with the lock held").pop();
            let buffer = take().expect("as many buffers as threads");
            job.run(task, buffer);
            buffers.lock().expect("nobody panics with the lock held").push(buffer);
        });
    }

    fn check(&self, operands: &Operands<E>) {
        let Operands { batch, weights, x, residual, y, .. } = operands;
        let ConvShape { h, w, c, k, .. } = self.shape;
        assert_eq!(weights.len(), self.packed_len(), "length of the packed weights of {:?}", self.shape);
        x.check("x", *batch, Size { h, w, c });
        y.check("y", *batch, Size { h, w, c: k });
        if let Some(residual) = residual {
            residual.check("residual", *batch, Size { h, w, c: k });
        }
    }

    fn transforms(&self) -> &'static Transforms<E> {
        &self.kernels.transforms[self.tile as usize]
    }
}
