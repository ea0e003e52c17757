//! The resize beside Pillow's own output.

use super::super::decode::{Rect, Region};
use super::super::resize::{Interpolation, Resizer, mirror};
use sha2::{Digest, Sha256};

/// Noise, in which a wrong weight or a wrong rounding shows at once: [height, width, 3].
fn noise(height: usize, width: usize) -> Vec<u8> {
    let mut state: u64 = 1;
    let mut next = || {
        state = (state * 1_103_515_245 + 12_345) % (1 << 31);
        (state >> 16) as u8
    };
    (0..height * width * 3).map(|_| next()).collect()
}

/// SHA-256, first eight bytes, of what Pillow 12.1.1 makes of four crops of the noise: `crop(box).resize((w, h), filter)`,
/// one after the other.
const PILLOW: [((usize, usize), &str, &str); 6] = [
    // (height, width), bilinear, bicubic
    ((32, 32), "7f218b6b349a0d95", "c3e268cd12dcfea1"),
    ((64, 50), "a40f1cd28224ea40", "d76b3f3c255892ff"),
    ((40, 90), "c2a3542aada19db3", "beac6890c272f675"),
    ((120, 160), "5a6629eaa8eb520d", "1d258627727f7fe7"),
    ((97, 131), "b82d49d2d16e5fd0", "8a012c012fd04267"),
    ((5, 97), "55a068c402a8101e", "be9e75cbad0ef57b"),
];

#[test]
fn every_byte_is_pillows() {
    let (height, width) = (97, 131);
    let pixels = noise(height, width);
    let rects = [
        Rect::whole(height, width),
        Rect { top: 11, left: 17, height: 64, width: 50 },
        Rect { top: 90, left: 120, height: 5, width: 9 },
        Rect { top: 3, left: 0, height: 1, width: 131 },
    ];
    // Each for all: what an earlier picture left in the buffers must not count.
    for mut resizer in Resizer::all() {
        for ((h, w), bilinear, bicubic) in PILLOW {
            for (interpolation, want) in
                [(Interpolation::Bilinear, bilinear), (Interpolation::Bicubic, bicubic)]
            {
                let mut hash = Sha256::new();
                for rect in rects {
                    let mut out = vec![0; h * w * 3];
                    let region = Region { pixels: &pixels, height, width, rect };
                    resizer.resize(region, interpolation, h, w, &mut out).unwrap();
                    hash.update(&out);
                }
                let got: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(got, want, "{interpolation:?} to {h} x {w}");
            }
        }
    }
}

#[test]
fn a_rectangle_outside_the_picture_is_refused() {
    let pixels = noise(4, 4);
    let region =
        Region { pixels: &pixels, height: 4, width: 4, rect: Rect { top: 1, left: 0, height: 4, width: 4 } };
    let error = Resizer::default().resize(region, Interpolation::Bilinear, 2, 2, &mut [0; 12]).unwrap_err();
    assert!(error.contains("of a picture of 4 x 4 pixels to 2 x 2"), "{error}");
}

#[test]
fn mirrored_rows_read_backwards() {
    for width in 1..80 {
        let pixels = noise(3, width);
        let mut got = pixels.clone();
        mirror(&mut got, width);
        let row = |row: &[u8]| row.chunks_exact(3).rev().flatten().copied().collect::<Vec<u8>>();
        let want: Vec<u8> = pixels.chunks_exact(width * 3).flat_map(row).collect();
        assert!(got == want, "{width} pixels a row");
    }
}
