//! Reads `tests/golden/*.json`.

use super::formula::bits;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

pub type Summaries = BTreeMap<String, Summary>;

/// A tensor in a few numbers (README.md).
#[derive(Deserialize)]
pub struct Summary {
    pub len: usize,
    pub norm: f64,
    pub max: f64,
    pub sample: Vec<f64>,
    pub sketch: Vec<f64>,
    /// How far PyTorch's own f32 is.
    pub f32_norm: f64,
    pub f32_max: f64,
}

/// How far a tensor is from its summary.
#[derive(Clone, Copy, Debug)]
pub struct Deviation {
    /// ||got - want|| / ||want||, estimated by the sketches.
    pub norm: f64,
    /// Of the samples, by the largest magnitude of the tensor.
    pub sample: f64,
}

impl Summary {
    /// `values` of the tensor `name`, in the order of the recording.
    pub fn deviation(&self, name: &str, values: &[f32]) -> Deviation {
        assert_eq!(values.len(), self.len, "{name}: length");
        let key = format!("{name}#sample");
        let samples = self
            .sample
            .iter()
            .zip(bits(&key))
            .map(|(want, bits)| (f64::from(values[(bits % self.len as u64) as usize]) - want).abs());
        let sample = samples.fold(0.0, worse);
        let mut sketch = vec![0.0; self.sketch.len()];
        for (&value, bits) in values.iter().zip(bits(&format!("{name}#sketch"))) {
            let value = f64::from(value);
            for (k, sum) in sketch.iter_mut().enumerate() {
                *sum += if bits >> k & 1 == 0 { value } else { -value };
            }
        }
        let squares: f64 = sketch.iter().zip(&self.sketch).map(|(got, want)| (got - want).powi(2)).sum();
        let norm = (squares / sketch.len() as f64).sqrt();
        Deviation { norm: share(norm, self.norm), sample: share(sample, self.max) }
    }
}

/// The larger error; a NaN is larger than anything.
pub fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

fn share(error: f64, of: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / of }
}

/// max|got - want| / max|want|.
pub fn relative(got: impl IntoIterator<Item = f64>, want: &[f64]) -> f64 {
    let mut got = got.into_iter();
    let error = want.iter().map(|want| (got.next().expect("as many values") - want).abs()).fold(0.0, worse);
    assert!(got.next().is_none(), "more values than expected");
    share(error, want.iter().map(|want| want.abs()).fold(0.0, f64::max))
}

pub fn widen(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|&value| f64::from(value))
}

/// `tests/golden/<name>.json`.
pub fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}
