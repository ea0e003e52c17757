//! Both passes with AVX512-VNNI on 256-bit registers: four pixels multiplied by four bytes of weights and added in one
//! instruction. A weight is three signed bytes, so three sums meet at the end: d0 + 2^8 d1 + 2^16 d2. All sums wrap in 32
//! bits, where the final one fits, so the result is that of the plain loop.

use super::weights::{PRECISION, Weights};
use super::{SLACK, Source};
use std::arch::x86_64::*;

/// d0 + 2^8 d1 + 2^16 d2 + 1/2, without its fraction.
#[inline]
#[target_feature(enable = "avx2,avx512vl,avx512bw,avx512vnni")]
fn join(sums: [__m256i; 3]) -> __m256i {
    let half = _mm256_set1_epi32(1 << (PRECISION - 1));
    let upper = _mm256_add_epi32(_mm256_slli_epi32::<8>(sums[1]), _mm256_slli_epi32::<16>(sums[2]));
    _mm256_srai_epi32::<{ PRECISION as i32 }>(_mm256_add_epi32(_mm256_add_epi32(sums[0], upper), half))
}

/// Adds four pixels' products with four weights to the sums of their bytes.
#[inline]
#[target_feature(enable = "avx2,avx512vl,avx512bw,avx512vnni")]
fn add(sums: &mut [__m256i; 3], pixels: __m256i, digits: &[i32; 3]) {
    for (sum, &digit) in sums.iter_mut().zip(digits) {
        *sum = _mm256_dpbusd_epi32(*sum, pixels, _mm256_set1_epi32(digit));
    }
}

/// The pass along the rows, two rows at a time, one in each half of a register; returns how many rows are done. Rows
/// whose loads would leave `source.pixels` are left to the caller.
#[target_feature(enable = "avx2,avx512vl,avx512bw,avx512vnni")]
pub(super) fn narrow(source: Source<'_>, weights: &Weights, out: &mut [u8], out_stride: usize) -> usize {
    const _: () = assert!(SLACK >= 16);
    let width = weights.len();
    assert!(
        out.len() >= source.height * out_stride + SLACK && out_stride >= width.next_multiple_of(4) * 3 + 4
    );
    let zero = _mm256_setzero_si256();
    let both = |lane: __m128i| _mm256_broadcastsi128_si256(lane);
    // Of four pixels RGBRGBRGBRGB: R R R R G G G G B B B B - - - -.
    let by_colour = both(_mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1));
    let drop_fourth = both(_mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1));
    // Where the farthest load of a row ends.
    let reach =
        (0..width).map(|x| weights.quads_of(x)).map(|(first, quads)| first * 3 + quads.len() * 12 + 4);
    let reach = reach.max().unwrap_or(0);
    let mut y = 0;
    while y + 2 <= source.height && (y + 1) * source.stride + reach <= source.pixels.len() {
        let rows = source.pixels[y * source.stride..].as_ptr();
        let mut x = 0;
        while x < width {
            let mut four = [zero; 4];
            for (i, result) in four.iter_mut().enumerate() {
                let (first, quads) = weights.quads_of((x + i).min(width - 1));
                let mut sums = [zero; 3];
                for (group, digits) in quads.iter().enumerate() {
                    // SAFETY: 16 bytes from here end within `reach` of the second row's beginning.
                    let pixels = unsafe {
                        let upper = rows.add((first + group * 4) * 3);
                        _mm256_loadu2_m128i(upper.add(source.stride).cast(), upper.cast())
                    };
                    add(&mut sums, _mm256_shuffle_epi8(pixels, by_colour), digits);
                }
                *result = join(sums);
            }
            let packed = _mm256_packus_epi16(
                _mm256_packs_epi32(four[0], four[1]),
                _mm256_packs_epi32(four[2], four[3]),
            );
            let packed = _mm256_shuffle_epi8(packed, drop_fourth);
            // SAFETY: a row has room for its pixels rounded up to four, and four bytes more (asserted above).
            unsafe {
                let to = out.as_mut_ptr().add(y * out_stride + x * 3);
                _mm256_storeu2_m128i(to.add(out_stride).cast(), to.cast(), packed);
            }
            x += 4;
        }
        y += 2;
    }
    y
}

/// Row `y` of the pass along the columns, into `out`; returns how many bytes are done.
#[target_feature(enable = "avx2,avx512vl,avx512bw,avx512vnni")]
pub(super) fn shorten(source: Source<'_>, weights: &Weights, y: usize, out: &mut [u8]) -> usize {
    let (first, quads) = weights.quads_of(y);
    let count = weights.count(y);
    assert!(source.pixels.len() >= source.height * source.stride && first + count <= source.height);
    assert!(source.stride >= out.len());
    let zero = _mm256_setzero_si256();
    let mut at = 0;
    while at + 32 <= out.len() {
        let mut sums = [[zero; 3]; 4];
        for (k, digits) in quads[..count.div_ceil(4)].iter().enumerate() {
            // The weights of rows that do not count are zero.
            let row = |i: usize| (first + 4 * k + i).min(first + count - 1);
            // SAFETY: the rows are inside the picture (asserted above), and each has `out.len()` bytes.
            let [a, b, c, d] = [row(0), row(1), row(2), row(3)].map(|row| unsafe {
                _mm256_loadu_si256(source.pixels.as_ptr().add(row * source.stride + at).cast())
            });
            let (ab_low, ab_high) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
            let (cd_low, cd_high) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
            let pixels = [
                _mm256_unpacklo_epi16(ab_low, cd_low),
                _mm256_unpackhi_epi16(ab_low, cd_low),
                _mm256_unpacklo_epi16(ab_high, cd_high),
                _mm256_unpackhi_epi16(ab_high, cd_high),
            ];
            for (sums, pixels) in sums.iter_mut().zip(pixels) {
                add(sums, pixels, digits);
            }
        }
        let [a, b, c, d] = [join(sums[0]), join(sums[1]), join(sums[2]), join(sums[3])];
        // Packing takes the unpacking back, half by half.
        let packed = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        // SAFETY: 32 bytes from `at` are inside `out`.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(at).cast(), packed) };
        at += 32;
    }
    at
}
