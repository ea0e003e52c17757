//! The backward pass. Weight gradients run beside the critical path, on a stream of their own.

use super::builder::{Builder, MAIN, optional, read, size, update, write};
use super::geometry;
use super::node::{Arg, Call, Convolution, Fused, Launch, Linear, Node, NodeId, Pass};
use super::params::Statistic;
use super::region::{Access, Region};
use crate::config::{Residual, Wgrad};
use crate::model::graph::{ParamId, TensorId};
use crate::model::units::{ConvUnit, Unit};

/// What lets a gradient through to a batch norm; the kernels' `gate`.
#[derive(Clone, Copy)]
enum Gate {
    /// No ReLU.
    Open,
    /// The ReLU's input is computed again from the convolution's output.
    Recomputed,
    /// The block's sum left a bit an element.
    Mask(Region),
}

impl Gate {
    fn args(self) -> (Arg, Arg) {
        match self {
            Self::Open => (Arg::Null, Arg::U32(0)),
            Self::Recomputed => (Arg::Null, Arg::U32(1)),
            Self::Mask(mask) => (read(mask), Arg::U32(2)),
        }
    }
}

impl Builder<'_> {
    /// From the gradient of the logits to those of all parameters that are trained.
    pub fn backward(&mut self, units: &[Unit]) {
        self.open_buckets();
        for unit in units.iter().rev() {
            if !self.demand.wants(unit.output()) {
                continue;
            }
            match *unit {
                Unit::Conv(ref unit) => self.backward_conv(unit),
                Unit::MaxPool { x, y } => self.max_pool_backward(x, y),
                Unit::AvgPool { x, y } => self.average_pool_backward(x, y),
                Unit::Linear { x, y, weight, bias } => self.linear_backward(x, y, weight, bias),
            }
            self.send_full_buckets(unit);
        }
    }

    fn linear_backward(&mut self, x: TensorId, y: TensorId, weight: ParamId, bias: ParamId) {
        let storage = self.options.storage;
        let (n, features, classes) = (self.options.batch, self.graph.tensors[x].c, self.graph.tensors[y].c);
        let dy = self.gradient(y);
        let side = self.side();
        if self.trains_param(weight) {
            let (x, w) = (self.activation(x), self.layout.gradient(storage, weight));
            let linear = Linear { pass: Pass::Wgrad, n, features, classes, x, w, y: dy };
            self.push("fc.wgrad".into(), side, Call::Linear(linear));
        }
        if self.demand.wants(x) {
            let (x, w) = (self.make_gradient(x), self.layout.weights(storage, weight));
            let linear = Linear { pass: Pass::Dgrad, n, features, classes, x, w, y: dy };
            self.push("fc.dgrad".into(), MAIN, Call::Linear(linear));
        }
        if self.trains_param(bias) {
            let args = vec![read(dy), write(self.layout.gradient(storage, bias)), size(n), size(classes)];
            let geometry = geometry::bias_gradient(classes);
            let launch = Launch { kernel: self.storage_kernel("bias_gradient"), geometry, args };
            self.push("fc.bias_gradient".into(), side, Call::Kernel(launch));
        }
    }

    fn average_pool_backward(&mut self, x: TensorId, y: TensorId) {
        let dy = self.gradient(y);
        let dx = self.make_gradient(x);
        let info = &self.graph.tensors[x];
        let args = vec![read(dy), write(dx), size(self.options.batch), size(info.h * info.w), size(info.c)];
        let geometry = geometry::pool(self.elements(x));
        let launch = Launch { kernel: self.storage_kernel("avg_pool_backward"), geometry, args };
        self.launch(self.name(y, "backward"), launch);
    }

    fn max_pool_backward(&mut self, x: TensorId, y: TensorId) {
        let dy = self.gradient(y);
        let index = self.pool_index.expect("the forward pass came first");
        let dx = self.make_gradient(x);
        let info = &self.graph.tensors[x];
        let mut args = vec![read(dy), read(index), write(dx)];
        args.extend([self.options.batch, info.h, info.w, info.c].map(size));
        let geometry = geometry::pool(self.elements(x));
        let launch = Launch { kernel: self.storage_kernel("max_pool_backward"), geometry, args };
        self.launch(self.name(y, "backward"), launch);
    }

    fn backward_conv(&mut self, unit: &ConvUnit) {
        let draw = self.batch_norm_backward(unit);
        let (shape, n, storage) = (self.shape(unit), self.options.batch, self.options.storage);
        let ((x, norm), dw) = (self.input_of(unit), self.layout.gradient(storage, unit.weight));
        let (accumulate, fused) = (false, Fused { norm, sums: None });
        let wgrad = Convolution { pass: Pass::Wgrad, shape, n, x, w: dw, y: draw, accumulate, fused };
        if unit.x == self.graph.input {
            self.stem_wgrad(unit, wgrad);
            return;
        }
        let w = self.layout.weights(storage, unit.weight);
        let dgrad = Convolution { pass: Pass::Dgrad, w, fused: Fused::NONE, ..wgrad };
        let behind = self.options.form.wgrad == Wgrad::Behind;
        let mut waits = vec![];
        if behind && self.demand.wants(unit.x) {
            waits.push(self.dgrad(unit, dgrad));
        }
        if self.trains_param(unit.weight) {
            let (name, stream, call) = (self.name(unit.raw, "wgrad"), self.side(), Call::Convolution(wgrad));
            self.nodes.push(Node { name, stream, waits, call });
        }
        if !behind && self.demand.wants(unit.x) {
            self.dgrad(unit, dgrad);
        }
    }

    /// The image has no gradient.
    fn stem_wgrad(&mut self, unit: &ConvUnit, wgrad: Convolution) {
        let (side, dw) = (self.side(), wgrad.w);
        let w = self.stem_gradient(&unit.shape, dw);
        self.push(self.name(unit.raw, "wgrad"), side, Call::Convolution(Convolution { w, ..wgrad }));
        self.unblock_gradient(&unit.shape, w, dw, side);
    }

    /// What the block's sum, or the other branch, has left in the input's gradient is added to. Returns the convolution's
    /// node.
    fn dgrad(&mut self, unit: &ConvUnit, conv: Convolution) -> NodeId {
        let (id, name) = (self.nodes.len(), self.name(unit.raw, "dgrad"));
        let (sum, added) = (self.gradient[unit.x], self.options.form.residual == Residual::Added);
        let (x, accumulate) = match sum {
            None => (self.make_gradient(unit.x), false),
            Some(sum) if !added => (sum, true),
            Some(_) => (self.tensor_buffer(self.name(unit.raw, "part"), unit.x), false),
        };
        self.push(name, MAIN, Call::Convolution(Convolution { x, accumulate, ..conv }));
        if let Some(sum) = sum.filter(|_| added) {
            let elements = self.elements(unit.x);
            let args = vec![update(sum), read(x), size(elements)];
            let geometry = geometry::gradient_add(elements);
            let launch = Launch { kernel: self.storage_kernel("gradient_add"), geometry, args };
            self.launch(self.name(unit.raw, "gradient_add"), launch);
        }
        id
    }

    /// Through ReLU, sum and batch norm: makes the gradient of the convolution's output, of gamma and beta, and, where
    /// the sum's other term is an activation, that term's gradient.
    fn batch_norm_backward(&mut self, unit: &ConvUnit) -> Region {
        let (dy, gate) = self.gated_gradient(unit);
        let (mask, gate) = gate.args();
        if let Some(grid) = self.one_pass_backward(unit) {
            return self.norm_backward_in_one_pass(unit, grid, dy, gate);
        }
        if self.trains_param(unit.gamma)
            && let Some(slabs) = self.slabs(unit, 2)
        {
            return self.norm_backward_in_slabs(unit, &slabs, dy, gate);
        }
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let mut gated = vec![read(dy), read(self.activation(unit.raw)), mask];
        gated.extend(self.affine(unit).args());
        // Of a frozen batch norm nothing is reduced, and its B and C are the zeros that the arena began with.
        if self.trains_param(unit.gamma) {
            self.reduce(unit, &gated, gate);
        }
        let (dx, dz) = (self.make_gradient(unit.raw), self.residual_gradient(unit, dy));
        let mut args = gated;
        args.extend([Statistic::B, Statistic::C].map(|kind| read(self.statistic(unit, kind))));
        args.extend([write(dx), optional(dz, Access::Write), Arg::U64((rows * channels) as u64)]);
        args.extend([size(channels), gate]);
        let kernel = self.dropping(unit, "bn_backward_apply", rows * channels, &mut args);
        let geometry = geometry::bn_apply(rows * channels, channels);
        let launch = Launch { kernel, geometry, args };
        self.launch(self.name(unit.raw, "bn_backward_apply"), launch);
        dx
    }

    /// The kernel's name, and what images skip; `all`: what the kernel counts, of all images.
    fn dropping(&self, unit: &ConvUnit, kernel: &str, all: usize, args: &mut Vec<Arg>) -> String {
        let Some(dropped) = self.dropped(unit.y, all / self.options.batch) else {
            return self.storage_kernel(kernel);
        };
        args.extend(dropped);
        self.storage_kernel(&format!("{kernel}_drop"))
    }

    /// The gradient that comes to a unit, and what gates it. A shortcut's unit shares both with the block's sum.
    fn gated_gradient(&self, unit: &ConvUnit) -> (Region, Gate) {
        let dy = self.gradient(unit.y);
        let gate = match (self.mask[unit.y], unit.relu) {
            (Some(mask), _) => Gate::Mask(mask),
            (None, true) => Gate::Recomputed,
            (None, false) => Gate::Open,
        };
        (dy, gate)
    }

    /// Where the gradient of the sum's other term goes: a buffer of its own, or, to a shortcut's batch norm, nowhere:
    /// that reads the same gradient through the same mask.
    pub fn residual_gradient(&mut self, unit: &ConvUnit, dy: Region) -> Option<Region> {
        let residual = unit.residual?;
        if self.folded[residual].is_none() {
            return self.demand.wants(residual).then(|| self.make_gradient(residual));
        }
        self.gradient[residual] = Some(dy);
        self.share_mask(residual, unit.y);
        None
    }

    /// The sums over the batch, and what follows from them by channel. `gated`: gradient, input, mask, mean, scale,
    /// beta, the first arguments of both large kernels.
    fn reduce(&mut self, unit: &ConvUnit, gated: &[Arg], gate: Arg) {
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let per_block = geometry::reduce_rows_per_block(rows, channels);
        let blocks = rows.div_ceil(per_block);
        let partials = self.buffer(self.name(unit.raw, "backward_partials"), 8 * (blocks * channels) as u64);
        let mut args = gated.to_vec();
        args.extend([write(partials), size(rows), size(channels), size(per_block), gate]);
        let kernel = self.dropping(unit, "bn_backward_reduce", rows, &mut args);
        let geometry = geometry::bn_backward_reduce(rows, channels);
        let launch = Launch { kernel, geometry, args };
        self.launch(self.name(unit.raw, "bn_backward_reduce"), launch);
        match self.synced() {
            Some(ranks) => self.finalize_of_ranks(unit, partials, blocks, ranks),
            None => self.finalize_gradient_sums(unit, partials, blocks),
        }
    }

    fn finalize_gradient_sums(&mut self, unit: &ConvUnit, partials: Region, blocks: usize) {
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let gradient = |param| self.layout.gradient(self.options.storage, param);
        let mut args = vec![read(partials)];
        args.extend([Statistic::Rstd, Statistic::Scale].map(|kind| read(self.statistic(unit, kind))));
        args.extend([write(gradient(unit.gamma)), write(gradient(unit.beta))]);
        args.extend([Statistic::B, Statistic::C].map(|kind| write(self.statistic(unit, kind))));
        args.extend([rows, channels, blocks].map(size));
        let geometry = geometry::bn_finalize(channels);
        let launch = Launch { kernel: "bn_backward_finalize".into(), geometry, args };
        self.launch(self.name(unit.raw, "bn_backward_finalize"), launch);
    }
}
