//! Augmentations against what Pillow, torchvision and timm made of the same pictures and draws (`augment.json`), and of
//! photographs where they are (`photographs.json`).

mod operations;
mod photographs;
mod policies;
mod repeats;

use super::formula;
use sha2::{Digest, Sha256};

/// How `augment.json` names a picture: height, width, kind.
type Named = (usize, usize, String);

/// `picture` of tests/golden/augment.py.
fn picture((height, width, kind): &Named) -> Vec<u8> {
    let mut pixels = formula::picture(&format!("augment.{height}x{width}"), *height, *width);
    for pixel in pixels.chunks_exact_mut(3) {
        for (c, value) in pixel.iter_mut().enumerate() {
            match kind.as_str() {
                "full" => {}
                "dull" => *value = *value / [2, 3, 4][c] + [20, 60, 90][c],
                "flat" => *value = [10, 128, 250][c],
                kind => panic!("no kind {kind}"),
            }
        }
    }
    pixels
}

fn digest(bytes: &[u8]) -> String {
    hex(Sha256::new().chain_update(bytes))
}

/// The first twelve digits.
fn hex(hash: Sha256) -> String {
    hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}
