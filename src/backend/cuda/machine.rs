//! What runs plans. The card does ([`super::device`]); so do the tests, on the host, from the same plans.

use super::abi::Outcome;
use super::plan::node::Pattern;
use super::plan::region::{Arena, Region};
use super::plan::{Plan, PlanOptions};
use crate::config::Chip;
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// A plan that a machine has made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared(pub usize);

/// Memory for arenas, and a way to run plans on it. Passes run in the order in which they are submitted.
pub trait Machine {
    /// Makes the arenas of `plan` at least as large as it wants (new memory is zero) and readies its calls. Fails with
    /// the sizes where memory does not suffice.
    fn prepare(&mut self, plan: Plan) -> Result<Prepared>;

    /// What `plan` has fused with convolutions and the machine has no routine for: a plan is to be made without it
    /// ([`PlanOptions::without`]).
    fn without_engine(&mut self, _plan: &Plan) -> Result<Vec<Pattern>> {
        Ok(vec![])
    }

    fn plan(&self, prepared: Prepared) -> &Plan;

    /// Sends a training pass off: `fill` writes its staging slot, `slot` of [`super::plan::STAGING_SLOTS`], once the
    /// pass that used it last has ended. Does not wait for the pass itself.
    fn submit(&mut self, prepared: Prepared, slot: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()>;

    /// The outcome of the oldest submitted pass that has not been taken; `None` when there is none, or, without
    /// `wait`, when it has not ended.
    fn outcome(&mut self, wait: bool) -> Result<Option<Outcome>>;

    /// Runs an evaluation and waits for it.
    fn evaluate(
        &mut self,
        prepared: Prepared,
        fill: &mut dyn FnMut(&mut [u8]),
        logits: &mut [f32],
    ) -> Result<()>;

    /// Copies to the machine, after everything submitted before.
    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()>;

    /// Copies from the machine, after everything submitted before.
    fn read(&self, region: Region, bytes: &mut [u8]) -> Result<()>;

    /// Bytes that `plan` could take in all: what is free, and what it would share with the plans that are prepared.
    fn capacity(&self, plan: &Plan) -> Result<u64>;

    /// What the multiprocessors hold, where the machine has any.
    fn chip(&self) -> Result<Chip> {
        Ok(Chip::AS_IT_IS)
    }

    /// The library routine chosen for each product, by name.
    fn choices(&self) -> BTreeMap<String, String>;

    /// Choices of an earlier run, to be made again. What is prepared must be prepared anew.
    fn set_choices(&mut self, choices: &BTreeMap<String, String>);
}

/// Bytes that `plan` could take: `free` ones, and what it shares of the arenas that are `held`. An arena that grows is
/// given back first; one that the plan does not use stays.
pub fn room(plan: &Plan, free: u64, held: impl Fn(Arena) -> u64) -> u64 {
    free + plan.arenas.iter().map(|(&arena, &bytes)| held(arena).min(bytes)).sum::<u64>()
}

/// Says what of a plan is large, and the batch that would fit into what `capacity` says of each plan.
pub fn too_large(plan: &Plan, capacity: &dyn Fn(&Plan) -> Result<u64>) -> Error {
    let PlanOptions { resolution, batch, .. } = plan.options;
    let fits = |batch: usize| {
        let smaller = Plan::new(&PlanOptions { batch, ..plan.options.clone() });
        smaller.is_ok_and(|plan| capacity(&plan).is_ok_and(|bytes| plan.bytes() <= bytes))
    };
    let (mut low, mut high) = (0, batch);
    while high - low > 1 {
        let middle = low.midpoint(high);
        if fits(middle) { low = middle } else { high = middle }
    }
    let gib = |bytes: u64| bytes as f64 / 2f64.powi(30);
    let activations = plan.arenas.get(&Arena::Activations).copied().unwrap_or(0);
    let advice = match low {
        0 => {
            "not even one image fits: choose a smaller data.resolution or a card with more memory".to_owned()
        }
        low => {
            format!("at most {low} fit: lower data.micro_batch (it divides data.batch) or data.resolution")
        }
    };
    Error::usage(format!(
        "{batch} images of {resolution} px want {:.2} GiB on the card ({:.2} of activations), {:.2} are free; {advice}",
        gib(plan.bytes()),
        gib(activations),
        gib(capacity(plan).unwrap_or(0)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::plan::{Purpose, Recipe, ScalePolicy};
    use crate::backend::cuda::storage::Storage;
    use crate::config::{Decay, Form};
    use crate::model::spec::RESNET_TINY;

    fn plan(purpose: Purpose, batch: usize) -> Plan {
        Plan::new(&PlanOptions {
            spec: RESNET_TINY,
            resolution: 64,
            batch,
            storage: Storage::F16,
            purpose,
            form: Form::BASE,
            decay: Decay::Weights,
            recipe: Recipe::default(),
            scale: ScalePolicy::FP16,
            keep: false,
            without: vec![],
        })
        .unwrap()
    }

    #[test]
    fn an_evaluation_beside_a_training_has_what_the_two_do_not_share_to_find() {
        let training = plan(Purpose::Finish { sum: false }, 8);
        let held = |arena| training.arenas.get(&arena).copied().unwrap_or(0);
        let evaluation = plan(Purpose::Evaluate, 64);
        let grows = evaluation.arenas.iter().map(|(&arena, &bytes)| bytes.saturating_sub(held(arena))).sum();
        assert!(evaluation.bytes() <= room(&evaluation, grows, held));
        assert!(evaluation.bytes() > room(&evaluation, grows - 1, held));
        let message = too_large(&evaluation, &|plan| Ok(room(plan, grows - 1, held))).message;
        assert!(
            message.starts_with("64 images of 64 px want 0.0") && message.contains("at most 63 fit"),
            "{message}"
        );
        let message = too_large(&evaluation, &|_| Ok(0)).message;
        assert!(message.ends_with(
            "not even one image fits: choose a smaller data.resolution or a card with more memory"
        ));
    }
}
