//! Errors beside PyTorch's own, and whether they are small enough.

use super::record::{Summaries, relative, widen};

/// The contract's limits on losses and logits, and on gradients and what is made of them.
pub const FORWARD_LIMIT: f64 = 1e-4;
pub const BACKWARD_LIMIT: f64 = 1e-3;

/// f32 sums in another order than PyTorch's, which is one draw from the same distribution: eight times its error where
/// that is known, and at least a dozen roundings of 2^-24 where PyTorch was lucky.
const FACTOR: f64 = 8.0;
const FLOOR: f64 = 12.0 / (1u64 << 24) as f64;

/// One line of the table.
struct Line {
    quantity: String,
    engine: f64,
    pytorch: f64,
    tolerance: f64,
    worst: String,
}

/// The errors of one case.
pub struct Report {
    case: String,
    lines: Vec<Line>,
    failures: Vec<String>,
}

impl Report {
    pub fn new(case: impl Into<String>) -> Self {
        Self { case: case.into(), lines: vec![], failures: vec![] }
    }

    /// Logits, losses: all values are recorded.
    pub fn values(&mut self, quantity: &str, got: &[f32], want: &[f64], pytorch: f64, limit: f64) {
        let engine = relative(widen(got), want);
        self.add(quantity, engine, pytorch, limit, String::new());
    }

    /// Tensors by name; `get` reads the engine's, `None` where it makes none. Returns how many were compared.
    pub fn tensors(
        &mut self,
        quantity: &str,
        summaries: &Summaries,
        limit: f64,
        get: impl Fn(&str) -> Option<Vec<f32>>,
    ) -> usize {
        let (mut norms, mut samples) = (vec![], vec![]);
        for (name, summary) in summaries {
            let Some(values) = get(name) else { continue };
            let deviation = summary.deviation(name, &values);
            norms.push((name, deviation.norm, summary.f32_norm));
            samples.push((name, deviation.sample, summary.f32_max));
        }
        for (kind, errors) in [("norm", &norms), ("samples", &samples)] {
            let quantity = format!("{quantity}, {kind}");
            for &(name, engine, pytorch) in errors {
                self.judge(&quantity, engine, tolerance(pytorch, limit), name);
            }
            let (name, engine, pytorch) =
                errors.iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("something was compared");
            let tolerance = tolerance(*pytorch, limit);
            let largest = errors.iter().map(|error| error.2).fold(0.0, f64::max);
            let worst = format!("{name}; PyTorch's worst {largest:.1e}");
            let line = Line { quantity, engine: *engine, pytorch: *pytorch, tolerance, worst };
            self.lines.push(line);
        }
        norms.len()
    }

    fn add(&mut self, quantity: &str, engine: f64, pytorch: f64, limit: f64, worst: String) {
        let tolerance = tolerance(pytorch, limit);
        self.judge(quantity, engine, tolerance, "");
        self.lines.push(Line { quantity: quantity.to_owned(), engine, pytorch, tolerance, worst });
    }

    fn judge(&mut self, quantity: &str, engine: f64, tolerance: f64, name: &str) {
        if engine.is_nan() || engine > tolerance {
            self.failures.push(format!("{quantity} {name}: {engine:.2e} above {tolerance:.2e}"));
        }
    }

    /// Prints the table; panics where an error is above its tolerance.
    pub fn finish(self) {
        let mut table = format!("\n{}: against PyTorch f64\n", self.case);
        let heads = ["", "engine", "PyTorch f32", "tolerance"];
        table += &format!("  {:<22} {:>9} {:>12} {:>10}  worst\n", heads[0], heads[1], heads[2], heads[3]);
        for Line { quantity, engine, pytorch, tolerance, worst } in &self.lines {
            table +=
                &format!("  {quantity:<22} {engine:>9.1e} {pytorch:>12.1e} {tolerance:>10.1e}  {worst}\n");
        }
        print!("{table}");
        assert!(self.failures.is_empty(), "{}:\n{}", self.case, self.failures.join("\n"));
    }
}

fn tolerance(pytorch: f64, limit: f64) -> f64 {
    (FACTOR * pytorch).max(FLOOR).min(limit)
}
