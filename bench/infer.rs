//! `cargo bench --bench infer`: ResNet-50's inference program, in shares of this machine's peak for its arithmetic.
//!
//! INFER_PRECISIONS: "fp32,bf16,int8" by default. INFER_THREADS: "1,2". INFER_BATCH: 1. INFER_RESOLUTION: 224.
//! INFER_ROUNDS: runs of each, in alternation, of which minima and medians count. INFER_LAYERS: anything, for a line a
//! layer. ENGINE_ISA as ever.
//! With one thread, time is what the thread had of the CPU (on Linux), which other processes disturb less; layers are on
//! the wall clock, and their minima are of different rounds.
//!
//! Weights are random: only time is measured here. The share of a network is that of its multiply-adds at the largest
//! peak seen between the rounds; algorithms that need fewer multiplications can be above 100 %.

#[path = "clock.rs"]
mod clock;

use clock::clock;
use engine::error::Result;
use engine::infer::weights::{Folded, Quantised, Weights};
use engine::infer::{LayerTime, Options, Precision, Program};
use engine::model::graph::{Graph, ParamId, TensorId, lower};
use engine::model::spec::RESNET50;
use engine::model::units::ConvUnit;
use engine::rng::{Purpose, Rng};
use engine::simd::filters::Filters;
use engine::simd::isa::Isa;
use engine::simd::peak;
use engine::simd::pool::Pool;
use std::time::Instant;

const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];

fn main() {
    let env = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let number = |name: &str, default: &str| env(name, default).parse::<usize>().expect(name);
    let isa = Isa::current();
    let (batch, rounds) = (number("INFER_BATCH", "1"), number("INFER_ROUNDS", "40"));
    let graph = lower(&RESNET50, number("INFER_RESOLUTION", "224")).expect("ResNet-50 at this resolution");
    println!("{}, {} px, batch {batch}, {rounds} rounds", isa.name(), graph.resolution);
    let precisions = env("INFER_PRECISIONS", "fp32,bf16,int8");
    for threads in env("INFER_THREADS", "1,2").split(',') {
        let threads = threads.parse().expect("INFER_THREADS");
        let wanted = |p: &Precision| precisions.split(',').any(|name| name == p.name());
        let precisions = Precision::ALL.into_iter().filter(wanted);
        let compile = |precision| {
            let options = Options { isa, threads, batch, ..Options::new(precision, MEAN, STD) };
            let start = Instant::now();
            match Program::compile(&graph, &Random(&graph), &options) {
                Ok(program) => Some(Network::new(program, start.elapsed().as_secs_f64())),
                Err(error) => {
                    println!("{}: {error}", precision.name());
                    None
                }
            }
        };
        let mut networks: Vec<Network> = precisions.filter_map(compile).collect();
        let images = pixels(&graph, batch);
        let pool = Pool::new(threads);
        for _ in 0..rounds {
            for network in &mut networks {
                network.round(&images, &pool, isa);
            }
        }
        for network in networks {
            network.report(batch);
        }
    }
}

fn pixels(graph: &Graph, n: usize) -> Vec<u8> {
    let mut rng = Rng::new(1, 0, 0, Purpose::Synth);
    (0..n * graph.resolution * graph.resolution * 3).map(|_| rng.below(256) as u8).collect()
}

struct Network {
    program: Program,
    load: f64,
    seconds: Vec<f64>,
    layers: Vec<LayerTime>,
    peak: f64,
}

impl Network {
    fn new(program: Program, load: f64) -> Self {
        Self { program, load, seconds: vec![], layers: vec![], peak: 0.0 }
    }

    fn round(&mut self, images: &[u8], pool: &Pool, isa: Isa) {
        let start = clock(pool);
        let operations = peak::dots(pool, isa, self.program.precision());
        self.peak = self.peak.max(operations / (clock(pool) - start));
        // The peak's threads sleep by now; the first run wakes the program's own and brings its weights near.
        for run in 0..4 {
            let start = clock(pool);
            self.program.run(images).expect("images of the program's size");
            if run == 0 {
                continue;
            }
            self.seconds.push(clock(pool) - start);
            let layers = self.program.profile();
            if self.layers.is_empty() {
                self.layers = layers;
                continue;
            }
            for (best, layer) in self.layers.iter_mut().zip(layers) {
                best.nanoseconds = best.nanoseconds.min(layer.nanoseconds);
            }
        }
    }

    fn report(mut self, batch: usize) {
        self.seconds.sort_by(f64::total_cmp);
        let (min, median) = (self.seconds[0], self.seconds[self.seconds.len() / 2]);
        let macs: usize = self.layers.iter().map(|layer| layer.macs).sum();
        let share = |macs: usize, seconds: f64| 200.0 * macs as f64 / seconds / self.peak;
        if std::env::var("INFER_LAYERS").is_ok() {
            for layer in &self.layers {
                let seconds = layer.nanoseconds as f64 * 1e-9;
                println!(
                    "  {:24} {:10} {:8.4} ms {:6.1} %",
                    layer.name,
                    layer.algorithm,
                    seconds * 1e3,
                    share(layer.macs, seconds)
                );
            }
        }
        let best: u64 = self.layers.iter().map(|layer| layer.nanoseconds).sum();
        let (arena, weights) = self.program.memory_bytes();
        println!(
            "{:5} {} threads: min {:7.3} ms, median {:7.3}, layers' minima {:7.3}; {:5.1} % of {:6.1} Gop/s; images/s {:6.1}; load {:.0} ms, {:.1} + {:.1} MB",
            self.program.precision().name(),
            self.program.threads(),
            min * 1e3,
            median * 1e3,
            best as f64 * 1e-6,
            share(macs, min),
            self.peak * 1e-9,
            batch as f64 / min,
            self.load * 1e3,
            arena as f64 / 1e6,
            weights as f64 / 1e6,
        );
    }
}

/// Numbers of the right size, made faster than a normal distribution's.
struct Random<'a>(&'a Graph);

impl Random<'_> {
    fn values(&self, param: ParamId, len: usize, bound: f64) -> Vec<f32> {
        let mut rng = Rng::new(7, 0, param as u64, Purpose::Init);
        (0..len).map(|_| rng.range(-bound, bound) as f32).collect()
    }

    /// In any order: the numbers have none.
    fn folded(&self, unit: &ConvUnit) -> Folded {
        let shape = &unit.shape;
        let gain = if unit.residual.is_some() { 0.5 } else { 2.0 };
        let bound = (3.0 * gain / (shape.c * shape.r * shape.s) as f64).sqrt();
        let weight = self.values(unit.weight, shape.weights(), bound);
        Folded { weight, bias: self.values(unit.gamma, shape.k, 0.1) }
    }

    fn quantise(folded: Folded, channels: usize) -> Quantised {
        let largest = folded.weight.iter().fold(0.0f32, |max, w| max.max(w.abs()));
        let weight = folded.weight.iter().map(|w| (w / largest * 127.0).round() as i8).collect();
        let scale = vec![largest / 127.0; folded.bias.len()];
        Quantised { weight, scale, bias: folded.bias, padding: vec![0; channels] }
    }
}

impl Weights for Random<'_> {
    fn convolution(&self, unit: &ConvUnit, read: &mut dyn FnMut(Filters, &[f32])) -> Result<()> {
        let Folded { weight, bias } = self.folded(unit);
        read(Filters { weight: &weight, factor: &vec![1.0; unit.shape.k] }, &bias);
        Ok(())
    }

    fn classifier(&self, weight: ParamId, bias: ParamId) -> Result<Folded> {
        let shape = &self.0.params[weight].shape;
        let values = self.values(weight, shape[0] * shape[1], 0.05);
        Ok(Folded { weight: values, bias: self.values(bias, shape[0], 0.1) })
    }

    fn quantised(&self, unit: &ConvUnit) -> Result<Quantised> {
        Ok(Self::quantise(self.folded(unit), unit.shape.c))
    }

    fn quantised_classifier(&self, weight: ParamId, bias: ParamId) -> Result<Quantised> {
        Ok(Self::quantise(self.classifier(weight, bias)?, 1))
    }

    fn scale(&self, _: TensorId) -> Result<f32> {
        Ok(8.0 / 255.0)
    }
}
