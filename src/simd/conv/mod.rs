//! Convolutions in f32: forward, dgrad, wgrad. Activations are NHWC, weights RSCK ([r][s][c][k]).
//!
//! All three are implicit GEMMs around two micro-kernels (`kernel`), which hold a tile of results in registers:
//!
//! | | a tile's rows | its columns | sum over |
//! |---|---|---|---|
//! | forward | output pixels | output channels | taps, input channels |
//! | dgrad | input pixels | input channels | taps that reach them, output channels |
//! | wgrad | input channels of a tap | output channels | pixels |
//!
//! `forward` and `dgrad` share `gather` (tiles of pixels through a table of source pointers); `wgrad` walks pixels in the
//! blocks of `window`; `pack` brings weights into panels; `kernel` is what an instruction set has to give.
//!
//! Work is cut into tasks by shape alone and every sum has a fixed order: results are the same bits for any number of
//! threads. They may differ between instruction sets.

pub(super) mod kernel;
pub(super) mod pack;
mod gather;
mod forward;
mod dgrad;
mod wgrad;
mod window;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(super) mod portable;
#[cfg(test)]
mod tests;

pub use dgrad::dgrad;
pub use forward::forward;
pub use pack::{kcrs_from_rsck, rsck_from_kcrs};
pub use wgrad::wgrad;

use crate::model::graph::ConvShape;
use crate::simd::isa::{Isa, Set};

/// Buffers that calls reuse; they grow to what the largest call needs.
#[derive(Default)]
pub struct Scratch {
    panels: pack::Aligned,
    padded: pack::Aligned,
    partials: pack::Aligned,
    zeros: Vec<f32>,
}

/// An `Isa` is proof that the machine has the instructions, which is what calling its kernels asks for.
fn kernels(isa: Isa) -> &'static kernel::Kernels {
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 => &avx512::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Set::Avx2 => &avx2::KERNELS,
        #[cfg(target_arch = "aarch64")]
        Set::Neon => &neon::KERNELS,
        _ => &portable::KERNELS,
    }
}

/// Panics unless the slices (name, length) of the input side, the output side and the weights fit the shape.
fn check(shape: &ConvShape, n: usize, x: (&str, usize), y: (&str, usize), w: (&str, usize)) {
    assert!(shape.stride > 0 && shape.h + 2 * shape.pad >= shape.r && shape.w + 2 * shape.pad >= shape.s);
    let sizes = [
        (x, n * shape.h * shape.w * shape.c),
        (y, n * shape.p() * shape.q() * shape.k),
        (w, shape.weights()),
    ];
    for ((name, got), want) in sizes {
        assert_eq!(got, want, "length of {name}, batch {n}, {shape:?}");
    }
}

/// A 1x1 convolution of stride 1 sees no images, only pixels: the same operation on images of a single pixel.
fn flatten(shape: &ConvShape, n: usize) -> (ConvShape, usize) {
    let ConvShape { h, w, r, s, stride, pad, .. } = *shape;
    if (r, s, stride, pad) == (1, 1, 1, 0) {
        (ConvShape { h: 1, w: 1, ..*shape }, n * h * w)
    } else {
        (*shape, n)
    }
}

/// With few channels a tap is too short a run; a copy with a border makes one run of each row of the filter.
fn wants_border(shape: &ConvShape) -> bool {
    shape.c < 16 && shape.s > 1
}

/// At least `len` zeros.
fn zeros(zeros: &mut Vec<f32>, len: usize) -> &[f32] {
    if zeros.len() < len {
        zeros.resize(len, 0.0);
    }
    zeros
}
