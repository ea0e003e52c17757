//! What the 256 levels of an 8-bit tensor stand for.

use crate::infer::weights::Normalisation;

/// Level i of 0..=255 is the real number step (i - zero); a real 0 is always a level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    pub step: f32,
    pub zero: u8,
}

impl Levels {
    pub const COUNT: f32 = 255.0;

    /// Of values behind a ReLU.
    pub fn from_zero(step: f32) -> Self {
        Self { step, zero: 0 }
    }

    /// Of values from `low` <= 0 to `high` >= 0; any step will do where there is nothing between them.
    pub fn between(low: f32, high: f32) -> Self {
        let step = (high - low) / Self::COUNT;
        if step < f32::MIN_POSITIVE {
            return Self::from_zero(1.0);
        }
        Self { step, zero: (-low / step).round() as u8 }
    }

    /// Of the normalised image, over all that bytes can be.
    pub fn of_images(normalisation: &Normalisation) -> Self {
        let Normalisation { mean, std } = normalisation;
        let low = (0..3).map(|c| (0.0 - mean[c]) / std[c]).fold(f32::INFINITY, f32::min);
        let high = (0..3).map(|c| (1.0 - mean[c]) / std[c]).fold(f32::NEG_INFINITY, f32::max);
        Self::between(low, high)
    }

    /// The nearest of them; ties to even, as QuantizeLinear has it.
    #[inline(always)]
    pub fn nearest(self, x: f32) -> f32 {
        let zero = f32::from(self.zero);
        (x / self.step).round_ties_even().clamp(-zero, Self::COUNT - zero) * self.step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_a_level_and_ends_are_within_half_a_step() {
        for (low, high) in [(-1.0, 3.0), (0.0, 2.0), (-5.0, 0.0), (-0.001, 7.0)] {
            let levels = Levels::between(low, high);
            assert_eq!(levels.nearest(0.0), 0.0);
            for end in [low, high] {
                assert!((levels.nearest(end) - end).abs() <= 0.501 * levels.step, "{low} {high}: {levels:?}");
            }
            assert!(
                levels.nearest(100.0) <= high + levels.step && levels.nearest(-100.0) >= low - levels.step
            );
        }
        assert_eq!(Levels::between(0.0, 0.0).nearest(0.2), 0.0);
    }
}
