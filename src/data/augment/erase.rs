//! Random erasing (arXiv:1708.04896): the rectangle. torchvision and timm draw it alike, with other ranges.

use super::super::batch::{Erase, Fill};
use super::super::decode::Rect;
use super::super::preprocess::round;
use super::Key;
use crate::rng::{Purpose, Rng};
use serde::{Deserialize, Serialize};

/// Which rectangles are erased, and how often.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Erasing {
    pub probability: f64,
    /// Share of the picture.
    pub area: (f64, f64),
    /// Height over width.
    pub ratio: (f64, f64),
    pub fill: EraseFill,
}

impl Default for Erasing {
    /// Never; else torchvision's ranges.
    fn default() -> Self {
        Self { probability: 0.0, area: (0.02, 0.33), ratio: (0.3, 3.3), fill: EraseFill::Zero }
    }
}

/// What the rectangle becomes in the normalised picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EraseFill {
    /// 0, which is the mean colour (torchvision's default; timm's `const`).
    Zero,
    /// One normal number a channel (timm's `rand`).
    Colour,
    /// A normal number for every value (torchvision's `random`; timm's `pixel`).
    Noise,
}

impl Erasing {
    /// What is erased of the picture of `key`, at `resolution` pixels a side.
    pub fn draw(&self, resolution: usize, key: Key) -> Option<Erase> {
        let mut draws = key.draws(Purpose::Erase);
        let rect = self.rect(resolution, resolution, &mut draws)?;
        let fill = match self.fill {
            EraseFill::Zero => Fill::ZERO,
            EraseFill::Colour => Fill::Colour(std::array::from_fn(|_| draws.normal() as f32)),
            EraseFill::Noise => Fill::Noise(key.draws(Purpose::EraseNoise).key()),
        };
        Some(Erase { rect, fill })
    }

    /// The rectangle for a picture of [height, width]; `None`: nothing is erased. Up to ten tries draw area and ratio; the
    /// first rectangle that is smaller than the picture both ways also draws its row and column.
    pub fn rect(&self, height: usize, width: usize, draws: &mut Rng) -> Option<Rect> {
        if self.probability == 0.0 || draws.unit() >= self.probability {
            return None;
        }
        let (low, high) = (self.ratio.0.ln(), self.ratio.1.ln());
        for _ in 0..10 {
            let area = (height * width) as f64 * draws.range(self.area.0, self.area.1);
            let ratio = draws.range(low, high).exp();
            let (h, w) = (round((area * ratio).sqrt()) as usize, round((area / ratio).sqrt()) as usize);
            if h < height && w < width {
                let top = draws.below((height - h + 1) as u64) as usize;
                let left = draws.below((width - w + 1) as u64) as usize;
                // In a picture of a few pixels it may have no area.
                return (h * w > 0).then_some(Rect { top, left, height: h, width: w });
            }
        }
        None
    }
}
