//! The 8-bit weights that AVX2 multiplies fast.
//!
//! `vpmaddubsw` multiplies unsigned activations with signed weights and sums the products in pairs to 16 bits, where they
//! saturate. The kernels add the pairs of two units, four products in all, before they widen: no sum leaves 16 bits,
//! whatever the activations, if the positive weights of such a quad sum to 128 at most, and so do the negative ones, for
//! 255 x 128 = 32640. Quantisation keeps to that (`export/cpu/quantise`); other weights are exact too, but slower.

use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;

/// What weights of one sign within a quad sum to at most.
pub const MOST: i32 = 128;

/// Weights of a filter row, [s][c] in order, that two units hold: a quad is those at 0, 1, 4, 5, another those at 2, 3, 6, 7.
pub const BLOCK: usize = 8;
pub const QUADS: [[usize; 4]; 2] = [[0, 1, 4, 5], [2, 3, 6, 7]];

/// Whether all quads of `weight` i8 [..][row] are within [`MOST`]. Each row's last block ends in zeros.
pub fn hold(isa: Isa, weight: &[i8], row: usize) -> bool {
    let mut excess = 0;
    if row.is_multiple_of(BLOCK) {
        add_excess(isa, weight, &mut excess);
    } else {
        weight.chunks_exact(row).for_each(|row| add_excess(isa, row, &mut excess));
    }
    excess == 0
}

/// `real` [row] -> the nearest levels within -127..=127 whose quads hold: while a sum is too large, one level off the
/// weight that is rounded up the most. Least squares, for each level costs a weight more than the one before it did.
pub fn round(real: &[f32], levels: &mut [i8]) {
    assert_eq!(real.len(), levels.len(), "weights of a filter row");
    for (real, levels) in real.chunks(BLOCK).zip(levels.chunks_mut(BLOCK)) {
        for (level, real) in levels.iter_mut().zip(real) {
            *level = real.round_ties_even().clamp(-127.0, 127.0) as i8;
        }
        for quad in &QUADS {
            for sign in [1, -1] {
                shrink(real, levels, quad, sign);
            }
        }
    }
}

fn shrink(real: &[f32], levels: &mut [i8], quad: &[usize; 4], sign: i8) {
    let size = |levels: &[i8], at: usize| levels.get(at).map_or(0, |level| i32::from(sign * level).max(0));
    let mut excess = quad.iter().map(|&at| size(levels, at)).sum::<i32>() - MOST;
    while excess > 0 {
        let up = |at: usize| f32::from(sign) * (f32::from(levels[at]) - real[at]);
        let candidates = quad.iter().copied().filter(|&at| size(levels, at) > 0);
        let most = candidates.max_by(|&a, &b| up(a).total_cmp(&up(b))).expect("a positive sum has a term");
        levels[most] -= sign;
        excess -= 1;
    }
}

/// The highest bit of each 16.
const HIGH: u64 = 0x8000_8000_8000_8000;
const BYTES: u64 = 0x00ff_00ff_00ff_00ff;
const SIGNS: u64 = 0x8080_8080_8080_8080;
/// What makes a sum above `MOST` reach the highest bit of 16.
const ROOM: u64 = (0x7fff - MOST as u64) * 0x0001_0001_0001_0001;

multiversion! {
    /// Not zero after a quad beyond `MOST`: eight weights at a time in a u64.
    fn add_excess(weight: &[i8], excess: &mut u64) {
        let (blocks, rest) = weight.as_chunks::<BLOCK>();
        let mut last = [0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        let mut found = 0;
        for block in blocks.iter().chain([&last]) {
            let bytes = u64::from_le_bytes(block.map(|w| w as u8));
            let signs = bytes & SIGNS;
            let negative = (signs - (signs >> 7)) | signs;
            // Of the negative ones the magnitude: the complement and one.
            for sizes in [bytes & !negative, (!bytes & negative) + (signs >> 7)] {
                let pairs = (sizes & BYTES) + ((sizes >> 8) & BYTES);
                let quads = (pairs & 0xffff_ffff) + (pairs >> 32);
                found |= (quads + ROOM) & HIGH;
            }
        }
        *excess |= found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition.
    fn plain(weight: &[i8], row: usize) -> bool {
        weight.chunks(row).flat_map(|row| row.chunks(BLOCK)).all(|block| {
            QUADS.iter().all(|quad| {
                let of = |sign: i32| -> i32 {
                    quad.iter().filter_map(|&at| block.get(at)).map(|&w| (sign * i32::from(w)).max(0)).sum()
                };
                of(1) <= MOST && of(-1) <= MOST
            })
        })
    }

    proptest! {
        #[test]
        fn it_is_what_the_definition_says(
            weight in proptest::collection::vec(-60i8..=60, 1..200),
            row in 1usize..40,
            large in any::<i8>(),
        ) {
            let mut weight = weight;
            weight.resize(weight.len().next_multiple_of(row), large);
            for isa in Isa::available() {
                prop_assert_eq!(hold(isa, &weight, row), plain(&weight, row), "{} {:?}", isa.name(), weight);
            }
        }
    }

    proptest! {
        /// Against all quads in reach: the levels hold, and none that hold are nearer.
        #[test]
        fn levels_are_the_nearest_that_hold(real in proptest::collection::vec(-130f32..130.0, 4)) {
            let mut row = [0.0; BLOCK];
            QUADS[1].iter().zip(&real).for_each(|(&at, &real)| row[at] = real);
            let mut levels = [0; BLOCK];
            round(&row, &mut levels);
            prop_assert!(hold(Isa::PORTABLE, &levels, BLOCK), "{levels:?}");
            let error = |levels: &[i8; BLOCK]| -> f64 {
                row.iter().zip(levels).map(|(r, l)| f64::from(r - f32::from(*l)).powi(2)).sum()
            };
            // A better one would be reached by one exchange of levels between two weights, or by one level more.
            let best = error(&levels);
            for (a, b) in QUADS[1].iter().flat_map(|&a| QUADS[1].iter().map(move |&b| (a, b))) {
                for (up, down) in [(1, 0), (0, 1), (1, 1), (-1, 1), (1, -1)] {
                    let mut other = levels;
                    other[a] = (i16::from(other[a]) + up).clamp(-127, 127) as i8;
                    other[b] = (i16::from(other[b]) - down).clamp(-127, 127) as i8;
                    let nearer = error(&other) < best - 1e-3;
                    prop_assert!(!(nearer && hold(Isa::PORTABLE, &other, BLOCK)), "{row:?}: {other:?} not {levels:?}");
                }
            }
        }
    }

    #[test]
    fn the_largest_sums_stay_within_16_bits() {
        assert!(255 * MOST <= i32::from(i16::MAX));
        for (at, isa) in
            QUADS.as_flattened().iter().flat_map(|at| Isa::available().into_iter().map(move |isa| (at, isa)))
        {
            let with = |value: i8| {
                let mut weight = [0; 16];
                weight[8 + at] = value;
                weight
            };
            assert!(hold(isa, &with(-128), 16) && hold(isa, &with(127), 16));
            let quad = QUADS.iter().find(|quad| quad.contains(at)).expect("every place is in a quad");
            for other in quad.iter().filter(|other| *other != at) {
                let mut weight = with(127);
                weight[8 + other] = 1;
                assert!(hold(isa, &weight, 16), "127 + 1");
                weight[8 + other] = 2;
                assert!(!hold(isa, &weight, 16), "127 + 2");
                weight[8 + other] = -128;
                assert!(hold(isa, &weight, 16), "127 and -128");
                weight[8 + at] = -1;
                assert!(!hold(isa, &weight, 16), "-128 and -1");
            }
        }
    }
}
