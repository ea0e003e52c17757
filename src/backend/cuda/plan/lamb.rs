//! LAMB as calls: moments, a ratio for each parameter, the update.

use super::builder::{Builder, read, update, write};
use super::chunks::Chunks;
use super::geometry;
use super::node::{Arg, Launch};
use super::region::{Arena, Region};

/// What the calls of a rule share that takes sums by parameter.
pub struct Scratch {
    pub chunks: usize,
    pub parameters: usize,
    pub table: Arg,
    pub ranges: Arg,
    /// Two f32, by chunk.
    pub norms: Region,
    /// f32, by parameter.
    pub ratios: Region,
}

impl Builder<'_> {
    /// `sum`: gradients are those of all passes of the step, not of this one alone.
    pub fn lamb(&mut self, sum: bool, corrections: Region) {
        let scratch = self.scratch("lamb");
        self.lamb_moments(&scratch, sum, corrections);
        let mut args = vec![read(scratch.norms), scratch.table, scratch.ranges, write(scratch.ratios)];
        args.extend(self.constants());
        let geometry = geometry::by_chunk(scratch.parameters);
        self.launch("lamb.ratios".into(), Launch { kernel: "lamb_ratios".into(), geometry, args });
        self.lamb_update(&scratch, corrections);
    }

    /// `rule`: what the buffers' names begin with.
    pub fn scratch(&mut self, rule: &str) -> Scratch {
        let table = Chunks::new(self.layout, self.options.decay);
        let (chunks, parameters) = (table.chunks.len(), table.parameters.len());
        let [table, ranges] = table.regions().map(read);
        Scratch {
            chunks,
            parameters,
            table,
            ranges,
            norms: self.buffer(format!("{rule}.norms"), 8 * chunks as u64),
            ratios: self.buffer(format!("{rule}.ratios"), 4 * parameters as u64),
        }
    }

    fn lamb_moments(&mut self, scratch: &Scratch, sum: bool, corrections: Region) {
        let (kernel, mut args) = self.of_gradients("lamb_moments", sum);
        args.push(read(self.layout.trained_f32(Arena::Master)));
        args.extend(
            [Arena::Momentum, Arena::SecondMoment].map(|arena| update(self.layout.trained_f32(arena))),
        );
        args.extend([scratch.table, read(corrections), write(scratch.norms)]);
        args.extend(self.constants());
        let geometry = geometry::by_chunk(scratch.chunks);
        self.launch("lamb.moments".into(), Launch { kernel, geometry, args });
    }

    fn lamb_update(&mut self, scratch: &Scratch, corrections: Region) {
        let mut args = vec![update(self.layout.trained_f32(Arena::Master))];
        // What lies between parameters keeps its zeros.
        args.push(update(self.layout.trained_weights(self.options.storage)));
        args.extend([Arena::Momentum, Arena::SecondMoment].map(|arena| read(self.layout.trained_f32(arena))));
        args.extend([scratch.table, read(corrections), read(scratch.ratios)]);
        args.extend(self.constants());
        let kernel = self.storage_kernel("lamb_update");
        let geometry = geometry::by_chunk(scratch.chunks);
        self.launch("lamb.update".into(), Launch { kernel, geometry, args });
    }
}
