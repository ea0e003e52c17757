//! What changes each value by itself: a comparison, a mask, or a table made from the picture's histogram.

use crate::simd::dispatch::multiversion;

/// What each of the 256 values of a channel becomes.
pub type Table = [u8; 256];

multiversion! {
    /// `ImageOps.invert`.
    pub fn invert(pixels: &mut [u8]) {
        pixels.iter_mut().for_each(|x| *x = 255 - *x);
    }
}

multiversion! {
    /// `ImageOps.posterize`, by the mask of the bits that stay.
    pub fn keep(mask: u8, pixels: &mut [u8]) {
        pixels.iter_mut().for_each(|x| *x &= mask);
    }
}

multiversion! {
    /// `ImageOps.solarize`: inverts values from `threshold` (0 to 256) on.
    pub fn solarize(threshold: u16, pixels: &mut [u8]) {
        pixels.iter_mut().for_each(|x| *x = if u16::from(*x) < threshold { *x } else { 255 - *x });
    }
}

multiversion! {
    /// timm's `solarize_add`: adds to values below 128, up to 255.
    pub fn solarize_add(add: u8, pixels: &mut [u8]) {
        pixels.iter_mut().for_each(|x| *x = if *x < 128 { x.saturating_add(add) } else { *x });
    }
}

/// Its mask: the highest `bits` of eight. With 0 the picture turns black, as it did before Pillow refused that.
pub fn posterize_mask(bits: u32) -> u8 {
    !(255u32 >> bits.min(8)) as u8
}

/// How often each value occurs in each channel of `pixels` [_, 3].
pub fn histograms(pixels: &[u8]) -> [[u32; 256]; 3] {
    // Neighbours are often equal; counting them in two sets spares each the wait for the other's store.
    let mut sets = [[[0u32; 256]; 3]; 2];
    let mut pairs = pixels.chunks_exact(6);
    for pair in &mut pairs {
        for (i, &value) in pair.iter().enumerate() {
            sets[i / 3][i % 3][usize::from(value)] += 1;
        }
    }
    for (channel, &value) in pairs.remainder().iter().enumerate() {
        sets[0][channel][usize::from(value)] += 1;
    }
    let [mut sums, others] = sets;
    sums.as_flattened_mut().iter_mut().zip(others.as_flattened()).for_each(|(sum, other)| *sum += other);
    sums
}

/// Each channel's own table.
pub fn look_up(tables: &[Table; 3], pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(3) {
        for (value, table) in pixel.iter_mut().zip(tables) {
            *value = table[usize::from(*value)];
        }
    }
}

fn identity() -> Table {
    std::array::from_fn(|value| value as u8)
}

/// `ImageOps.autocontrast` without cutoff: the darkest value becomes 0, the lightest 255.
pub fn autocontrast_table(histogram: &[u32; 256]) -> Table {
    let low = histogram.iter().position(|&count| count > 0).unwrap_or(0);
    let high = histogram.iter().rposition(|&count| count > 0).unwrap_or(0);
    if high <= low {
        return identity();
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    // The cast cuts off towards zero and stops at 0 and 255, as Pillow's `int` and comparisons do.
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
}

/// `ImageOps.equalize`.
pub fn equalize_table(histogram: &[u32; 256]) -> Table {
    let used = histogram.iter().filter(|&&count| count > 0).count();
    let last = histogram.iter().rfind(|&&count| count > 0).copied().unwrap_or(0);
    let step = (histogram.iter().sum::<u32>() - last) / 255;
    if used <= 1 || step == 0 {
        return identity();
    }
    let mut sum = step / 2;
    std::array::from_fn(|value| {
        let level = sum / step;
        sum += histogram[value];
        // Pillow clips a table's entries when it applies them.
        level.min(255) as u8
    })
}
