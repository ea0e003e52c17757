//! The levels of what goes into a sum from a convolution.
//!
//! Behind the sum is a ReLU: of a value that it cuts off, nothing is left to be wrong. So the levels on each side are those
//! with the least error of relu(a + b), not of a, and do without the long tail of negative values.

use super::histogram::Method;
use super::levels::Levels;
use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;

/// Values of a tensor that are looked at.
const SAMPLE: usize = 1 << 16;
/// Ends of the range that are tried, a twelfth of an octave apart, from the largest value down to 1/16 of it.
const CANDIDATES: usize = 49;
const STEP: f32 = 1.0 / 12.0;
/// Rounds of choosing the lower and then the upper end; the second one changes little.
const ROUNDS: usize = 3;

/// Both sides of a sum, at the same places: `a` of the convolution, `b` of the residual.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Sample {
    /// Takes its share of the values of one batch, where all batches together have `all` in a tensor. The same ones in
    /// every run.
    pub fn add(&mut self, a: &[f32], b: &[f32], all: usize) {
        // Odd, so that it goes through all channels, whose number is even.
        let stride = (all / SAMPLE) | 1;
        let first = self.a.len() % stride;
        self.a.extend(a.iter().skip(first).step_by(stride));
        self.b.extend(b.iter().skip(first).step_by(stride));
    }

    /// Levels of `a`, and of `b` where that comes from a convolution, too.
    pub fn levels(&self, isa: Isa, method: Method) -> [Levels; 2] {
        [choose(isa, method, &self.a, &self.b), choose(isa, method, &self.b, &self.a)]
    }
}

fn choose(isa: Isa, method: Method, values: &[f32], others: &[f32]) -> Levels {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(0.0, f32::max);
    match method {
        Method::Mse => least_error(isa, low, high, values, others),
        Method::Percentile(share) => {
            let mut sorted = values.to_vec();
            sorted.sort_by(f32::total_cmp);
            let outside = ((1.0 - share) / 2.0 * sorted.len() as f64) as usize;
            let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
            Levels::between(at(outside).min(0.0), at((sorted.len() - 1).saturating_sub(outside)).max(0.0))
        }
    }
}

fn least_error(isa: Isa, low: f32, high: f32, values: &[f32], others: &[f32]) -> Levels {
    let candidates = |end: f32| (0..CANDIDATES).map(move |i| end * (-(i as f32) * STEP).exp2());
    let error = |low: f32, high: f32| {
        let mut sum = 0.0;
        sum_error(isa, Levels::between(low, high), values, others, &mut sum);
        sum
    };
    let (mut best_low, mut best_high) = (low, high);
    let by_error = |a: &(f64, f32), b: &(f64, f32)| a.0.total_cmp(&b.0);
    for _ in 0..ROUNDS {
        let lows = candidates(low).map(|low| (error(low, best_high), low));
        best_low = lows.min_by(by_error).map_or(low, |(_, low)| low);
        let highs = candidates(high).map(|high| (error(best_low, high), high));
        best_high = highs.min_by(by_error).map_or(high, |(_, high)| high);
    }
    Levels::between(best_low, best_high)
}

multiversion! {
    /// Sum of squares of what rounding `values` changes behind the ReLU.
    fn sum_error(levels: Levels, values: &[f32], others: &[f32], sum: &mut f64) {
        const BLOCK: usize = 256;
        for (values, others) in values.chunks(BLOCK).zip(others.chunks(BLOCK)) {
            let mut squares = [0.0f32; 16];
            for (values, others) in values.chunks(16).zip(others.chunks(16)) {
                for ((square, value), other) in squares.iter_mut().zip(values).zip(others) {
                    let error = (levels.nearest(*value) + other).max(0.0) - (value + other).max(0.0);
                    *square += error * error;
                }
            }
            *sum += squares.iter().map(|square| f64::from(*square)).sum::<f64>();
        }
    }
}
