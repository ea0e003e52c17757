//! dx = the gradient of the loss by x.

use super::gather::{Gather, Input, Site};
use super::{Scratch, kernels, pack};
use crate::model::graph::ConvShape;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;

/// dy [n,p,q,k], w [r,s,c,k] -> dx [n,h,w,c], all f32; `accumulate` adds to dx, otherwise all of it is overwritten.
#[allow(clippy::too_many_arguments, reason = "a convolution has three tensors and a place to run")]
pub fn dgrad(
    pool: &Pool,
    isa: Isa,
    shape: &ConvShape,
    n: usize,
    dy: &[f32],
    w: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    scratch: &mut Scratch,
) {
    super::check(shape, n, ("dx", dx.len()), ("dy", dy.len()), ("w", w.len()));
    if n == 0 {
        return;
    }
    let kernels = kernels(isa);
    let (shape, n) = super::flatten(shape, n);
    let mut gather = gather(&shape, n);
    let Scratch { panels, zeros, .. } = scratch;
    let panels = panels.floats(gather.panel_floats(kernels));
    pack::dgrad_panels(pool, &shape, w, kernels.width, panels);
    let zeros = super::zeros(zeros, gather.channels);
    gather.run(pool, kernels, &Input { source: dy, panels, zeros }, dx, accumulate);
}

/// Pixel (h, w) of dx hears from pixel ((h + pad - r) / stride, (w + pad - s) / stride) of dy through tap (r, s), where
/// both divide evenly. With `h + pad = i * stride + phase`, those are the taps `r = j * stride + phase`, and the row is
/// `i - j`: an origin per pixel and an offset per tap, as `Gather` wants them.
fn gather(shape: &ConvShape, n: usize) -> Gather {
    let ConvShape { h, w, c, k, r, s, stride, pad } = *shape;
    let (p, q) = (shape.p(), shape.q());
    let hears = |place: usize, tap: usize, size: usize| {
        let place = place + pad;
        place % stride == tap % stride
            && place / stride >= tap / stride
            && place / stride - tap / stride < size
    };
    let site = |pixel: usize| {
        let (row, column) = (pixel / w, pixel % w);
        let tap = |t: usize| hears(row, t / s, p) && hears(column, t % s, q);
        let taps = (0..r * s).fold(0, |taps, t| taps | u64::from(tap(t)) << t);
        Site { pixel, taps, origin: ((row + pad) / stride * q + (column + pad) / stride) as isize }
    };
    Gather {
        images: n,
        sites: (0..h * w).map(site).collect(),
        offsets: (0..r * s).map(|t| -((t / s / stride * q + t % s / stride) as isize)).collect(),
        source_pixels: p * q,
        source_pitch: k,
        channels: k,
        out_channels: c,
    }
}
