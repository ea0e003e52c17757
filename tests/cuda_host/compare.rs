//! Comparing what a card would compute with what the CPU backend computes.

use engine::tensor::Difference;

/// Panics with the worst element when `got` is farther from `want` than `tolerance` allows (relative to the largest).
#[track_caller]
pub fn close(name: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let difference = Difference::between(got, want);
    let Difference { relative, worst_index, got, want, .. } = difference;
    assert!(
        relative <= tolerance,
        "{name}: {relative:.3e} above {tolerance:.1e}; element {worst_index} is {got}, wanted {want}"
    );
}

/// The same by the 2-norm of the difference, for long chains in which single elements may stray.
#[track_caller]
pub fn close_in_norm(name: &str, got: &[f32], want: &[f32], tolerance: f64) -> f64 {
    let difference = Difference::between(got, want);
    let Difference { norm, worst_index, got, want, .. } = difference;
    assert!(
        norm <= tolerance,
        "{name}: {norm:.3e} above {tolerance:.1e} in norm; element {worst_index} is {got}, wanted {want}"
    );
    norm
}
