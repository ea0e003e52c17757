//! Both tiles, on every instruction set of the machine, against a direct convolution in f64.

use super::*;
use crate::rng::{Purpose, Rng};
use half::bf16;
use proptest::prelude::*;

/// A transform's matrices Bt and At, [T][T] and [O][T]; the code has them as sums.
struct Matrices {
    g: Vec<Vec<f64>>,
    bt: Vec<Vec<f64>>,
    at: Vec<Vec<f64>>,
}

fn matrices(tile: Tile) -> Matrices {
    fn rows<const N: usize>(rows: &[[f64; N]]) -> Vec<Vec<f64>> {
        rows.iter().map(|row| row.to_vec()).collect()
    }
    match tile {
        Tile::F2 => Matrices {
            g: rows(&[[1., 0., 0.], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0., 0., 1.]]),
            bt: rows(&[[1., 0., -1., 0.], [0., 1., 1., 0.], [0., -1., 1., 0.], [0., 1., 0., -1.]]),
            at: rows(&[[1., 1., 1., 0.], [0., 1., -1., -1.]]),
        },
        Tile::F4 => Matrices {
            g: rows(&[
                [1. / 4., 0., 0.],
                [-1. / 6., -1. / 6., -1. / 6.],
                [-1. / 6., 1. / 6., -1. / 6.],
                [1. / 24., 1. / 12., 1. / 6.],
                [1. / 24., -1. / 12., 1. / 6.],
                [0., 0., 1.],
            ]),
            bt: rows(&[
                [4., 0., -5., 0., 1., 0.],
                [0., -4., -4., 1., 1., 0.],
                [0., 4., -4., -1., 1., 0.],
                [0., -2., -1., 2., 1., 0.],
                [0., 2., -1., -2., 1., 0.],
                [0., 4., 0., -5., 0., 1.],
            ]),
            at: rows(&[
                [1., 1., 1., 1., 1., 0.],
                [0., 1., -1., 2., -2., 0.],
                [0., 1., 1., 4., 4., 0.],
                [0., 1., -1., 8., -8., 1.],
            ]),
        },
    }
}

/// |m| v |m|t of a square v.
fn both_sides(m: &[Vec<f64>], v: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let left = |m: &[Vec<f64>], v: &[Vec<f64>]| -> Vec<Vec<f64>> {
        let row = |row: &Vec<f64>| {
            (0..v[0].len()).map(|j| row.iter().zip(v).map(|(m, v)| m.abs() * v[j]).sum()).collect()
        };
        m.iter().map(row).collect()
    };
    let transposed = |v: &[Vec<f64>]| -> Vec<Vec<f64>> {
        (0..v[0].len()).map(|j| v.iter().map(|row| row[j]).collect()).collect()
    };
    transposed(&left(m, &transposed(&left(m, v))))
}

/// Operands in buffers with gaps, and NaN wherever nothing may be read.
#[derive(Debug)]
struct Case {
    batch: usize,
    shape: ConvShape,
    x: Vec<f32>,
    weight: Vec<f32>,
    factor: Vec<f64>,
    bias: Vec<f32>,
    residual: Option<Vec<f32>>,
    relu: bool,
    border: usize,
}

/// The largest relative error of one rounding.
const F32_UNIT: f64 = 1.0 / (1u64 << 24) as f64;
const BF16_UNIT: f64 = 1.0 / (1u64 << 8) as f64;

const fn shape(h: usize, w: usize, c: usize, k: usize) -> ConvShape {
    ConvShape { h, w, c, k, r: 3, s: 3, stride: 1, pad: 1 }
}

impl Case {
    /// Data as after a ReLU, weights such that results are of order 1.
    fn new(batch: usize, shape: ConvShape, seed: u64) -> Self {
        let mut rng = Rng::new(seed, 0, 0, Purpose::Synth);
        let (pixels, c, k) = (batch * shape.h * shape.w, shape.c, shape.k);
        let mut normal = |len: usize, scale: f64| -> Vec<f32> {
            (0..len).map(|_| (rng.normal() * scale) as f32).collect()
        };
        let x = normal(pixels * c, 1.0).into_iter().map(|value| value.max(0.0)).collect();
        let weight = normal(shape.weights(), (2.0 / (9 * c) as f64).sqrt());
        let (bias, residual) = (normal(k, 0.5), normal(pixels * k, 1.0));
        let (relu, border) = (seed.is_multiple_of(2), (seed % 3) as usize);
        let residual = Some(residual).filter(|_| seed % 4 < 2);
        let factor = (0..k).map(|_| rng.range(0.5, 1.5)).collect();
        Self { batch, shape, x, weight, factor, bias, residual, relu, border }
    }

    /// Data and residual in bf16.
    fn rounded(&self) -> Self {
        let round = |values: &[f32]| values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        let Self { batch, shape, relu, border, .. } = *self;
        let (weight, factor, bias) = (self.weight.clone(), self.factor.clone(), self.bias.clone());
        let residual = self.residual.as_deref().map(round);
        Self { batch, shape, x: round(&self.x), weight, factor, bias, residual, relu, border }
    }

    fn first_image(&self) -> Self {
        let Self { shape, relu, border, .. } = *self;
        let first = |values: &[f32]| values[..values.len() / self.batch].to_vec();
        Self {
            batch: 1,
            shape,
            x: first(&self.x),
            weight: self.weight.clone(),
            factor: self.factor.clone(),
            bias: self.bias.clone(),
            residual: self.residual.as_deref().map(first),
            relu,
            border,
        }
    }

    /// In buffers whose borders hold NaN.
    fn run<E: Element + Into<f32>>(
        &self,
        pool: &Pool,
        layer: &Winograd<E>,
        scratch: &mut Scratch,
    ) -> Vec<f32> {
        let nan = E::round(f64::NAN);
        let mut weights = vec![nan; layer.packed_len()];
        layer.pack(Filters { weight: &self.weight, factor: &self.factor }, &mut weights);
        let ConvShape { h, w, c, k, .. } = self.shape;
        let (x_size, y_size) = (Size { h, w, c }, Size { h, w, c: k });
        let x = bordered::<E>(&self.x, self.batch, x_size, self.border);
        let residual = self.residual.as_ref().map(|r| bordered::<E>(r, self.batch, y_size, self.border));
        let nothing = vec![f32::NAN; self.batch * h * w * k];
        let mut y = bordered::<E>(&nothing, self.batch, y_size, self.border);
        let layout = Layout::bordered(y_size, self.border);
        let operands = Operands {
            batch: self.batch,
            weights: &weights,
            x: Images { data: &x, layout: Layout::bordered(x_size, self.border) },
            residual: residual.as_ref().map(|data| Images { data, layout }),
            relu: self.relu,
            y: ImagesMut { data: &mut y, layout },
        };
        layer.run(pool, scratch, operands);
        let mut inside = vec![];
        for row in 0..self.batch * h {
            let at = layout.first + row / h * layout.image + row % h * layout.row;
            inside.extend(y[at..][..w * k].iter().map(|&value| value.into()));
            y[at..][..w * k].fill(nan);
        }
        assert!(y.iter().all(|&value| value.into().is_nan()), "the border of y was written");
        inside
    }

    /// A tap of the filter that is packed.
    fn weight(&self, out: usize, tap: usize, channel: usize) -> f64 {
        f64::from(self.weight[(out * self.shape.c + channel) * 9 + tap]) * self.factor[out]
    }

    /// sum over taps and channels of x weight, in f64, at a pixel of y.
    fn direct(&self, image: usize, p: usize, q: usize, out: usize) -> f64 {
        let ConvShape { h, w, c, .. } = self.shape;
        let mut sum = 0.0;
        for tap in 0..9 {
            let (y, x) = (p + tap / 3, q + tap % 3);
            if (1..=h).contains(&y) && (1..=w).contains(&x) {
                let pixel = &self.x[((image * h + y - 1) * w + x - 1) * c..][..c];
                let product = |(channel, x): (usize, &f32)| f64::from(*x) * self.weight(out, tap, channel);
                sum += pixel.iter().enumerate().map(product).sum::<f64>();
            }
        }
        sum
    }

    /// Of one tile and output channel: |At| (|G| |g| |G|t * |Bt| |d| |B| summed over channels) |A|, [O][O]: what a product
    /// can be, summed as the results are. With `power` 2 the sum of their squares.
    fn magnitudes(
        &self,
        tile: Tile,
        filters: &[Vec<Vec<f64>>],
        [image, p, q]: [usize; 3],
        power: i32,
    ) -> Vec<f64> {
        let ConvShape { h, w, c, .. } = self.shape;
        let (m, size) = (matrices(tile), tile.results() + 2);
        let mut sum = vec![vec![0.0; size]; size];
        for (channel, filter) in filters.iter().enumerate() {
            let pixel = |y: usize, x: usize| {
                let is_inside = (1..=h).contains(&y) && (1..=w).contains(&x);
                let value = || self.x[((image * h + y - 1) * w + x - 1) * c + channel];
                if is_inside { f64::from(value().abs()) } else { 0.0 }
            };
            let d: Vec<Vec<f64>> =
                (0..size).map(|i| (0..size).map(|j| pixel(p + i, q + j)).collect()).collect();
            let d = both_sides(&m.bt, &d);
            for i in 0..size {
                for j in 0..size {
                    sum[i][j] += (d[i][j] * filter[i][j]).powi(power);
                }
            }
        }
        let at: Vec<Vec<f64>> =
            m.at.iter().map(|row| row.iter().map(|a| a.abs().powi(power)).collect()).collect();
        both_sides(&at, &sum).concat()
    }

    /// |G| |g| |G|t of every input channel, for one output channel.
    fn filters(&self, tile: Tile, out: usize) -> Vec<Vec<Vec<f64>>> {
        let (c, g) = (self.shape.c, matrices(tile).g);
        let weight = |tap: usize, channel: usize| self.weight(out, tap, channel).abs();
        let filter = |channel: usize| -> Vec<Vec<f64>> {
            (0..3).map(|r| (0..3).map(|s| weight(r * 3 + s, channel)).collect()).collect()
        };
        (0..c).map(|channel| both_sides(&g, &filter(channel))).collect()
    }

    /// Panics with the worst element where one is beyond its tolerance.
    ///
    /// Every product passes through c additions, and through the roundings of its weight, of the two data transforms, of
    /// the two result transforms and of the epilogue: n in all. Rounding errors that are independent and of mean zero
    /// add up to more than 6 sqrt(n) 2^-24 of the magnitudes with a probability below 2 n exp(-18) (Higham, Mary: "A new
    /// approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019, theorem 2.4).
    ///
    /// `unit` is the rounding error of the type in memory. Where it is not f32's, it meets each product twice, in data and
    /// weight, and by Hoeffding's inequality those errors add up to more than 6 times the root of the sum of their
    /// squares with a probability below 2 exp(-18); and it meets the result.
    fn assert_matches(&self, tile: Tile, unit: f64, got: &[f32], what: &str) {
        let ConvShape { h, w, c, k, .. } = self.shape;
        let size = tile.results();
        let (high, wide) = (h.div_ceil(size), w.div_ceil(size));
        let roundings = (c + 1 + 2 * 4 + 2 * 4 + 2) as f64;
        let mut worst = (0.0, String::new());
        for out in 0..k {
            let filters = self.filters(tile, out);
            for place in 0..self.batch * high * wide {
                let (image, p, q) = (place / (high * wide), place / wide % high * size, place % wide * size);
                let [magnitudes, squares] =
                    [1, 2].map(|power| self.magnitudes(tile, &filters, [image, p, q], power));
                for (place, (magnitude, square)) in magnitudes.into_iter().zip(squares).enumerate() {
                    let (y, x) = (p + place / size, q + place % size);
                    if y >= h || x >= w {
                        continue;
                    }
                    let at = ((image * h + y) * w + x) * k + out;
                    let bias = f64::from(self.bias[out]);
                    let residual = self.residual.as_ref().map_or(0.0, |r| f64::from(r[at]));
                    let want = self.direct(image, y, x, out) + bias + residual;
                    let want = if self.relu { want.max(0.0) } else { want };
                    let scale = magnitude + bias.abs() + residual.abs();
                    let mut tolerance = 6.0 * roundings.sqrt() * F32_UNIT * scale;
                    if unit > F32_UNIT {
                        tolerance += 6.0 * 2.0 * unit * square.sqrt() + unit * want.abs();
                    }
                    let share = (f64::from(got[at]) - want).abs() / tolerance;
                    if share.is_nan() || share > worst.0 {
                        let place = format!("image {image}, pixel {y} {x}, channel {out}");
                        worst = (share, format!("{place}: got {}, want {want}", got[at]));
                        assert!(share <= 1.0, "{what}: error {share:.2} of the tolerance at {}", worst.1);
                    }
                }
            }
        }
        println!("{what}: worst error {:.3} of the tolerance at {}", worst.0, worst.1);
    }

    fn check(&self, pool: &Pool, isa: Isa, scratch: &mut Scratch) {
        for tile in [Tile::F2, Tile::F4] {
            let layer = Winograd::<f32>::new(isa, tile, &self.shape, &self.bias);
            let got = self.run(pool, &layer, scratch);
            let what = format!("{tile:?} {} batch {} {:?}", isa.name(), self.batch, self.shape);
            self.assert_matches(tile, F32_UNIT, &got, &what);
        }
        if bf16::has(isa, Tile::F2) {
            let case = self.rounded();
            let layer = Winograd::<bf16>::new(isa, Tile::F2, &case.shape, &case.bias);
            let got = case.run(pool, &layer, scratch);
            let what = format!("bf16 F2 {} batch {} {:?}", isa.name(), case.batch, case.shape);
            case.assert_matches(Tile::F2, BF16_UNIT, &got, &what);
        }
    }
}

impl Case {
    fn check_bits<E: Element + Into<f32>>(&self, pools: &[Pool], isa: Isa, tile: Tile) {
        let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let layer = Winograd::<E>::new(isa, tile, &self.shape, &self.bias);
        let want = bits(self.run(&pools[0], &layer, &mut Scratch::default()));
        let mut scratch = Scratch::default();
        for pool in pools {
            let got = bits(self.run(pool, &layer, &mut scratch));
            assert!(got == want, "{} {tile:?} {} threads {:?}", isa.name(), pool.threads(), self.shape);
        }
        let one = bits(self.first_image().run(&pools[0], &layer, &mut scratch));
        assert!(one == want[..one.len()], "{} {tile:?} alone {:?}", isa.name(), self.shape);
    }
}

/// Maps in the middle of NaN.
fn bordered<E: Element>(values: &[f32], batch: usize, size: Size, border: usize) -> Vec<E> {
    let layout = Layout::bordered(size, border);
    let mut all = vec![E::round(f64::NAN); batch * layout.image];
    let floats = size.w * size.c;
    for (row, values) in values.chunks_exact(floats).enumerate() {
        let at = layout.first + row / size.h * layout.image + row % size.h * layout.row;
        for (to, value) in all[at..].iter_mut().zip(values) {
            *to = E::round(f64::from(*value));
        }
    }
    all
}

#[test]
fn layers_match_a_direct_convolution() {
    let (pool, mut scratch) = (Pool::new(2), Scratch::default());
    // A bottleneck's widths at small maps; maps that fill no tile; channels that fill no register and no group.
    let shapes = [
        (1, shape(7, 7, 64, 64)),
        (2, shape(8, 8, 16, 16)),
        (3, shape(5, 6, 20, 70)),
        (1, shape(1, 1, 3, 5)),
        (2, shape(4, 9, 33, 130)),
        (9, shape(7, 7, 17, 8)),
        (1, shape(14, 13, 130, 4)),
    ];
    for isa in Isa::available() {
        for (i, &(batch, shape)) in shapes.iter().enumerate() {
            Case::new(batch, shape, i as u64).check(&pool, isa, &mut scratch);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_match_a_direct_convolution(
        batch in 1usize..4, h in 1usize..15, w in 1usize..15, c in 1usize..40, k in 1usize..20, seed in 0u64..1000,
    ) {
        let (pool, mut scratch) = (Pool::new(1), Scratch::default());
        let case = Case::new(batch, shape(h, w, c, k), seed);
        for isa in Isa::available() {
            case.check(&pool, isa, &mut scratch);
        }
    }
}

#[test]
fn neither_threads_nor_the_batch_change_a_bit() {
    let pools = [1, 2, 3].map(Pool::new);
    for isa in Isa::available() {
        for (i, shape) in [shape(28, 28, 24, 72), shape(7, 7, 64, 200)].into_iter().enumerate() {
            let case = Case::new(3, shape, i as u64 * 4 + 2);
            case.check_bits::<f32>(&pools, isa, Tile::F2);
            case.check_bits::<f32>(&pools, isa, Tile::F4);
            if bf16::has(isa, Tile::F2) {
                case.check_bits::<bf16>(&pools, isa, Tile::F2);
            }
        }
    }
}

#[test]
fn a_nan_comes_out() {
    let (pool, mut scratch) = (Pool::new(1), Scratch::default());
    for isa in Isa::available() {
        let mut case = Case::new(1, shape(4, 4, 16, 16), 2);
        case.x[0] = f32::NAN;
        let layer = Winograd::<f32>::new(isa, Tile::F4, &case.shape, &case.bias);
        assert!(case.relu && case.run(&pool, &layer, &mut scratch)[0].is_nan(), "{}", isa.name());
    }
}

#[test]
fn other_convolutions_are_not_supported() {
    let fits = shape(7, 7, 3, 5);
    assert!(supports(&fits));
    for other in [
        ConvShape { stride: 2, ..fits },
        ConvShape { pad: 0, ..fits },
        ConvShape { r: 1, ..fits },
        ConvShape { s: 5, ..fits },
        ConvShape { c: 0, ..fits },
    ] {
        assert!(!supports(&other), "{other:?}");
    }
}

#[test]
fn the_preferred_tile_follows_the_number_of_tiles() {
    let isa = Isa::current();
    let preferred = |side: usize, width: usize, batch: usize| {
        super::preferred::<f32>(isa, &shape(side, side, width, width), batch)
    };
    assert_eq!(preferred(56, 64, 1), Some(Tile::F4));
    assert_eq!(preferred(14, 256, 1), Some(Tile::F4));
    assert_eq!(preferred(7, 512, 1), Some(Tile::F2));
    assert_eq!(preferred(7, 512, 4), Some(Tile::F4));
    assert_eq!(preferred(56, 16, 1), None);
    let wide = shape(56, 56, 64, 64);
    assert_eq!(super::preferred::<f32>(isa, &ConvShape { stride: 2, ..wide }, 1), None);
    let in_bf16 = super::preferred::<bf16>(isa, &wide, 1);
    assert_eq!(in_bf16, isa.has_bf16().then_some(Tile::F2));
    assert_eq!(super::preferred::<bf16>(Isa::PORTABLE, &wide, 1), None);
}

#[test]
#[should_panic(expected = "x: 1 of Size { h: 4, w: 4, c: 2 }")]
fn a_map_beyond_its_buffer_is_refused() {
    let (pool, shape) = (Pool::new(1), shape(4, 4, 2, 2));
    let layer = Winograd::new(Isa::PORTABLE, Tile::F2, &shape, &[0.0; 2]);
    let layout = Layout::dense(Size { h: 4, w: 4, c: 2 });
    let x = Images { data: &[0.0; 31], layout };
    let y = ImagesMut { data: &mut [0.0; 32], layout };
    layer.run(
        &pool,
        &mut Scratch::default(),
        Operands { batch: 1, weights: &[0.0; 16 * 2 * 64], x, residual: None, relu: true, y },
    );
}

#[test]
#[should_panic(expected = "overlap")]
fn overlapping_rows_of_results_are_refused() {
    let (pool, shape) = (Pool::new(1), shape(4, 4, 2, 2));
    let layer = Winograd::new(Isa::PORTABLE, Tile::F2, &shape, &[0.0; 2]);
    let layout = Layout::dense(Size { h: 4, w: 4, c: 2 });
    let x = Images { data: &[0.0; 32], layout };
    let y = ImagesMut { data: &mut [0.0; 32], layout: Layout { row: 7, ..layout } };
    layer.run(
        &pool,
        &mut Scratch::default(),
        Operands { batch: 1, weights: &[0.0; 16 * 2 * 64], x, residual: None, relu: true, y },
    );
}
