//! Where the time of a run goes, layer by layer, beside what the machine could do.

use super::{LayerTime, Precision, Program};
use crate::simd::isa::Isa;
use crate::simd::peak;
use crate::simd::pool::Pool;
use serde::Serialize;
use std::fmt;

/// A layer's fastest time of several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layer {
    pub name: String,
    pub algorithm: &'static str,
    pub ms: f64,
    /// Of the sum of all layers' times.
    pub share_of_time: f64,
    /// Operations a second, two a multiply-add: counted as a direct convolution does them. 0 for layers without any.
    pub giga_ops: f64,
    /// Of the measured peak. A convolution that multiplies less than a direct one (Winograd) can be above 1.
    pub share_of_peak: f64,
}

/// All layers of a program.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    pub precision: &'static str,
    /// Operations a second, in 10^9, of the instructions that the precision multiplies with, on all threads.
    pub peak_giga_ops: f64,
    pub layers: Vec<Layer>,
}

/// Collects the layers of several runs and the machine's peak between them.
pub struct Profiler {
    isa: Isa,
    precision: Precision,
    pool: Pool,
    peak: f64,
    fastest: Vec<LayerTime>,
}

impl Profiler {
    pub fn new(isa: Isa, program: &Program) -> Self {
        let pool = Pool::new(program.threads());
        Self { isa, precision: program.precision(), pool, peak: 0.0, fastest: vec![] }
    }

    /// Takes in the last run of `program`, which is the one of `new`.
    pub fn add(&mut self, program: &Program) {
        let layers = program.profile();
        if self.fastest.is_empty() {
            self.fastest = layers;
            return;
        }
        for (fastest, layer) in self.fastest.iter_mut().zip(layers) {
            if layer.nanoseconds < fastest.nanoseconds {
                *fastest = layer;
            }
        }
    }

    /// Measures the peak once more: other programs and the clock's frequency let it wander, so it is taken between runs.
    pub fn measure_peak(&mut self) {
        self.peak = self.peak.max(peak::measure_in(&self.pool, self.isa, self.precision));
    }

    pub fn finish(self) -> Profile {
        let total: u64 = self.fastest.iter().map(|layer| layer.nanoseconds).sum();
        let layer = |layer: LayerTime| {
            let seconds = layer.nanoseconds as f64 * 1e-9;
            let rate = if layer.macs == 0 { 0.0 } else { 2.0 * layer.macs as f64 / seconds };
            Layer {
                name: layer.name,
                algorithm: layer.algorithm,
                ms: 1e3 * seconds,
                share_of_time: layer.nanoseconds as f64 / total.max(1) as f64,
                giga_ops: 1e-9 * rate,
                share_of_peak: rate / self.peak,
            }
        };
        let layers = self.fastest.into_iter().map(layer).collect();
        Profile { precision: self.precision.name(), peak_giga_ops: 1e-9 * self.peak, layers }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.precision == "int8" { "GOP/s" } else { "GFLOP/s" };
        let width = self.layers.iter().map(|layer| layer.name.len()).max().unwrap_or(0).max(8);
        writeln!(
            f,
            "{:width$}  {:<10} {:>8} {:>7} {unit:>8} {:>8}",
            "layer", "algorithm", "ms", "of time", "of peak"
        )?;
        for layer in &self.layers {
            let Layer { name, algorithm, ms, share_of_time, .. } = layer;
            write!(f, "{name:width$}  {algorithm:<10} {ms:8.3} {:6.1}%", 100.0 * share_of_time)?;
            match layer.giga_ops {
                0.0 => writeln!(f)?,
                rate => writeln!(f, " {rate:8.1} {:7.1}%", 100.0 * layer.share_of_peak)?,
            }
        }
        let total: f64 = self.layers.iter().map(|layer| layer.ms).sum();
        write!(
            f,
            "{:width$}  {:<10} {total:8.3}  peak {:.1} {unit}, {}",
            "sum", "", self.peak_giga_ops, self.precision
        )
    }
}
