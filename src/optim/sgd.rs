//! Stochastic gradient descent with momentum, as `torch.optim.SGD` (dampening 0).

/// One step's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    pub lr: f32,
    pub momentum: f32,
    pub nesterov: bool,
    /// 0 for parameters whose role is exempt.
    pub weight_decay: f32,
}

impl Sgd {
    /// d = g + weight_decay w; v = momentum v + d; w -= lr (d + momentum v) with nesterov, lr v without. All slices
    /// have the same length; `velocity` starts at zero.
    #[inline(always)]
    pub fn step(&self, weight: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        assert!(weight.len() == velocity.len() && weight.len() == gradient.len(), "slices differ in length");
        for ((w, v), &g) in weight.iter_mut().zip(velocity).zip(gradient) {
            let d = g + self.weight_decay * *w;
            *v = self.momentum * *v + d;
            *w -= self.lr * if self.nesterov { d + self.momentum * *v } else { *v };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps by hand, in numbers that are exact in f32.
    #[test]
    fn two_steps_by_hand() {
        let rule = Sgd { lr: 0.5, momentum: 0.5, nesterov: false, weight_decay: 0.25 };
        let (mut w, mut v) = ([2.0f32], [0.0f32]);
        rule.step(&mut w, &mut v, &[1.0]); // d = 1.5, v = 1.5, w = 1.25
        assert_eq!((w, v), ([1.25], [1.5]));
        rule.step(&mut w, &mut v, &[0.6875]); // d = 1, v = 1.75, w = 0.375
        assert_eq!((w, v), ([0.375], [1.75]));
        let nesterov = Sgd { nesterov: true, ..rule };
        let (mut w, mut v) = ([2.0f32], [0.0f32]);
        nesterov.step(&mut w, &mut v, &[1.0]); // d = 1.5, v = 1.5, w = 2 - 0.5 (1.5 + 0.75)
        assert_eq!((w, v), ([0.875], [1.5]));
    }
}
