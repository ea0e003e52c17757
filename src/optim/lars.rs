//! LARS (You et al., arXiv:1708.03888) as timm has it (huggingface/pytorch-image-models, timm/optim/lars.py, without
//! `trust_clip`): the gradient with weight decay added, its length set by the weights' own, then momentum. Parameters that do
//! not decay take plain steps.

use super::clip::norm;

/// Constants of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lars {
    pub lr: f32,
    pub momentum: f32,
    pub nesterov: bool,
    /// 0 for parameters whose role is exempt; their trust ratio is 1.
    pub weight_decay: f32,
    /// The trust ratio's coefficient.
    pub trust: f32,
    pub epsilon: f32,
}

impl Lars {
    /// `clip`: what gradients are divided by. All slices have the same length; `velocity` starts at zero.
    pub fn step(&self, clip: f32, weight: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        let ratio = self.trust_ratio(clip, weight, gradient);
        self.apply(clip, ratio, weight, velocity, gradient);
    }

    /// trust ||w|| / (||g|| + weight_decay ||w|| + epsilon), g = gradient / clip; 1 where weight decay is 0 or a norm is.
    pub fn trust_ratio(&self, clip: f32, weight: &[f32], gradient: &[f32]) -> f32 {
        if self.weight_decay == 0.0 {
            return 1.0;
        }
        let (w, g) = (norm(weight.iter().copied()), norm(gradient.iter().copied()) / clip);
        if w > 0.0 && g > 0.0 { self.trust * w / (g + w * self.weight_decay + self.epsilon) } else { 1.0 }
    }

    /// d = ratio (g + weight_decay w); v = momentum v + d; w -= lr (d + momentum v) with nesterov, lr v without.
    #[inline(always)]
    pub fn apply(&self, clip: f32, ratio: f32, weight: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        assert!(weight.len() == velocity.len() && weight.len() == gradient.len(), "slices differ in length");
        for ((w, v), &g) in weight.iter_mut().zip(velocity).zip(gradient) {
            let d = (g / clip + self.weight_decay * *w) * ratio;
            *v = self.momentum * *v + d;
            *w -= self.lr * if self.nesterov { d + self.momentum * *v } else { *v };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Lars =
        Lars { lr: 0.5, momentum: 0.5, nesterov: false, weight_decay: 0.25, trust: 0.5, epsilon: 0.0 };

    /// ||w|| = 5, ||g|| = 1.25, ratio = 0.5 * 5 / (1.25 + 0.25 * 5) = 1: numbers that are exact in f32.
    #[test]
    fn a_step_by_hand() {
        let (mut w, mut v) = ([3.0, 4.0], [0.0, 2.0]);
        RULE.step(2.0, &mut w, &mut v, &[1.5, -2.0]);
        // d = [0.75 + 0.75, -1 + 1], v = [1.5, 1], w -= 0.5 v.
        assert_eq!((w, v), ([2.25, 3.5], [1.5, 1.0]));
    }

    #[test]
    fn what_does_not_decay_and_what_is_zero_takes_plain_steps() {
        let exempt = Lars { weight_decay: 0.0, ..RULE };
        assert_eq!(exempt.trust_ratio(1.0, &[3.0, 4.0], &[1.0, 0.0]), 1.0);
        assert_eq!(RULE.trust_ratio(1.0, &[0.0], &[1.0]), 1.0);
        assert_eq!(RULE.trust_ratio(1.0, &[1.0], &[0.0]), 1.0);
        assert_eq!(RULE.trust_ratio(1.0, &[3.0, 4.0], &[3.75, 0.0]), 0.5);
    }
}
