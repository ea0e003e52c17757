//! One result of a card beside the CPU's, element by element, under a derived tolerance.

use crate::backend::cuda::storage::Storage;
use std::collections::BTreeMap;

/// Unit roundoff of f32, in which everything is added up.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// What a result should be.
pub struct Want {
    pub values: Vec<f64>,
    pub allowed: Allowed,
}

/// How far each element may be from what it should be.
pub enum Allowed {
    /// Copies and integers.
    Nothing,
    Same(f64),
    Each(Vec<f64>),
}

impl Want {
    pub fn exactly(values: &[f32]) -> Self {
        Self { values: values.iter().map(|&value| f64::from(value)).collect(), allowed: Allowed::Nothing }
    }
}

/// How one comparison ended; the figures are those of the element that uses most of what it is allowed.
#[derive(Debug, Clone)]
pub struct Finding {
    pub kind: &'static str,
    /// Nodes of the plan that made the result.
    pub nodes: Vec<String>,
    /// What was compared: a tensor's name.
    pub what: String,
    /// Both relative to the largest value that there should be.
    pub apart: f64,
    pub allowed: f64,
    pub index: usize,
    pub got: f64,
    pub want: f64,
}

impl Finding {
    pub fn passes(&self) -> bool {
        self.apart <= self.allowed
    }

    /// How much of what is allowed is used; 1 is the limit.
    fn share(&self) -> f64 {
        if self.apart == 0.0 { 0.0 } else { self.apart / self.allowed }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, nodes, what, apart, allowed, index, got, want } = self;
        let nodes = nodes.join(", ");
        write!(
            f,
            "{kind}: {what}[{index}] is {got:.6e}, wanted {want:.6e}: {apart:.1e} apart, {allowed:.1e} allowed (made by {nodes})"
        )
    }
}

/// Compares all elements; both sides have the same length.
pub fn compare(kind: &'static str, nodes: &[String], what: &str, got: &[f64], want: &Want) -> Finding {
    assert_eq!(got.len(), want.values.len(), "{what}: compared tensors differ in length");
    let largest = want.values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let scale = if largest > 0.0 { largest } else { 1.0 };
    let mut worst = (-1.0, 0, 0.0, 0.0);
    for (index, (&got, &want_value)) in got.iter().zip(&want.values).enumerate() {
        let error = (got - want_value).abs();
        let error = if error.is_nan() { f64::INFINITY } else { error };
        let allowed = match &want.allowed {
            Allowed::Nothing => 0.0,
            Allowed::Same(allowed) => *allowed,
            Allowed::Each(allowed) => allowed[index],
        };
        let share = if error == 0.0 { 0.0 } else { error / allowed };
        // A tolerance that is not a number allows nothing.
        let share = if share.is_nan() { f64::INFINITY } else { share };
        if share > worst.0 {
            worst = (share, index, error, allowed);
        }
    }
    let (_, index, error, allowed) = worst;
    Finding {
        kind,
        nodes: nodes.to_vec(),
        what: what.to_owned(),
        apart: error / scale,
        allowed: allowed / scale,
        index,
        got: got.get(index).copied().unwrap_or(0.0),
        want: want.values.get(index).copied().unwrap_or(0.0),
    }
}

/// How far a value moves when it is rounded to the storage type: half a unit in its last place, and half the smallest
/// step near zero (f16), or all that is flushed to zero there.
pub fn rounding(storage: Storage, value: f64) -> f64 {
    let least = match storage {
        Storage::F16 => 2f64.powi(-25),
        Storage::Bf16 | Storage::F32 => f64::from(f32::MIN_POSITIVE),
    };
    storage.roundoff() * value.abs() + least
}

/// How far two f32 sums of `terms` products may lie apart, whatever their orders: in 32,000 random dot products of 64 to
/// 4,608 terms the worst sequential sum used 1.4 of the 4. `a` and `b`: root mean squares of the two vectors.
pub fn dot_error(terms: usize, a: f64, b: f64) -> f64 {
    4.0 * terms as f64 * UNIT * a * b
}

/// Largest root mean square of a row of `width` elements.
pub fn longest_row(values: &[f32], width: usize) -> f64 {
    let square = |row: &[f32]| row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let most = values.chunks_exact(width).map(square).fold(0.0, f64::max);
    (most / width as f64).sqrt()
}

/// The same for the columns of a matrix of `width` of them.
pub fn longest_column(values: &[f32], width: usize) -> f64 {
    let mut squares = vec![0.0f64; width];
    for row in values.chunks_exact(width) {
        squares.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
    }
    let rows = (values.len() / width).max(1) as f64;
    (squares.into_iter().fold(0.0, f64::max) / rows).sqrt()
}

pub fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0f64, |most, &value| most.max(f64::from(value).abs()))
}

pub fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// For each kind, in the order in which they first come: how many, and the one that uses most of what it is allowed.
pub fn by_kind(findings: &[Finding]) -> Vec<(usize, &Finding)> {
    let mut place: BTreeMap<&str, usize> = BTreeMap::new();
    let mut kinds: Vec<(usize, &Finding)> = vec![];
    for finding in findings {
        let at = *place.entry(finding.kind).or_insert_with(|| {
            kinds.push((0, finding));
            kinds.len() - 1
        });
        kinds[at].0 += 1;
        if finding.share() > kinds[at].1.share() {
            kinds[at].1 = finding;
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(values: &[f32], allowed: Allowed) -> Want {
        Want { allowed, ..Want::exactly(values) }
    }

    #[test]
    fn the_element_that_uses_most_of_its_own_allowance_is_named() {
        let want = want(&[4.0, 1.0], Allowed::Each(vec![1.0, 0.01]));
        let finding = compare("sum", &["a.add".to_owned()], "a", &[4.5, 1.02], &want);
        assert_eq!((finding.index, finding.passes()), (1, false));
        assert!((finding.apart - 0.005).abs() < 1e-9 && (finding.allowed - 0.0025).abs() < 1e-9);
        assert!(finding.to_string().contains("a[1] is 1.02"), "{finding}");
    }

    #[test]
    fn nan_never_passes_and_nothing_allows_nothing() {
        let nan = compare("copy", &[], "a", &[f64::NAN], &want(&[1.0], Allowed::Same(1.0)));
        let equal = compare("copy", &[], "a", &[1.0], &Want::exactly(&[1.0]));
        let off = compare("copy", &[], "a", &[1.0 + 1e-9], &Want::exactly(&[1.0]));
        assert_eq!([nan.passes(), equal.passes(), off.passes()], [false, true, false]);
        let lost = compare("copy", &[], "a", &[2.0], &want(&[1.0], Allowed::Same(f64::NAN)));
        assert!(!lost.passes(), "a tolerance that is not a number allows nothing");
        let all = [equal, off, nan];
        assert_eq!(
            by_kind(&all).iter().map(|(count, worst)| (*count, worst.got)).next(),
            Some((3, 1.0 + 1e-9))
        );
    }

    #[test]
    fn longest_vectors() {
        let matrix = [3.0, 0.0, 4.0, 0.0];
        assert_eq!(longest_column(&matrix, 2), (25.0f64 / 2.0).sqrt());
        assert_eq!(longest_row(&matrix, 2), (16.0f64 / 2.0).sqrt());
    }
}
