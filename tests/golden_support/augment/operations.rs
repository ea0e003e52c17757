//! Every operation at every recorded magnitude.

use super::super::{formula, record};
use super::{Named, digest, picture};
use engine::data::augment::ops::affine::rotation;
use engine::data::augment::ops::{Op, Ops};
use engine::data::augment::{Sampling, timm, torchvision};
use engine::simd::isa::Isa;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    pictures: Vec<Named>,
    inputs: Vec<String>,
    operations: Vec<Operation>,
}

#[derive(Deserialize)]
struct Operation {
    #[serde(flatten)]
    call: Call,
    digests: Vec<String>,
    /// Of the first pictures.
    samples: Vec<Vec<u8>>,
}

/// An operation as `operations()` of tests/golden/augment.py names it.
#[derive(Deserialize, Debug)]
pub struct Call {
    op: String,
    argument: f64,
    sampling: String,
    fill: [u8; 3],
}

impl Call {
    pub fn operation(&self, height: usize, width: usize) -> Op {
        let sampling = sampling(&self.sampling);
        let torchvision =
            |kind| torchvision::operation(kind, self.argument, height, width, sampling).unwrap();
        let timm = |kind| timm::operation(kind, self.argument, height, width, sampling);
        let factor = self.argument as f32;
        match self.op.as_str() {
            "AutoContrast" => Op::AutoContrast,
            "Equalize" => Op::Equalize,
            "Invert" => Op::Invert,
            "Posterize" => Op::Posterize(self.argument as u32),
            "Solarize" => Op::Solarize(self.argument),
            "SolarizeAdd" => Op::SolarizeAdd(self.argument as u8),
            "Brightness" => Op::Brightness(factor),
            "Contrast" => Op::Contrast(factor),
            "Color" => Op::Color(factor),
            "Sharpness" => Op::Sharpness(factor),
            "Hue" => Op::Hue(self.argument),
            "ShearX" => torchvision(torchvision::Kind::ShearX),
            "ShearY" => torchvision(torchvision::Kind::ShearY),
            "TranslateX" => torchvision(torchvision::Kind::TranslateX),
            "TranslateY" => torchvision(torchvision::Kind::TranslateY),
            "Rotate" => {
                Op::Affine { matrix: rotation(self.argument, height, width), sampling, fill: self.fill }
            }
            "timm ShearX" => timm(timm::Kind::ShearX),
            "timm ShearY" => timm(timm::Kind::ShearY),
            "timm TranslateXRel" => timm(timm::Kind::TranslateX),
            "timm TranslateYRel" => timm(timm::Kind::TranslateY),
            op => panic!("no operation {op}"),
        }
    }
}

pub fn sampling(name: &str) -> Sampling {
    match name {
        "nearest" => Sampling::Nearest,
        "bilinear" => Sampling::Bilinear,
        "bicubic" => Sampling::Bicubic,
        name => panic!("no sampling {name}"),
    }
}

#[test]
fn every_operation_is_pillows_on_every_instruction_set() {
    let recorded: Recorded = record::read("augment");
    let pictures: Vec<Vec<u8>> = recorded.pictures.iter().map(picture).collect();
    for (pixels, want) in pictures.iter().zip(&recorded.inputs) {
        assert_eq!(&digest(pixels), want, "a picture is not the recorded one");
    }
    let (mut wrong, mut count) = (vec![], 0);
    for isa in Isa::available() {
        let mut ops = Ops::new(isa);
        for Operation { call, digests, samples } in &recorded.operations {
            for (i, ((height, width, kind), want)) in recorded.pictures.iter().zip(digests).enumerate() {
                let mut pixels = pictures[i].clone();
                ops.apply(&call.operation(*height, *width), *height, *width, &mut pixels);
                count += 1;
                if &digest(&pixels) != want {
                    let places =
                        formula::bits("augment#sample").map(|bits| (bits % pixels.len() as u64) as usize);
                    let got: Vec<u8> = places.take(4).map(|place| pixels[place]).collect();
                    let want = samples.get(i);
                    wrong.push(format!(
                        "{}: {call:?} on {height} x {width} {kind}: {got:?}, {want:?}",
                        isa.name()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("\noperations: {count} pictures, all equal to Pillow's");
}
