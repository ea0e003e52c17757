//! Stochastic depth (arXiv:1603.09382) as timm has it (huggingface/pytorch-image-models, timm/layers/drop.py, `drop_path` with
//! `scale_by_keep`; timm/models/resnet.py, rates that rise with depth): an image skips a block's residual branch at random.

use crate::rng::{nth, unit24};

/// The draws of one pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropPath {
    /// Of the last block; 0: nothing is dropped. The first block's is 0, between them it rises evenly.
    pub rate: f32,
    /// The stream ([`crate::rng::Rng::key`]) that the pass's masks are drawn from, one for each (seed, pass of the run).
    pub key: u64,
}

impl DropPath {
    pub const OFF: Self = Self { rate: 0.0, key: 0 };

    /// Share of the images that skip block `block` of `blocks`, in the order of their residual sums.
    pub fn rate_of(&self, block: usize, blocks: usize) -> f32 {
        if blocks < 2 { 0.0 } else { self.rate * block as f32 / (blocks - 1) as f32 }
    }

    /// What the branch of `block` is multiplied by, before the shortcut is added to it, for image `image` of the pass: 0, or one
    /// over the share that is kept. A function of its arguments alone, in operations that are exact or rounded once.
    pub fn factor(&self, image: usize, block: usize, blocks: usize) -> f32 {
        let rate = self.rate_of(block, blocks);
        let draw = unit24(nth(self.key, (image * blocks + block) as u64));
        if draw < rate { 0.0 } else { 1.0 / (1.0 - rate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_draws_follow_them() {
        let drop = DropPath { rate: 0.4, key: 9 };
        assert_eq!((drop.rate_of(0, 16), drop.rate_of(15, 16), drop.rate_of(0, 1)), (0.0, 0.4, 0.0));
        for block in [0, 5, 15] {
            let rate = drop.rate_of(block, 16);
            let n = 20_000;
            let factors: Vec<f32> = (0..n).map(|image| drop.factor(image, block, 16)).collect();
            let dropped = factors.iter().filter(|&&factor| factor == 0.0).count();
            let error = 5.0 * (f64::from(rate) * (1.0 - f64::from(rate)) / n as f64).sqrt();
            let share = dropped as f64 / n as f64;
            assert!((share - f64::from(rate)).abs() <= error, "block {block}: {share} dropped, rate {rate}");
            assert!(factors.iter().all(|&factor| factor == 0.0 || factor == 1.0 / (1.0 - rate)));
        }
        assert!((0..100).all(|image| DropPath::OFF.factor(image, 7, 16) == 1.0));
    }
}
