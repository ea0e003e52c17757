//! Max pooling (3x3, stride 2, padding 1) and global average pooling, NHWC, both ways.

use super::Cpu;
use crate::simd::dispatch::multiversion;

/// An input of `h` x `w` x `c` an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    pub h: usize,
    pub w: usize,
    pub c: usize,
}

impl PoolShape {
    /// Output height.
    pub fn p(&self) -> usize {
        (self.h - 1) / 2 + 1
    }

    /// Output width.
    pub fn q(&self) -> usize {
        (self.w - 1) / 2 + 1
    }

    fn input(&self) -> usize {
        self.h * self.w * self.c
    }

    fn output(&self) -> usize {
        self.p() * self.q() * self.c
    }

    /// Calls `visit(window position 0..9, row, column)` for the pixels of output (p, q)'s window that exist.
    fn window(&self, p: usize, q: usize, mut visit: impl FnMut(u8, usize, usize)) {
        for r in 0..3 {
            for s in 0..3 {
                let (y, x) = (2 * p + r, 2 * q + s);
                if (1..=self.h).contains(&y) && (1..=self.w).contains(&x) {
                    visit((3 * r + s) as u8, y - 1, x - 1);
                }
            }
        }
    }
}

/// x [n,h,w,c] -> y [n,p,q,c] and, for each output, which of the window's nine pixels it came from (the first of
/// equals, and NaN before anything, as PyTorch).
pub fn max_forward(cpu: Cpu, shape: PoolShape, x: &[f32], y: &mut [f32], index: &mut [u8]) {
    let items: Vec<_> = (x.chunks(shape.input()).zip(y.chunks_mut(shape.output())))
        .zip(index.chunks_mut(shape.output()))
        .collect();
    cpu.pool.for_each(items, |((x, y), index)| {
        for p in 0..shape.p() {
            for q in 0..shape.q() {
                let at = (p * shape.q() + q) * shape.c;
                let (y, index) = (&mut y[at..at + shape.c], &mut index[at..at + shape.c]);
                y.fill(f32::NEG_INFINITY);
                index.fill(4);
                shape.window(p, q, |position, row, column| {
                    let from = (row * shape.w + column) * shape.c;
                    keep_larger(cpu.isa, &x[from..from + shape.c], position, y, index);
                });
            }
        }
    });
}

multiversion! {
    fn keep_larger(x: &[f32], position: u8, y: &mut [f32], index: &mut [u8]) {
        for ((&x, y), index) in x.iter().zip(y).zip(index) {
            let larger = x > *y || x.is_nan();
            *y = if larger { x } else { *y };
            *index = if larger { position } else { *index };
        }
    }
}

/// dy [n,p,q,c] -> dx [n,h,w,c]: each output's gradient goes to the pixel that it came from.
pub fn max_backward(cpu: Cpu, shape: PoolShape, dy: &[f32], index: &[u8], dx: &mut [f32]) {
    let items: Vec<_> = (dy.chunks(shape.output()).zip(index.chunks(shape.output())))
        .zip(dx.chunks_mut(shape.input()))
        .collect();
    cpu.pool.for_each(items, |((dy, index), dx)| {
        dx.fill(0.0);
        for p in 0..shape.p() {
            for q in 0..shape.q() {
                let at = (p * shape.q() + q) * shape.c;
                let (dy, index) = (&dy[at..at + shape.c], &index[at..at + shape.c]);
                shape.window(p, q, |position, row, column| {
                    let to = (row * shape.w + column) * shape.c;
                    add_where(cpu.isa, dy, index, position, &mut dx[to..to + shape.c]);
                });
            }
        }
    });
}

multiversion! {
    fn add_where(dy: &[f32], index: &[u8], position: u8, dx: &mut [f32]) {
        for ((&dy, &index), dx) in dy.iter().zip(index).zip(dx) {
            *dx += if index == position { dy } else { 0.0 };
        }
    }
}

/// x [n,h,w,c] -> y [n,c], the mean over h and w.
pub fn average_forward(cpu: Cpu, shape: PoolShape, x: &[f32], y: &mut [f32]) {
    let pixels = (shape.h * shape.w) as f32;
    cpu.pool.for_each(x.chunks(shape.input()).zip(y.chunks_mut(shape.c)).collect(), |(x, y)| {
        y.fill(0.0);
        for pixel in x.chunks_exact(shape.c) {
            y.iter_mut().zip(pixel).for_each(|(y, x)| *y += x);
        }
        y.iter_mut().for_each(|y| *y /= pixels);
    });
}

/// dy [n,c] -> dx [n,h,w,c].
pub fn average_backward(cpu: Cpu, shape: PoolShape, dy: &[f32], dx: &mut [f32]) {
    let pixels = (shape.h * shape.w) as f32;
    cpu.pool.for_each(dx.chunks_mut(shape.input()).zip(dy.chunks(shape.c)).collect(), |(dx, dy)| {
        for pixel in dx.chunks_exact_mut(shape.c) {
            pixel.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy / pixels);
        }
    });
}
