//! The operations on real photographs. Decoders differ by a level or two, so the pixels that Pillow was given are the
//! engine's own: with `ENGINE_PHOTOGRAPHS=FILE` this test writes them there, and `make_golden.py --only photographs` reads them.

use super::super::record;
use super::hex;
use super::operations::Call;
use engine::data::augment::ops::Ops;
use engine::data::{Image, JPEG_DECODER, Limits, Splits, decode};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

/// At most, in pixels, from the middle.
const SIDE: usize = 224;

#[derive(Deserialize)]
struct Recorded {
    count: usize,
    input: String,
    operations: Vec<Operation>,
}

#[derive(Deserialize)]
struct Operation {
    #[serde(flatten)]
    call: Call,
    digest: String,
}

/// The middles of the photographs; `None` where they are not there.
fn photographs() -> Option<Vec<Image>> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");
    let folder = std::env::var_os("ENGINE_TEST_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = folder.join("imagenet-sample-100.tar");
    if !path.exists() {
        println!("skipped: {} is not there (set ENGINE_TEST_DATA)", path.display());
        return None;
    }
    let split = Splits::open(&path).unwrap().splits.swap_remove(0).1;
    let middle = |index| {
        let bytes = split.read(index).unwrap();
        let whole = decode(&bytes, &split.name(index), Limits::default()).unwrap();
        let (height, width) = (whole.height.min(SIDE), whole.width.min(SIDE));
        let (top, left) = ((whole.height - height) / 2, (whole.width - width) / 2);
        let rows = (top..top + height).map(|y| &whole.pixels[(y * whole.width + left) * 3..][..width * 3]);
        let pixels = rows.flatten().copied().collect();
        Image { width, height, pixels }
    };
    Some((0..split.len()).map(middle).collect())
}

/// Of each its height and width, u32, and its pixels.
fn bytes(photographs: &[Image]) -> Vec<u8> {
    let mut bytes = vec![];
    for Image { height, width, pixels } in photographs {
        bytes.extend((*height as u32).to_le_bytes());
        bytes.extend((*width as u32).to_le_bytes());
        bytes.extend(pixels);
    }
    bytes
}

#[test]
fn operations_on_photographs_are_pillows() {
    let Some(photographs) = photographs() else { return };
    let bytes = bytes(&photographs);
    if let Some(path) = std::env::var_os("ENGINE_PHOTOGRAPHS") {
        std::fs::write(&path, &bytes).unwrap();
        println!("wrote {} photographs", photographs.len());
        return;
    }
    let recorded: Recorded = record::read("photographs");
    if hex(Sha256::new().chain_update(&bytes)) != recorded.input {
        println!("skipped: the photographs decode to other pixels than were recorded ({JPEG_DECODER})");
        return;
    }
    let mut ops = Ops::default();
    let mut wrong = vec![];
    for Operation { call, digest } in &recorded.operations {
        let mut total = Sha256::new();
        for Image { height, width, pixels } in &photographs {
            let mut pixels = pixels.clone();
            ops.apply(&call.operation(*height, *width), *height, *width, &mut pixels);
            total.update(&pixels);
        }
        if &hex(total) != digest {
            wrong.push(format!("{call:?}"));
        }
    }
    let count = recorded.operations.len();
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("\n{count} operations on {} photographs, all equal to Pillow's", recorded.count);
}
