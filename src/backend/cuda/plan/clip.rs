//! The norm of all gradients together as calls, and what follows from it for every rule.

use super::builder::{Builder, read, size, write};
use super::geometry;
use super::node::{Arg, Launch};
use super::region::{Access, Arena, Region};

/// Bytes of the kernels' `Corrections`.
const CORRECTIONS: u64 = 16;

impl Builder<'_> {
    /// Makes the kernels' `Corrections`. `sum`: gradients are those of all passes of the step, not of this one alone.
    pub fn clip(&mut self, sum: bool) -> Region {
        let total = self.layout.trained;
        let geometry = geometry::gradient_squares(total);
        let blocks = geometry.grid[0] as usize;
        let squares = self.buffer("clip.squares", 4 * blocks as u64);
        let corrections = self.buffer("clip.corrections", CORRECTIONS);
        let (kernel, mut args) = self.of_gradients("gradient_squares", sum);
        args.extend([write(squares), size(total), self.state(Access::Read)]);
        self.launch("clip.squares".into(), Launch { kernel, geometry, args });
        let mut args = vec![read(squares), size(blocks), write(corrections)];
        args.extend(self.constants());
        let geometry = geometry::clip_gradients();
        self.launch("clip".into(), Launch { kernel: "clip_gradients".into(), geometry, args });
        corrections
    }

    /// The name of a kernel that reads gradients, and its first arguments.
    pub fn of_gradients(&self, kernel: &str, sum: bool) -> (String, Vec<Arg>) {
        if sum {
            (format!("{kernel}_sum"), vec![read(self.layout.trained_f32(Arena::GradientSum))])
        } else {
            let [matrices, vectors, matrix_end, _] = self.pass_gradients();
            (self.storage_kernel(kernel), vec![matrices, vectors, matrix_end])
        }
    }
}
