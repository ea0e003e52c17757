//! y = x * w.

use super::gather::{Gather, Input, Site};
use super::{Scratch, kernels, pack};
use crate::model::graph::ConvShape;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;

/// x [n,h,w,c], w [r,s,c,k] -> y [n,p,q,k], all f32.
#[allow(clippy::too_many_arguments, reason = "a convolution has three tensors and a place to run")]
pub fn forward(
    pool: &Pool,
    isa: Isa,
    shape: &ConvShape,
    n: usize,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) {
    super::check(shape, n, ("x", x.len()), ("y", y.len()), ("w", w.len()));
    if n == 0 {
        return;
    }
    let kernels = kernels(isa);
    let (shape, n) = super::flatten(shape, n);
    let bordered = super::wants_border(&shape);
    let mut gather = gather(&shape, n, bordered);
    let Scratch { panels, padded, zeros, .. } = scratch;
    let panels = panels.floats(gather.panel_floats(kernels));
    pack::forward_panels(pool, kernels, &shape, w, panels);
    let source = if bordered {
        let padded = padded.floats(n * gather.source_pixels * shape.c);
        pack::pad_images(pool, &shape, x, padded);
        padded
    } else {
        x
    };
    let zeros = super::zeros(zeros, gather.channels);
    gather.run(pool, kernels, &Input { source, panels, zeros }, y, false);
}

/// Addresses in x, or with `bordered` in its padded copy, where a tap is a whole row of the filter.
fn gather(shape: &ConvShape, n: usize, bordered: bool) -> Gather {
    let ConvShape { h, w, c, k, r, s, stride, pad } = *shape;
    let (pad, h, w) = if bordered { (0, h + 2 * pad, w + 2 * pad) } else { (pad, h, w) };
    let (columns, channels) = if bordered { (1, s * c) } else { (s, c) };
    let inside = |place: usize, tap: usize, size: usize| (pad..size + pad).contains(&(place * stride + tap));
    let site = |pixel: usize| {
        let (p, q) = (pixel / shape.q(), pixel % shape.q());
        let tap = |t: usize| inside(p, t / columns, h) && inside(q, t % columns, w);
        let taps = (0..r * columns).fold(0, |taps, t| taps | u64::from(tap(t)) << t);
        let row = (p * stride) as isize - pad as isize;
        Site { pixel, taps, origin: row * w as isize + (q * stride) as isize - pad as isize }
    };
    Gather {
        images: n,
        sites: (0..shape.p() * shape.q()).map(site).collect(),
        offsets: (0..r * columns).map(|t| (t / columns * w + t % columns) as isize).collect(),
        source_pixels: h * w,
        source_pitch: c,
        channels,
        out_channels: k,
    }
}
