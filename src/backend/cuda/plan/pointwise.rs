//! 1x1 convolutions by our own kernel (`kernels/conv1x1.cu`): the output's statistics are summed before it is stored, so that
//! nobody reads it for them, and the batch norm of the layer before is applied on the way in. For layers that are bound by
//! bytes; the others are the libraries'.

use super::builder::{Builder, read, size, write};
use super::geometry;
use super::node::{Arg, Launch};
use crate::model::graph::{ConvShape, TensorId};
use crate::model::units::ConvUnit;

/// Channels of a slice of the input, of a tile of the output.
const SLICE: usize = 32;
const COLUMNS: usize = 64;
/// c k / (c + k), the operations for a byte of input and output, up to which the kernel is placed: below the 139 of a V100
/// (125 TFLOP/s, 900 GB/s), and so bound by bytes with room for a kernel that reaches less than the libraries do.
const MOST_OPERATIONS_A_BYTE: f64 = 110.0;

/// Whether the kernel takes such a convolution, and gains by it.
pub fn fits(shape: &ConvShape) -> bool {
    let ConvShape { c, k, r, s, stride, pad, .. } = *shape;
    let intensity = (c * k) as f64 / (c + k) as f64;
    (r, s, stride, pad) == (1, 1, 1, 0)
        && c.is_multiple_of(SLICE)
        && k.is_multiple_of(COLUMNS)
        && intensity <= MOST_OPERATIONS_A_BYTE
}

/// Multiplications and additions of such a launch; none of any other.
pub fn operations(launch: &Launch) -> u64 {
    match (launch.kernel.starts_with("conv1x1"), &launch.args[..]) {
        (true, [.., Arg::U32(rows), Arg::U32(c), Arg::U32(k), _]) => {
            2 * u64::from(*rows) * u64::from(*c) * u64::from(*k)
        }
        _ => 0,
    }
}

impl Builder<'_> {
    /// The convolution, and the partials of its output's statistics; with the batch norm of the input where that is left to
    /// it.
    pub fn pointwise(&mut self, unit: &ConvUnit) {
        let (rows, shape) = (self.rows(unit.raw), self.shape(unit));
        let tiles = geometry::conv1x1_tiles(rows, shape.k);
        let per_block = geometry::conv1x1_rows_per_block(rows, shape.k);
        let (kernel, mut args) = match self.absorbed[unit.x].clone() {
            Some(before) => ("conv1x1_norm_stats", self.through_norm(&before.norm, unit.x)),
            None => ("conv1x1_stats", vec![read(self.activation(unit.x))]),
        };
        args.push(read(self.weights(unit.weight)));
        let y = self.make_activation(unit.raw);
        let partials =
            self.buffer(self.name(unit.raw, "partials"), 8 * (rows.div_ceil(per_block) * shape.k) as u64);
        args.extend([write(y), write(partials)]);
        args.extend([rows, shape.c, shape.k, tiles].map(size));
        let geometry = geometry::conv1x1(rows, shape.k);
        let launch = Launch { kernel: self.storage_kernel(kernel), geometry, args };
        self.launch(self.name(unit.raw, "forward_stats"), launch);
        self.finalize(unit, partials, per_block);
    }

    /// The output that a batch norm has left to its reader: where it comes from, and where it goes.
    fn through_norm(&mut self, norm: &ConvUnit, y: TensorId) -> Vec<Arg> {
        let mut args = vec![read(self.activation(norm.raw))];
        args.extend(self.affine(norm).map(read));
        args.push(write(self.make_activation(y)));
        args
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::{Op, lower};
    use crate::model::spec::RESNET50;

    #[test]
    fn layers_that_are_bound_by_bytes_are_taken() {
        let graph = lower(&RESNET50, 224).unwrap();
        let taken = |op: &&Op| matches!(op, Op::Conv { shape, .. } if fits(shape));
        let sides: Vec<usize> = graph
            .ops
            .iter()
            .filter(taken)
            .map(|op| if let Op::Conv { shape, .. } = op { shape.h } else { 0 })
            .collect();
        // Of 56 x 56 all seven and the reduction to 128, of 28 x 28 three reductions and four expansions.
        assert_eq!(
            (sides.iter().filter(|&&h| h == 56).count(), sides.iter().filter(|&&h| h == 28).count()),
            (8, 7)
        );
        assert_eq!(sides.len(), 15);
    }
}
