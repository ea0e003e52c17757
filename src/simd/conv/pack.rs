//! Memory that kernels read: aligned buffers, weight panels, images with a border.

use super::kernel::{Kernels, Runs};
use crate::model::graph::ConvShape;
use crate::simd::pool::Pool;
use std::marker::PhantomData;

/// A cache line, so that no vector of a panel crosses one.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Floats at a cache line's boundary; grows, never shrinks.
#[derive(Default)]
pub(in crate::simd) struct Aligned(Vec<Line>);

impl Aligned {
    /// `len` floats of unspecified value.
    pub fn floats(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..len]
    }

    /// All floats that there are.
    pub fn all(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

/// A mutable slice that the tasks of one pool job write at disjoint places.
#[derive(Clone, Copy)]
pub(in crate::simd) struct Shared<'a, T = f32> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: whoever writes through `at` promises that no other task touches the same elements.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as `Send`.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The address of element `index`, from which `len` may be written.
    pub fn at(&self, index: usize, len: usize) -> *mut T {
        assert!(index <= self.len && len <= self.len - index, "{index} + {len} of {}", self.len);
        // SAFETY: inside the slice, checked above.
        unsafe { self.start.add(index) }
    }

    /// # Safety
    /// No other task reads or writes these elements while the result lives.
    #[allow(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn part(&self, index: usize, len: usize) -> &mut [T] {
        // SAFETY: in bounds by `at`, unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(index, len), len) }
    }
}

/// w RSCK -> panels [K / width][r][s][c][width], the last one filled up with zeros.
pub(super) fn forward_panels(
    pool: &Pool,
    kernels: &Kernels,
    shape: &ConvShape,
    w: &[f32],
    panels: &mut [f32],
) {
    let (rows, k, width) = (shape.r * shape.s * shape.c, shape.k, kernels.width);
    let out = Shared::new(panels);
    let tasks = rows.div_ceil(ROWS_OF_A_TASK);
    pool.run(k.div_ceil(width) * tasks, &|task| {
        let (panel, first) = (task / tasks, task % tasks * ROWS_OF_A_TASK);
        let count = ROWS_OF_A_TASK.min(rows - first);
        // SAFETY: these rows of this panel are this task's own.
        let out = unsafe { out.part((panel * rows + first) * width, count * width) };
        copy_panel(kernels, &w[first * k..(first + count) * k], k, panel * width, out);
    });
}

/// Enough rows that a task is worth its start, few enough that small layers have several.
const ROWS_OF_A_TASK: usize = 256;

/// Rows that are copied at a time.
pub(super) const CHUNK: usize = 8;

/// NR columns from `first` on of rows of `pitch` floats, zeros where the source has no column.
pub(super) fn copy_panel(kernels: &Kernels, from: &[f32], pitch: usize, first: usize, to: &mut [f32]) {
    let width = kernels.width;
    let cols = width.min(pitch - first);
    assert!(from.len().is_multiple_of(pitch) && to.len() == from.len() / pitch * width);
    if cols < width {
        for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(pitch)) {
            to[..cols].copy_from_slice(&from[first..first + cols]);
            to[cols..].fill(0.0);
        }
        return;
    }
    let offsets: [u32; 2 * CHUNK] = std::array::from_fn(|i| (i * pitch) as u32);
    for (to, from) in to.chunks_mut(CHUNK * width).zip(from.chunks(CHUNK * pitch)) {
        let runs = Runs {
            source: from[first..].as_ptr(),
            offsets: &offsets[..to.len() / width],
            ahead: &offsets[CHUNK..],
            to: to.as_mut_ptr(),
            pitch: width,
        };
        // SAFETY: each row of `from` has `width` floats from `first` on; `to` has room for as many rows, by the lengths
        // asserted above.
        unsafe { (kernels.collect)(&runs) };
    }
}

/// w RSCK -> panels [C / width][r][s][k][width], the last one filled up with zeros: each tap transposed.
pub(super) fn dgrad_panels(pool: &Pool, shape: &ConvShape, w: &[f32], width: usize, panels: &mut [f32]) {
    let ConvShape { c, k, .. } = *shape;
    let taps = shape.r * shape.s;
    let out = Shared::new(panels);
    pool.run(c.div_ceil(width) * taps, &|task| {
        let (panel, tap) = (task / taps, task % taps);
        // SAFETY: this tap of this panel is this task's own.
        let out = unsafe { out.part(task * k * width, k * width) };
        let first = panel * width;
        let cols = width.min(c - first);
        let from = &w[(tap * c + first) * k..][..cols * k];
        transpose(from, k, cols, width, out);
    });
}

/// `from` [cols][rows] -> `to` [rows][width], zeros beyond `cols`. Blocks of 16 rows keep a cache line of every source
/// row at hand.
fn transpose(from: &[f32], rows: usize, cols: usize, width: usize, to: &mut [f32]) {
    for first in (0..rows).step_by(16) {
        let count = 16.min(rows - first);
        let to = &mut to[first * width..][..count * width];
        // Four columns at a time make a vector of each store.
        for j in (0..cols / 4 * 4).step_by(4) {
            let from: [&[f32]; 4] = std::array::from_fn(|u| &from[(j + u) * rows + first..][..count]);
            for (i, to) in to.chunks_exact_mut(width).enumerate() {
                to[j..j + 4].copy_from_slice(&[from[0][i], from[1][i], from[2][i], from[3][i]]);
            }
        }
        for j in cols / 4 * 4..cols {
            let from = &from[j * rows + first..][..count];
            for (to, &value) in to.chunks_exact_mut(width).zip(from) {
                to[j] = value;
            }
        }
        for row in to.chunks_exact_mut(width) {
            row[cols..].fill(0.0);
        }
    }
}

/// x [n,h,w,c] -> [n,h+2 pad,w+2 pad,c], zeros at the border.
pub(super) fn pad_images(pool: &Pool, shape: &ConvShape, x: &[f32], padded: &mut [f32]) {
    let ConvShape { h, w, c, pad, .. } = *shape;
    let (tall, wide) = (h + 2 * pad, (w + 2 * pad) * c);
    let rows = padded.len() / wide;
    let out = Shared::new(padded);
    let rows_of_a_task = (ROWS_OF_A_TASK * 64).div_ceil(wide);
    pool.run(rows.div_ceil(rows_of_a_task), &|task| {
        for row in task * rows_of_a_task..((task + 1) * rows_of_a_task).min(rows) {
            // SAFETY: this row is this task's own.
            let out = unsafe { out.part(row * wide, wide) };
            let (image, y) = (row / tall, row % tall);
            if y < pad || y >= pad + h {
                out.fill(0.0);
                continue;
            }
            out[..pad * c].fill(0.0);
            out[pad * c..][..w * c].copy_from_slice(&x[(image * h + y - pad) * w * c..][..w * c]);
            out[(pad + w) * c..].fill(0.0);
        }
    });
}

/// PyTorch's weight layout to the kernels': `kcrs` [k,c,r,s] -> `rsck` [r,s,c,k].
pub fn rsck_from_kcrs(shape: &ConvShape, kcrs: &[f32], rsck: &mut [f32]) {
    permute(shape, kcrs.len(), rsck.len(), |in_kcrs, in_rsck| rsck[in_rsck] = kcrs[in_kcrs]);
}

/// The kernels' weight layout to PyTorch's: `rsck` [r,s,c,k] -> `kcrs` [k,c,r,s].
pub fn kcrs_from_rsck(shape: &ConvShape, rsck: &[f32], kcrs: &mut [f32]) {
    permute(shape, rsck.len(), kcrs.len(), |in_kcrs, in_rsck| kcrs[in_kcrs] = rsck[in_rsck]);
}

fn permute(shape: &ConvShape, from: usize, to: usize, mut copy: impl FnMut(usize, usize)) {
    assert_eq!((from, to), (shape.weights(), shape.weights()), "weights of {shape:?}");
    let ConvShape { c, k, .. } = *shape;
    let taps = shape.r * shape.s;
    for k_index in 0..k {
        for c_index in 0..c {
            for tap in 0..taps {
                copy((k_index * c + c_index) * taps + tap, (tap * c + c_index) * k + k_index);
            }
        }
    }
}
