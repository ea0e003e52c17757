//! Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899), a draw for each batch, by torchvision's definitions
//! (pytorch/vision, references/classification/transforms.py, `RandomChoice` of `RandomMixup` and `RandomCutmix`) and timm's
//! (huggingface/pytorch-image-models, timm/data/mixup.py, mode `batch`, with `correct_lam`).

use super::batch::{Blend, Mix};
use super::decode::Rect;
use crate::rng::{Purpose, Rng};
use serde::{Deserialize, Serialize};

/// Whose rule chooses partners and boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixForm {
    /// An image's partner is the one before it (`roll(1)`); a box reaches as far on either side of its centre.
    Torchvision,
    /// It is the one in its place of the reversed batch (`flip(0)`); of a box of an odd side, the larger half is behind its
    /// centre (releases before 1.0 left that pixel out). Bytes are mixed, and erased afterwards ([`Blend::Bytes`]).
    Timm,
}

impl MixForm {
    pub fn blend(self) -> Blend {
        match self {
            Self::Torchvision => Blend::Values,
            Self::Timm => Blend::Bytes,
        }
    }
}

/// What is drawn for a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MixOptions {
    pub form: MixForm,
    /// lambda ~ Beta(alpha, alpha); 0: no mixup.
    pub mixup: f64,
    /// The same of cutmix.
    pub cutmix: f64,
    /// Share of the batches that are mixed.
    pub probability: f64,
    /// Where both are on: share of the mixed batches that cutmix takes.
    pub switch: f64,
}

impl MixOptions {
    /// The mixes of batch (seed, epoch, number): one for each of `n` square images of `side` pixels, or none at all.
    pub fn draw(&self, (seed, epoch, number): (u64, u64, u64), n: usize, side: usize) -> Vec<Mix> {
        let mut rng = Rng::new(seed, epoch, number, Purpose::Mix);
        let (mixed, switched) = (rng.unit() < self.probability, rng.unit() < self.switch);
        if !mixed || (self.mixup <= 0.0 && self.cutmix <= 0.0) {
            return vec![];
        }
        let cuts = self.cutmix > 0.0 && (self.mixup <= 0.0 || switched);
        let lambda = beta(&mut rng, if cuts { self.cutmix } else { self.mixup });
        let (lambda, region) = if cuts {
            let (row, column) = (rng.below(side as u64) as usize, rng.below(side as u64) as usize);
            let region = cut(self.form, side, lambda, row, column);
            (1.0 - (region.height * region.width) as f64 / (side * side) as f64, Some(region))
        } else {
            (lambda, None)
        };
        let mix = |index| Mix { partner: partner(self.form, index, n) as u32, lambda: lambda as f32, region };
        (0..n).map(mix).collect()
    }
}

/// Which image of a batch of `n` image `index` is mixed with.
fn partner(form: MixForm, index: usize, n: usize) -> usize {
    match form {
        MixForm::Torchvision => (index + n - 1) % n,
        MixForm::Timm => n - 1 - index,
    }
}

/// The box that cutmix takes from the partner: of about (1 - lambda) of a square image, around a centre, less what lies outside.
pub fn cut(form: MixForm, side: usize, lambda: f64, row: usize, column: usize) -> Rect {
    let root = (1.0 - lambda).sqrt();
    let (before, behind) = match form {
        MixForm::Torchvision => {
            let half = (0.5 * root * side as f64) as usize;
            (half, half)
        }
        MixForm::Timm => {
            let cut = (side as f64 * root) as usize;
            (cut / 2, cut.div_ceil(2))
        }
    };
    let span = |centre: usize| (centre.saturating_sub(before), (centre + behind).min(side));
    let ((top, bottom), (left, right)) = (span(row), span(column));
    Rect { top, left, height: bottom - top, width: right - left }
}

/// A draw of Beta(alpha, alpha): Jöhnk's method for alpha <= 1 (Metrika 8, 1964), the ratio of two gammas above.
fn beta(rng: &mut Rng, alpha: f64) -> f64 {
    if alpha > 1.0 {
        let (x, y) = (gamma(rng, alpha), gamma(rng, alpha));
        return x / (x + y);
    }
    loop {
        // In logarithms, since a small alpha makes powers that no f64 holds. `1 - unit` is never 0.
        let (x, y) = ((1.0 - rng.unit()).ln() / alpha, (1.0 - rng.unit()).ln() / alpha);
        let larger = x.max(y);
        let sum = larger + ((x - larger).exp() + (y - larger).exp()).ln();
        if sum <= 0.0 {
            return (x - sum).exp();
        }
    }
}

/// A draw of Gamma(shape, 1), shape >= 1 (Marsaglia, Tsang, ACM TOMS 26, 2000).
fn gamma(rng: &mut Rng, shape: f64) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean 1/2 and variance 1 / (4 (2 alpha + 1)), five standard errors.
    #[test]
    fn moments_of_beta() {
        for alpha in [0.1, 0.2, 0.8, 1.0, 2.5] {
            let mut rng = Rng::new(1, 2, 3, Purpose::Mix);
            let n = 40_000;
            let draws: Vec<f64> = (0..n).map(|_| beta(&mut rng, alpha)).collect();
            assert!(draws.iter().all(|draw| (0.0..=1.0).contains(draw)), "alpha {alpha}");
            let mean = draws.iter().sum::<f64>() / n as f64;
            let squares = draws.iter().map(|draw| (draw - 0.5).powi(2)).collect::<Vec<_>>();
            let variance = squares.iter().sum::<f64>() / n as f64;
            let want = 0.25 / (2.0 * alpha + 1.0);
            let error = |variance: f64| 5.0 * (variance / n as f64).sqrt();
            assert!((mean - 0.5).abs() < error(want), "alpha {alpha}: mean {mean}");
            let fourth = squares.iter().map(|square| (square - variance).powi(2)).sum::<f64>() / n as f64;
            assert!(
                (variance - want).abs() < error(fourth),
                "alpha {alpha}: variance {variance}, wanted {want}"
            );
        }
    }

    const BOTH: MixOptions =
        MixOptions { form: MixForm::Timm, mixup: 0.2, cutmix: 1.0, probability: 1.0, switch: 0.5 };

    #[test]
    fn a_batch_is_mixed_one_way() {
        let (mut cuts, batches) = (0, 400);
        for number in 0..batches {
            let mixes = BOTH.draw((7, 1, number), 6, 32);
            assert_eq!(mixes, BOTH.draw((7, 1, number), 6, 32));
            let partners: Vec<u32> = mixes.iter().map(|mix| mix.partner).collect();
            assert_eq!(partners, [5, 4, 3, 2, 1, 0]);
            assert!(mixes.iter().all(|mix| mix.lambda == mixes[0].lambda && mix.region == mixes[0].region));
            cuts += u32::from(mixes[0].region.is_some());
            if let Some(Rect { height, width, .. }) = mixes[0].region {
                assert_eq!(mixes[0].lambda, (1.0 - (height * width) as f64 / 1024.0) as f32);
            }
        }
        // Five standard errors of a fair coin.
        assert!((f64::from(cuts) - 200.0).abs() < 50.0, "{cuts} of {batches} batches were cut");
    }

    #[test]
    fn what_is_off_stays_off() {
        let draw = |options: MixOptions| options.draw((7, 1, 3), 4, 32);
        assert!(draw(MixOptions { probability: 0.0, ..BOTH }).is_empty());
        assert!(draw(MixOptions { mixup: 0.0, cutmix: 0.0, ..BOTH }).is_empty());
        for number in 0..20 {
            let of = |options: MixOptions| options.draw((7, 1, number), 4, 32)[0].region;
            assert!(of(MixOptions { cutmix: 0.0, ..BOTH }).is_none());
            assert!(of(MixOptions { mixup: 0.0, ..BOTH }).is_some());
            let roll = MixOptions { form: MixForm::Torchvision, ..BOTH }.draw((7, 1, number), 4, 32);
            assert_eq!(roll.iter().map(|mix| mix.partner).collect::<Vec<_>>(), [3, 0, 1, 2]);
        }
    }
}
