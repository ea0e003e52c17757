//! timm's tables (`data/auto_augment.py` of 1.0): the fifteen operations of its RandAugment in order, and what a level from
//! 0 to 10 means, in timm's order of operations.

use super::ops::Op;
use super::ops::affine::{Sampling, rotation};

/// timm's names without `Rel`; which of two meanings a level has is [`operation`]'s `increasing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    Solarize,
    SolarizeAdd,
    Color,
    Contrast,
    Brightness,
    Sharpness,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

/// The order in which they are numbered.
pub const OPERATIONS: [Kind; 15] = [
    Kind::AutoContrast,
    Kind::Equalize,
    Kind::Invert,
    Kind::Rotate,
    Kind::Posterize,
    Kind::Solarize,
    Kind::SolarizeAdd,
    Kind::Color,
    Kind::Contrast,
    Kind::Brightness,
    Kind::Sharpness,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
];

/// The highest level.
pub const LEVELS: f64 = 10.0;

/// What comes from outside the picture: ImageNet's mean colour.
pub const FILL: [u8; 3] = [124, 116, 104];

/// The argument of `kind` at `level`; `negate` tosses the coin of those that have a sign. Without `increasing`, posterize
/// and solarize grow weaker with the level, and enhancements go from 0.1 to 1.9.
pub fn argument(kind: Kind, level: f64, increasing: bool, negate: &mut dyn FnMut(f64) -> f64) -> f64 {
    let share = level / LEVELS;
    match kind {
        Kind::AutoContrast | Kind::Equalize | Kind::Invert => 0.0,
        Kind::Rotate => negate(share * 30.0),
        Kind::Posterize => {
            let bits = (share * 4.0).trunc();
            if increasing { 4.0 - bits } else { bits }
        }
        Kind::Solarize => {
            let threshold = (share * 256.0).trunc().min(256.0);
            if increasing { 256.0 - threshold } else { threshold }
        }
        Kind::SolarizeAdd => (share * 110.0).trunc().min(128.0),
        Kind::Color | Kind::Contrast | Kind::Brightness | Kind::Sharpness => {
            if increasing {
                (1.0 + negate(share * 0.9)).max(0.1)
            } else {
                share * 1.8 + 0.1
            }
        }
        Kind::ShearX | Kind::ShearY => negate(share * 0.3),
        Kind::TranslateX | Kind::TranslateY => negate(share * 0.45),
    }
}

/// What `kind` does with its argument to a picture of [height, width].
pub fn operation(kind: Kind, argument: f64, height: usize, width: usize, sampling: Sampling) -> Op {
    let affine = |matrix| Op::Affine { matrix, sampling, fill: FILL };
    let factor = argument as f32;
    match kind {
        Kind::AutoContrast => Op::AutoContrast,
        Kind::Equalize => Op::Equalize,
        Kind::Invert => Op::Invert,
        Kind::Rotate => affine(rotation(argument, height, width)),
        Kind::Posterize => Op::Posterize(argument as u32),
        Kind::Solarize => Op::Solarize(argument),
        Kind::SolarizeAdd => Op::SolarizeAdd(argument as u8),
        Kind::Color => Op::Color(factor),
        Kind::Contrast => Op::Contrast(factor),
        Kind::Brightness => Op::Brightness(factor),
        Kind::Sharpness => Op::Sharpness(factor),
        Kind::ShearX => affine([1.0, argument, 0.0, 0.0, 1.0, 0.0]),
        Kind::ShearY => affine([1.0, 0.0, 0.0, argument, 1.0, 0.0]),
        Kind::TranslateX => affine([1.0, 0.0, argument * width as f64, 0.0, 1.0, 0.0]),
        Kind::TranslateY => affine([1.0, 0.0, 0.0, 0.0, 1.0, argument * height as f64]),
    }
}
