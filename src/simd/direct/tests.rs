//! Convolutions at random shapes: the portable path against plain loops, every set against the portable path.

use super::Precision;
use super::conv::{Conv, Operands, Part};
use super::kernel::Kernels;
use super::map::{Format, Map, View};
use super::pack::{Filter, Packed, Source};
use super::quads;
use crate::rng::{Purpose, Rng};
use crate::simd::filters::Filters;
use crate::simd::isa::Isa;
use crate::simd::memory::Memory;
use half::bf16;
use proptest::prelude::*;

#[derive(Debug, Clone, Copy)]
struct Case {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    taps: usize,
    stride: usize,
    /// Beyond what the filter needs.
    more_border: usize,
    y_border: usize,
    relu: bool,
    residual: bool,
    /// 8-bit weights are of the kind that AVX2 multiplies fast.
    quads: bool,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1usize..3, 1usize..20, 1usize..20, 1usize..5, 1usize..12);
    let filters = (prop_oneof![Just(1usize), Just(3), Just(7)], 1usize..3, 0usize..2, 0usize..2);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<u64>());
    (sizes, filters, flags).prop_map(|((n, h, w, c, k), (taps, stride, more_border, y_border), flags)| Case {
        n,
        h,
        w,
        // Images have 3 channels, everything else multiples of 16.
        c: if taps == 7 { 3 } else { 16 * c },
        k: 16 * k,
        taps,
        stride,
        more_border,
        y_border,
        relu: flags.0,
        residual: flags.1,
        quads: flags.2,
        seed: flags.3,
    })
}

/// Operands in real units; activations and residual are integers from 0 to 255 in int8.
struct Numbers {
    x: Vec<f32>,
    /// [k][c][r][s], of int8 [k][r][s][c].
    weight: Vec<f32>,
    /// A power of two, by which bf16 weights stay what they are.
    factor: Vec<f64>,
    bias: Vec<f32>,
    scale: Vec<f32>,
    residual: Vec<f32>,
    r_scale: f32,
}

/// One pixel of 16 channels, multiplied into 16.
const PIXEL: Case = Case {
    n: 1,
    h: 1,
    w: 1,
    c: 16,
    k: 16,
    taps: 1,
    stride: 1,
    more_border: 0,
    y_border: 0,
    relu: false,
    residual: false,
    quads: false,
    seed: 0,
};

impl Case {
    fn pad(&self) -> usize {
        self.taps / 2
    }

    fn out(&self, size: usize) -> usize {
        (size + 2 * self.pad() - self.taps) / self.stride + 1
    }

    fn numbers(&self, precision: Precision) -> Numbers {
        let mut rng = Rng::new(self.seed, 0, 0, Purpose::Synth);
        let (p, q, depth) = (self.out(self.h), self.out(self.w), self.taps * self.taps * self.c);
        let mut make = |len: usize, low: f64, high: f64| -> Vec<f32> {
            let round = |value: f64| match precision {
                Precision::Fp32 => value as f32,
                Precision::Bf16 => bf16::from_f64(value).to_f32(),
                Precision::Int8 => value.round() as f32,
            };
            (0..len).map(|_| round(rng.range(low, high))).collect()
        };
        let (maps, results) = (self.n * self.h * self.w * self.c, self.n * p * q * self.k);
        if precision == Precision::Int8 {
            let (x, mut weight) = (make(maps, 0.0, 255.0), make(self.k * depth, -127.0, 127.0));
            if self.quads {
                weight = self.rounded(&weight);
            }
            let (bias, residual) = (make(self.k, -50.0, 150.0), make(results, 0.0, 255.0));
            let step = 1.0 / (60.0 * (depth as f32).sqrt());
            let scale = make(self.k, 50.0, 100.0).iter().map(|value| value * 0.01 * step).collect();
            let factor = vec![1.0; self.k];
            return Numbers { x, weight, factor, bias, scale, residual, r_scale: 0.37 };
        }
        let bound = (3.0 / depth as f64).sqrt();
        let (x, weight) = (make(maps, -1.0, 1.0), make(self.k * depth, -bound, bound));
        let (bias, residual) = (make(self.k, -1.0, 1.0), make(results, -1.0, 1.0));
        let factor = (0..self.k).map(|k| if k % 3 == 0 { 0.5 } else { 1.0 }).collect();
        Numbers { x, weight, factor, bias, scale: vec![1.0; self.k], residual, r_scale: 1.0 }
    }

    /// The nearest weights whose quads hold: many of them reach the most that is allowed.
    fn rounded(&self, weight: &[f32]) -> Vec<f32> {
        let mut levels = vec![0; weight.len()];
        let row = self.taps * self.c;
        weight.chunks(row).zip(levels.chunks_mut(row)).for_each(|(real, levels)| quads::round(real, levels));
        levels.into_iter().map(f32::from).collect()
    }

    /// f64 sums before residual and ReLU, [n][p][q][k], and the sums of their terms' sizes.
    fn sums(&self, precision: Precision, numbers: &Numbers) -> Vec<(f64, f64)> {
        let (p, q) = (self.out(self.h), self.out(self.w));
        let mut sums = vec![];
        for at in 0..self.n * p * q * self.k {
            let (k, pixel) = (at % self.k, at / self.k);
            let (image, row, column) = (pixel / (p * q), pixel / q % p, pixel % q);
            let (mut sum, mut size) = (0.0, 0.0);
            for tap in 0..self.taps * self.taps {
                let (r, s) = (tap / self.taps, tap % self.taps);
                let y = (row * self.stride + r).checked_sub(self.pad()).filter(|y| *y < self.h);
                let x = (column * self.stride + s).checked_sub(self.pad()).filter(|x| *x < self.w);
                let (Some(y), Some(x)) = (y, x) else { continue };
                for c in 0..self.c {
                    let x = numbers.x[((image * self.h + y) * self.w + x) * self.c + c];
                    let at = match precision {
                        Precision::Int8 => (k * self.taps * self.taps + tap) * self.c + c,
                        Precision::Fp32 | Precision::Bf16 => (k * self.c + c) * self.taps * self.taps + tap,
                    };
                    let product = f64::from(x) * f64::from(numbers.weight[at]) * numbers.factor[k];
                    sum += product;
                    size += product.abs();
                }
            }
            sums.push((sum, size));
        }
        sums
    }

    /// Runs the convolution; `is_raw` leaves the results of int8 in f32. Bytes around the output must stay as they were.
    fn run(&self, precision: Precision, set: &Kind, numbers: &Numbers, is_raw: bool) -> Vec<f32> {
        let kernels = set.kernels;
        let filter = Filter { k: self.k, r: self.taps, s: self.taps, c: self.c };
        let mut packed = Packed::new(kernels, filter).unwrap();
        let mut w = Memory::zeroed(packed.bytes).unwrap();
        let small: Vec<i8> = numbers.weight.iter().map(|w| *w as i8).collect();
        let filters = Filters { weight: &numbers.weight, factor: &numbers.factor };
        let source = if precision == Precision::Int8 { Source::I8(&small) } else { Source::F32(filters) };
        if precision == Precision::Int8 {
            packed.suit(Isa::current(), &small);
            // Widened kernels are exact for weights of both kinds; the others are seen at work where they are chosen.
            let is_widened = kernels.widened.is_some_and(|widened| std::ptr::eq(widened, packed.kernels));
            assert!(!(is_widened && self.quads), "{}: kernels for weights that saturate", set.name);
        }
        packed.pack(Isa::current(), source, &mut w.bytes_mut()[..packed.bytes]);
        let map = |h, w, c, border, format| Map { n: self.n, h, w, c, border, format };
        let (p, q) = (self.out(self.h), self.out(self.w));
        let x = map(self.h, self.w, self.c, self.pad() + self.more_border, kernels.format);
        let format = if is_raw { Format::F32InLanes } else { kernels.format };
        let (y, r) = (map(p, q, self.k, self.y_border, format), map(p, q, self.k, 0, kernels.format));
        let (x_memory, r_memory) = (filled(&x, &numbers.x), filled(&r, &numbers.residual));
        let y_memory = Memory::zeroed(y.bytes()).unwrap();
        let conv = Conv {
            bias: packed.order(&numbers.bias),
            starts: if precision == Precision::Int8 { packed.starts(&small) } else { vec![] },
            scale: if precision == Precision::Int8 { packed.order(&numbers.scale) } else { vec![] },
            r_scale: numbers.r_scale,
            stride: self.stride,
            pad: self.pad(),
            relu: self.relu,
            packed,
        };
        let view = |map, memory: &Memory| View { map, base: memory.ptr() };
        let residual = self.residual.then(|| view(r, &r_memory));
        conv.check(&x, &y, residual.map(|r| r.map).as_ref());
        let operands = Operands { x: view(x, &x_memory), y: view(y, &y_memory), residual, w: w.ptr() };
        let panels = conv.packed.panels.len();
        for image in 0..self.n {
            // Divided both ways, so that parts that begin in the middle are seen.
            for rows in [0..p / 2, p / 2..p] {
                for panels in [0..panels / 2, panels / 2..panels] {
                    // SAFETY: checked above; one thread.
                    unsafe { conv.run(&operands, &Part { image, rows: rows.clone(), panels }) };
                }
            }
        }
        let mut values = read(&y, &y_memory);
        if is_raw {
            let order = conv.packed.channels_in_order();
            for pixel in values.chunks_exact_mut(order.len()) {
                let lanes = pixel.to_vec();
                order.iter().zip(lanes).for_each(|(channel, value)| pixel[*channel] = value);
            }
        }
        values
    }
}

fn filled(map: &Map, values: &[f32]) -> Memory {
    let mut memory = Memory::zeroed(map.bytes()).unwrap();
    let bytes = memory.bytes_mut();
    for (i, row) in values.chunks_exact(map.w * map.c).enumerate() {
        let at = map.at(i / map.h, i % map.h, 0);
        let size = map.format.bytes();
        for (to, value) in bytes[at..].chunks_exact_mut(size).zip(row) {
            match map.format {
                Format::F32 | Format::F32InLanes => to.copy_from_slice(&value.to_ne_bytes()),
                Format::Bf16 => to.copy_from_slice(&bf16::from_f32(*value).to_ne_bytes()),
                Format::U8 => to.copy_from_slice(&[*value as u8]),
            }
        }
    }
    memory
}

/// Panics where something was written to the border or the tail.
fn read(map: &Map, memory: &Memory) -> Vec<f32> {
    // SAFETY: the memory's own length, and nobody writes it.
    let bytes = unsafe { std::slice::from_raw_parts(memory.ptr(), map.bytes()) };
    let size = map.format.bytes();
    let (mut values, mut inside) = (vec![], vec![false; bytes.len()]);
    for i in 0..map.n * map.h {
        let at = map.at(i / map.h, i % map.h, 0);
        let len = map.w * map.pixel();
        inside[at..at + len].fill(true);
        for value in bytes[at..at + len].chunks_exact(size) {
            values.push(match (map.format, value) {
                (Format::Bf16, &[a, b]) => bf16::from_ne_bytes([a, b]).to_f32(),
                (_, &[a, b, c, d]) => f32::from_ne_bytes([a, b, c, d]),
                (_, bytes) => f32::from(bytes[0]),
            });
        }
    }
    let outside = inside.iter().zip(bytes).position(|(inside, byte)| !inside && *byte != 0);
    assert_eq!(outside, None, "a byte outside of {map:?} was written");
    values
}

/// Kernels to be tried.
struct Kind {
    name: &'static str,
    kernels: &'static Kernels,
}

/// Those of every set that the machine has, and the kernels of AVX-VNNI by AVX-512's own instruction.
fn sets(precision: Precision) -> Vec<Kind> {
    let mut sets = vec![];
    for isa in Isa::available() {
        if let Ok(kernels) = Kernels::of(precision, isa) {
            sets.push(Kind { name: isa.name(), kernels });
        }
        #[cfg(target_arch = "x86_64")]
        if precision == Precision::Int8 && isa.name() == "avx512" && isa.has_dots() {
            sets.push(Kind { name: "avxvnni by avx512", kernels: &super::avx2_int8::VNNI_OF_AVX512 });
        }
        #[cfg(target_arch = "x86_64")]
        if precision == Precision::Int8 && isa.name() == "avx2" {
            sets.push(Kind { name: "avx2 widened", kernels: &super::avx2_int8::WIDENED });
        }
    }
    sets
}

/// The f32 sum of `terms` products in any order is within terms 2^-24 of the sum of their sizes (Higham, "Accuracy and
/// Stability of Numerical Algorithms", §3.1); bias, residual and the rounding of the result add 2^-24 or 2^-8 of theirs.
fn check_floats(case: &Case, precision: Precision, set: &Kind) {
    let numbers = case.numbers(precision);
    let got = case.run(precision, set, &numbers, false);
    let terms = (case.taps * case.taps * case.c + 3) as f64;
    let unit = if precision == Precision::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-23) };
    for (i, ((sum, size), got)) in case.sums(precision, &numbers).into_iter().zip(got).enumerate() {
        let bias = f64::from(numbers.bias[i % case.k]);
        let residual = if case.residual { f64::from(numbers.residual[i]) } else { 0.0 };
        let want = sum + bias + residual;
        let want = if case.relu { want.max(0.0) } else { want };
        let within = terms * 2f64.powi(-24) * (size + bias.abs() + residual.abs()) + unit * want.abs();
        let error = (f64::from(got) - want).abs();
        assert!(
            error <= within,
            "{} {} {case:?}: result {i} is {got}, want {want}, within {within:e}",
            set.name,
            precision.name()
        );
    }
}

/// Sums of 8-bit products are exact; the epilogue is one fused multiply-add (or two), done alike on every set.
fn check_int8(case: &Case, set: &Kind, is_raw: bool) {
    let numbers = case.numbers(Precision::Int8);
    let got = case.run(Precision::Int8, set, &numbers, is_raw);
    for (i, ((sum, _), got)) in case.sums(Precision::Int8, &numbers).into_iter().zip(got).enumerate() {
        let k = i % case.k;
        let mut want = (sum as i32 as f32).mul_add(numbers.scale[k], numbers.bias[k]);
        if case.residual {
            want = numbers.residual[i].mul_add(numbers.r_scale, want);
        }
        if !is_raw {
            want = want.round_ties_even().clamp(0.0, 255.0);
        } else if case.relu {
            want = want.max(0.0);
        }
        assert_eq!(got, want, "{} {case:?} raw {is_raw}: result {i}", set.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn fp32_on_every_set_is_within_rounding(case in cases()) {
        sets(Precision::Fp32).iter().for_each(|set| check_floats(&case, Precision::Fp32, set));
    }

    #[test]
    fn bf16_on_every_set_is_within_rounding(case in cases()) {
        sets(Precision::Bf16).iter().for_each(|set| check_floats(&case, Precision::Bf16, set));
    }

    #[test]
    fn int8_on_every_set_is_exact(case in cases(), is_raw in any::<bool>()) {
        sets(Precision::Int8).iter().for_each(|set| check_int8(&case, set, is_raw));
    }
}

/// 255 x 127 over the longest filter row stays in i32; and 255 with the largest weights that AVX2 multiplies in pairs, alone
/// in their quad and together, stays in 16 bits.
#[test]
fn int8_extremes_do_not_saturate() {
    let case = Case { h: 3, w: 3, c: 64, k: 64, taps: 3, ..PIXEL };
    let patterns: [(&[f32], bool); 4] = [
        (&[127.0], false),
        (&[32.0], true),
        (&[127.0, 1.0, 1.0, 0.0, 0.0, 0.0, 64.0, 63.0], true),
        (&[64.0, 64.0, 0.0, 0.0], false),
    ];
    for (sign, (pattern, quads)) in
        [-1.0, 1.0].into_iter().flat_map(|sign| patterns.map(|pattern| (sign, pattern)))
    {
        let case = Case { quads, ..case };
        let mut numbers = case.numbers(Precision::Int8);
        numbers.x.fill(255.0);
        numbers.weight.iter_mut().zip(pattern.iter().cycle()).for_each(|(w, level)| *w = sign * level);
        numbers.scale.fill(1.0);
        numbers.bias.fill(0.0);
        let want: Vec<f32> =
            case.sums(Precision::Int8, &numbers).iter().map(|(sum, _)| *sum as f32).collect();
        for set in sets(Precision::Int8) {
            assert_eq!(case.run(Precision::Int8, &set, &numbers, true), want, "{} {pattern:?}", set.name);
        }
    }
}

/// Of a map of one pixel the first half has no rows.
#[test]
fn a_part_without_rows_is_left_alone() {
    let case = PIXEL;
    for precision in [Precision::Fp32, Precision::Bf16] {
        sets(precision).iter().for_each(|set| check_floats(&case, precision, set));
    }
    sets(Precision::Int8).iter().for_each(|set| check_int8(&case, set, false));
}
