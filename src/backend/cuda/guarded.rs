//! A machine that is left alone once it has failed.
//!
//! A card that is lost takes its context along: every further call of the driver fails, or waits for what will not come,
//! and so do those that free memory and destroy handles. What a process must do then is end, so that it runs elsewhere.

use super::abi::Outcome;
use super::machine::{Machine, Prepared};
use super::plan::Plan;
use super::plan::node::Pattern;
use super::plan::region::Region;
use crate::error::{Error, Kind, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;

/// Hands calls on to a machine, up to its first device error; that error is the answer to every call after it. The
/// machine is dropped only if it has not failed.
pub struct Guarded<M: Machine> {
    machine: ManuallyDrop<M>,
    lost: RefCell<Option<Error>>,
}

impl<M: Machine> Guarded<M> {
    pub fn new(machine: M) -> Self {
        Self { machine: ManuallyDrop::new(machine), lost: RefCell::new(None) }
    }

    /// The machine itself, for what only it can do; errors of these calls are not noted.
    pub fn inner(&self) -> &M {
        &self.machine
    }

    pub fn inner_mut(&mut self) -> &mut M {
        &mut self.machine
    }

    fn alive(&self) -> Result<()> {
        self.lost.borrow().clone().map_or(Ok(()), Err)
    }

    fn noted<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.kind == Kind::Device
        {
            *self.lost.borrow_mut() = Some(error.clone());
        }
        result
    }

    fn change<T>(&mut self, call: impl FnOnce(&mut M) -> Result<T>) -> Result<T> {
        self.alive()?;
        let result = call(&mut self.machine);
        self.noted(result)
    }

    fn ask<T>(&self, call: impl FnOnce(&M) -> Result<T>) -> Result<T> {
        self.alive()?;
        self.noted(call(&self.machine))
    }
}

impl<M: Machine> Drop for Guarded<M> {
    fn drop(&mut self) {
        if self.lost.get_mut().is_none() {
            // SAFETY: dropped here and nowhere else, and nobody uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.machine) };
        }
    }
}

impl<M: Machine> Machine for Guarded<M> {
    fn prepare(&mut self, plan: Plan) -> Result<Prepared> {
        self.change(|machine| machine.prepare(plan))
    }

    fn without_engine(&mut self, plan: &Plan) -> Result<Vec<Pattern>> {
        self.change(|machine| machine.without_engine(plan))
    }

    fn plan(&self, prepared: Prepared) -> &Plan {
        self.machine.plan(prepared)
    }

    fn submit(&mut self, prepared: Prepared, slot: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.change(|machine| machine.submit(prepared, slot, fill))
    }

    fn outcome(&mut self, wait: bool) -> Result<Option<Outcome>> {
        self.change(|machine| machine.outcome(wait))
    }

    fn evaluate(
        &mut self,
        prepared: Prepared,
        fill: &mut dyn FnMut(&mut [u8]),
        logits: &mut [f32],
    ) -> Result<()> {
        self.change(|machine| machine.evaluate(prepared, fill, logits))
    }

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()> {
        self.change(|machine| machine.write(region, bytes))
    }

    fn read(&self, region: Region, bytes: &mut [u8]) -> Result<()> {
        self.ask(|machine| machine.read(region, bytes))
    }

    fn capacity(&self, plan: &Plan) -> Result<u64> {
        self.ask(|machine| machine.capacity(plan))
    }

    fn choices(&self) -> BTreeMap<String, String> {
        self.machine.choices()
    }

    fn set_choices(&mut self, choices: &BTreeMap<String, String>) {
        self.machine.set_choices(choices);
    }
}
