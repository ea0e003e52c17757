//! Launches whose blocks wait for each other: whether the card can run all of them at once. What cannot be is refused in words
//! when the plan is made ready; the driver would refuse it in the middle of a capture.

use super::card::Card;
use super::driver::TWO_PASS;
use crate::backend::cuda::plan::Plan;
use crate::backend::cuda::plan::geometry::Geometry;
use crate::backend::cuda::plan::node::{Call, Launch};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

impl Card {
    /// Checks every launch of the plan that wants it, and gives their kernels the shared memory that they want.
    pub(super) fn make_room(&self, plan: &Plan) -> Result<()> {
        let launches = plan.nodes.iter().filter_map(|node| match &node.call {
            Call::Kernel(launch) if launch.geometry.cooperative => Some(launch),
            _ => None,
        });
        let mut kernels: BTreeMap<&str, u32> = BTreeMap::new();
        for launch in launches {
            self.check(launch)?;
            let most = kernels.entry(&launch.kernel).or_default();
            *most = launch.geometry.shared.max(*most);
        }
        for (kernel, shared) in kernels {
            self.functions[kernel].set_shared(shared)?;
        }
        Ok(())
    }

    fn check(&self, launch: &Launch) -> Result<()> {
        let (name, chip, kernel) = (&self.context.name, self.context.chip()?, &launch.kernel);
        let Geometry { grid: [blocks, ..], block: [threads, ..], shared, .. } = launch.geometry;
        if !self.context.cooperates()? {
            return Err(Error::usage(format!(
                "{name} cannot run all blocks of a launch at once: {TWO_PASS}"
            )));
        }
        if shared > chip.shared_kib * 1024 {
            return Err(Error::usage(format!(
                "{kernel} is to have {shared} bytes of shared memory, a block of {name} has at most {} KiB: lower \
                 device.form.chip.shared_kib",
                chip.shared_kib
            )));
        }
        let function = self.functions[kernel];
        function.set_shared(shared)?;
        let most = function.blocks(threads, shared)? * chip.multiprocessors;
        if blocks > most {
            return Err(Error::usage(format!(
                "{kernel} is to run {blocks} blocks at once, {name} runs {most} of them: lower device.form.chip.multiprocessors, or \
                 {TWO_PASS}"
            )));
        }
        Ok(())
    }
}
