//! `cargo bench --bench winograd`: ResNet-50's 3x3 convolutions of stride 1 by Winograd's algorithms against the direct
//! convolution, in time, in shares of this machine's multiply-add peak, and in error.
//!
//! WINOGRAD_BATCHES: "1,8" by default. WINOGRAD_THREADS: threads, one a core by default. WINOGRAD_REPEATS: repetitions,
//! of which the fastest counts. WINOGRAD_SHAPES: only shapes whose printed name contains this. ENGINE_ISA as ever.
//! With one thread, time is what the thread had of the CPU (on Linux), which other processes disturb less.
//!
//! Each repetition uses other weights, so many that they come from memory, as a network's do. A share of the peak counts
//! the multiplications of the direct convolution: above 100 % no direct convolution can be as fast. The direct
//! convolution is the one that trains, which packs its weights in every call. bf16 is shown beside the peak of f32, though the
//! machine multiplies it faster; its error counts the rounding of weights, transformed data and results, but not of the data themselves.

#[path = "clock.rs"]
mod clock;

use clock::clock;
use engine::model::graph::{ConvShape, Op, lower};
use engine::model::spec::RESNET50;
use engine::rng::{Purpose, Rng};
use engine::simd::conv::{self, forward};
use engine::simd::filters::Filters;
use engine::simd::isa::Isa;
use engine::simd::peak;
use engine::simd::pool::Pool;
use engine::simd::winograd::{
    Element, Images, ImagesMut, Layout, Operands, Scratch, Size, Tile, Winograd, supports,
};
use half::bf16;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Floats of all copies of a layer's weights: more than caches hold.
const COLD_FLOATS: usize = 16 << 20;
/// Bytes of a cache line.
const LINE: usize = 64;

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
    let halves = Aligned::of(layer.x.iter().map(|x| bf16::from_f32(*x)));
    let rounded: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
    // Results of one type share a buffer, as the layers of a network share a few.
    let zeros = || (0..batch * shape.h * shape.w * shape.k).map(|_| 0.0f32);
    let y = RefCell::new(Aligned::of(zeros()));
    let y_halves = RefCell::new(Aligned::of(zeros().map(bf16::from_f32)));
    let mut runs = vec![layer.direct(pool, isa, &y)];
    for (tile, name) in [(Tile::F2, "F(2x2)"), (Tile::F4, "F(4x4)")] {
        runs.push((name, layer.winograd(pool, isa, tile, &layer.x, &y)));
    }
    if bf16::has(isa, Tile::F2) {
        runs.push(("bf16 F2", layer.winograd(pool, isa, Tile::F2, &halves, &y_halves)));
    }
    let mut rows = vec![[f64::INFINITY, 0.0, 0.0]; runs.len()];
    let mut peak = 0.0f64;
    // The first round grows the scratch buffers.
    for repeat in 0..=repeats {
        let start = clock(pool);
        let operations = peak::run(pool, isa);
        peak = peak.max(operations / (clock(pool) - start));
        for ((name, run), [seconds, _, error]) in runs.iter_mut().zip(&mut rows) {
            let start = clock(pool);
            run(repeat);
            let passed = clock(pool) - start;
            if repeat == 0 {
                let x: &[f32] = if name.starts_with("bf16") { &rounded } else { &layer.x };
                *error = layer.error(x, &run(0));
            } else {
                *seconds = seconds.min(passed);
            }
        }
    }
    let row = |[seconds, _, error]: [f64; 3]| [seconds, peak, error];
    runs.iter().zip(rows).map(|((name, _), numbers)| (*name, row(numbers))).collect()
}

/// Elements from a cache line's boundary on, as a network's memory has them.
struct Aligned<E> {
    all: Vec<E>,
    first: usize,
}

impl<E: Copy> Aligned<E> {
    fn of(values: impl ExactSizeIterator<Item = E> + Clone) -> Self {
        let len = values.len();
        let mut all: Vec<E> = Vec::with_capacity(len + LINE);
        let first = all.as_ptr().align_offset(LINE);
        all.extend(values.clone().cycle().take(first));
        all.extend(values);
        Self { all, first }
    }
}

impl<E> Deref for Aligned<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        &self.all[self.first..]
    }
}

impl<E> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.all[self.first..]
    }
}

/// The same weights again and again.
struct Copies<E> {
    all: Aligned<E>,
    len: usize,
}

impl<E: Copy> Copies<E> {
    fn of(weights: &[E]) -> Self {
        let (len, copies) = (weights.len(), COLD_FLOATS.div_ceil(weights.len()));
        Self { all: Aligned::of((0..len * copies).map(|i| weights[i % len])), len }
    }

    fn get(&self, turn: usize) -> &[E] {
        let copies = self.all.len() / self.len;
        &self.all[turn % copies * self.len..][..self.len]
    }
}

/// A convolution with the weights of a turn; y is copied out where the turn is 0.
type Run<'a> = Box<dyn FnMut(usize) -> Vec<f32> + 'a>;

struct Layer {
    shape: ConvShape,
    batch: usize,
    x: Aligned<f32>,
    weight_kcrs: Vec<f32>,
    weight_rsck: Vec<f32>,
}

impl Layer {
    /// Data as after a ReLU.
    fn new(shape: ConvShape, batch: usize) -> Self {
        let mut rng = Rng::new(1, 0, 0, Purpose::Synth);
        let x: Vec<f32> =
            (0..batch * shape.h * shape.w * shape.c).map(|_| rng.normal().max(0.0) as f32).collect();
        let x = Aligned::of(x.into_iter());
        let deviation = (2.0 / (9 * shape.c) as f64).sqrt();
        let weight_kcrs: Vec<f32> = (0..shape.weights()).map(|_| (rng.normal() * deviation) as f32).collect();
        let mut weight_rsck = vec![0.0; weight_kcrs.len()];
        for (i, value) in weight_kcrs.iter().enumerate() {
            let (k, c, tap) = (i / (9 * shape.c), i / 9 % shape.c, i % 9);
            weight_rsck[(tap * shape.c + c) * shape.k + k] = *value;
        }
        Self { shape, batch, x, weight_kcrs, weight_rsck }
    }

    fn direct<'a>(
        &'a self,
        pool: &'a Pool,
        isa: Isa,
        y: &'a RefCell<Aligned<f32>>,
    ) -> (&'static str, Run<'a>) {
        let weights = Copies::of(&self.weight_rsck);
        let mut scratch = conv::Scratch::default();
        let run = move |turn: usize| {
            let mut y = y.borrow_mut();
            forward(pool, isa, &self.shape, self.batch, &self.x, weights.get(turn), &mut y, &mut scratch);
            if turn == 0 { y.to_vec() } else { vec![] }
        };
        ("direct", Box::new(run))
    }

    fn winograd<'a, E: Element + Into<f32>>(
        &'a self,
        pool: &'a Pool,
        isa: Isa,
        tile: Tile,
        x: &'a [E],
        y: &'a RefCell<Aligned<E>>,
    ) -> Run<'a> {
        let (batch, (input, output)) = (self.batch, self.sizes());
        let layer = Winograd::<E>::new(isa, tile, &self.shape, &vec![0.0; self.shape.k]);
        let mut packed = vec![E::zeroed(); layer.packed_len()];
        let factor = vec![1.0; self.shape.k];
        layer.pack(Filters { weight: &self.weight_kcrs, factor: &factor }, &mut packed);
        let weights = Copies::of(&packed);
        let mut scratch = Scratch::default();
        Box::new(move |turn: usize| {
            let mut y = y.borrow_mut();
            let operands = Operands {
                batch,
                weights: weights.get(turn),
                x: Images { data: x, layout: Layout::dense(input) },
                residual: None,
                relu: false,
                y: ImagesMut { data: &mut y, layout: Layout::dense(output) },
            };
            layer.run(pool, &mut scratch, operands);
            if turn == 0 { y.iter().map(|&y| y.into()).collect() } else { vec![] }
        })
    }

    fn sizes(&self) -> (Size, Size) {
        let ConvShape { h, w, c, k, .. } = self.shape;
        (Size { h, w, c }, Size { h, w, c: k })
    }

    /// Relative to f64, over a sample of the results: rms(y - f64) / rms(f64).
    fn error(&self, x: &[f32], y: &[f32]) -> f64 {
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
                    let x = &x[((image * h + row - 1) * w + column - 1) * c..][..c];
                    let g = self.weight_kcrs[out * 9 * c + tap..].iter().step_by(9);
                    sum += x.iter().zip(g).map(|(x, g)| f64::from(*x) * f64::from(*g)).sum::<f64>();
                }
            }
            error += (f64::from(y[at]) - sum).powi(2);
            square += sum * sum;
        }
        (error / square).sqrt()
    }
}
