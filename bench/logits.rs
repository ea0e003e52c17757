//! What compiled programs make of pixels, for `bench/peers/logits.py` to compare.
//!
//!     cargo run --release --example logits -- MODEL PIXELS RESOLUTION OUTPUT
//!
//! PIXELS: u8 [n, RESOLUTION, RESOLUTION, 3]. Into the folder OUTPUT go fp32-direct.f32, fp32.f32, and bf16.f32 and
//! int8.f32 where machine and model have them: f32 [n, classes], little-endian.

use engine::error::{Error, Result};
use engine::infer::file::ModelFile;
use engine::infer::{Options, Precision, Program};
use engine::model::graph::lower;
use engine::simd::isa::Isa;
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, pixels, resolution, output] = &args[..] else {
        return Err(Error::usage("expected MODEL PIXELS RESOLUTION OUTPUT"));
    };
    let file = ModelFile::open(Path::new(model))?;
    let resolution = resolution.parse().map_err(|_| Error::usage("RESOLUTION is a number of pixels"))?;
    let graph = lower(&file.graph().spec, resolution)?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| Error::failed(format!("{what}: {error}"))
    };
    let images = std::fs::read(pixels).map_err(failed(pixels))?;
    let description = file.description();
    let variants = [
        ("fp32-direct", Precision::Fp32, true),
        ("fp32", Precision::Fp32, false),
        ("bf16", Precision::Bf16, false),
        ("int8", Precision::Int8, false),
    ];
    for (name, precision, direct) in variants {
        let is_there = match precision {
            Precision::Fp32 => true,
            Precision::Bf16 => Isa::current().has_bf16(),
            Precision::Int8 => file.has_int8(),
        };
        if !is_there {
            continue;
        }
        let options = Options { direct, ..Options::new(precision, description.mean, description.std) };
        let mut program = Program::compile(&graph, &file, &options)?;
        let mut bytes = vec![];
        for image in images.chunks_exact(resolution * resolution * 3) {
            bytes.extend(program.run(image)?.iter().flat_map(|logit| logit.to_le_bytes()));
        }
        let path = format!("{output}/{name}.f32");
        std::fs::write(&path, bytes).map_err(failed(&path))?;
    }
    Ok(())
}
