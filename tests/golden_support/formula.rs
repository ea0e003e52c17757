//! `tests/golden/formula.py` in Rust, bit for bit.

use engine::data::Batch;
use engine::model::graph::Graph;
use engine::model::params::{Param, Role};

/// The key of the stream whose draws `bits` gives.
pub fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// bits(name, 0), bits(name, 1), ..
pub fn bits(name: &str) -> impl Iterator<Item = u64> {
    let start = fnv1a64(name);
    (1u64..).map(move |i| mix(start.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

/// In [0, 1), exact in f32.
fn units(name: &str) -> impl Iterator<Item = f32> {
    bits(name).map(|bits| (bits >> 40) as f32 / (1 << 24) as f32)
}

/// In [-1, 1), exact in f32.
pub fn signed(name: &str, len: usize) -> Vec<f32> {
    units(name).map(|unit| 2.0 * unit - 1.0).take(len).collect()
}

/// First values of a parameter; `features` is the classifier's input width.
pub fn parameter(param: &Param, features: usize) -> Vec<f32> {
    let (name, len) = (param.name.as_str(), param.elements());
    let scaled = |scale: f64| {
        let scale = scale as f32;
        signed(name, len).into_iter().map(|value| scale * value).collect()
    };
    let block = if name.contains(".bn3.") { 0.1 } else { 1.0 };
    match param.role {
        Role::ConvWeight => {
            let fan_out = param.shape[0] * param.shape[2] * param.shape[3];
            scaled((6.0 / fan_out as f64).sqrt())
        }
        Role::LinearWeight | Role::LinearBias => scaled(1.0 / (features as f64).sqrt()),
        Role::Gamma => units(name).map(|unit| (0.75 + unit / 2.0) * block).take(len).collect(),
        Role::Beta => {
            let beta = |(bits, unit): (u64, f32)| {
                // Rounded once to f32, as formula.py rounds its f64 sum.
                let size = (2.0 + f64::from(unit)) as f32;
                (if bits & 1 == 1 { -size } else { size }) * block
            };
            bits(name).zip(units(name)).map(beta).take(len).collect()
        }
    }
}

/// Weights and fresh running statistics of a network, as a state without velocities.
pub fn state(graph: &Graph) -> engine::backend::NamedTensors {
    use engine::tensor::HostTensor;
    let fc = graph.params.iter().find(|param| param.role == Role::LinearWeight).expect("a classifier");
    let features = fc.shape[1];
    let weights = graph.params.iter().map(|param| {
        let data = parameter(param, features);
        (param.name.clone(), HostTensor { shape: param.shape.clone(), data })
    });
    let buffers = graph.buffers.iter().map(|buffer| {
        let data = vec![buffer.initial; buffer.channels];
        (buffer.name.clone(), HostTensor { shape: vec![buffer.channels], data })
    });
    weights.chain(buffers).collect()
}

pub fn images_u8(name: &str, n: usize, size: usize) -> Vec<u8> {
    bits(name).map(|bits| (bits >> 56) as u8).take(n * size * size * 3).collect()
}

pub fn labels(name: &str, n: usize, classes: usize) -> Vec<u32> {
    bits(name).map(|bits| (bits % classes as u64) as u32).take(n).collect()
}

/// The batch of a case, or of one of its steps.
pub fn batch(case: &str, n: usize, resolution: usize, classes: usize) -> Batch {
    Batch {
        images: images_u8(&format!("{case}.images"), n, resolution),
        labels: labels(&format!("{case}.labels"), n, classes),
        samples: (0..n as u32).collect(),
        resolution,
        ..Batch::default()
    }
}

/// u8 HWC: a gradient, a checker and noise, folded into 0..=255.
pub fn picture(name: &str, height: usize, width: usize) -> Vec<u8> {
    let noise = bits(name).map(|bits| (bits >> 59) as usize);
    let place = |i: usize| (i / 3 / width, i / 3 % width, i % 3);
    let value = |(i, noise): (usize, usize)| {
        let (y, x, c) = place(i);
        let v = (x * (3 + 2 * c) + y * (5 - c)) / 2 + 40 * ((x / 8 + y / 8) % 2) + 60 * c + noise;
        let m = v % 510;
        (if m < 256 { m } else { 510 - m }) as u8
    };
    (0..height * width * 3).zip(noise).map(value).collect()
}

/// README.md's list of first values.
#[test]
fn first_values() {
    use engine::model::graph::lower;
    use engine::model::spec::RESNET50;
    assert_eq!(fnv1a64("conv1.weight"), 0x69a2_9a2c_ee47_d254);
    let at = |i: usize| bits("conv1.weight").nth(i).unwrap();
    assert_eq!((at(0), at(9407)), (0x8b8a_08a8_5128_a1b0, 0x3321_e55a_792b_b9a9));
    let graph = lower(&RESNET50, 224).unwrap();
    let first = |name: &str| {
        parameter(graph.params.iter().find(|param| param.name == name).unwrap(), 2048)[0].to_bits()
    };
    let names =
        ["bn1.weight", "bn1.bias", "layer1.0.bn3.weight", "layer1.0.bn3.bias", "fc.bias", "conv1.weight"];
    let want =
        [0x3f6e_1b2a, 0xc00b_0543, 0x3da7_0e6a, 0xbe7d_40bf, 0xba81_751f, 0.003_943_235_6f32.to_bits()];
    assert_eq!(names.map(first), want);
    assert_eq!(images_u8("tiny32.images", 1, 32)[..6], [100, 63, 67, 86, 209, 101]);
    assert_eq!(picture("picture.7x9", 7, 9)[..6], [23, 89, 135, 22, 72, 154]);
}
