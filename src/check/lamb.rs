//! LAMB's nodes, each on what the one before it has left. Elementwise operations are rounded one by one, as the oracle's
//! ([`crate::optim::lamb`]): same bits. Sums of squares are f32 within a chunk: 16 terms a thread, then a tree of eight
//! levels, each term rounded once.

use super::compare::{Allowed, UNIT, Want, to_f64};
use super::layers::{Layers, Sent};
use super::update::Decision;
use crate::backend::cuda::abi::{Chunk, ChunkRange};
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::plan::Rule;
use crate::backend::cuda::plan::chunks::Chunks;
use crate::backend::cuda::plan::region::Arena;
use crate::error::Result;
use crate::optim::lamb::{Corrections, Lamb, Moments};
use std::ops::Range;

/// Roundings between the squares of a chunk and their sum, at most.
const SUMMING: f64 = 16.0 + 8.0 + 2.0;

/// An update that happens.
struct Update<'a> {
    rule: Lamb,
    chunks: Chunks,
    /// Of all parameters, without the loss scale.
    gradient: &'a [f32],
    number: u32,
}

impl Update<'_> {
    fn elements(chunk: &Chunk) -> Range<usize> {
        chunk.first as usize..(chunk.first + chunk.count) as usize
    }

    /// A sum of f64 for each chunk, and how far an f32 one may be from it.
    fn by_chunk(&self, square: impl Fn(usize) -> f64) -> (Vec<f64>, Vec<f64>) {
        let sum = |chunk: &Chunk| {
            let sum = Self::elements(chunk).map(&square).sum::<f64>();
            (sum, SUMMING * UNIT * sum + f64::from(f32::MIN_POSITIVE))
        };
        self.chunks.chunks.iter().map(sum).unzip()
    }

    /// The rule for a chunk's parameter.
    fn rule(&self, chunk: &Chunk) -> Lamb {
        Lamb { weight_decay: if chunk.decays != 0 { self.rule.weight_decay } else { 0.0 }, ..self.rule }
    }
}

impl<M: Machine> Layers<'_, M> {
    pub(super) fn lamb(&mut self, sent: &Sent, gradient: &[f32], decision: &Decision) -> Result<()> {
        let Rule::Lamb { beta1, beta2, epsilon, max_norm } = self.seen.plan.options.recipe.rule else {
            unreachable!("the plan's rule is LAMB")
        };
        if decision.skip != 0 {
            return self.lamb_at_rest();
        }
        let unscale = 1.0 / self.seen.before.state().scale;
        let gradient: Vec<f32> = gradient.iter().map(|gradient| gradient * unscale).collect();
        let (lr, weight_decay) = (sent.step.sgd.lr, sent.step.sgd.weight_decay);
        let update = Update {
            rule: Lamb { lr, beta1, beta2, epsilon, weight_decay, max_norm },
            chunks: Chunks::new(&self.seen.plan.layout, self.seen.plan.options.decay),
            gradient: &gradient,
            number: decision.state.updates,
        };
        let corrections = self.lamb_clip(&update)?;
        self.lamb_moments(&update, &corrections)?;
        self.lamb_ratios(&update)?;
        self.lamb_weights(&update, &corrections)
    }

    /// The norm of all gradients, and what follows from it and from the update's number.
    fn lamb_clip(&mut self, update: &Update) -> Result<Corrections> {
        let squares = self.seen.f32s(self.seen.buffer("lamb.squares")?)?;
        let (values, allowed) = update.by_chunk(|index| f64::from(update.gradient[index]).powi(2));
        let want = Want { values, allowed: Allowed::Each(allowed) };
        self.note("LAMB norms", &["lamb.squares".to_owned()], "lamb.squares", &to_f64(&squares), &want);

        let got = self.seen.f32s(self.seen.buffer("lamb.corrections")?)?;
        let norm = squares.iter().map(|&square| f64::from(square)).sum::<f64>().sqrt();
        let most = f64::from(update.rule.max_norm);
        let clip = if most > 0.0 { (norm / most).max(1.0) } else { 1.0 };
        let oracle = update.rule.corrections([], update.number);
        let values = vec![clip, f64::from(oracle.bias1), f64::from(oracle.bias2_root)];
        // Roots and powers in f64, rounded once; the clip's quotient once more.
        let allowed = values.iter().map(|value| 3.0 * UNIT * value).collect();
        let want = Want { values, allowed: Allowed::Each(allowed) };
        self.note("LAMB norms", &["lamb.clip".to_owned()], "lamb.corrections", &to_f64(&got[..3]), &want);
        Ok(Corrections { clip: got[0], bias1: got[1], bias2_root: got[2] })
    }

    fn lamb_moments(&mut self, update: &Update, by: &Corrections) -> Result<()> {
        let flat = |arena| self.seen.plan.layout.all_f32(arena);
        let weights = self.seen.before.f32s(flat(Arena::Master));
        let mut first = self.seen.before.f32s(flat(Arena::Momentum));
        let mut second = self.seen.before.f32s(flat(Arena::SecondMoment));
        let of = &mut Moments { first: &mut first, second: &mut second };
        update.rule.moments(by, of, update.gradient);
        let nodes = ["lamb.moments".to_owned()];
        let got = [self.seen.f32s(flat(Arena::Momentum))?, self.seen.f32s(flat(Arena::SecondMoment))?];
        for (what, got, want) in [("first moments", &got[0], &first), ("second moments", &got[1], &second)] {
            self.note("LAMB moments", &nodes, what, &to_f64(got), &Want::exactly(want));
        }
        let mut rules = vec![update.rule; weights.len()];
        for chunk in &update.chunks.chunks {
            rules[Update::elements(chunk)].fill(update.rule(chunk));
        }
        let direction = |index: usize| {
            f64::from(rules[index].direction(by, weights[index], first[index], second[index])).powi(2)
        };
        let (w, w_allowed) = update.by_chunk(|index| f64::from(weights[index]).powi(2));
        let (u, u_allowed) = update.by_chunk(direction);
        let pairs = |a: Vec<f64>, b: Vec<f64>| a.into_iter().zip(b).flat_map(|(a, b)| [a, b]).collect();
        let want = Want { values: pairs(w, u), allowed: Allowed::Each(pairs(w_allowed, u_allowed)) };
        let got = to_f64(&self.seen.f32s(self.seen.buffer("lamb.norms")?)?);
        self.note("LAMB norms", &nodes, "lamb.norms", &got, &want);
        Ok(())
    }

    /// From the chunks' squares: added up in f64, two roots and a quotient rounded to f32.
    fn lamb_ratios(&mut self, update: &Update) -> Result<()> {
        let norms = self.seen.f32s(self.seen.buffer("lamb.norms")?)?;
        let ratio = |range: &ChunkRange| {
            let chunks = range.first as usize..(range.first + range.count) as usize;
            let norm = |which: usize| {
                chunks.clone().map(|chunk| f64::from(norms[2 * chunk + which])).sum::<f64>().sqrt()
            };
            let decays = update.rule(&update.chunks.chunks[chunks.start]).weight_decay != 0.0;
            let (w, u) = (norm(0), norm(1));
            if decays && w > 0.0 && u > 0.0 { w / u } else { 1.0 }
        };
        let values: Vec<f64> = update.chunks.parameters.iter().map(ratio).collect();
        let allowed = Allowed::Each(values.iter().map(|ratio| 4.0 * UNIT * ratio).collect());
        let got = to_f64(&self.seen.f32s(self.seen.buffer("lamb.ratios")?)?);
        let nodes = ["lamb.ratios".to_owned()];
        self.note("LAMB norms", &nodes, "lamb.ratios", &got, &Want { values, allowed });
        Ok(())
    }

    /// Weights and their copy, with the ratios that the card has.
    fn lamb_weights(&mut self, update: &Update, by: &Corrections) -> Result<()> {
        let flat = |arena| self.seen.plan.layout.all_f32(arena);
        let ratios = self.seen.f32s(self.seen.buffer("lamb.ratios")?)?;
        let mut weights = self.seen.before.f32s(flat(Arena::Master));
        let [mut first, mut second] =
            [self.seen.f32s(flat(Arena::Momentum))?, self.seen.f32s(flat(Arena::SecondMoment))?];
        for chunk in &update.chunks.chunks {
            let elements = Update::elements(chunk);
            let of = Moments { first: &mut first[elements.clone()], second: &mut second[elements.clone()] };
            let ratio = ratios[chunk.parameter as usize];
            update.rule(chunk).apply(by, ratio, &mut weights[elements], &of);
        }
        self.weights_and_copies("lamb.update", &weights)
    }

    /// A step that is skipped: nothing lasting moves, and the ratios are those of no norm at all.
    fn lamb_at_rest(&mut self) -> Result<()> {
        let flat = |arena| self.seen.plan.layout.all_f32(arena);
        let nodes = ["lamb.moments".to_owned()];
        for (what, arena) in [("first moments", Arena::Momentum), ("second moments", Arena::SecondMoment)] {
            let got = to_f64(&self.seen.f32s(flat(arena))?);
            let want = Want::exactly(&self.seen.before.f32s(flat(arena)));
            self.note("LAMB moments", &nodes, what, &got, &want);
        }
        let weights = self.seen.before.f32s(flat(Arena::Master));
        self.weights_and_copies("lamb.update", &weights)
    }
}
