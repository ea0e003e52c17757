//! What happens to a training picture between its file and its batch, by torchvision's and timm's definitions.
//!
//! | file | gives |
//! |---|---|
//! | [`crop`] | RandomResizedCrop and the horizontal flip |
//! | [`ops`] | Pillow's operations, bit for bit |
//! | [`auto`] | RandAugment, TrivialAugmentWide, AutoAugment and timm's RandAugment: which operations, how strong |
//! | `torchvision`, `timm` | the tables of operations and magnitudes of both |
//! | [`jitter`] | ColorJitter |
//! | [`erase`] | the rectangle of random erasing |
//! | [`repeat`] | the order of an epoch with repeated augmentation |
//!
//! Each is a function of the picture and of draws keyed by (seed, epoch, sample, purpose), so that none disturbs
//! another's draws. The order is that of both originals: crop, flip, policy, jitter; the erasing, after normalisation, is
//! the backend's.

pub mod auto;
pub mod crop;
pub mod erase;
pub mod jitter;
pub mod ops;
pub mod repeat;
pub mod timm;
pub mod torchvision;

use super::decode::Header;
use super::preprocess::Workshop;
use super::resize::Interpolation;
use crate::rng::{Purpose, Rng};
pub use auto::Auto;
pub use crop::{Crop, flip_rows, random_resized_crop};
pub use jitter::Jitter;
pub use ops::affine::Sampling;

/// Everything that is done to a training picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainTransform {
    pub resolution: usize,
    pub crop: Crop,
    /// Probability of the horizontal flip.
    pub flip: f64,
    pub interpolation: Interpolation,
    pub auto: Auto,
    /// How the policy's shears, translations and rotations read between pixels.
    pub sampling: Sampling,
    pub jitter: Jitter,
    pub erase: erase::Erasing,
}

impl TrainTransform {
    /// torchvision's first reference preset: default ranges, flip with one half, bilinear, and nothing else.
    pub fn new(resolution: usize) -> Self {
        Self {
            resolution,
            crop: Crop::default(),
            flip: 0.5,
            interpolation: Interpolation::Bilinear,
            auto: Auto::None,
            sampling: Sampling::Bilinear,
            jitter: Jitter::default(),
            erase: erase::Erasing::default(),
        }
    }
}

/// What the draws for one picture are keyed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    pub seed: u64,
    pub epoch: u64,
    pub sample: u32,
    /// Which of its visits in this epoch, where augmentation is repeated; else 0.
    pub copy: u32,
}

impl Key {
    pub fn draws(self, purpose: Purpose) -> Rng {
        let Self { seed, epoch, sample, copy } = self;
        Rng::new(seed, epoch, u64::from(copy) << 32 | u64::from(sample), purpose)
    }
}

impl Workshop {
    /// The training image of `key`, into `out` [resolution, resolution, 3].
    pub fn train(
        &mut self,
        bytes: &mut [u8],
        header: &Header,
        transform: &TrainTransform,
        key: Key,
        out: &mut [u8],
    ) -> Result<(), String> {
        let mut draws = key.draws(Purpose::Crop);
        let rect = random_resized_crop(header.height, header.width, &transform.crop, &mut || draws.unit());
        let region = self.decoder.decode(bytes, header, rect)?;
        let r = transform.resolution;
        self.resizer.resize(region, transform.interpolation, r, r, out)?;
        // torchvision: `torch.rand(1) < p`.
        if key.draws(Purpose::Flip).unit() < transform.flip {
            flip_rows(out, r);
        }
        let mut apply = |op| self.ops.apply(&op, r, r, out);
        transform.auto.draw(r, r, transform.sampling, &mut key.draws(Purpose::Auto), &mut apply);
        transform.jitter.draw(&mut key.draws(Purpose::Jitter), &mut apply);
        Ok(())
    }
}
