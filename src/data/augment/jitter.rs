//! torchvision's ColorJitter.

use super::ops::Op;
use crate::rng::Rng;

/// How far each of four properties may move; 0 leaves it alone. Brightness, contrast and saturation are multiplied by a
/// factor between max(0, 1 - v) and 1 + v, the hue turns by a share between -v and v of the circle.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Jitter {
    pub brightness: f64,
    pub contrast: f64,
    pub saturation: f64,
    /// 0 to 0.5.
    pub hue: f64,
}

impl Jitter {
    /// The operations in order: first a permutation of the four is drawn, then the amount of each that may move.
    pub fn draw(&self, draws: &mut Rng, apply: &mut dyn FnMut(Op)) {
        if *self == Self::default() {
            return;
        }
        let mut order = [0, 1, 2, 3];
        draws.shuffle(&mut order);
        let mut factor = |v: f64| (v > 0.0).then(|| draws.range((1.0 - v).max(0.0), 1.0 + v) as f32);
        let brightness = factor(self.brightness).map(Op::Brightness);
        let contrast = factor(self.contrast).map(Op::Contrast);
        let saturation = factor(self.saturation).map(Op::Color);
        let hue = (self.hue > 0.0).then(|| Op::Hue(draws.range(-self.hue, self.hue)));
        let operations = [brightness, contrast, saturation, hue];
        order.into_iter().filter_map(|i| operations[i]).for_each(apply);
    }
}
