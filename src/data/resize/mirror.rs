//! The horizontal flip.

/// Mirrors each row of `pixels` [_, width, 3].
pub(crate) fn mirror(pixels: &mut [u8], width: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("ssse3") {
        for row in pixels.chunks_exact_mut(width * 3) {
            // SAFETY: the instructions were detected.
            unsafe { mirror_row(row) };
        }
        return;
    }
    for row in pixels.chunks_exact_mut(width * 3) {
        bytemuck::cast_slice_mut::<u8, [u8; 3]>(row).reverse();
    }
}

/// Five pixels from either end change places, as long as the two fives and the byte beside each do not meet; what is left
/// in the middle is turned pixel by pixel.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "ssse3")]
fn mirror_row(row: &mut [u8]) {
    use std::arch::x86_64::*;
    // Bytes 0 to 14 are five pixels, whose order turns; byte 15 is a neighbour's and stays.
    let from_left = _mm_setr_epi8(12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, 15);
    // Bytes 1 to 15 are.
    let from_right = _mm_setr_epi8(0, 13, 14, 15, 10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3);
    let (mut left, mut right) = (0, row.len());
    while right - left >= 32 {
        // SAFETY: 16 bytes from `left` and 16 before `right` are in the row and do not overlap.
        unsafe {
            let (low, high) = (row.as_mut_ptr().add(left), row.as_mut_ptr().add(right - 16));
            let (a, b) = (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast()));
            let (a_turned, b_turned) = (_mm_shuffle_epi8(a, from_left), _mm_shuffle_epi8(b, from_right));
            // a's pixels go to bytes 1 to 15 on the right, b's to 0 to 14 on the left; the byte beside each is its own.
            let first = _mm_setr_epi8(-1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
            let last = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1);
            let to_right = _mm_or_si128(_mm_slli_si128::<1>(a_turned), _mm_and_si128(b, first));
            let to_left = _mm_or_si128(_mm_srli_si128::<1>(b_turned), _mm_and_si128(a, last));
            _mm_storeu_si128(low.cast(), to_left);
            _mm_storeu_si128(high.cast(), to_right);
        }
        left += 15;
        right -= 15;
    }
    bytemuck::cast_slice_mut::<u8, [u8; 3]>(&mut row[left..right]).reverse();
}
