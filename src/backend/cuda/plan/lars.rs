//! LARS as calls: norms, a ratio for each parameter, the update.

use super::builder::{Builder, optional, read, update, write};
use super::geometry;
use super::lamb::Scratch;
use super::node::Launch;
use super::region::{Access, Arena, Region};

impl Builder<'_> {
    /// `sum`: gradients are those of all passes of the step, not of this one alone; `corrections`: where they are clipped.
    pub fn lars(&mut self, sum: bool, corrections: Option<Region>) {
        let scratch = self.scratch("lars");
        let (kernel, mut args) = self.of_gradients("lars_norms", sum);
        args.extend([read(self.layout.trained_f32(Arena::Master)), scratch.table, write(scratch.norms)]);
        args.push(self.state(Access::Read));
        let geometry = geometry::by_chunk(scratch.chunks);
        self.launch("lars.norms".into(), Launch { kernel, geometry, args });
        let mut args = vec![read(scratch.norms), scratch.table, scratch.ranges];
        args.extend([optional(corrections, Access::Read), write(scratch.ratios)]);
        args.extend(self.constants());
        let geometry = geometry::by_chunk(scratch.parameters);
        self.launch("lars.ratios".into(), Launch { kernel: "lars_ratios".into(), geometry, args });
        self.lars_update(&scratch, sum, corrections);
    }

    fn lars_update(&mut self, scratch: &Scratch, sum: bool, corrections: Option<Region>) {
        let (_, mut args) = self.of_gradients("lars_update", sum);
        args.extend([Arena::Master, Arena::Momentum].map(|arena| update(self.layout.trained_f32(arena))));
        // What lies between parameters keeps its zeros.
        args.push(update(self.layout.trained_weights(self.options.storage)));
        args.extend([scratch.table, optional(corrections, Access::Read), read(scratch.ratios)]);
        args.extend(self.constants());
        let kernel = self.storage_kernel(if sum { "lars_update_sum" } else { "lars_update" });
        let geometry = geometry::by_chunk(scratch.chunks);
        self.launch("lars.update".into(), Launch { kernel, geometry, args });
    }
}
