//! How the values of a layer are distributed, and which step their 8 bits should have.

/// Bins of a histogram: eight or more to a step of 1/255 of the range, since the range is less than twice the largest
/// value.
const BINS: usize = 4096;
/// Levels above zero.
const LEVELS: f64 = 255.0;
/// Ranges that are tried between 1/64 of the largest value and all of it.
const CANDIDATES: usize = 128;

/// How a range is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// The least mean square of the rounding error and of what is cut off.
    Mse,
    /// This share of all values lies within the range.
    Percentile(f64),
}

/// Counts of values >= 0, taken as they come: the range doubles when a value lies outside it.
#[derive(Debug, Clone)]
pub struct Histogram {
    width: f64,
    counts: Vec<u64>,
    /// Values of exactly 0, which every step keeps.
    zeros: u64,
    max: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { width: 0.0, counts: vec![0; BINS], zeros: 0, max: 0.0 }
    }
}

impl Histogram {
    /// Counts finite values; negative ones as 0.
    pub fn add(&mut self, values: &[f32]) {
        let max = values.iter().copied().fold(0.0, f32::max);
        self.reach(max);
        if self.width == 0.0 {
            self.zeros += values.len() as u64;
            return;
        }
        let per_value = (1.0 / self.width) as f32;
        for &value in values {
            if value > 0.0 {
                self.counts[((value * per_value) as usize).min(BINS - 1)] += 1;
            } else {
                self.zeros += 1;
            }
        }
    }

    /// Widens the range to `max`, two bins becoming one.
    fn reach(&mut self, max: f32) {
        self.max = self.max.max(max);
        if self.width == 0.0 {
            self.width = f64::from(max) / BINS as f64;
        }
        while f64::from(self.max) > self.width * BINS as f64 {
            for bin in 0..BINS / 2 {
                self.counts[bin] = self.counts[2 * bin] + self.counts[2 * bin + 1];
            }
            self.counts[BINS / 2..].fill(0);
            self.width *= 2.0;
        }
    }

    pub fn max(&self) -> f32 {
        self.max
    }

    /// The step of u8 values, by `method`; positive also where all values were 0.
    pub fn step(&self, method: Method) -> f32 {
        if self.width == 0.0 {
            return 1.0 / LEVELS as f32;
        }
        let range = match method {
            Method::Mse => self.least_error(),
            Method::Percentile(share) => self.percentile(share),
        };
        (range / LEVELS) as f32
    }

    fn least_error(&self) -> f64 {
        let max = f64::from(self.max);
        // Geometric, so that long tails are searched as finely as short ones.
        let candidate = |i: usize| max * (-(i as f64) * 64f64.ln() / (CANDIDATES - 1) as f64).exp();
        let ranges = (0..CANDIDATES).map(candidate);
        ranges.min_by(|a, b| self.error(*a).total_cmp(&self.error(*b))).expect("there are candidates")
    }

    /// Sum of squares when the values up to `range` are rounded to its levels and the rest cut off.
    fn error(&self, range: f64) -> f64 {
        let step = range / LEVELS;
        let error = |(bin, count): (usize, &u64)| {
            let value = (bin as f64 + 0.5) * self.width;
            let rounded = (value / step).round().min(LEVELS) * step;
            *count as f64 * (value - rounded).powi(2)
        };
        self.counts.iter().enumerate().map(error).sum()
    }

    /// The smallest range that holds `share` of all values, zeros among them.
    fn percentile(&self, share: f64) -> f64 {
        let all = self.zeros + self.counts.iter().sum::<u64>();
        let wanted = share * all as f64;
        let mut held = self.zeros;
        for (bin, count) in self.counts.iter().enumerate() {
            held += count;
            if held as f64 >= wanted {
                return ((bin + 1) as f64 * self.width).min(f64::from(self.max));
            }
        }
        f64::from(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_and_the_range_of_what_comes_do_not_matter() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32 * i as f32 / 100.0).collect();
        let mut reversed = Histogram::default();
        values.iter().rev().for_each(|value| reversed.add(&[*value]));
        let mut growing = Histogram::default();
        values.iter().for_each(|value| growing.add(&[*value]));
        assert_eq!((growing.zeros, growing.counts.iter().sum::<u64>()), (1, 999));
        assert_eq!(growing.max(), reversed.max());
        for method in [Method::Mse, Method::Percentile(0.9)] {
            let (a, b) = (growing.step(method), reversed.step(method));
            assert!((a / b - 1.0).abs() < 0.01, "{method:?}: {a} {b}");
        }
        // Nine tenths of i^2 / 100 below 1000.
        let range = reversed.step(Method::Percentile(0.9)) * 255.0;
        assert!((range / 8100.0 - 1.0).abs() < 0.01, "{range}");
    }

    /// Of values spread evenly, cutting any off costs more than it gains. With one value v far out, the range R has the
    /// error (v - R)^2 + n (R / 255)^2 / 12, which is least at v / (1 + n / (12 255^2)).
    #[test]
    fn the_least_error_knows_an_outlier() {
        let even: Vec<f32> = (1..=100_000).map(|i| i as f32 / 100_000.0).collect();
        let mut histogram = Histogram::default();
        histogram.add(&even);
        assert!((histogram.step(Method::Mse) * 255.0 - 1.0).abs() < 0.04);
        histogram.add(&[40.0]);
        let range = histogram.step(Method::Mse) * 255.0;
        let want = 40.0 / (1.0 + 1e5 / (12.0 * 255.0 * 255.0));
        // Candidates are 3.3 % apart.
        assert!((range / want - 1.0).abs() < 0.04, "{range}, best {want}");
    }

    #[test]
    fn silence_has_a_step() {
        let mut histogram = Histogram::default();
        histogram.add(&[0.0; 5]);
        assert!(histogram.step(Method::Mse) > 0.0 && histogram.step(Method::Percentile(0.999)) > 0.0);
    }
}
