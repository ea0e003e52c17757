//! A tensor in host memory, and the comparison that tests and checks report with.

use crate::error::{Error, Result};

/// Dense row-major f32. The layout (KCRS, NHWC) is stated where a tensor is made.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl HostTensor {
    /// Fails when `shape` and `data` disagree; `name` goes into the message.
    pub fn new(name: &str, shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let want: usize = shape.iter().product();
        if data.len() != want {
            let got = data.len();
            return Err(Error::failed(format!("{name}: {got} elements, shape {shape:?} wants {want}")));
        }
        Ok(Self { shape, data })
    }
}

/// Index of the first NaN or infinity: all exponent bits are set. Blocks without an early exit are vectorised.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    const EXPONENT: u32 = 0x7f80_0000;
    const BLOCK: usize = 4096;
    let is_bad = |value: &f32| value.to_bits() & EXPONENT == EXPONENT;
    let block = values.chunks(BLOCK).position(|block| block.iter().fold(false, |bad, v| bad | is_bad(v)))?;
    let from = block * BLOCK;
    Some(from + values[from..].iter().position(is_bad)?)
}

pub fn all_finite(values: &[f32]) -> bool {
    first_non_finite(values).is_none()
}

/// How far `got` is from `want`, with the place where it is farthest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// max |got - want| / max |want|: what "relative" means throughout the project.
    pub relative: f64,
    /// ||got - want||_2 / ||want||_2.
    pub norm: f64,
    pub worst_index: usize,
    pub got: f32,
    pub want: f32,
}

impl Difference {
    /// Both slices have the same, non-zero length. A NaN on either side makes the difference infinite.
    pub fn between(got: &[f32], want: &[f32]) -> Self {
        assert_eq!(got.len(), want.len(), "compared tensors differ in length");
        assert!(!got.is_empty(), "compared tensors are empty");
        let (mut worst, mut worst_index, mut largest, mut error_square, mut square) =
            (-1.0, 0, 0.0f64, 0.0, 0.0);
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            let mut error = (f64::from(g) - f64::from(w)).abs();
            if error.is_nan() {
                error = f64::INFINITY;
            }
            if error > worst {
                (worst, worst_index) = (error, i);
            }
            largest = largest.max(f64::from(w).abs());
            error_square += error * error;
            square += f64::from(w) * f64::from(w);
        }
        let ratio = |error: f64, scale: f64| if error == 0.0 { 0.0 } else { error / scale };
        Self {
            relative: ratio(worst, largest),
            norm: ratio(error_square.sqrt(), f64::sqrt(square)),
            worst_index,
            got: got[worst_index],
            want: want[worst_index],
        }
    }

    /// Panics with the worst element when the relative difference is above `tolerance`.
    #[track_caller]
    pub fn assert_within(&self, what: &str, tolerance: f64) {
        assert!(
            self.relative <= tolerance,
            "{what}: relative difference {:.3e} above {tolerance:.3e}; worst at {}: got {}, want {}",
            self.relative,
            self.worst_index,
            self.got,
            self.want
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_worst_element() {
        let difference = Difference::between(&[1.0, 2.0, 3.5], &[1.0, 2.0, 4.0]);
        assert_eq!((difference.worst_index, difference.relative), (2, 0.125));
        assert_eq!(Difference::between(&[0.0], &[0.0]).relative, 0.0);
        assert_eq!(Difference::between(&[f32::NAN], &[1.0]).relative, f64::INFINITY);
    }

    #[test]
    fn finiteness_sees_every_kind() {
        assert!(all_finite(&[0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-45]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![0.0; 10_000];
            values[9_998] = bad;
            assert_eq!(first_non_finite(&values), Some(9_998), "{bad}");
        }
    }

    #[test]
    fn shape_must_hold_the_data() {
        let error = HostTensor::new("fc.bias", vec![3], vec![0.0; 2]).unwrap_err();
        assert_eq!(error.message, "fc.bias: 2 elements, shape [3] wants 3");
    }
}
