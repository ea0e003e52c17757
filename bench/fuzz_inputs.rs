//! `cargo run --release --example fuzz_inputs -- [SECONDS [SEED]]`: pictures, model files and requests of `classify`, damaged
//! at random, for as long as is asked. Nothing of them may panic, hang or end the process.
//!
//! Every input is a function of the seed and its number, so that what is found is found again: the number of the last
//! input begun is printed with each line, and an input that panics is kept in the temporary folder that is named.

use engine::classify::classifier::Classifier;
use engine::classify::stdio::{Defaults, serve};
use engine::data::{EvalTransform, Interpolation, Limits, Preprocessor, Reading};
use engine::export::cpu::entries;
use engine::infer::file::layout::{self, Entry};
use engine::infer::file::{self, Calibration, Description, ModelFile, Source, layer_name};
use engine::infer::random::RandomWeights;
use engine::infer::weights::Weights;
use engine::infer::{Options, Precision, Program};
use engine::model::graph::{Graph, lower};
use engine::model::spec::{MEAN, RESNET_TINY, STD};
use engine::model::units::{Unit, units};
use engine::rng::{Purpose, Rng};
use engine::simd::isa::Isa;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Side of the network's input, and of the pictures at most.
const RESOLUTION: usize = 16;
/// An input that takes longer is reported.
const SLOW: Duration = Duration::from_secs(5);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: f64| arguments.next().map_or(default, |a| a.parse().expect("a number"));
    let (seconds, seed) = (number(60.0), number(0.0) as u64);
    let folder = std::env::temp_dir().join(format!("engine-fuzz-{seed}"));
    fs::create_dir_all(&folder).expect("the temporary folder can be written");
    println!("{seconds} s, seed {seed}; what panics is kept in {}", folder.display());
    // The library catches a decoder's panic and calls it an error; here it counts all the same.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        print(panic);
    }));
    let mut fuzzer = Fuzzer::new(seed, folder);
    let begin = Instant::now();
    let mut said = begin;
    let mut index = 0;
    while begin.elapsed().as_secs_f64() < seconds {
        fuzzer.one(index);
        index += 1;
        if said.elapsed() > Duration::from_secs(30) {
            said = Instant::now();
            fuzzer.report(index);
        }
    }
    fuzzer.report(index);
    std::process::exit(i32::from(fuzzer.panics > 0));
}

/// What became of the inputs of one kind.
#[derive(Default)]
struct Count {
    accepted: u64,
    refused: u64,
}

struct Fuzzer {
    seed: u64,
    folder: PathBuf,
    pictures: Vec<Vec<u8>>,
    model: Vec<u8>,
    requests: Vec<Vec<u8>>,
    preprocessor: Preprocessor,
    classifier: Classifier,
    counts: BTreeMap<&'static str, Count>,
    panics: u64,
    slowest: Duration,
}

impl Fuzzer {
    fn new(seed: u64, folder: PathBuf) -> Self {
        let transform = EvalTransform::new(RESOLUTION, 0.875, Interpolation::Bilinear);
        let model = model_file();
        let intact = folder.join("intact.engine");
        fs::write(&intact, &model).expect("the temporary folder can be written");
        let file = ModelFile::open(&intact).expect("a whole model opens");
        let mut preprocessor = Preprocessor::new(transform, Reading::Photograph);
        // A header may ask for half a gigabyte: right, and too slow here.
        preprocessor.limits = Limits { pixels: 1 << 22 };
        let pictures = pictures();
        let requests = pictures.iter().map(|picture| request(picture)).collect();
        Self {
            seed,
            folder,
            pictures,
            model,
            requests,
            preprocessor,
            classifier: Classifier::new(file, Limits::default(), Isa::current(), 1),
            counts: BTreeMap::new(),
            panics: 0,
            slowest: Duration::ZERO,
        }
    }

    fn one(&mut self, index: u64) {
        let mut rng = Rng::new(self.seed, 0, index, Purpose::Synth);
        let (start, before) = (Instant::now(), PANICS.load(Ordering::Relaxed));
        let (kind, input, outcome) = match rng.below(10) {
            0..7 => {
                let mut input = pick(&mut rng, &self.pictures).clone();
                let other = pick(&mut rng, &self.pictures);
                damage(&mut rng, &mut input, other);
                let outcome = caught(|| self.picture(&input));
                ("pictures", input, outcome)
            }
            7..9 => {
                let input = self.damaged_model(&mut rng);
                let outcome = caught(|| self.open_model(&input));
                ("models", input, outcome)
            }
            _ => {
                // The request, or the picture in it.
                let mut input = pick(&mut rng, &self.requests).clone();
                if rng.below(2) == 0 {
                    let mut picture = pick(&mut rng, &self.pictures).clone();
                    damage(&mut rng, &mut picture, &self.pictures[0]);
                    input = request(&picture);
                } else {
                    let other = pick(&mut rng, &self.requests);
                    damage(&mut rng, &mut input, other);
                }
                let outcome = caught(|| self.serve(&input));
                ("requests", input, outcome)
            }
        };
        let count = self.counts.entry(kind).or_default();
        match outcome {
            Some(true) => count.accepted += 1,
            Some(false) => count.refused += 1,
            None => {}
        }
        if PANICS.load(Ordering::Relaxed) > before {
            self.panics += 1;
            let file = self.folder.join(format!("{kind}-{index}"));
            fs::write(&file, &input).expect("the temporary folder can be written");
            println!("PANIC at {index}: {}", file.display());
        }
        let took = start.elapsed();
        self.slowest = self.slowest.max(took);
        if took > SLOW {
            println!("SLOW at {index}: {kind}, {:.1} s", took.as_secs_f64());
        }
    }

    fn picture(&mut self, input: &[u8]) -> bool {
        let mut out = vec![0; RESOLUTION * RESOLUTION * 3];
        let mut bytes = input.to_vec();
        let done = self.preprocessor.run(&mut bytes, &mut out);
        assert!(bytes == input, "the bytes are as they were");
        done.inspect_err(|reason| assert_is_sentence(reason)).is_ok()
    }

    /// Half of them with a checksum that is right, so that what it guards is reached.
    fn damaged_model(&self, rng: &mut Rng) -> Vec<u8> {
        let mut input = self.model.clone();
        let start = layout::decode(&input).expect("a whole model").start;
        if rng.below(2) == 0 {
            damage(rng, &mut input, &self.pictures[0]);
            return input;
        }
        let mut head = input[..start].to_vec();
        // Behind the checksum's digits, which stay where they are.
        let digits = head.iter().position(|&byte| byte == b':').expect("a header of JSON") + 1;
        let digits = digits + head[digits..].iter().position(|&byte| byte == b':').expect("the check") + 2;
        let mut tail = head.split_off(digits + 8);
        damage(rng, &mut tail, &self.model[start / 2..start]);
        head.extend(tail);
        let length = (head.len() - 8) as u64;
        head[..8].copy_from_slice(&length.to_le_bytes());
        head[digits..digits + 8].fill(b'0');
        let check = layout::digits(&head);
        head[digits..digits + 8].copy_from_slice(check.as_bytes());
        head.extend_from_slice(&input[start..]);
        head
    }

    fn open_model(&self, input: &[u8]) -> bool {
        let path = self.folder.join("damaged.engine");
        fs::write(&path, input).expect("the temporary folder can be written");
        let opened = ModelFile::open(&path).and_then(|model| compile_and_run(&model));
        opened.inspect_err(|error| assert_is_sentence(&error.message)).is_ok()
    }

    /// As many answers as requests, each an object with an id; whether one of them is of a picture.
    fn serve(&mut self, input: &[u8]) -> bool {
        let defaults = Defaults { top: 5, precision: Precision::Fp32 };
        let mut output = vec![];
        serve(&mut self.classifier, defaults, &mut &input[..], &mut output)
            .expect("memory takes every answer");
        let lines = input.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let answers = output.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        assert_eq!(lines.count(), answers.clone().count(), "one answer a request");
        for answer in answers {
            let answer: serde_json::Value = serde_json::from_slice(answer).expect("answers are JSON");
            assert!(
                answer.get("id").is_some() && (answer.get("error").is_some() != answer.get("path").is_some())
            );
        }
        output.windows(7).any(|part| part == b"\"path\":")
    }

    fn report(&self, index: u64) {
        let of = |(kind, count): (&&str, &Count)| {
            format!("{kind}: {} accepted, {} refused", count.accepted, count.refused)
        };
        let counts: Vec<String> = self.counts.iter().map(of).collect();
        println!(
            "{index} inputs; {}; {} panics; slowest {:.2} s",
            counts.join("; "),
            self.panics,
            self.slowest.as_secs_f64()
        );
    }
}

fn assert_is_sentence(reason: &str) {
    assert!(!reason.is_empty() && !reason.contains('\n'), "one line: {reason:?}");
}

fn caught(work: impl FnOnce() -> bool) -> Option<bool> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn pick<'a, T>(rng: &mut Rng, items: &'a [T]) -> &'a T {
    &items[rng.below(items.len() as u64) as usize]
}

/// One to eight edits: bits, bytes, whole numbers at their extremes, pieces taken out, doubled, or taken from `other`.
fn damage(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    const EXTREMES: [u32; 8] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, u32::MAX];
    for _ in 0..1 + rng.below(8) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.below(bytes.len() as u64) as usize;
        let len = (1 + rng.below(32) as usize).min(bytes.len() - at);
        match rng.below(8) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next_u64() as u8,
            2 => {
                let number = EXTREMES[rng.below(8) as usize];
                let number = if rng.below(2) == 0 { number.to_be_bytes() } else { number.to_le_bytes() };
                let width = len.min(4);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            3 => drop(bytes.drain(at..at + len)),
            4 => {
                let piece = bytes[at..at + len].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => {
                let from = rng.below(other.len() as u64) as usize;
                let piece = other[from..(from + len).min(other.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            6 => bytes[at..at + len].fill(rng.next_u64() as u8),
            _ if rng.below(8) == 0 => bytes.truncate(at),
            _ => {}
        }
    }
}

/// Small pictures of every format and layout, with EXIF.
fn pictures() -> Vec<Vec<u8>> {
    let (w, h) = (23, 17);
    let mut rng = Rng::new(1, 0, 0, Purpose::Synth);
    let noise: Vec<u8> = (0..w * h * 8).map(|i| (i / 3) as u8 ^ (rng.next_u64() as u8 & 31)).collect();
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let mut found = vec![];
    use jpeg_encoder::{ColorType as Ink, SamplingFactor};
    for (ink, channels) in [(Ink::Rgb, 3), (Ink::Luma, 1), (Ink::Cmyk, 4), (Ink::CmykAsYcck, 4)] {
        for progressive in [false, true] {
            let mut bytes = vec![];
            let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 80);
            encoder.set_progressive(progressive);
            encoder.set_sampling_factor(SamplingFactor::R_4_2_0);
            encoder.set_restart_interval(2);
            encoder.add_app_segment(1, [b"Exif\0\0", &exif[..]].concat()).expect("a short segment");
            encoder.encode(&noise[..w * h * channels], w as u16, h as u16, ink).expect("a small JPEG");
            found.push(bytes);
        }
    }
    use png::{BitDepth, ColorType};
    for (color, depth, bytes_per_pixel) in [
        (ColorType::Grayscale, BitDepth::Eight, 1),
        (ColorType::Grayscale, BitDepth::Sixteen, 2),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, 2),
        (ColorType::Rgb, BitDepth::Sixteen, 6),
        (ColorType::Rgba, BitDepth::Eight, 4),
        (ColorType::Indexed, BitDepth::Eight, 1),
    ] {
        let mut bytes = vec![];
        let mut encoder = png::Encoder::new(&mut bytes, w as u32, h as u32);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette(noise[..256 * 3].to_vec());
            encoder.set_trns(noise[..256].to_vec());
        }
        let mut writer = encoder.write_header().expect("a small PNG");
        writer.write_chunk(png::chunk::eXIf, exif).expect("a small PNG");
        writer.write_image_data(&noise[..w * h * bytes_per_pixel]).expect("a small PNG");
        drop(writer);
        found.push(bytes);
    }
    for (color, channels) in [(image_webp::ColorType::Rgb8, 3), (image_webp::ColorType::Rgba8, 4)] {
        let mut bytes = vec![];
        let mut encoder = image_webp::WebPEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif.to_vec());
        encoder.encode(&noise[..w * h * channels], w as u32, h as u32, color).expect("a small WebP");
        found.push(bytes);
    }
    found
}

/// A request with the picture in it, and one that names nothing.
fn request(picture: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = |group: &[u8]| group.iter().fold(0usize, |bits, &byte| bits << 8 | usize::from(byte));
    let digits = |group: &[u8]| [18, 12, 6, 0].map(|shift| DIGITS[bits(group) >> shift & 63]);
    let image: Vec<u8> = picture.as_chunks::<3>().0.iter().flat_map(|group| digits(group)).collect();
    let image = String::from_utf8(image).expect("digits are letters");
    let request =
        serde_json::json!({"id": 7, "image": image, "top": 3, "precision": "fp32", "explain": true});
    format!("{request}\n{{\"id\":\"x\",\"file\":\"absent\"}}\n").into_bytes()
}

/// A whole model file of the smallest network, with 8-bit numbers.
fn model_file() -> Vec<u8> {
    let graph = lower(&RESNET_TINY, RESOLUTION).expect("a small network");
    let weights = RandomWeights { graph: &graph, seed: 0 };
    let (mut layers, mut scales) = (BTreeMap::new(), BTreeMap::new());
    for unit in units(&graph) {
        match &unit {
            Unit::Conv(unit) => {
                let numbers = weights.quantised(unit).expect("random numbers");
                layers.insert(layer_name(&graph, unit.weight).to_owned(), numbers);
                scales.insert(graph.tensors[unit.y].name.clone(), 0.02);
            }
            Unit::Linear { weight, bias, .. } => {
                let numbers = weights.quantised_classifier(*weight, *bias).expect("random numbers");
                layers.insert(layer_name(&graph, *weight).to_owned(), numbers);
            }
            Unit::MaxPool { .. } | Unit::AvgPool { .. } => {}
        }
    }
    let mut all = entries(&layers, &graph);
    all.extend(plain_entries(&graph));
    let head = file::head(&mut all, &description(Calibration { method: "mse".into(), images: 1, scales }));
    all.iter().fold(head, |mut file, entry| {
        file.extend_from_slice(&entry.bytes);
        file
    })
}

fn plain_entries(graph: &Graph) -> Vec<Entry<'static>> {
    let tensor = |name: &str, shape: Vec<usize>, values: Vec<f32>| Entry {
        name: name.to_owned().into(),
        dtype: Dtype::F32,
        shape,
        bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
    };
    let params = graph.params.iter().enumerate();
    let params =
        params.map(|(i, param)| tensor(&param.name, param.shape.clone(), param.initial_values(0, i, false)));
    let buffers = graph.buffers.iter();
    let buffers = buffers
        .map(|buffer| tensor(&buffer.name, vec![buffer.channels], vec![buffer.initial; buffer.channels]));
    params.chain(buffers).collect()
}

fn description(int8: Calibration) -> Description {
    Description {
        arch: RESNET_TINY.name.into(),
        classes: (0..RESNET_TINY.classes).map(|i| (i.to_string(), format!("class {i}"))).collect(),
        resolution: RESOLUTION,
        crop_ratio: 0.875,
        interpolation: Interpolation::Bilinear,
        mean: MEAN,
        std: STD,
        source: Source::default(),
        int8: Some(int8),
        crc32c: BTreeMap::new(),
    }
}

/// Everything that a program takes from a file, in plain code and in the machine's own.
fn compile_and_run(model: &ModelFile) -> engine::error::Result<()> {
    let side = model.graph().resolution;
    // A forged description may ask for a network input of thousands of pixels: right, and too slow here.
    if side > 64 {
        return Ok(());
    }
    let (mean, std) = (model.description().mean, model.description().std);
    for isa in [Isa::PORTABLE, Isa::current()] {
        for precision in [Precision::Fp32, Precision::Int8] {
            let options = Options { isa, threads: 1, ..Options::new(precision, mean, std) };
            let mut program = Program::compile(model.graph(), model, &options)?;
            program.run(&vec![128; side * side * 3])?;
        }
    }
    Ok(())
}
