//! `cargo bench --bench winograd`: ResNet-50's 3x3 convolutions of stride 1 by Winograd's algorithms against the direct
//! convolution, in time, in shares of this machine's multiply-add peak, and in error.
//!
//! WINOGRAD_BATCHES: "1,8" by default. WINOGRAD_THREADS: threads, one a core by default. WINOGRAD_REPEATS: repetitions,
//! of which the fastest counts. WINOGRAD_SHAPES: only shapes whose printed name contains this. ENGINE_ISA as ever.
//! With one thread, time is what the thread had of the CPU (on Linux), which other processes disturb less.
//!
//! Each repetition uses other weights, so many that they come from memory, as a network's do. A share of the peak counts
//! the multiplications of the direct convolution: above 100 % no direct convolution can be as fast. The direct
//! convolution is the one that trains, which packs its weights in every call.

use engine::model::graph::{ConvShape, Op, lower};
use engine::model::spec::RESNET50;
use engine::rng::{Purpose, Rng};
use engine::simd::conv::{self, forward};
use engine::simd::isa::Isa;
use engine::simd::peak;
use engine::simd::pool::Pool;
use engine::simd::winograd::{Images, ImagesMut, Layout, Operands, Scratch, Size, Tile, Winograd, supports};
use std::time::Instant;

/// Floats of all copies of a layer's weights: more than caches hold.
const COLD_FLOATS: usize = 16 << 20;

fn main() {
    let env = |name: &str| std::env::var(name).ok();
    let number = |name: &str, default: usize| env(name).map_or(default, |text| text.parse().expect(name));
    let pool = Pool::new(number("WINOGRAD_THREADS", 0));
    let repeats = number("WINOGRAD_REPEATS", 30);
    let batches = env("WINOGRAD_BATCHES").unwrap_or_else(|| "1,8".to_owned());
    let isa = Isa::current();
    println!("{} with {} threads, the fastest of {repeats}", isa.name(), pool.threads());
    for batch in batches.split(',') {
        let batch = batch.parse().expect("WINOGRAD_BATCHES is batch,...");
        println!("\nbatch {batch}");
        println!(
            "{:16} {:>2} {:8} {:>9} {:>6} {:>7} {:>9}",
            "shape", "x", "", "ms", "share", "speedup", "rms error"
        );
        for (shape, count) in shapes() {
            let name = format!("{}x{} {}->{}", shape.h, shape.w, shape.c, shape.k);
            if env("WINOGRAD_SHAPES").is_some_and(|wanted| !name.contains(&wanted)) {
                continue;
            }
            let operations = 2.0 * (shape.macs() * batch) as f64;
            let mut direct = f64::NAN;
            for (algorithm, [seconds, peak, error]) in measure(&pool, isa, shape, batch, repeats) {
                direct = if algorithm == "direct" { seconds } else { direct };
                println!(
                    "{name:16} {count:2} {algorithm:8} {:9.3} {:5.1}% {:6.2}x {error:9.1e}",
                    seconds * 1e3,
                    100.0 * operations / seconds / peak,
                    direct / seconds
                );
            }
        }
    }
}

/// What Winograd computes of ResNet-50 at 224 pixels, with how often each occurs.
fn shapes() -> Vec<(ConvShape, usize)> {
    let graph = lower(&RESNET50, 224).expect("ResNet-50 at 224 pixels");
    let mut shapes: Vec<(ConvShape, usize)> = vec![];
    for op in &graph.ops {
        let Op::Conv { shape, .. } = op else { continue };
        if !supports(shape) {
            continue;
        }
        match shapes.iter_mut().find(|(known, _)| known == shape) {
            Some((_, count)) => *count += 1,
            None => shapes.push((*shape, 1)),
        }
    }
    shapes
}

/// (algorithm, [seconds, peak, relative rms error]), repetitions of all algorithms taking turns.
fn measure(
    pool: &Pool,
    isa: Isa,
    shape: ConvShape,
    batch: usize,
    repeats: usize,
) -> Vec<(&'static str, [f64; 3])> {
    let layer = Layer::new(shape, batch);
    let (input, output) = layer.sizes();
    let ConvShape { k, .. } = shape;
    let zeros = vec![0.0; k];
    let plans = [Tile::F2, Tile::F4].map(|tile| Winograd::new(isa, tile, &shape, &zeros));
    let packed: Vec<Copies> = plans
        .iter()
        .map(|plan| {
            let mut packed = vec![0.0; plan.packed_floats()];
            plan.pack(pool, &layer.weight_krsc, &mut packed);
            Copies::of(&packed)
        })
        .collect();
    let weights = Copies::of(&layer.weight_rsck);
    let mut y = vec![0.0; batch * shape.h * shape.w * k];
    let (mut scratch, mut direct_scratch) = (Scratch::default(), conv::Scratch::default());
    let (mut seconds, mut peak, mut errors) = ([f64::INFINITY; 3], 0.0f64, [0.0; 3]);
    // The first round grows the scratch buffers.
    for repeat in 0..=repeats {
        let start = clock(pool);
        let operations = peak::run(pool, isa);
        peak = peak.max(operations / (clock(pool) - start));
        for algorithm in 0..3 {
            let start = clock(pool);
            if algorithm == 0 {
                let w = weights.get(repeat);
                forward(pool, isa, &shape, batch, &layer.x, w, &mut y, &mut direct_scratch);
            } else {
                let operands = Operands {
                    batch,
                    weights: packed[algorithm - 1].get(repeat),
                    x: Images { data: &layer.x, layout: Layout::dense(input) },
                    residual: None,
                    relu: false,
                    y: ImagesMut { data: &mut y, layout: Layout::dense(output) },
                };
                plans[algorithm - 1].run(pool, &mut scratch, operands);
            }
            let passed = clock(pool) - start;
            if repeat == 0 {
                errors[algorithm] = layer.error(&y);
            } else {
                seconds[algorithm] = seconds[algorithm].min(passed);
            }
        }
    }
    let row = |i: usize| [seconds[i], peak, errors[i]];
    ["direct", "F(2x2)", "F(4x4)"].into_iter().zip((0..3).map(row)).collect()
}

/// The same weights again and again.
struct Copies {
    all: Vec<f32>,
    len: usize,
}

impl Copies {
    fn of(weights: &[f32]) -> Self {
        Self { all: weights.repeat(COLD_FLOATS.div_ceil(weights.len())), len: weights.len() }
    }

    fn get(&self, turn: usize) -> &[f32] {
        let copies = self.all.len() / self.len;
        &self.all[turn % copies * self.len..][..self.len]
    }
}

struct Layer {
    shape: ConvShape,
    batch: usize,
    x: Vec<f32>,
    weight_krsc: Vec<f32>,
    weight_rsck: Vec<f32>,
}

impl Layer {
    /// Data as after a ReLU.
    fn new(shape: ConvShape, batch: usize) -> Self {
        let mut rng = Rng::new(1, 0, 0, Purpose::Synth);
        let x = (0..batch * shape.h * shape.w * shape.c).map(|_| rng.normal().max(0.0) as f32).collect();
        let deviation = (2.0 / (9 * shape.c) as f64).sqrt();
        let weight_krsc: Vec<f32> = (0..shape.weights()).map(|_| (rng.normal() * deviation) as f32).collect();
        let mut weight_rsck = vec![0.0; weight_krsc.len()];
        for (i, value) in weight_krsc.iter().enumerate() {
            let (k, rest) = (i / (9 * shape.c), i % (9 * shape.c));
            weight_rsck[rest * shape.k + k] = *value;
        }
        Self { shape, batch, x, weight_krsc, weight_rsck }
    }

    fn sizes(&self) -> (Size, Size) {
        let ConvShape { h, w, c, k, .. } = self.shape;
        (Size { h, w, c }, Size { h, w, c: k })
    }

    /// Relative to f64, over a sample of the results: rms(y - f64) / rms(f64).
    fn error(&self, y: &[f32]) -> f64 {
        let ConvShape { h, w, c, k, .. } = self.shape;
        let (mut error, mut square) = (0.0, 0.0);
        // A stride without a factor in common with sizes and widths meets all places of a tile and of a panel.
        for at in (0..self.batch * h * w * k).step_by((y.len() / 4001) | 1) {
            let (pixel, out) = (at / k, at % k);
            let (image, p, q) = (pixel / (h * w), pixel / w % h, pixel % w);
            let mut sum = 0.0f64;
            for tap in 0..9 {
                let (row, column) = (p + tap / 3, q + tap % 3);
                if (1..=h).contains(&row) && (1..=w).contains(&column) {
                    let x = &self.x[((image * h + row - 1) * w + column - 1) * c..][..c];
                    let g = &self.weight_krsc[(out * 9 + tap) * c..][..c];
                    sum += x.iter().zip(g).map(|(x, g)| f64::from(*x) * f64::from(*g)).sum::<f64>();
                }
            }
            error += (f64::from(y[at]) - sum).powi(2);
            square += sum * sum;
        }
        (error / square).sqrt()
    }
}

/// Seconds: of this thread's CPU time when it works alone, else of the wall clock.
fn clock(pool: &Pool) -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    #[cfg(target_os = "linux")]
    if pool.threads() == 1 {
        return thread_seconds();
    }
    START.elapsed().as_secs_f64()
}

#[cfg(target_os = "linux")]
fn thread_seconds() -> f64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = [0; 2];
    // SAFETY: the C library's function; a timespec is two 64-bit integers on 64-bit Linux.
    let status = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "no CPU time of a thread");
    time[0] as f64 + time[1] as f64 * 1e-9
}
