//! `cargo bench --bench conv`: the convolutions of ResNet-50, in shares of this machine's multiply-add peak.
//!
//! CONV_SETTINGS: resolution:batch pairs, "224:16,64:64" by default. CONV_THREADS: threads, one a core by default.
//! CONV_REPEATS: repetitions, of which the fastest counts. CONV_ONLY: forward, dgrad or wgrad. CONV_SHAPES: only shapes
//! whose printed name contains this. ENGINE_ISA as ever.
//! With one thread, time is what the thread had of the CPU (on Linux), which other processes disturb less.
//!
//! Operations are counted in full, padding included, as everybody does; kernels skip some of it, so that a share of
//! small maps can be above 100 %.

#[path = "clock.rs"]
mod clock;

use clock::clock;
use engine::model::graph::{ConvShape, Op, lower};
use engine::model::spec::RESNET50;
use engine::rng::{Purpose, Rng};
use engine::simd::conv::{Scratch, dgrad, forward, wgrad};
use engine::simd::isa::Isa;
use engine::simd::peak;
use engine::simd::pool::Pool;

const DIRECTIONS: [&str; 3] = ["forward", "dgrad", "wgrad"];

pub fn main() {
    let env = |name: &str| std::env::var(name).ok();
    let number = |name: &str, default: usize| env(name).map_or(default, |text| text.parse().expect(name));
    let settings = env("CONV_SETTINGS").unwrap_or_else(|| "224:16,64:64".to_owned());
    let pool = Pool::new(number("CONV_THREADS", 0));
    let repeats = number("CONV_REPEATS", 10);
    let only = env("CONV_ONLY");
    let isa = Isa::current();
    println!("{} with {} threads, the fastest of {repeats}", isa.name(), pool.threads());
    for setting in settings.split(',') {
        let (resolution, batch) = setting.split_once(':').expect("CONV_SETTINGS is resolution:batch,...");
        let (resolution, batch) =
            (resolution.parse().expect("a resolution"), batch.parse().expect("a batch"));
        run_setting(&pool, isa, resolution, batch, repeats, only.as_deref());
    }
}

/// Seconds and operations of a whole network, by direction.
#[derive(Default, Clone, Copy)]
struct Total {
    seconds: f64,
    at_peak: f64,
    operations: f64,
}

fn run_setting(pool: &Pool, isa: Isa, resolution: usize, batch: usize, repeats: usize, only: Option<&str>) {
    println!("\n{resolution} px, batch {batch}");
    println!("{:34} {:>2} {:8} {:>9} {:>8} {:>6}", "shape", "x", "", "ms", "GFLOP/s", "share");
    let mut totals = [Total::default(); 3];
    for (i, (shape, count)) in distinct_shapes(resolution).into_iter().enumerate() {
        let ConvShape { h, c, k, r, stride, .. } = shape;
        let name = format!("{h}x{h} {c}->{k} {r}x{r}/{stride}");
        if std::env::var("CONV_SHAPES").is_ok_and(|wanted| !name.contains(&wanted)) {
            continue;
        }
        let mut layer = Layer::new(shape, batch);
        for (direction, total) in DIRECTIONS.into_iter().zip(&mut totals) {
            // Nobody needs the gradient by the pixels of the image.
            if (i == 0 && direction == "dgrad") || only.is_some_and(|only| only != direction) {
                continue;
            }
            let (seconds, peak) = layer.time(pool, isa, direction, repeats);
            let operations = 2.0 * (shape.macs() * batch) as f64;
            let rate = operations / seconds;
            println!(
                "{name:34} {count:2} {direction:8} {:9.3} {:8.1} {:5.1} %",
                seconds * 1e3,
                rate / 1e9,
                100.0 * rate / peak
            );
            total.seconds += seconds * count as f64;
            total.at_peak += operations * count as f64 / peak;
            total.operations += operations * count as f64;
        }
    }
    let all = totals.iter().fold(Total::default(), |a, b| Total {
        seconds: a.seconds + b.seconds,
        at_peak: a.at_peak + b.at_peak,
        operations: a.operations + b.operations,
    });
    for (name, total) in DIRECTIONS.into_iter().chain(["all"]).zip(totals.into_iter().chain([all])) {
        println!(
            "total {name:8} {:9.2} ms {:8.1} GFLOP/s {:5.1} % of the peak",
            total.seconds * 1e3,
            total.operations / total.seconds / 1e9,
            100.0 * total.at_peak / total.seconds
        );
    }
}

/// In forward order, with how often each occurs.
fn distinct_shapes(resolution: usize) -> Vec<(ConvShape, usize)> {
    let graph = lower(&RESNET50, resolution).expect("ResNet-50 at this resolution");
    let mut shapes: Vec<(ConvShape, usize)> = vec![];
    for op in &graph.ops {
        let Op::Conv { shape, .. } = op else { continue };
        match shapes.iter_mut().find(|(known, _)| known == shape) {
            Some((_, count)) => *count += 1,
            None => shapes.push((*shape, 1)),
        }
    }
    shapes
}

struct Layer {
    shape: ConvShape,
    batch: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    y: Vec<f32>,
    scratch: Scratch,
}

impl Layer {
    fn new(shape: ConvShape, batch: usize) -> Self {
        let mut rng = Rng::new(1, 0, 0, Purpose::Synth);
        let mut random = |len: usize| (0..len).map(|_| rng.range(-1.0, 1.0) as f32).collect::<Vec<_>>();
        let x = random(batch * shape.h * shape.w * shape.c);
        let w = random(shape.weights());
        let y = random(batch * shape.p() * shape.q() * shape.k);
        Self { shape, batch, x, w, y, scratch: Scratch::default() }
    }

    /// The fastest seconds, and the highest peak seen between the repetitions.
    fn time(&mut self, pool: &Pool, isa: Isa, direction: &str, repeats: usize) -> (f64, f64) {
        let Self { shape, batch, x, w, y, scratch } = self;
        let (mut seconds, mut peak) = (f64::INFINITY, 0.0f64);
        // The first call grows the scratch buffers.
        for repeat in 0..=repeats {
            let start = clock(pool);
            let operations = peak::run(pool, isa);
            peak = peak.max(operations / (clock(pool) - start));
            let start = clock(pool);
            match direction {
                "forward" => forward(pool, isa, shape, *batch, x, w, y, scratch),
                "dgrad" => dgrad(pool, isa, shape, *batch, y, w, x, false, scratch),
                _ => wgrad(pool, isa, shape, *batch, x, y, w, false, scratch),
            }
            if repeat > 0 {
                seconds = seconds.min(clock(pool) - start);
            }
        }
        (seconds, peak)
    }
}
