//! Sums of squares, and what an update takes from them. They are f32 within a block of threads: 16 terms a thread, then a
//! tree of eight levels, each term rounded once.

use super::compare::{Allowed, UNIT, Want, to_f64};
use super::layers::{Layers, Sent};
use super::update::Decision;
use crate::backend::cuda::abi::{Chunk, ChunkRange};
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::plan::chunks::{CHUNK, Chunks};
use crate::backend::cuda::plan::region::Arena;
use crate::error::Result;
use crate::optim::Rule;
use crate::optim::lamb::{Corrections, Lamb};
use std::ops::Range;

/// Roundings between squares and their sum, at most.
const SUMMING: f64 = 16.0 + 8.0 + 2.0;

fn summed(sum: f64) -> (f64, f64) {
    (sum, SUMMING * UNIT * sum + f64::from(f32::MIN_POSITIVE))
}

/// An update at the end of a pass.
pub(super) struct Update {
    pub chunks: Chunks,
    /// Of all parameters, without the loss scale.
    pub gradient: Vec<f32>,
    /// Its number, from 1 on.
    pub number: u32,
    pub skip: bool,
}

impl Update {
    pub fn elements(chunk: &Chunk) -> Range<usize> {
        chunk.first as usize..(chunk.first + chunk.count) as usize
    }

    /// Two sums of f64 for each chunk, one after the other, and how far f32 ones may be from them.
    pub fn by_chunk(&self, squares: [&dyn Fn(usize) -> f64; 2]) -> Want {
        let sums =
            self.chunks.chunks.iter().flat_map(|chunk| {
                squares.map(|square| summed(Self::elements(chunk).map(square).sum::<f64>()))
            });
        let (values, allowed) = sums.unzip();
        Want { values, allowed: Allowed::Each(allowed) }
    }

    /// The two norms of a parameter from its chunks' sums.
    pub fn norms(sums: &[f32], of: &ChunkRange) -> [f64; 2] {
        let chunks = of.first as usize..(of.first + of.count) as usize;
        [0, 1].map(|which| chunks.clone().map(|chunk| f64::from(sums[2 * chunk + which])).sum::<f64>().sqrt())
    }

    /// `weight_decay` where it applies.
    pub fn decay(chunk: &Chunk, weight_decay: f32) -> f32 {
        if chunk.decays != 0 { weight_decay } else { 0.0 }
    }
}

impl<M: Machine> Layers<'_, M> {
    pub(super) fn update_of(&self, gradient: &[f32], decision: &Decision) -> Update {
        let unscale = 1.0 / self.seen.before.state().scale;
        Update {
            chunks: Chunks::new(&self.seen.plan.layout, self.seen.plan.options.decay),
            gradient: gradient.iter().map(|gradient| gradient * unscale).collect(),
            number: decision.state.updates,
            skip: decision.skip != 0,
        }
    }

    /// The norm of all gradients, and what follows from it and from the update's number, as the card has it.
    pub(super) fn clip(&mut self, sent: &Sent, update: &Update) -> Result<Corrections> {
        let squares = self.seen.f32s(self.seen.buffer("clip.squares")?)?;
        let square = |gradient: &[f32]| {
            let sum = gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
            summed(if update.skip { 0.0 } else { sum })
        };
        // A block of threads has as many elements as a chunk at most.
        let (values, allowed) = update.gradient.chunks(CHUNK).map(square).unzip();
        let want = Want { values, allowed: Allowed::Each(allowed) };
        self.note("gradient norm", &["clip.squares".to_owned()], "clip.squares", &to_f64(&squares), &want);

        let got = self.seen.f32s(self.seen.buffer("clip.corrections")?)?;
        let norm = squares.iter().map(|&square| f64::from(square)).sum::<f64>().sqrt();
        let most = f64::from(sent.step.clip_norm);
        let clip = if most > 0.0 { (norm / most).max(1.0) } else { 1.0 };
        let lamb = match sent.step.rule {
            Rule::Lamb(rule) => rule,
            // Betas of zero correct nothing.
            _ => Lamb { lr: 0.0, beta1: 0.0, beta2: 0.0, epsilon: 0.0, weight_decay: 0.0 },
        };
        let oracle = lamb.corrections(1.0, update.number);
        let mut values = vec![clip];
        if !update.skip {
            values.extend([oracle.bias1, oracle.bias2_root].map(f64::from));
        }
        // Roots and powers in f64, rounded once; the clip's quotient once more.
        let allowed = values.iter().map(|value| 3.0 * UNIT * value).collect();
        let (known, want) = (values.len(), Want { values, allowed: Allowed::Each(allowed) });
        self.note("gradient norm", &["clip".to_owned()], "clip.corrections", &to_f64(&got[..known]), &want);
        Ok(Corrections { clip: got[0], bias1: got[1], bias2_root: got[2] })
    }

    /// The ratios of all parameters, and how far f32 ones may be: two roots and what `ratio` does with them, each rounded.
    pub(super) fn ratios(
        &mut self,
        rule: &'static str,
        update: &Update,
        ratio: impl Fn(&Chunk, [f64; 2]) -> f64,
    ) -> Result<Vec<f32>> {
        let sums = self.seen.f32s(self.seen.buffer(&format!("{rule}.norms"))?)?;
        let ratio = |range: &ChunkRange| {
            ratio(&update.chunks.chunks[range.first as usize], Update::norms(&sums, range))
        };
        let values: Vec<f64> = update.chunks.parameters.iter().map(ratio).collect();
        let allowed = Allowed::Each(values.iter().map(|ratio| 8.0 * UNIT * ratio).collect());
        let name = format!("{rule}.ratios");
        let ratios = self.seen.f32s(self.seen.buffer(&name)?)?;
        let want = Want { values, allowed };
        self.note("trust ratios", std::slice::from_ref(&name), &name, &to_f64(&ratios), &want);
        Ok(ratios)
    }

    /// A step that is skipped moves nothing that lasts.
    pub(super) fn at_rest(&mut self, moments: &str, update: &str, arenas: &[Arena]) -> Result<()> {
        for &arena in arenas {
            let flat = self.seen.plan.layout.all_f32(arena);
            let (got, want) = (to_f64(&self.seen.f32s(flat)?), Want::exactly(&self.seen.before.f32s(flat)));
            self.note("moments", &[moments.to_owned()], &format!("{arena:?}"), &got, &want);
        }
        let weights = self.seen.before.f32s(self.seen.plan.layout.all_f32(Arena::Master));
        self.weights_and_copies(update, &weights)
    }
}
