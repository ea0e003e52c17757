//! u8 pixels to normalised f32, erased and mixed, in the order of [`Blend`].

use super::Cpu;
use super::memory::Buffer;
use crate::backend::{MEAN, STD};
use crate::data::batch::mix_bytes;
use crate::data::batch::noise;
use crate::data::{Batch, Blend, Erase, Fill, Mix};
use crate::rng::nth;

/// What a pass begins with: images [n, resolution, resolution, 3], each as the batch says. `mixed` is room for as many values.
pub fn load(cpu: Cpu, batch: &Batch, x: &mut [f32], mixed: impl FnOnce() -> Buffer) -> Option<Buffer> {
    let mixes = !batch.mixes.is_empty();
    match batch.blend {
        Blend::Bytes if mixes => normalise(cpu, &mixed_bytes(cpu, batch), x),
        _ => normalise(cpu, &batch.images, x),
    }
    if !batch.erased.is_empty() {
        erase(cpu, batch, x);
    }
    (mixes && batch.blend == Blend::Values).then(|| {
        let mut y = mixed();
        mix(cpu, batch, x, &mut y);
        y
    })
}

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

/// Paints over what `batch.erased` names, in normalised images `x` [n, resolution, resolution, 3].
pub fn erase(cpu: Cpu, batch: &Batch, x: &mut [f32]) {
    let side = batch.resolution;
    let items: Vec<_> = x.chunks_mut(side * side * 3).zip(&batch.erased).collect();
    cpu.pool.for_each(items, |(image, erase)| {
        let Some(Erase { rect, fill }) = *erase else { return };
        for row in rect.top..rect.top + rect.height {
            for column in rect.left..rect.left + rect.width {
                for c in 0..3 {
                    let element = (row * side + column) * 3 + c;
                    image[element] = match fill {
                        Fill::Colour(colour) => colour[c],
                        Fill::Noise(key) => noise(nth(key, element as u64)),
                    };
                }
            }
        }
    });
}

/// The bytes of images mixed as `batch.mixes` says.
pub fn mixed_bytes(cpu: Cpu, batch: &Batch) -> Vec<u8> {
    let side = batch.resolution;
    let stride = side * side * 3;
    let mut y = batch.images.clone();
    let items: Vec<_> = y.chunks_mut(stride).zip(&batch.mixes).collect();
    cpu.pool.for_each(items, |(to, mix)| {
        let Mix { partner, lambda, region } = *mix;
        let other = &batch.images[partner as usize * stride..][..stride];
        match region {
            // What is whole needs no arithmetic.
            None if lambda == 1.0 => (),
            None => to.iter_mut().zip(other).for_each(|(to, &other)| *to = mix_bytes(lambda, *to, other)),
            Some(rect) => {
                for row in rect.top..rect.top + rect.height {
                    let place = (row * side + rect.left) * 3..(row * side + rect.left + rect.width) * 3;
                    to[place.clone()].copy_from_slice(&other[place]);
                }
            }
        }
    });
    y
}

/// Images as `batch.mixes` says, from erased ones. Both [n, resolution, resolution, 3].
pub fn mix(cpu: Cpu, batch: &Batch, from: &[f32], y: &mut [f32]) {
    let side = batch.resolution;
    let stride = side * side * 3;
    let items: Vec<_> = y.chunks_mut(stride).zip(from.chunks(stride)).zip(&batch.mixes).collect();
    cpu.pool.for_each(items, |((to, own), mix)| {
        let Mix { partner, lambda, region } = *mix;
        let other = &from[partner as usize * stride..][..stride];
        let Some(rect) = region else {
            let pixels = to.iter_mut().zip(own).zip(other);
            pixels.for_each(|((to, own), other)| *to = lambda * own + (1.0 - lambda) * other);
            return;
        };
        to.copy_from_slice(own);
        for row in rect.top..rect.top + rect.height {
            let place = (row * side + rect.left) * 3..(row * side + rect.left + rect.width) * 3;
            to[place.clone()].copy_from_slice(&other[place]);
        }
    });
}
