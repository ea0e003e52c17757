//! u8 pixels to normalised f32, and what is painted over there.

use super::Cpu;
use crate::backend::{MEAN, STD};
use crate::data::batch::noise;
use crate::data::{Erase, Fill};
use crate::rng::nth;

/// y = (x / 255 - mean) / std. `x` and `y` NHWC with three channels.
pub fn normalise(cpu: Cpu, x: &[u8], y: &mut [f32]) {
    const CHUNK: usize = 3 * 16384;
    // All 256 values of a channel, in the operations' order of torchvision's ToTensor and Normalize.
    let table: [[f32; 256]; 3] =
        std::array::from_fn(|c| std::array::from_fn(|value| (value as f32 / 255.0 - MEAN[c]) / STD[c]));
    let items = y.chunks_mut(CHUNK).zip(x.chunks(CHUNK)).collect();
    cpu.pool.for_each(items, |(y, x)| {
        for (y, x) in y.chunks_exact_mut(3).zip(x.chunks_exact(3)) {
            for c in 0..3 {
                y[c] = table[c][usize::from(x[c])];
            }
        }
    });
}

/// Random erasing: paints each image's rectangle. `y` NHWC with three channels, normalised, `resolution` a side; `erased` has
/// an entry an image, or none at all.
pub fn erase(erased: &[Option<Erase>], resolution: usize, y: &mut [f32]) {
    let images = y.chunks_exact_mut(resolution * resolution * 3);
    for (image, Erase { rect, fill }) in images.zip(erased).filter_map(|(y, erase)| Some((y, (*erase)?))) {
        for row in rect.top..rect.top + rect.height {
            let first = (row * resolution + rect.left) * 3;
            let pixels = image[first..first + 3 * rect.width].chunks_exact_mut(3);
            match fill {
                Fill::Colour(colour) => pixels.for_each(|pixel| pixel.copy_from_slice(&colour)),
                Fill::Noise(key) => {
                    let values = pixels.flatten().zip(first as u64..);
                    values.for_each(|(value, element)| *value = noise(nth(key, element)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Rect;

    #[test]
    fn rectangles_and_nothing_else_are_painted() {
        let rect = Rect { top: 1, left: 2, height: 3, width: 2 };
        let (colour, key, side) = ([0.5, -1.0, 0.0], 77, 6);
        let erased = [
            None,
            Some(Erase { rect, fill: Fill::Colour(colour) }),
            Some(Erase { rect, fill: Fill::Noise(key) }),
        ];
        let mut y = vec![9.0; 3 * side * side * 3];
        erase(&erased, side, &mut y);
        for (i, &value) in y.iter().enumerate() {
            let (image, element) = (i / (side * side * 3), i % (side * side * 3));
            let (row, column, channel) = (element / 3 / side, element / 3 % side, element % 3);
            let inside = (1..4).contains(&row) && (2..4).contains(&column);
            let want = match (image, inside) {
                (1, true) => colour[channel],
                (2, true) => noise(nth(key, element as u64)),
                _ => 9.0,
            };
            assert_eq!(value, want, "image {image}, row {row}, column {column}, channel {channel}");
        }
        erase(&[], side, &mut y);
    }
}
