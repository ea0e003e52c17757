//! LAMB's nodes, each on what the one before it has left. Elementwise operations are rounded one by one, as the oracle's
//! ([`crate::optim::lamb`]): same bits.

use super::compare::{Want, to_f64};
use super::layers::Layers;
use super::norms::Update;
use crate::backend::cuda::abi::Chunk;
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::plan::region::Arena;
use crate::error::Result;
use crate::optim::lamb::{Corrections, Lamb, Moments};

/// The rule for a chunk's parameter.
fn rule_of(rule: &Lamb, chunk: &Chunk) -> Lamb {
    Lamb { weight_decay: Update::decay(chunk, rule.weight_decay), ..*rule }
}

impl<M: Machine> Layers<'_, M> {
    pub(super) fn lamb(&mut self, rule: &Lamb, update: &Update, by: &Corrections) -> Result<()> {
        if update.skip {
            let arenas = [Arena::Momentum, Arena::SecondMoment];
            return self.at_rest("lamb.moments", "lamb.update", &arenas);
        }
        self.lamb_moments(rule, update, by)?;
        // ||w|| / ||u||; 1 where weight decay is 0 or a norm is.
        let ratios = self.ratios("lamb", update, |chunk, [w, u]| {
            let decays = rule_of(rule, chunk).weight_decay != 0.0;
            if decays && w > 0.0 && u > 0.0 { w / u } else { 1.0 }
        })?;
        self.lamb_weights(rule, update, by, &ratios)
    }

    fn lamb_moments(&mut self, rule: &Lamb, update: &Update, by: &Corrections) -> Result<()> {
        let flat = |arena| self.seen.plan.layout.all_f32(arena);
        let weights = self.seen.before.f32s(flat(Arena::Master));
        let mut first = self.seen.before.f32s(flat(Arena::Momentum));
        let mut second = self.seen.before.f32s(flat(Arena::SecondMoment));
        rule.moments(by, &mut Moments { first: &mut first, second: &mut second }, &update.gradient);
        let nodes = ["lamb.moments".to_owned()];
        let got = [self.seen.f32s(flat(Arena::Momentum))?, self.seen.f32s(flat(Arena::SecondMoment))?];
        for (what, got, want) in [("first moments", &got[0], &first), ("second moments", &got[1], &second)] {
            self.note("moments", &nodes, what, &to_f64(got), &Want::exactly(want));
        }
        let mut rules = vec![*rule; weights.len()];
        for chunk in &update.chunks.chunks {
            rules[Update::elements(chunk)].fill(rule_of(rule, chunk));
        }
        let direction = |index: usize| {
            f64::from(rules[index].direction(by, weights[index], first[index], second[index])).powi(2)
        };
        let want = update.by_chunk([&|index| f64::from(weights[index]).powi(2), &direction]);
        let got = to_f64(&self.seen.f32s(self.seen.buffer("lamb.norms")?)?);
        self.note("norms by parameter", &nodes, "lamb.norms", &got, &want);
        Ok(())
    }

    /// Weights and their copy, with the ratios that the card has.
    fn lamb_weights(&mut self, rule: &Lamb, update: &Update, by: &Corrections, ratios: &[f32]) -> Result<()> {
        let flat = |arena| self.seen.plan.layout.all_f32(arena);
        let mut weights = self.seen.before.f32s(flat(Arena::Master));
        let [mut first, mut second] =
            [self.seen.f32s(flat(Arena::Momentum))?, self.seen.f32s(flat(Arena::SecondMoment))?];
        for chunk in &update.chunks.chunks {
            let elements = Update::elements(chunk);
            let of = Moments { first: &mut first[elements.clone()], second: &mut second[elements.clone()] };
            let ratio = ratios[chunk.parameter as usize];
            rule_of(rule, chunk).apply(by, ratio, &mut weights[elements], &of);
        }
        self.weights_and_copies("lamb.update", &weights)
    }
}
