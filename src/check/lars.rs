//! LARS's nodes, each on what the one before it has left. Elementwise operations are rounded one by one, as the oracle's
//! ([`crate::optim::lars`]): same bits.

use super::compare::{Want, to_f64};
use super::layers::Layers;
use super::norms::Update;
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::plan::region::Arena;
use crate::error::Result;
use crate::optim::lars::Lars;

impl<M: Machine> Layers<'_, M> {
    /// `clip`: what gradients are divided by.
    pub(super) fn lars(&mut self, rule: &Lars, update: &Update, clip: f32) -> Result<()> {
        if update.skip {
            return self.at_rest("lars.update", "lars.update", &[Arena::Momentum]);
        }
        let flat = |arena| self.seen.plan.layout.all_f32(arena);
        let mut weights = self.seen.before.f32s(flat(Arena::Master));
        let mut velocities = self.seen.before.f32s(flat(Arena::Momentum));
        let want = update.by_chunk([&|index| f64::from(weights[index]).powi(2), &|index| {
            f64::from(update.gradient[index]).powi(2)
        }]);
        let got = to_f64(&self.seen.f32s(self.seen.buffer("lars.norms")?)?);
        self.note("norms by parameter", &["lars.norms".to_owned()], "lars.norms", &got, &want);
        let ratios = self.ratios("lars", update, |chunk, [w, g]| {
            let decay = f64::from(Update::decay(chunk, rule.weight_decay));
            let (g, length) = (g / f64::from(clip), g / f64::from(clip) + w * decay);
            let ratio = f64::from(rule.trust) * w / (length + f64::from(rule.epsilon));
            if decay != 0.0 && w > 0.0 && g > 0.0 { ratio } else { 1.0 }
        })?;
        for chunk in &update.chunks.chunks {
            let elements = Update::elements(chunk);
            let rule = Lars { weight_decay: Update::decay(chunk, rule.weight_decay), ..*rule };
            let ratio = ratios[chunk.parameter as usize];
            let (w, v) = (&mut weights[elements.clone()], &mut velocities[elements.clone()]);
            rule.apply(clip, ratio, w, v, &update.gradient[elements]);
        }
        let got = to_f64(&self.seen.f32s(flat(Arena::Momentum))?);
        self.note("moments", &["lars.update".to_owned()], "velocities", &got, &Want::exactly(&velocities));
        self.weights_and_copies("lars.update", &weights)
    }
}
