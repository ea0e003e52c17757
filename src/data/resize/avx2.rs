//! Both passes with AVX2: pixels widened to 16 bits, two of them multiplied by a pair of half weights and added in one
//! instruction, for the lower and the upper half; the halves meet at the end. All sums wrap in 32 bits, where the final
//! one fits, so the result is that of the plain loop.

use super::weights::{LOW_BITS, PRECISION, Weights};
use super::{SLACK, Source};
use std::arch::x86_64::*;

/// sum = low + high * 2^15 + 1/2, without its fraction.
#[inline]
#[target_feature(enable = "avx2")]
fn join(low: __m256i, high: __m256i) -> __m256i {
    let half = _mm256_set1_epi32(1 << (PRECISION - 1));
    let sum = _mm256_add_epi32(low, _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high));
    _mm256_srai_epi32::<{ PRECISION as i32 }>(_mm256_add_epi32(sum, half))
}

/// The pass along the rows, two rows at a time, one in each half of a register; returns how many rows are done. Rows
/// whose loads would leave `source.pixels` are left to the caller.
#[target_feature(enable = "avx2")]
pub(super) fn narrow(source: Source<'_>, weights: &Weights, out: &mut [u8], out_stride: usize) -> usize {
    const _: () = assert!(SLACK >= 16);
    let width = weights.len();
    assert!(
        out.len() >= source.height * out_stride + SLACK && out_stride >= width.next_multiple_of(4) * 3 + 4
    );
    let zero = _mm256_setzero_si256();
    // Of four pixels RGBRGBRGBRGB: the first two as R R G G B B - -, in 16 bits each, and the last two.
    let first_two =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    let last_two = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1,
    ));
    let drop_fourth =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    // Where the farthest load of a row ends.
    let reach =
        (0..width).map(|x| weights.pairs_of(x)).map(|(first, pairs)| first * 3 + pairs.len() / 2 * 12 + 4);
    let reach = reach.max().unwrap_or(0);
    let mut y = 0;
    while y + 2 <= source.height && (y + 1) * source.stride + reach <= source.pixels.len() {
        let rows = source.pixels[y * source.stride..].as_ptr();
        let mut x = 0;
        while x < width {
            let mut sums = [zero; 4];
            for (i, sum) in sums.iter_mut().enumerate() {
                let (first, pairs) = weights.pairs_of((x + i).min(width - 1));
                let (mut low, mut high) = (zero, zero);
                for (group, pairs) in pairs.chunks_exact(2).enumerate() {
                    // SAFETY: 16 bytes from here end within `reach` of the second row's beginning.
                    let pixels = unsafe {
                        let upper = rows.add((first + group * 4) * 3);
                        _mm256_loadu2_m128i(upper.add(source.stride).cast(), upper.cast())
                    };
                    for (pair, mask) in pairs.iter().zip([first_two, last_two]) {
                        let two = _mm256_shuffle_epi8(pixels, mask);
                        low = _mm256_add_epi32(low, _mm256_madd_epi16(two, _mm256_set1_epi32(pair.low)));
                        high = _mm256_add_epi32(high, _mm256_madd_epi16(two, _mm256_set1_epi32(pair.high)));
                    }
                }
                *sum = join(low, high);
            }
            let packed = _mm256_packus_epi16(
                _mm256_packs_epi32(sums[0], sums[1]),
                _mm256_packs_epi32(sums[2], sums[3]),
            );
            let four = _mm256_shuffle_epi8(packed, drop_fourth);
            // SAFETY: a row has room for its pixels rounded up to four, and four bytes more (asserted above).
            unsafe {
                let to = out.as_mut_ptr().add(y * out_stride + x * 3);
                _mm256_storeu2_m128i(to.add(out_stride).cast(), to.cast(), four);
            }
            x += 4;
        }
        y += 2;
    }
    y
}

/// Row `y` of the pass along the columns, into `out`; returns how many bytes are done.
#[target_feature(enable = "avx2")]
pub(super) fn shorten(source: Source<'_>, weights: &Weights, y: usize, out: &mut [u8]) -> usize {
    let (first, pairs) = weights.pairs_of(y);
    let count = weights.count(y);
    assert!(source.pixels.len() >= source.height * source.stride && first + count <= source.height);
    assert!(source.stride >= out.len());
    let zero = _mm256_setzero_si256();
    let mut at = 0;
    while at + 32 <= out.len() {
        let (mut low, mut high) = ([zero; 4], [zero; 4]);
        for (k, pair) in pairs[..count.div_ceil(2)].iter().enumerate() {
            let row = first + 2 * k;
            // The weight of a second row that does not count is zero.
            let second = (row + 1).min(first + count - 1);
            // SAFETY: both rows are inside the picture (asserted above), and a row has `out.len()` bytes.
            let (a, b) = unsafe {
                let load = |row: usize| {
                    _mm256_loadu_si256(source.pixels.as_ptr().add(row * source.stride + at).cast())
                };
                (load(row), load(second))
            };
            let (even, odd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let wide = [
                _mm256_unpacklo_epi8(even, zero),
                _mm256_unpackhi_epi8(even, zero),
                _mm256_unpacklo_epi8(odd, zero),
                _mm256_unpackhi_epi8(odd, zero),
            ];
            let (w_low, w_high) = (_mm256_set1_epi32(pair.low), _mm256_set1_epi32(pair.high));
            for i in 0..4 {
                low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(wide[i], w_low));
                high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(wide[i], w_high));
            }
        }
        let sums: [__m256i; 4] = std::array::from_fn(|i| join(low[i], high[i]));
        // Packing takes the unpacking back, half by half.
        let packed =
            _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
        // SAFETY: 32 bytes from `at` are inside `out`.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), packed) };
        at += 32;
    }
    at
}
