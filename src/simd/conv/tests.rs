//! Every direction, on every instruction set of the machine, against plain loops in f64.

use super::*;
use crate::rng::{Purpose, Rng};
use crate::simd::pool::Pool;
use crate::tensor::Difference;

const fn shape(
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    filter: usize,
    stride: usize,
    pad: usize,
) -> ConvShape {
    ConvShape { h, w, c, k, r: filter, s: filter, stride, pad }
}

/// Stem, bottleneck and classifier shapes at sizes that a debug build gets through, then odd ones: channels and widths
/// that fill no tile, maps smaller than the filter, strides that leave a rest, filters that are not square.
const SHAPES: &[(usize, ConvShape)] = &[
    (2, shape(20, 20, 3, 64, 7, 2, 3)),
    (1, shape(9, 11, 3, 10, 3, 2, 1)),
    (3, shape(8, 8, 16, 16, 3, 1, 1)),
    (2, shape(8, 8, 64, 64, 3, 1, 1)),
    (2, shape(8, 8, 16, 64, 1, 1, 0)),
    (2, shape(8, 8, 32, 48, 1, 2, 0)),
    (2, shape(7, 5, 24, 40, 1, 2, 0)),
    (2, shape(8, 8, 32, 32, 3, 2, 1)),
    (3, shape(7, 7, 64, 33, 3, 2, 1)),
    (17, shape(2, 2, 64, 32, 3, 1, 1)),
    (16, shape(1, 1, 48, 64, 3, 1, 1)),
    (5, shape(1, 1, 32, 32, 3, 2, 1)),
    (5, shape(2, 2, 32, 32, 3, 2, 1)),
    (1, shape(1, 37, 128, 10, 1, 1, 0)),
    (1, shape(1, 7, 64, 1000, 1, 1, 0)),
    (1, shape(14, 14, 300, 20, 3, 1, 1)),
    (1, shape(3, 3, 1100, 70, 1, 1, 0)),
    (2, shape(6, 9, 5, 7, 5, 3, 2)),
    (2, ConvShape { h: 6, w: 9, c: 18, k: 7, r: 3, s: 1, stride: 1, pad: 1 }),
    (2, ConvShape { h: 6, w: 9, c: 4, k: 7, r: 1, s: 4, stride: 2, pad: 2 }),
];

/// Pixels enough that wgrad is split into partial sums.
const SPLIT: (usize, ConvShape) = (5, shape(30, 30, 16, 20, 3, 1, 1));

struct Case {
    n: usize,
    shape: ConvShape,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
}

impl Case {
    fn new(n: usize, shape: ConvShape, seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0, 0, Purpose::Synth);
        let mut normal = |len: usize| (0..len).map(|_| rng.normal() as f32).collect::<Vec<_>>();
        let x = normal(n * shape.h * shape.w * shape.c);
        let w = normal(shape.weights());
        let dy = normal(n * shape.p() * shape.q() * shape.k);
        Self { n, shape, x, w, dy }
    }

    /// Calls `visit(x index, w index, y index)` for every product of the convolution.
    fn products(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let ConvShape { h, w, c, k, r, s, stride, pad } = self.shape;
        let (p_size, q_size) = (self.shape.p(), self.shape.q());
        for pixel in 0..self.n * p_size * q_size {
            let (image, p, q) = (pixel / (p_size * q_size), pixel / q_size % p_size, pixel % q_size);
            for tap in 0..r * s {
                let (row, column) = (p * stride + tap / s, q * stride + tap % s);
                if row < pad || row >= h + pad || column < pad || column >= w + pad {
                    continue;
                }
                let source = ((image * h + row - pad) * w + column - pad) * c;
                for channel in 0..c {
                    for out in 0..k {
                        visit(source + channel, (tap * c + channel) * k + out, pixel * k + out);
                    }
                }
            }
        }
    }

    /// y, dx, dw.
    fn reference(&self) -> [Vec<f32>; 3] {
        let mut sums = [vec![0.0f64; self.dy.len()], vec![0.0; self.x.len()], vec![0.0; self.w.len()]];
        self.products(|x, w, y| {
            sums[0][y] += f64::from(self.x[x]) * f64::from(self.w[w]);
            sums[1][x] += f64::from(self.dy[y]) * f64::from(self.w[w]);
            sums[2][w] += f64::from(self.x[x]) * f64::from(self.dy[y]);
        });
        sums.map(|sum| sum.into_iter().map(|value| value as f32).collect())
    }

    /// y, dx, dw; `start` is what the gradients are added to.
    fn results(&self, pool: &Pool, isa: Isa, start: Option<f32>, scratch: &mut Scratch) -> [Vec<f32>; 3] {
        let (shape, n) = (&self.shape, self.n);
        // NaN where nothing may be left over.
        let first = start.unwrap_or(f32::NAN);
        let (mut y, mut dx, mut dw) =
            (vec![f32::NAN; self.dy.len()], vec![first; self.x.len()], vec![first; self.w.len()]);
        forward(pool, isa, shape, n, &self.x, &self.w, &mut y, scratch);
        dgrad(pool, isa, shape, n, &self.dy, &self.w, &mut dx, start.is_some(), scratch);
        wgrad(pool, isa, shape, n, &self.x, &self.dy, &mut dw, start.is_some(), scratch);
        [y, dx, dw]
    }

    /// Most terms that one element of y, dx, dw sums.
    fn terms(&self) -> [usize; 3] {
        let taps = self.shape.r * self.shape.s;
        [taps * self.shape.c, taps * self.shape.k, self.n * self.shape.p() * self.shape.q()]
    }

    fn check(&self, pool: &Pool, isa: Isa, scratch: &mut Scratch) {
        let got = self.results(pool, isa, None, scratch);
        let names = ["forward", "dgrad", "wgrad"];
        for (((name, got), want), terms) in names.iter().zip(&got).zip(&self.reference()).zip(self.terms()) {
            // Standard normals: 4 terms 2^-24 rms rms for a sequential f32 sum, as a share of the largest element, and
            // the rounding of both results.
            let largest = want.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let sum = 4.0 * terms as f64 * 2f64.powi(-24) / f64::from(largest.max(1e-3));
            let tolerance = sum + 2f64.powi(-23);
            let what = format!("{name} {} batch {} {:?}", isa.name(), self.n, self.shape);
            Difference::between(got, want).assert_within(&what, tolerance);
        }
    }
}

#[test]
fn all_directions_match_plain_loops() {
    let pool = Pool::new(2);
    let mut scratch = Scratch::default();
    for isa in Isa::available() {
        for (i, &(n, shape)) in SHAPES.iter().chain([&SPLIT]).enumerate() {
            Case::new(n, shape, i as u64).check(&pool, isa, &mut scratch);
        }
    }
}

#[test]
fn random_shapes_match_plain_loops() {
    let pool = Pool::new(2);
    let mut scratch = Scratch::default();
    let mut rng = Rng::new(5, 0, 0, Purpose::Synth);
    for i in 0..150 {
        let mut below = |n: u64| rng.below(n) as usize;
        let (r, s) = (1 + below(5), 1 + below(5));
        let (stride, pad) = (1 + below(3), below(r.min(s) as u64 + 1));
        let size = |filter: usize, extra: usize| (filter + extra).saturating_sub(2 * pad).max(1);
        let (h, w) = (size(r, below(10)), size(s, below(10)));
        let (c, k, n) = (1 + below(40), 1 + below(70), 1 + below(6));
        let case = Case::new(n, ConvShape { h, w, c, k, r, s, stride, pad }, 100 + i);
        for isa in Isa::available() {
            case.check(&pool, isa, &mut scratch);
        }
    }
}

#[test]
fn gradients_are_adjoint() {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norm = |a: &[f32]| dot(a, a).sqrt();
    let pool = Pool::new(2);
    for isa in Isa::available() {
        for &(n, shape) in SHAPES {
            let case = Case::new(n, shape, 9);
            let [y, dx, dw] = case.results(&pool, isa, None, &mut Scratch::default());
            let (by_y, by_x, by_w) = (dot(&case.dy, &y), dot(&dx, &case.x), dot(&dw, &case.w));
            // Each dot product's error is a random walk of roundings, far below f32's epsilon times the norms.
            let tolerance = 1e-6 * norm(&case.dy) * norm(&y).max(norm(&case.dy));
            assert!((by_y - by_x).abs() <= tolerance, "{} {shape:?}: {by_y} {by_x}", isa.name());
            assert!((by_y - by_w).abs() <= tolerance, "{} {shape:?}: {by_y} {by_w}", isa.name());
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let bits = |results: [Vec<f32>; 3]| results.map(|r| r.into_iter().map(f32::to_bits).collect::<Vec<_>>());
    let pools = [1, 2, 3].map(Pool::new);
    let large = (20, shape(7, 7, 512, 64, 3, 2, 1));
    for isa in Isa::available() {
        for &(n, shape) in SHAPES.iter().chain([&SPLIT, &large]) {
            let case = Case::new(n, shape, 3);
            let run = |pool: &Pool, scratch: &mut Scratch| bits(case.results(pool, isa, Some(0.5), scratch));
            let want = run(&pools[0], &mut Scratch::default());
            let mut scratch = Scratch::default();
            for pool in &pools {
                assert!(
                    run(pool, &mut scratch) == want,
                    "{} {} threads {shape:?}",
                    isa.name(),
                    pool.threads()
                );
            }
        }
    }
}

#[test]
fn accumulating_adds_to_what_is_there() {
    let pool = Pool::new(2);
    for isa in Isa::available() {
        for &(n, shape) in SHAPES.iter().chain([&SPLIT]) {
            let case = Case::new(n, shape, 4);
            let [_, dx, dw] = case.results(&pool, isa, None, &mut Scratch::default());
            let [_, dx_sum, dw_sum] = case.results(&pool, isa, Some(2.0), &mut Scratch::default());
            for (name, plain, sum, terms) in
                [("dx", dx, dx_sum, case.terms()[1]), ("dw", dw, dw_sum, case.terms()[2])]
            {
                let want: Vec<f32> = plain.iter().map(|value| value + 2.0).collect();
                let tolerance = 4.0 * (terms + 1) as f64 * 2f64.powi(-24);
                let what = format!("{name} {} {shape:?}", isa.name());
                Difference::between(&sum, &want).assert_within(&what, tolerance);
            }
        }
    }
}

#[test]
fn weight_layouts_are_inverse() {
    let shape = ConvShape { h: 5, w: 5, c: 3, k: 4, r: 2, s: 3, stride: 1, pad: 0 };
    let kcrs: Vec<f32> = (0..shape.weights()).map(|i| i as f32).collect();
    let (mut rsck, mut back) = (vec![0.0; kcrs.len()], vec![0.0; kcrs.len()]);
    rsck_from_kcrs(&shape, &kcrs, &mut rsck);
    // [r 1][s 2][c 0][k 3] is [k 3][c 0][r 1][s 2].
    assert_eq!(rsck[((3 + 2) * 3) * 4 + 3], kcrs[(3 * 3 * 2 + 1) * 3 + 2]);
    kcrs_from_rsck(&shape, &rsck, &mut back);
    assert_eq!(back, kcrs);
}

#[test]
#[should_panic(expected = "length of w")]
fn wrong_lengths_are_refused() {
    let (pool, shape) = (Pool::new(1), shape(4, 4, 4, 4, 3, 1, 1));
    let isa = Isa::PORTABLE;
    forward(&pool, isa, &shape, 1, &[0.0; 64], &[0.0; 143], &mut [0.0; 64], &mut Scratch::default());
}
