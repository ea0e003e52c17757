//! The gradient of all parameters together, shortened where it is longer than a limit.

/// What every gradient is divided by so that all of them together are at most `max_norm` long: 1 or more; 1 where `max_norm`
/// is 0. The division is that of timm's LAMB (timm/optim/lamb.py, `max_grad_norm`).
pub fn divisor<'g>(gradients: impl IntoIterator<Item = &'g [f32]>, max_norm: f32) -> f32 {
    if max_norm <= 0.0 {
        return 1.0;
    }
    let share = norm(gradients.into_iter().flatten().copied()) / max_norm;
    if share > 1.0 { share } else { 1.0 }
}

/// The 2-norm, added up in f64.
pub fn norm(values: impl Iterator<Item = f32>) -> f32 {
    values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_too_long_is_shortened() {
        let gradients = [&[3.0f32, 0.0][..], &[4.0][..]];
        for (max_norm, want) in [(0.0, 1.0), (10.0, 1.0), (5.0, 1.0), (2.5, 2.0)] {
            assert_eq!(divisor(gradients, max_norm), want, "limit {max_norm}");
        }
    }
}
