//! LAMB (You et al., arXiv:1904.00962) as timm has it (huggingface/pytorch-image-models, timm/optim/lamb.py): Adam's
//! direction with weight decay added to it, its length set by the weights' own. The gradient of all parameters together
//! is clipped first ([`super::clip`]); parameters that do not decay keep the direction's length; the trust ratio is not
//! clipped.

use super::clip::norm;

/// Constants of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lamb {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// 0 for parameters whose role is exempt; their trust ratio is 1.
    pub weight_decay: f32,
}

/// What all parameters of one update share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Corrections {
    /// What gradients are divided by: 1 or more.
    pub clip: f32,
    /// 1 - beta1^t.
    pub bias1: f32,
    /// sqrt(1 - beta2^t).
    pub bias2_root: f32,
}

/// The moments of one parameter, which start at zero.
pub struct Moments<'a> {
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
}

impl Lamb {
    /// `clip`: what gradients are divided by ([`super::clip::divisor`]); `update`: its number t, from 1 on.
    pub fn corrections(&self, clip: f32, update: u32) -> Corrections {
        let bias = |beta: f32| 1.0 - power(f64::from(beta), update);
        Corrections { clip, bias1: bias(self.beta1) as f32, bias2_root: bias(self.beta2).sqrt() as f32 }
    }

    /// Updates one parameter and its moments. All slices have the same length.
    pub fn step(&self, by: &Corrections, weight: &mut [f32], of: &mut Moments, gradient: &[f32]) {
        self.moments(by, of, gradient);
        let ratio = self.trust_ratio(by, weight, of);
        self.apply(by, ratio, weight, of);
    }

    /// g = gradient / clip; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g g.
    pub fn moments(&self, by: &Corrections, of: &mut Moments, gradient: &[f32]) {
        assert!(
            of.first.len() == gradient.len() && of.second.len() == gradient.len(),
            "slices differ in length"
        );
        for ((m, v), &g) in of.first.iter_mut().zip(of.second.iter_mut()).zip(gradient) {
            let g = g / by.clip;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * (g * g);
        }
    }

    /// ||w|| / ||u||; 1 where weight decay is 0 or a norm is.
    pub fn trust_ratio(&self, by: &Corrections, weight: &[f32], of: &Moments) -> f32 {
        let direction = weight.iter().zip(&*of.first).zip(&*of.second);
        let u = norm(direction.map(|((&w, &m), &v)| self.direction(by, w, m, v)));
        let w = norm(weight.iter().copied());
        if self.weight_decay != 0.0 && w > 0.0 && u > 0.0 { w / u } else { 1.0 }
    }

    /// w -= lr ratio u.
    pub fn apply(&self, by: &Corrections, ratio: f32, weight: &mut [f32], of: &Moments) {
        for ((w, &m), &v) in weight.iter_mut().zip(&*of.first).zip(&*of.second) {
            *w -= self.lr * (ratio * self.direction(by, *w, m, v));
        }
    }

    /// u = (m / (1 - beta1^t)) / (sqrt(v) / sqrt(1 - beta2^t) + epsilon) + weight_decay w.
    pub fn direction(&self, by: &Corrections, w: f32, m: f32, v: f32) -> f32 {
        (m / by.bias1) / (v.sqrt() / by.bias2_root + self.epsilon) + self.weight_decay * w
    }
}

/// base^exponent by squaring, the very operations of `kernels/lamb.cu`: `powi` may round elsewhere.
fn power(mut base: f64, mut exponent: u32) -> f64 {
    let mut result = 1.0;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= base;
        }
        base *= base;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::clip::divisor;

    const RULE: Lamb = Lamb { lr: 0.005, beta1: 0.9, beta2: 0.999, epsilon: 1e-6, weight_decay: 0.02 };

    /// Two parameters of timm's optimiser, the second without weight decay, in f64.
    struct Exact {
        w: [Vec<f64>; 2],
        m: [Vec<f64>; 2],
        v: [Vec<f64>; 2],
    }

    impl Exact {
        fn step(&mut self, rule: &Lamb, max_norm: f32, gradients: &[Vec<f32>; 2], t: i32) {
            let [beta1, beta2] = [rule.beta1, rule.beta2].map(f64::from);
            let square = gradients.iter().flatten().map(|&g| f64::from(g).powi(2)).sum::<f64>();
            let clip = (square.sqrt() / f64::from(max_norm)).max(1.0);
            for (index, gradient) in gradients.iter().enumerate() {
                let decay = if index == 0 { f64::from(rule.weight_decay) } else { 0.0 };
                let (w, m, v) = (&mut self.w[index], &mut self.m[index], &mut self.v[index]);
                let mut update = vec![];
                for i in 0..w.len() {
                    let g = f64::from(gradient[i]) / clip;
                    m[i] += (1.0 - beta1) * (g - m[i]);
                    v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                    let denominator = v[i].sqrt() / (1.0 - beta2.powi(t)).sqrt() + f64::from(rule.epsilon);
                    update.push(m[i] / (1.0 - beta1.powi(t)) / denominator + decay * w[i]);
                }
                let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
                let (w_norm, u_norm) = (norm(w), norm(&update));
                let trust =
                    if decay == 0.0 || w_norm == 0.0 || u_norm == 0.0 { 1.0 } else { w_norm / u_norm };
                w.iter_mut().zip(&update).for_each(|(w, u)| *w -= f64::from(rule.lr) * trust * u);
            }
        }
    }

    /// Gradients below and above the limit. Weights are rounded once a step and the direction a few times: 20 steps
    /// leave well below 1e-5 of a weight of size 1.
    #[test]
    fn twenty_steps_are_timms() {
        let sizes = [40, 7];
        let wave = |n: usize, phase: f32, size: f32| -> Vec<f32> {
            (0..n).map(|i| size * (0.7 * i as f32 + phase).sin()).collect()
        };
        for (size, max_norm) in [(0.01, 1.0), (5.0, 1.0), (5.0, 0.0)] {
            let limit = if max_norm == 0.0 { f32::INFINITY } else { max_norm };
            let mut w = sizes.map(|n| wave(n, 0.3, 1.0));
            let (mut m, mut v) = (sizes.map(|n| vec![0.0; n]), sizes.map(|n| vec![0.0; n]));
            let wide =
                |values: &[Vec<f32>; 2]| [0, 1].map(|i| values[i].iter().map(|&x| f64::from(x)).collect());
            let mut exact = Exact { w: wide(&w), m: wide(&m), v: wide(&v) };
            for t in 1..=20 {
                let gradients = sizes.map(|n| wave(n, 0.1 * (t * t) as f32, size));
                exact.step(&RULE, limit, &gradients, t);
                let clip = divisor(gradients.iter().map(Vec::as_slice), max_norm);
                let by = RULE.corrections(clip, t as u32);
                for (index, decay) in [RULE.weight_decay, 0.0].into_iter().enumerate() {
                    let of = &mut Moments { first: &mut m[index], second: &mut v[index] };
                    let rule = Lamb { weight_decay: decay, ..RULE };
                    rule.step(&by, &mut w[index], of, &gradients[index]);
                }
            }
            for (index, (got, want)) in w.iter().zip(&exact.w).enumerate() {
                for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                    let apart = (f64::from(got) - want).abs();
                    assert!(apart < 1e-5, "parameter {index} element {i}: {got}, wanted {want}");
                }
            }
        }
    }

    /// The first direction of Adam is the gradient's sign, so that a step is lr ||w|| / sqrt(n) long in each element.
    #[test]
    fn the_first_step_by_hand() {
        let rule = Lamb { epsilon: 0.0, weight_decay: f32::MIN_POSITIVE, lr: 0.5, ..RULE };
        let (mut w, mut m, mut v) = ([3.0, 0.0, 0.0, -4.0], [0.0; 4], [0.0; 4]);
        let gradient = [2.0, -0.5, 8.0, 1.0];
        let by = rule.corrections(1.0, 1);
        rule.step(&by, &mut w, &mut Moments { first: &mut m, second: &mut v }, &gradient);
        // ||w|| = 5, ||u|| = 2.
        for (got, want) in w.iter().zip([3.0 - 1.25, 1.25, -1.25, -4.0 - 1.25]) {
            assert!((got - want).abs() < 1e-5, "{w:?}");
        }
    }

    #[test]
    fn norms_of_zero_leave_the_length_alone() {
        let by = RULE.corrections(1.0, 3);
        let of = &mut Moments { first: &mut [0.0, 0.0], second: &mut [0.0, 0.0] };
        assert_eq!(RULE.trust_ratio(&by, &[0.0, 0.0], of), 1.0, "both are zero");
        of.first[0] = 1.0;
        of.second[0] = 1.0;
        assert_eq!(RULE.trust_ratio(&by, &[0.0, 0.0], of), 1.0, "new weights of zero");
        assert_ne!(RULE.trust_ratio(&by, &[1.0, 0.0], of), 1.0);
        let exempt = Lamb { weight_decay: 0.0, ..RULE };
        assert_eq!(exempt.trust_ratio(&by, &[1.0, 0.0], of), 1.0, "no weight decay");
    }
}
