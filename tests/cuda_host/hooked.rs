//! The host machine with something that goes wrong at a chosen call.

use crate::machine::HostMachine;
use engine::backend::cuda::abi::Outcome;
use engine::backend::cuda::machine::{Machine, Prepared};
use engine::backend::cuda::plan::Plan;
use engine::backend::cuda::plan::region::Region;
use engine::error::Result;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Prepare,
    Submit,
    /// The outcome if it is there.
    Poll,
    /// The outcome, waited for.
    Wait,
    Evaluate,
    Write,
    Read,
}

/// Asked before each call; its error is the call's.
pub type Hook = Box<dyn FnMut(Call) -> Result<()>>;

pub struct Hooked {
    machine: HostMachine,
    hook: RefCell<Hook>,
    /// Set when this is dropped.
    pub dropped: Rc<Cell<bool>>,
}

impl Hooked {
    pub fn new(machine: HostMachine, hook: impl FnMut(Call) -> Result<()> + 'static) -> Self {
        Self { machine, hook: RefCell::new(Box::new(hook)), dropped: Rc::default() }
    }

    fn hook(&self, call: Call) -> Result<()> {
        (self.hook.borrow_mut())(call)
    }
}

impl Drop for Hooked {
    fn drop(&mut self) {
        self.dropped.set(true);
    }
}

impl Machine for Hooked {
    fn prepare(&mut self, plan: Plan) -> Result<Prepared> {
        self.hook(Call::Prepare)?;
        self.machine.prepare(plan)
    }

    fn plan(&self, prepared: Prepared) -> &Plan {
        self.machine.plan(prepared)
    }

    fn submit(&mut self, prepared: Prepared, slot: usize, fill: &mut dyn FnMut(&mut [u8])) -> Result<()> {
        self.hook(Call::Submit)?;
        self.machine.submit(prepared, slot, fill)
    }

    fn outcome(&mut self, wait: bool) -> Result<Option<Outcome>> {
        self.hook(if wait { Call::Wait } else { Call::Poll })?;
        self.machine.outcome(wait)
    }

    fn evaluate(
        &mut self,
        prepared: Prepared,
        fill: &mut dyn FnMut(&mut [u8]),
        logits: &mut [f32],
    ) -> Result<()> {
        self.hook(Call::Evaluate)?;
        self.machine.evaluate(prepared, fill, logits)
    }

    fn write(&mut self, region: Region, bytes: &[u8]) -> Result<()> {
        self.hook(Call::Write)?;
        self.machine.write(region, bytes)
    }

    fn read(&self, region: Region, bytes: &mut [u8]) -> Result<()> {
        self.hook(Call::Read)?;
        self.machine.read(region, bytes)
    }

    fn capacity(&self, plan: &Plan) -> Result<u64> {
        self.machine.capacity(plan)
    }

    fn choices(&self) -> BTreeMap<String, String> {
        self.machine.choices()
    }

    fn set_choices(&mut self, choices: &BTreeMap<String, String>) {
        self.machine.set_choices(choices);
    }
}
