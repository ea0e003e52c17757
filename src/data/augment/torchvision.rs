//! torchvision's tables (`transforms/autoaugment.py` of 0.29): the operations of each policy in order, their magnitudes by
//! bin, and what a magnitude means. Magnitudes are f32, as `torch.linspace` makes them.
//!
//! The release of 2021, which torchvision's V2 weights were trained with, differs in two: it sheared about the middle by
//! `tan(magnitude)`, and its solarize began at 256.

use super::ops::Op;
use super::ops::affine::{Sampling, rotation};

/// torchvision's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
    Invert,
}

/// The order in which [`RandAugment`](super::Auto::RandAugment) and TrivialAugmentWide number their operations.
pub const OPERATIONS: [Kind; 14] = [
    Kind::Identity,
    Kind::ShearX,
    Kind::ShearY,
    Kind::TranslateX,
    Kind::TranslateY,
    Kind::Rotate,
    Kind::Brightness,
    Kind::Color,
    Kind::Contrast,
    Kind::Sharpness,
    Kind::Posterize,
    Kind::Solarize,
    Kind::AutoContrast,
    Kind::Equalize,
];

/// The largest magnitudes of a policy, and how many bins there are below them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Space {
    pub bins: usize,
    shear: f64,
    translate: Translate,
    rotate: f64,
    enhance: f64,
    /// Bits that posterize takes away at most.
    posterize: f32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Translate {
    /// Of the picture's side.
    Share(f64),
    Pixels(f64),
}

pub const RAND_AUGMENT: Space = Space {
    bins: 31,
    shear: 0.3,
    translate: Translate::Share(150.0 / 331.0),
    rotate: 30.0,
    enhance: 0.9,
    posterize: 4.0,
};
pub const TRIVIAL_AUGMENT: Space = Space {
    bins: 31,
    shear: 0.99,
    translate: Translate::Pixels(32.0),
    rotate: 135.0,
    enhance: 0.99,
    posterize: 6.0,
};
pub const AUTO_AUGMENT: Space = Space { bins: 10, ..RAND_AUGMENT };

/// `torch.linspace(first, last, bins)[bin]` in f32, as PyTorch computes it where the processor has AVX2: with a fused
/// multiply-add, for which f64 has digits enough.
fn linspace(first: f32, last: f32, bin: usize, bins: usize) -> f32 {
    let step = f64::from((last - first) / (bins - 1) as f32);
    let sum = if bin < bins / 2 {
        f64::from(first) + step * bin as f64
    } else {
        f64::from(last) - step * (bins - 1 - bin) as f64
    };
    sum as f32
}

impl Kind {
    /// Whether a coin decides on the magnitude's sign.
    pub fn signed(self) -> bool {
        use Kind::{Brightness, Color, Contrast, Rotate, Sharpness, ShearX, ShearY, TranslateX, TranslateY};
        matches!(
            self,
            ShearX | ShearY | TranslateX | TranslateY | Rotate | Brightness | Color | Contrast | Sharpness
        )
    }

    /// Whether it has bins of magnitudes at all.
    pub fn graded(self) -> bool {
        self.signed() || matches!(self, Self::Posterize | Self::Solarize)
    }
}

impl Space {
    /// The magnitude of `bin` for a picture of [height, width]; 0 for what is not graded.
    pub fn magnitude(&self, kind: Kind, bin: usize, height: usize, width: usize) -> f64 {
        let up_to = |last: f64| f64::from(linspace(0.0, last as f32, bin, self.bins));
        let along = |side: usize| match self.translate {
            Translate::Share(share) => up_to(share * side as f64),
            Translate::Pixels(pixels) => up_to(pixels),
        };
        match kind {
            Kind::ShearX | Kind::ShearY => up_to(self.shear),
            Kind::TranslateX => along(width),
            Kind::TranslateY => along(height),
            Kind::Rotate => up_to(self.rotate),
            Kind::Brightness | Kind::Color | Kind::Contrast | Kind::Sharpness => up_to(self.enhance),
            Kind::Posterize => {
                let bins_a_bit = ((self.bins - 1) as f64 / f64::from(self.posterize)) as f32;
                f64::from(8.0 - (bin as f32 / bins_a_bit).round_ties_even())
            }
            Kind::Solarize => f64::from(linspace(255.0, 0.0, bin, self.bins)),
            Kind::Identity | Kind::AutoContrast | Kind::Equalize | Kind::Invert => 0.0,
        }
    }
}

/// `_apply_op`: what `kind` does at `magnitude`; `None`: nothing. What comes from outside the picture is black.
pub fn operation(kind: Kind, magnitude: f64, height: usize, width: usize, sampling: Sampling) -> Option<Op> {
    let affine = |matrix| Op::Affine { matrix, sampling, fill: [0; 3] };
    // The way through degrees and back is torchvision's.
    let shear = || magnitude.atan().to_degrees().to_radians();
    let factor = (1.0 + magnitude) as f32;
    let pixels = magnitude.trunc();
    Some(match kind {
        Kind::Identity => return None,
        Kind::ShearX => affine([1.0, shear().tan(), 0.0, 0.0, 1.0, 0.0]),
        Kind::ShearY => affine([1.0, 0.0, 0.0, shear().sin() / shear().cos(), 1.0, 0.0]),
        Kind::TranslateX => affine([1.0, 0.0, -pixels, 0.0, 1.0, 0.0]),
        Kind::TranslateY => affine([1.0, 0.0, 0.0, 0.0, 1.0, -pixels]),
        Kind::Rotate => affine(rotation(magnitude, height, width)),
        Kind::Brightness => Op::Brightness(factor),
        Kind::Color => Op::Color(factor),
        Kind::Contrast => Op::Contrast(factor),
        Kind::Sharpness => Op::Sharpness(factor),
        Kind::Posterize => Op::Posterize(magnitude as u32),
        Kind::Solarize => Op::Solarize(magnitude),
        Kind::AutoContrast => Op::AutoContrast,
        Kind::Equalize => Op::Equalize,
        Kind::Invert => Op::Invert,
    })
}

/// An operation of AutoAugment, its probability, and the bin of its magnitude (0 where it has none).
pub type Step = (Kind, f64, usize);

/// The 25 pairs that were found for ImageNet (arXiv:1805.09501), one of which is drawn for each picture.
pub const IMAGENET: [[Step; 2]; 25] = {
    use Kind::{
        AutoContrast, Color, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness, ShearX, Solarize,
    };
    [
        [(Posterize, 0.4, 8), (Rotate, 0.6, 9)],
        [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
        [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
        [(Posterize, 0.6, 7), (Posterize, 0.6, 6)],
        [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
        [(Equalize, 0.4, 0), (Rotate, 0.8, 8)],
        [(Solarize, 0.6, 3), (Equalize, 0.6, 0)],
        [(Posterize, 0.8, 5), (Equalize, 1.0, 0)],
        [(Rotate, 0.2, 3), (Solarize, 0.6, 8)],
        [(Equalize, 0.6, 0), (Posterize, 0.4, 6)],
        [(Rotate, 0.8, 8), (Color, 0.4, 0)],
        [(Rotate, 0.4, 9), (Equalize, 0.6, 0)],
        [(Equalize, 0.0, 0), (Equalize, 0.8, 0)],
        [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
        [(Color, 0.6, 4), (Contrast, 1.0, 8)],
        [(Rotate, 0.8, 8), (Color, 1.0, 2)],
        [(Color, 0.8, 8), (Solarize, 0.8, 7)],
        [(Sharpness, 0.4, 7), (Invert, 0.6, 0)],
        [(ShearX, 0.6, 5), (Equalize, 1.0, 0)],
        [(Color, 0.4, 0), (Equalize, 0.6, 0)],
        [(Equalize, 0.4, 0), (Solarize, 0.2, 4)],
        [(Solarize, 0.6, 5), (AutoContrast, 0.6, 0)],
        [(Invert, 0.6, 0), (Equalize, 1.0, 0)],
        [(Color, 0.6, 4), (Contrast, 1.0, 8)],
        [(Equalize, 0.8, 0), (Equalize, 0.6, 0)],
    ]
};
