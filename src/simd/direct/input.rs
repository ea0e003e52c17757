//! An image's bytes to the first layer's feature map.

use super::map::{Format, View};
use half::bf16;
use std::ops::Range;

/// What becomes of a byte of each channel.
pub enum Input {
    /// (byte / 255 - mean) / std by value, for f32 and bf16; zeros outside the image.
    Normalised(Box<[[f32; 256]; 3]>),
    /// The byte itself, for int8, whose first layer has the normalisation in its weights; `padding` outside the image.
    Bytes { padding: [u8; 3] },
}

impl Input {
    /// In the order of torchvision's ToTensor and Normalize, rounded after each.
    pub fn normalised(mean: [f32; 3], std: [f32; 3]) -> Self {
        let table = |c: usize| std::array::from_fn(|value| (value as f32 / 255.0 - mean[c]) / std[c]);
        Self::Normalised(Box::new(std::array::from_fn(table)))
    }

    /// `pixels` u8 [h][w][3] of one image -> rows `rows` of `y` with all of their border.
    ///
    /// # Safety
    /// `y` is a whole map; this thread alone writes these rows.
    pub unsafe fn run(&self, pixels: &[u8], y: &View, image: usize, rows: Range<usize>) {
        let map = &y.map;
        assert_eq!((map.c, pixels.len()), (3, map.h * map.w * 3), "pixels of {map:?}");
        let row = |y: usize| &pixels[y * map.w * 3..(y + 1) * map.w * 3];
        // SAFETY: the function's promise; elements are aligned to their size.
        unsafe {
            match (self, map.format) {
                (Self::Normalised(table), Format::F32) => {
                    write(y, image, rows, row, [0.0; 3], |c, v| table[c][v])
                }
                (Self::Normalised(table), Format::Bf16) => {
                    let table: [[bf16; 256]; 3] = std::array::from_fn(|c| table[c].map(bf16::from_f32));
                    write(y, image, rows, row, [bf16::ZERO; 3], |c, v| table[c][v]);
                }
                (Self::Bytes { padding }, Format::U8) => write(y, image, rows, row, *padding, |_, v| v as u8),
                _ => panic!("an image in {:?} goes with its own precision", map.format),
            }
        }
    }
}

/// # Safety
/// As `Input::run`; the map's elements are `T`.
unsafe fn write<'a, T: Copy>(
    y: &View,
    image: usize,
    rows: Range<usize>,
    pixels: impl Fn(usize) -> &'a [u8],
    padding: [T; 3],
    value: impl Fn(usize, usize) -> T,
) {
    let map = &y.map;
    let (b, width) = (map.border, map.w + 2 * map.border);
    let line = |index: usize| {
        // SAFETY: row `index` of the image, its border included.
        unsafe {
            let start = y.base.add(image * map.image() + index * map.row()).cast::<[T; 3]>();
            std::slice::from_raw_parts_mut(start, width)
        }
    };
    if rows.start == 0 {
        (0..b).for_each(|above| line(above).fill(padding));
    }
    for row in rows.clone() {
        let line = line(row + b);
        line[..b].fill(padding);
        line[b + map.w..].fill(padding);
        for (to, from) in line[b..b + map.w].iter_mut().zip(pixels(row).chunks_exact(3)) {
            *to = std::array::from_fn(|c| value(c, usize::from(from[c])));
        }
    }
    if rows.end == map.h {
        (0..b).for_each(|below| line(map.h + b + below).fill(padding));
        if image + 1 == map.n {
            // A filter row's last unit may reach past the last pixel; its weights there are zero, but NaN times 0 is NaN.
            // SAFETY: the tail belongs to the map.
            unsafe { y.base.add(map.n * map.image()).write_bytes(0, super::map::TAIL) };
        }
    }
}
