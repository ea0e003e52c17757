//! Max-pool and global average pool on feature maps.

use super::map::{Format, Map, View};
use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;
use half::bf16;
use std::ops::Range;

/// 3x3, stride 2, padding 1, of values that a ReLU has made non-negative: the border's zeros never win, and floats
/// compare as the integers of their bits.
///
/// # Safety
/// `x` and `y` are whole maps; this thread alone writes the rows of `y`, nobody writes `x`.
pub unsafe fn max_pool(isa: Isa, x: &View, y: &View, image: usize, rows: Range<usize>) {
    let (from, to) = (&x.map, &y.map);
    assert!(from.border >= 1 && from.c == to.c && from.format == to.format, "max-pool of {from:?} to {to:?}");
    assert_eq!((to.h, to.w), ((from.h - 1) / 2 + 1, (from.w - 1) / 2 + 1), "max-pool of {from:?} to {to:?}");
    assert!(3 * from.c <= MOST, "channels of {from:?}");
    // SAFETY: the rows are this call's own, and so is their border.
    unsafe { y.clear_border(image, rows.clone()) };
    for row in rows {
        // SAFETY: rows 2 row - 1 .. 2 row + 2 of `x` and row `row` of `y`, with `c` channels of 1, 2 or 4 bytes, aligned
        // to their size as pixels and maps are.
        unsafe {
            let x = x.base.add(from.at(image, 2 * row, 0) - from.row() - from.pixel());
            let y = y.base.add(to.at(image, row, 0));
            match from.format {
                Format::F32 => max_row::<i32>(isa, from, to, x, y, max_i32),
                Format::Bf16 => max_row::<i16>(isa, from, to, x, y, max_i16),
                Format::U8 => max_row::<u8>(isa, from, to, x, y, max_u8),
                Format::F32InLanes => panic!("no ReLU made {from:?}"),
            }
        }
    }
}

/// (isa, three rows of x, y, channels)
type MaxRow<T> = fn(Isa, [&[T]; 3], &mut [T], usize);

/// # Safety
/// `x` is the first of three rows of `from` that may be read, `y` a row of `to` that this thread alone writes.
unsafe fn max_row<T: Copy>(isa: Isa, from: &Map, to: &Map, x: *const u8, y: *mut u8, max: MaxRow<T>) {
    let taps = (2 * to.w + 1).min(from.w + 2) * from.c;
    // SAFETY: the function's promise; a row has `w + 2` pixels at least from the one before its first.
    let (rows, y) = unsafe {
        let row = |i: usize| std::slice::from_raw_parts(x.add(i * from.row()).cast::<T>(), taps);
        ([row(0), row(1), row(2)], std::slice::from_raw_parts_mut(y.cast::<T>(), to.w * to.c))
    };
    max(isa, rows, y, from.c);
}

/// Elements of the columns' maxima that are held at once; a map has at most a third as many channels.
const MOST: usize = 1024;

macro_rules! max_rows {
    ($($name:ident $type:ty),*) => {$(
        multiversion! {
            fn $name(rows: [&[$type]; 3], y: &mut [$type], c: usize) {
                // Down the columns of some pixels at a time, then along the row.
                let mut columns = [0; MOST];
                let pixels = (MOST / c - 1) / 2;
                for (block, y) in y.chunks_mut(pixels * c).enumerate() {
                    let from = block * 2 * pixels * c;
                    let len = 2 * y.len() + c;
                    let columns = &mut columns[..len];
                    let [above, middle, below] = rows.map(|row| &row[from..from + len]);
                    for (((column, a), b), c) in columns.iter_mut().zip(above).zip(middle).zip(below) {
                        *column = (*a).max(*b).max(*c);
                    }
                    for (y, columns) in y.chunks_exact_mut(c).zip(columns.windows(3 * c).step_by(2 * c)) {
                        let (left, rest) = columns.split_at(c);
                        let (middle, right) = rest.split_at(c);
                        for (((y, a), b), c) in y.iter_mut().zip(left).zip(middle).zip(right) {
                            *y = (*a).max(*b).max(*c);
                        }
                    }
                }
            }
        }
    )*};
}

max_rows!(max_i32 i32, max_i16 i16, max_u8 u8);

/// Means over the pixels of an image: real = `scale` value. `y` has `c` elements.
///
/// # Safety
/// `x` is a whole map that nobody writes.
pub unsafe fn average_pool(x: &View, image: usize, scale: f32, y: &mut [f32]) {
    let map = &x.map;
    assert_eq!(y.len(), map.c, "average pool of {map:?}");
    y.fill(0.0);
    let scale = scale / (map.h * map.w) as f32;
    for row in 0..map.h {
        // SAFETY: a row of the map; elements are aligned to their size.
        unsafe {
            let x = x.base.add(map.at(image, row, 0));
            let len = map.w * map.c;
            match map.format {
                Format::F32 => add(std::slice::from_raw_parts(x.cast::<f32>(), len), y, |v| v),
                Format::Bf16 => add(std::slice::from_raw_parts(x.cast::<bf16>(), len), y, bf16::to_f32),
                // Sums of bytes are exact in f32 up to 2^24: maps of 256 x 256 pixels.
                Format::U8 => add(std::slice::from_raw_parts(x, len), y, f32::from),
                Format::F32InLanes => panic!("no ReLU made {map:?}"),
            }
        }
    }
    for y in y {
        *y *= scale;
    }
}

fn add<T: Copy>(row: &[T], y: &mut [f32], value: impl Fn(T) -> f32) {
    for pixel in row.chunks_exact(y.len()) {
        for (y, &x) in y.iter_mut().zip(pixel) {
            *y += value(x);
        }
    }
}
