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

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from -8 to 2, evenly: half of a sum with others between 0 and 1.
    fn sides() -> (Vec<f32>, Vec<f32>) {
        let values = (0..20_000).map(|i| (i * 7919 % 20_000) as f32 / 2_000.0 - 8.0).collect();
        let others = (0..20_000).map(|i| (i * 104_729 % 20_000) as f32 / 20_000.0).collect();
        (values, others)
    }

    fn error(levels: Levels, values: &[f32], others: &[f32]) -> f64 {
        let error = |(a, b): (&f32, &f32)| f64::from((levels.nearest(*a) + b).max(0.0) - (a + b).max(0.0));
        values.iter().zip(others).map(error).map(|error| error * error).sum()
    }

    /// Below -1 the ReLU cuts off every sum: the range is 3 wide and not 10, and the error 1/11 of that.
    #[test]
    fn what_a_relu_cuts_off_has_no_levels() {
        let (values, others) = sides();
        let mut sample = Sample::default();
        let (half, rest) = (values.len() / 2, values.len());
        sample.add(&values[..half], &others[..half], rest);
        sample.add(&values[half..], &others[half..], rest);
        for isa in [Isa::current(), Isa::PORTABLE] {
            let [a, b] = sample.levels(isa, Method::Mse);
            let (low, high) = (-f32::from(a.zero) * a.step, (255.0 - f32::from(a.zero)) * a.step);
            assert!((-1.2..-0.8).contains(&low) && (1.8..2.1).contains(&high), "{low} to {high}");
            let whole = error(Levels::between(-8.0, 2.0), &values, &others);
            let chosen = error(a, &values, &others);
            assert!(chosen < whole / 9.0, "{chosen} and {whole}");
            assert!(b.zero == 0 && b.step * 255.0 <= 1.01, "nothing is below 0 there: {b:?}");
        }
    }

    #[test]
    fn a_percentile_cuts_both_ends() {
        let (values, others) = sides();
        let sample = Sample { a: values, b: others };
        let [a, _] = sample.levels(Isa::current(), Method::Percentile(0.9));
        let low = -f32::from(a.zero) * a.step;
        // A twentieth of 10 at either end.
        assert!((low + 7.5).abs() < 0.05 && (a.step * 255.0 - 9.0).abs() < 0.05, "{a:?}");
    }

    #[test]
    fn nothing_has_levels_too() {
        let mut sample = Sample::default();
        sample.add(&[0.0; 64], &[0.0; 64], 64);
        for method in [Method::Mse, Method::Percentile(0.999)] {
            for levels in sample.levels(Isa::current(), method) {
                assert!(levels.step > 0.0 && levels.nearest(0.0) == 0.0, "{method:?}: {levels:?}");
            }
        }
    }
}
