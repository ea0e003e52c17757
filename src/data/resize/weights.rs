//! Which pixels of an axis count for each new one, and how much (Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc`).

use super::Interpolation;

/// Fractional bits of a weight: 32, less 8 for the pixel and 2 for overshoot.
pub(super) const PRECISION: u32 = 32 - 8 - 2;

/// Fractional bits of the lower half of a split weight: it stays a positive i16.
pub(super) const LOW_BITS: u32 = 15;

/// Two neighbouring weights, split so that 16-bit multiplications are exact: weight = high * 2^15 + low. Each half holds
/// the first weight in its lower 16 bits and the second in its upper ones.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pair {
    pub low: i32,
    pub high: i32,
}

/// Four neighbouring weights as three signed bytes each: weight = d0 + 2^8 d1 + 2^16 d2. A word holds one of these bytes of
/// all four, the first weight's lowest.
pub(super) type Quad = [i32; 3];

/// One axis. The vectors keep their memory from one picture to the next.
#[derive(Default)]
pub(super) struct Weights {
    /// First pixel, and how many count, of each new one.
    bounds: Vec<(u32, u32)>,
    /// [new length, taps], zeros behind those that count.
    values: Vec<i32>,
    /// [new length, taps / 2].
    pairs: Vec<Pair>,
    /// [new length, taps / 4].
    quads: Vec<Quad>,
    /// The largest count, rounded up to a multiple of four.
    taps: usize,
    scratch: Vec<f64>,
}

impl Weights {
    /// New pixels.
    pub fn len(&self) -> usize {
        self.bounds.len()
    }

    /// The first old pixel of a new one, and the weights from there on.
    pub fn of(&self, new: usize) -> (usize, &[i32]) {
        let (first, count) = self.bounds[new];
        (first as usize, &self.values[new * self.taps..][..count as usize])
    }

    /// The same in pairs, `taps / 2` of them; those behind the last that counts are zero.
    pub fn pairs_of(&self, new: usize) -> (usize, &[Pair]) {
        (self.bounds[new].0 as usize, &self.pairs[new * self.taps / 2..][..self.taps / 2])
    }

    /// The same in fours, `taps / 4` of them.
    pub fn quads_of(&self, new: usize) -> (usize, &[Quad]) {
        (self.bounds[new].0 as usize, &self.quads[new * self.taps / 4..][..self.taps / 4])
    }

    /// How many pixels count for a new one.
    pub fn count(&self, new: usize) -> usize {
        self.bounds[new].1 as usize
    }

    pub fn fill(&mut self, old_len: usize, new_len: usize, interpolation: Interpolation) {
        let (support, filter): (f64, fn(f64) -> f64) = match interpolation {
            Interpolation::Bilinear => (1.0, triangle),
            Interpolation::Bicubic => (2.0, catmull_rom),
        };
        let scale = old_len as f64 / new_len as f64;
        let filter_scale = scale.max(1.0);
        let support = support * filter_scale;
        let inverse = 1.0 / filter_scale;
        let bounds = |new: usize| {
            let centre = (new as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0) as u32;
            let end = ((centre + support + 0.5) as i64).min(old_len as i64) as u32;
            (first, end - first)
        };
        self.bounds.clear();
        self.bounds.extend((0..new_len).map(bounds));
        let most = self.bounds.iter().map(|bound| bound.1).max().unwrap_or(0);
        self.taps = (most as usize).next_multiple_of(4);
        self.values.clear();
        self.pairs.clear();
        self.quads.clear();
        for (new, &(first, count)) in self.bounds.iter().enumerate() {
            let centre = (new as f64 + 0.5) * scale;
            self.scratch.clear();
            self.scratch.extend((0..count).map(|k| filter((f64::from(k + first) - centre + 0.5) * inverse)));
            let total: f64 = self.scratch.iter().sum();
            let begin = self.values.len();
            self.values.extend(self.scratch.iter().map(|weight| fixed(weight / total)));
            self.values.resize(begin + self.taps, 0);
            self.pairs.extend(self.values[begin..].chunks_exact(2).map(|two| split(two[0], two[1])));
            self.quads.extend(self.values[begin..].chunks_exact(4).map(digits));
        }
    }
}

fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn split(first: i32, second: i32) -> Pair {
    let mask = (1 << LOW_BITS) - 1;
    let both = |a: i32, b: i32| (a & 0xffff) | (b << 16);
    Pair { low: both(first & mask, second & mask), high: both(first >> LOW_BITS, second >> LOW_BITS) }
}

fn digits(four: &[i32]) -> Quad {
    let mut quad = [0; 3];
    for (i, &weight) in four.iter().enumerate() {
        let mut rest = weight;
        for word in &mut quad {
            let digit = rest as i8;
            *word |= i32::from(digit as u8) << (8 * i);
            rest = (rest - i32::from(digit)) >> 8;
        }
        debug_assert_eq!(rest, 0, "a weight is at most 2^22 and what bicubic overshoots");
    }
    quad
}

fn triangle(x: f64) -> f64 {
    (1.0 - x.abs()).max(0.0)
}

fn catmull_rom(x: f64) -> f64 {
    const A: f64 = -0.5;
    match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}
