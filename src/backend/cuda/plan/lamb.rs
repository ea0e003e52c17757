//! LAMB as calls: the norm of all gradients, moments, a ratio for each parameter, the update.

use super::builder::{Builder, read, size, update, write};
use super::chunks::Chunks;
use super::geometry::{self, Geometry};
use super::node::{Arg, Launch};
use super::region::{Access, Arena, Region};

/// What the calls share.
struct Scratch {
    chunks: usize,
    parameters: usize,
    table: Arg,
    ranges: Arg,
    /// The kernels' `Corrections`.
    corrections: Region,
    /// f32, by chunk.
    squares: Region,
    /// Two f32, by chunk.
    norms: Region,
    /// f32, by parameter.
    ratios: Region,
}

/// Bytes of the kernels' `Corrections`.
const CORRECTIONS: u64 = 16;

impl Builder<'_> {
    /// `sum`: gradients are those of all passes of the step, not of this one alone.
    pub fn lamb(&mut self, sum: bool) {
        let scratch = self.scratch();
        self.clip(&scratch, sum);
        self.moments(&scratch, sum);
        self.ratios(&scratch);
        self.lamb_update(&scratch);
    }

    fn scratch(&mut self) -> Scratch {
        let table = Chunks::new(self.layout, self.options.decay);
        let (chunks, parameters) = (table.chunks.len(), table.parameters.len());
        let [table, ranges] = table.regions().map(read);
        Scratch {
            chunks,
            parameters,
            table,
            ranges,
            corrections: self.buffer("lamb.corrections", CORRECTIONS),
            squares: self.buffer("lamb.squares", 4 * chunks as u64),
            norms: self.buffer("lamb.norms", 8 * chunks as u64),
            ratios: self.buffer("lamb.ratios", 4 * parameters as u64),
        }
    }

    /// The name of a kernel that reads gradients, and its first arguments.
    fn of_gradients(&self, kernel: &str, sum: bool) -> (String, Vec<Arg>) {
        if sum {
            (format!("{kernel}_sum"), vec![read(self.layout.all_f32(Arena::GradientSum))])
        } else {
            let [matrices, vectors, matrix_end, _] = self.pass_gradients();
            (self.storage_kernel(kernel), vec![matrices, vectors, matrix_end])
        }
    }

    fn clip(&mut self, scratch: &Scratch, sum: bool) {
        let (kernel, mut args) = self.of_gradients("lamb_squares", sum);
        args.extend([scratch.table, write(scratch.squares), self.state(Access::Read)]);
        self.lamb_launch("lamb.squares", kernel, geometry::lamb(scratch.chunks), args);
        let mut args = vec![read(scratch.squares), size(scratch.chunks), write(scratch.corrections)];
        args.extend(self.constants());
        self.lamb_launch("lamb.clip", "lamb_clip".into(), geometry::lamb_clip(), args);
    }

    fn moments(&mut self, scratch: &Scratch, sum: bool) {
        let (kernel, mut args) = self.of_gradients("lamb_moments", sum);
        args.push(read(self.layout.all_f32(Arena::Master)));
        args.extend([Arena::Momentum, Arena::SecondMoment].map(|arena| update(self.layout.all_f32(arena))));
        args.extend([scratch.table, read(scratch.corrections), write(scratch.norms)]);
        args.extend(self.constants());
        self.lamb_launch("lamb.moments", kernel, geometry::lamb(scratch.chunks), args);
    }

    fn ratios(&mut self, scratch: &Scratch) {
        let mut args = vec![read(scratch.norms), scratch.table, scratch.ranges, write(scratch.ratios)];
        args.extend(self.constants());
        self.lamb_launch("lamb.ratios", "lamb_ratios".into(), geometry::lamb(scratch.parameters), args);
    }

    fn lamb_update(&mut self, scratch: &Scratch) {
        let mut args = vec![update(self.layout.all_f32(Arena::Master))];
        // What lies between parameters keeps its zeros.
        args.push(update(self.layout.all_weights(self.options.storage)));
        args.extend([Arena::Momentum, Arena::SecondMoment].map(|arena| read(self.layout.all_f32(arena))));
        args.extend([scratch.table, read(scratch.corrections), read(scratch.ratios)]);
        args.extend(self.constants());
        let kernel = self.storage_kernel("lamb_update");
        self.lamb_launch("lamb.update", kernel, geometry::lamb(scratch.chunks), args);
    }

    fn lamb_launch(&mut self, name: &str, kernel: String, geometry: Geometry, args: Vec<Arg>) {
        self.launch(name.to_owned(), Launch { kernel, geometry, args });
    }
}
