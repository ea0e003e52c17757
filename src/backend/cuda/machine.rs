//! What runs plans. The card does ([`super::device`]); so do the tests, on the host, from the same plans.

use super::abi::Outcome;
use super::plan::Plan;
use super::plan::region::Region;
use crate::error::Result;
use std::collections::BTreeMap;

/// A plan that a machine has made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared(pub usize);

/// Memory for arenas, and a way to run plans on it. Passes run in the order in which they are submitted.
pub trait Machine {
    /// Makes the arenas of `plan` at least as large as it wants (new memory is zero) and readies its calls. Fails with
    /// the sizes where memory does not suffice.
    fn prepare(&mut self, plan: Plan) -> Result<Prepared>;

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

    /// Bytes that plans could take in all, those of the present ones included.
    fn capacity(&self) -> Result<u64>;

    /// The library routine chosen for each product, by name.
    fn choices(&self) -> BTreeMap<String, String>;

    /// Choices of an earlier run, to be made again. What is prepared must be prepared anew.
    fn set_choices(&mut self, choices: &BTreeMap<String, String>);
}
