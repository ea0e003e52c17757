//! The operations on real photographs. Decoders differ by a level or two, so the pixels that Pillow was given are the
//! engine's own: with `ENGINE_PHOTOGRAPHS=FILE` this test writes them there, and `make_golden.py --only photographs` reads them.

use super::super::record;
use super::hex;
use super::operations::Call;
use engine::data::augment::ops::Ops;
use engine::data::{EvalOptions, EvalTransform, Interpolation, Loader, Splits};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::PathBuf;

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

/// Pixels [n, 224, 224, 3]; `None` where the photographs are not there.
fn photographs() -> Option<Vec<u8>> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");
    let folder = std::env::var_os("ENGINE_TEST_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = folder.join("imagenet-sample-100.tar");
    if !path.exists() {
        println!("skipped: {} is not there (set ENGINE_TEST_DATA)", path.display());
        return None;
    }
    let split = Splits::open(&path).unwrap().splits.swap_remove(0).1;
    let transform = EvalTransform::new(SIDE, 0.875, Interpolation::Bilinear);
    let loader = Loader::eval(split, EvalOptions::new(transform, 10)).unwrap();
    Some(loader.flat_map(|batch| batch.unwrap().images).collect())
}

#[test]
fn operations_on_photographs_are_pillows() {
    let Some(pixels) = photographs() else { return };
    if let Some(path) = std::env::var_os("ENGINE_PHOTOGRAPHS") {
        std::fs::write(&path, &pixels).unwrap();
        println!("wrote {} photographs", pixels.len() / (SIDE * SIDE * 3));
        return;
    }
    let recorded: Recorded = record::read("photographs");
    if hex(Sha256::new().chain_update(&pixels)) != recorded.input {
        println!("skipped: the photographs decode to other pixels than were recorded (another decoder)");
        return;
    }
    let mut ops = Ops::default();
    let mut image = vec![0; SIDE * SIDE * 3];
    let mut wrong = vec![];
    for Operation { call, digest } in &recorded.operations {
        let mut total = Sha256::new();
        for photograph in pixels.chunks_exact(image.len()) {
            image.copy_from_slice(photograph);
            ops.apply(&call.operation(SIDE, SIDE), SIDE, SIDE, &mut image);
            total.update(&image);
        }
        if &hex(total) != digest {
            wrong.push(format!("{call:?}"));
        }
    }
    let count = recorded.operations.len();
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("\n{count} operations on {} photographs, all equal to Pillow's", recorded.count);
}
