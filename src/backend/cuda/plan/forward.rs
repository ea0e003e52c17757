//! The forward pass: for training with the batch's statistics up to the loss, for evaluation with the running ones up
//! to the logits. Where the recipe averages weights, evaluations are of the averages.

use super::builder::{Builder, MAIN, optional, read, size, update, write};
use super::fusion::Summing;
use super::geometry;
use super::node::{Arg, Call, Convolution, Launch, Linear, Pass};
use super::params::Statistic;
use super::region::{Access, Arena, Region};
use super::stem::Blocking;
use super::{Loss, OUTCOME_RING, Purpose, STAGING_SLOTS};
use crate::backend::cuda::abi;
use crate::backend::{EPS, MEAN, RUNNING_MOMENTUM, STD};
use crate::config::Stem;
use crate::model::graph::{ParamId, TensorId};
use crate::model::units::{ConvUnit, Unit};

/// Names of the bits of a block's sum: element by element, and column by column of 32 channels, 4 bytes a row.
pub const MASK: &str = "mask";
pub const COLUMN_MASK: &str = "columns.mask";

/// What an affine map by channel is made of: y = (x - mean) scale + beta.
pub struct Affine {
    mean: Region,
    scale: Region,
    beta: Region,
}

impl Affine {
    pub fn args(&self) -> [Arg; 3] {
        self.map(read)
    }

    /// Mean, scale, beta.
    pub fn map<T>(&self, arg: impl FnMut(Region) -> T) -> [T; 3] {
        [self.mean, self.scale, self.beta].map(arg)
    }
}

impl Builder<'_> {
    /// Image to loss, with everything kept that the backward pass reads.
    pub fn forward(&mut self, units: &[Unit]) {
        self.input();
        self.drop_path(units);
        self.fold_running_statistics(true);
        self.absorb_norms(units);
        units.iter().for_each(|unit| self.forward_unit(unit));
        self.loss(units);
        match self.options.recipe.ranks {
            Some(ranks) if self.synced().is_none() => self.running_statistics_of(ranks),
            _ => self.running_statistics(),
        }
        if self.reduces() {
            self.agree_on_loss();
        }
    }

    /// Image to logits, bias included, in [`Arena::Logits`].
    pub fn evaluate(&mut self, units: &[Unit]) {
        self.input();
        if self.averaged() {
            self.cast_averages();
        }
        self.fold_running_statistics(false);
        self.fold_running_statistics(true);
        units.iter().for_each(|unit| self.forward_unit(unit));
    }

    /// Image to logits, bias included, in [`Arena::Logits`], as [`Self::forward`] makes them.
    pub fn replay(&mut self, units: &[Unit]) {
        self.input();
        self.drop_path(units);
        self.fold_running_statistics(true);
        self.absorb_norms(units);
        units.iter().for_each(|unit| self.forward_unit(unit));
    }

    /// Whether all batch norms take the running statistics.
    pub fn evaluates(&self) -> bool {
        self.options.purpose == Purpose::Evaluate
    }

    /// Whether the unit's does.
    pub fn takes_running(&self, unit: &ConvUnit) -> bool {
        self.evaluates() || !self.trains_param(unit.gamma)
    }

    /// Whether the pass is of the moving averages.
    fn averaged(&self) -> bool {
        self.evaluates() && self.options.recipe.averages
    }

    /// Where biases, gammas and betas are read.
    pub fn vectors_arena(&self) -> Arena {
        if self.averaged() { Arena::Ema } else { Arena::Master }
    }

    fn running_arena(&self) -> Arena {
        if self.averaged() { Arena::RunningEma } else { Arena::Running }
    }

    /// The matrix that a product reads.
    pub fn weights(&self, param: ParamId) -> Region {
        let weights = self.layout.weights(self.options.storage, param);
        match self.averaged_weights {
            Some(averages) => Region { arena: averages.arena, ..weights },
            None => weights,
        }
    }

    pub fn trains(&self) -> bool {
        self.options.purpose.trains()
    }

    pub fn storage_kernel(&self, name: &str) -> String {
        format!("{name}_{}", self.options.storage.suffix())
    }

    /// The first arguments of every kernel that reads what the host has sent.
    pub fn staged(&self) -> [Arg; 3] {
        let (arena, slots) =
            if self.trains() { (Arena::Staging, STAGING_SLOTS) } else { (Arena::EvalStaging, 1) };
        let bytes = self.staging.slot_bytes;
        [read(Region::new(arena, 0, slots as u64 * bytes)), size(slots), Arg::U64(bytes)]
    }

    /// The last arguments of every kernel that reads the pass's constants: staging, their place, the state.
    pub fn constants(&self) -> Vec<Arg> {
        let mut args = self.staged().to_vec();
        args.extend([Arg::U64(self.staging.hyper_offset), self.state(Access::Read)]);
        args
    }

    pub fn state(&self, access: Access) -> Arg {
        Arg::Region(Region::new(Arena::State, 0, size_of::<abi::State>() as u64), access)
    }

    pub fn outcomes(&self) -> [Arg; 2] {
        let bytes = (OUTCOME_RING * size_of::<abi::Outcome>()) as u64;
        [update(Region::new(Arena::Outcomes, 0, bytes)), size(OUTCOME_RING)]
    }

    fn input(&mut self) {
        let resolution = self.options.resolution;
        let y = self.make_activation(self.graph.input);
        let mut args = self.staged().to_vec();
        args.extend([Arg::U64(self.staging.items_offset), self.state(Access::Read), write(y)]);
        args.extend([self.options.batch, resolution, resolution].map(size));
        match Blocking::of(self.options.form.stem, &self.stem()) {
            Some(Blocking { before, height, width, .. }) => args.extend([before, height, width].map(size)),
            None => args.push(size(self.options.form.stem.pixel())),
        }
        args.extend(MEAN.iter().chain(&STD).map(|&value| Arg::F32(value)));
        let geometry = geometry::input(self.elements(self.graph.input));
        // Evaluations are of images as they are.
        let erase = self.options.recipe.erase && !self.evaluates();
        let blocked = if self.options.form.stem == Stem::SpaceToDepth { "_blocked" } else { "" };
        let kernel = self.storage_kernel(&format!("input{blocked}{}", if erase { "_erased" } else { "" }));
        self.launch("input".into(), Launch { kernel, geometry, args });
    }

    /// What the host has drawn for each block and image, where the pass's other calls find it.
    fn drop_path(&mut self, units: &[Unit]) {
        let count = self.staging.factors;
        if count == 0 {
            return;
        }
        let factors = self.buffer("drop_path", 4 * count as u64);
        let mut args = self.staged().to_vec();
        args.extend([Arg::U64(self.staging.factors_offset), self.state(Access::Read), write(factors)]);
        args.push(size(count));
        let geometry = geometry::drop_path_factors(count);
        self.launch("drop_path".into(), Launch { kernel: "drop_path_factors".into(), geometry, args });
        let bytes = 4 * self.options.batch as u64;
        let sums = units.iter().filter_map(|unit| match unit {
            Unit::Conv(unit) if unit.residual.is_some() => Some(unit.y),
            _ => None,
        });
        for (block, sum) in sums.enumerate() {
            let offset = factors.offset + block as u64 * bytes;
            self.factors[sum] = Some(Region { offset, bytes, ..factors });
        }
    }

    /// The last arguments of a kernel that multiplies a branch: its factors, and how many of what it counts an image has.
    pub fn dropped(&self, sum: TensorId, image: usize) -> Option<[Arg; 2]> {
        self.factors[sum].map(|factors| [read(factors), size(image)])
    }

    fn forward_unit(&mut self, unit: &Unit) {
        match *unit {
            Unit::Conv(ref unit) => self.forward_conv(unit),
            Unit::MaxPool { x, y } => self.max_pool(x, y),
            Unit::AvgPool { x, y } => self.average_pool(x, y),
            Unit::Linear { x, y, weight, bias } => self.linear(x, y, weight, bias),
        }
    }

    fn forward_conv(&mut self, unit: &ConvUnit) {
        let summing = self.summing(unit);
        match summing {
            Some(Summing::Kernel) => self.pointwise(unit),
            Some(Summing::Library) | None => self.convolution(unit),
        }
        let summed = summing.is_some();
        let applies = unit.relu || unit.residual.is_some();
        let left = self.absorbed[unit.y].is_some();
        let whole = applies && !left && !summed && !self.takes_running(unit);
        let one_pass = if whole { self.one_pass_forward(unit) } else { None };
        if applies {
            self.make_mask(unit, one_pass.is_some());
        }
        if let Some(grid) = one_pass {
            return self.norm_in_one_pass(unit, grid);
        }
        if whole && let Some(slabs) = self.slabs(unit, 1) {
            return self.norm_in_slabs(unit, &slabs);
        }
        if !summed && !self.takes_running(unit) {
            self.statistics(unit);
        }
        if !applies {
            self.folded[unit.y] = Some(unit.clone());
        } else if !left {
            self.apply(unit);
        }
    }

    fn convolution(&mut self, unit: &ConvUnit) {
        let (x, norm) = self.input_of(unit);
        let y = self.make_activation(unit.raw);
        let mut w = self.weights(unit.weight);
        if unit.x == self.graph.input {
            w = self.stem_filters(&unit.shape, w);
        }
        let (shape, n) = (self.shape(unit), self.options.batch);
        let fused = self.fused(unit, norm);
        let call = Convolution { pass: Pass::Forward, shape, n, x, w, y, accumulate: false, fused };
        self.push(self.name(unit.raw, "forward"), MAIN, Call::Convolution(call));
        if let Some(sums) = fused.sums {
            self.finalize_sums(unit, sums);
        }
    }

    /// A bit an element of a block's sum, for the way back; where it lies by columns its name says so.
    fn make_mask(&mut self, unit: &ConvUnit, in_columns: bool) {
        if self.leaves_mask(unit) {
            let bytes = self.elements(unit.y).div_ceil(8) as u64;
            let name = self.name(unit.y, if in_columns { COLUMN_MASK } else { MASK });
            self.mask[unit.y] = Some(self.buffer(name, bytes));
            self.mask_in_columns[unit.y] = in_columns;
        }
    }

    /// Mean and variance of a convolution's output, by channel.
    fn statistics(&mut self, unit: &ConvUnit) {
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let per_block = geometry::reduce_rows_per_block(rows, channels);
        let blocks = rows.div_ceil(per_block);
        let partials = self.buffer(self.name(unit.raw, "partials"), 8 * (blocks * channels) as u64);
        let launch = Launch {
            kernel: self.storage_kernel("bn_stats"),
            geometry: geometry::bn_stats(rows, channels),
            args: vec![
                read(self.activation(unit.raw)),
                write(partials),
                size(rows),
                size(channels),
                size(per_block),
            ],
        };
        self.launch(self.name(unit.raw, "bn_stats"), launch);
        self.finalize(unit, partials, per_block);
    }

    /// Mean and variance from what each `per_block` rows have left.
    pub fn finalize(&mut self, unit: &ConvUnit, partials: Region, per_block: usize) {
        let (own, channels) = (self.rows(unit.raw), unit.shape.k);
        let (partials, rows, per_block) = match self.synced() {
            Some(ranks) => (self.gather_moments(unit, partials, per_block), ranks * own, own),
            None => (partials, own, per_block),
        };
        let made = [Statistic::Mean, Statistic::Rstd, Statistic::Scale, Statistic::Variance];
        let mut args = vec![read(partials), self.parameter(unit.gamma)];
        args.extend(made.map(|kind| write(self.statistic(unit, kind))));
        args.extend([size(rows), size(channels), size(per_block), Arg::F32(EPS as f32)]);
        let geometry = geometry::bn_finalize(channels);
        let launch = Launch { kernel: "bn_finalize".into(), geometry, args };
        self.launch(self.name(unit.raw, "bn_finalize"), launch);
    }

    /// The map that the unit's batch norm is in this pass.
    pub fn affine(&self, unit: &ConvUnit) -> Affine {
        let mean = if self.takes_running(unit) {
            let running = self.layout.running(unit.mean, unit.shape.k, false);
            Region { arena: self.running_arena(), ..running }
        } else {
            self.statistic(unit, Statistic::Mean)
        };
        let scale = self.statistic(unit, Statistic::Scale);
        Affine { mean, scale, beta: self.layout.in_f32(self.vectors_arena(), unit.beta) }
    }

    /// Batch norm with what follows it: the block's sum (a shortcut's own batch norm in the same pass) and the ReLU.
    fn apply(&mut self, unit: &ConvUnit) {
        let elements = self.elements(unit.y);
        let mut args = vec![read(self.activation(unit.raw))];
        args.extend(self.affine(unit).args());
        args.extend(self.added(unit));
        let y = self.make_activation(unit.y);
        args.extend([write(y), optional(self.mask[unit.y], Access::Write), Arg::U64(elements as u64)]);
        args.extend([size(unit.shape.k), Arg::U32(u32::from(unit.relu))]);
        let dropped = self.dropped(unit.y, elements / self.options.batch);
        let kernel = self.storage_kernel(if dropped.is_some() { "bn_apply_drop" } else { "bn_apply" });
        args.extend(dropped.into_iter().flatten());
        let geometry = geometry::bn_apply(elements, unit.shape.k);
        let launch = Launch { kernel, geometry, args };
        self.launch(self.name(unit.raw, "bn_apply"), launch);
    }

    /// What a block's sum adds: an activation, or what a shortcut's own batch norm makes of one.
    pub fn added(&self, unit: &ConvUnit) -> [Arg; 4] {
        let Some(z) = unit.residual else { return [Arg::Null; 4] };
        let Some(shortcut) = &self.folded[z] else {
            return [read(self.activation(z)), Arg::Null, Arg::Null, Arg::Null];
        };
        let [mean, scale, beta] = self.affine(shortcut).args();
        [read(self.activation(shortcut.raw)), mean, scale, beta]
    }

    fn max_pool(&mut self, x: TensorId, y: TensorId) {
        let index = self.buffer(self.name(y, "index"), self.elements(y) as u64);
        self.pool_index = Some(index);
        let from = self.activation(x);
        let to = self.make_activation(y);
        let info = &self.graph.tensors[x];
        let mut args = vec![read(from), write(to), write(index)];
        args.extend([self.options.batch, info.h, info.w, info.c].map(size));
        let geometry = geometry::pool(self.elements(y));
        self.launch(
            self.name(y, "forward"),
            Launch { kernel: self.storage_kernel("max_pool"), geometry, args },
        );
    }

    fn average_pool(&mut self, x: TensorId, y: TensorId) {
        let from = self.activation(x);
        let to = self.make_activation(y);
        let info = &self.graph.tensors[x];
        let args = vec![read(from), write(to), size(self.options.batch), size(info.h * info.w), size(info.c)];
        let geometry = geometry::pool(self.elements(y));
        self.launch(
            self.name(y, "forward"),
            Launch { kernel: self.storage_kernel("avg_pool"), geometry, args },
        );
    }

    /// Logits without bias; with it where they are the answer.
    fn linear(&mut self, x: TensorId, y: TensorId, weight: ParamId, bias: ParamId) {
        let (n, features, classes) = (self.options.batch, self.graph.tensors[x].c, self.graph.tensors[y].c);
        let bytes = 4 * (n * classes) as u64;
        let logits =
            if self.trains() { self.buffer("logits", bytes) } else { Region::new(Arena::Logits, 0, bytes) };
        self.activation[y] = Some(logits);
        let (x, w) = (self.activation(x), self.weights(weight));
        let call = Linear { pass: Pass::Forward, n, features, classes, x, w, y: logits };
        self.push("fc.forward".into(), MAIN, Call::Linear(call));
        if !self.trains() {
            let args = vec![update(logits), self.parameter(bias), size(n), size(classes)];
            let geometry = geometry::bias_add(n * classes);
            self.launch("fc.bias".into(), Launch { kernel: "bias_add".into(), geometry, args });
        }
    }

    /// The averages of the weights, as convolutions read them.
    fn cast_averages(&mut self) {
        let weights = self.layout.all_weights(self.options.storage);
        let to = self.buffer("ema.weights", weights.bytes);
        self.averaged_weights = Some(to);
        let args = vec![read(self.layout.all_f32(Arena::Ema)), write(to), size(self.layout.total)];
        let geometry = geometry::flat(self.layout.total);
        self.launch("ema.cast".into(), Launch { kernel: self.storage_kernel("cast"), geometry, args });
    }

    /// Bias, loss and its gradient image by image, then their sums.
    fn loss(&mut self, units: &[Unit]) {
        let Some(&Unit::Linear { y, bias, .. }) = units.last() else {
            unreachable!("a network ends in its classifier")
        };
        let (n, classes) = (self.options.batch, self.graph.tensors[y].c);
        let gradient = self.make_gradient(y);
        let rows = self.buffer("loss.rows", (n * size_of::<abi::RowScore>()) as u64);
        let mut args = vec![read(self.activation(y)), self.parameter(bias)];
        args.extend(self.staged());
        args.extend([Arg::U64(self.staging.items_offset), Arg::U64(self.staging.hyper_offset)]);
        args.extend([self.state(Access::Read), write(gradient), write(rows), size(n), size(classes)]);
        let geometry = geometry::loss(n);
        let kernel = self.storage_kernel(match self.options.recipe.loss {
            Loss::SoftmaxCrossEntropy => "softmax_loss",
            Loss::BinaryCrossEntropy => "bce_loss",
        });
        self.launch("loss".into(), Launch { kernel, geometry, args });
        let mut args = vec![read(rows)];
        args.extend(self.staged());
        args.extend([Arg::U64(self.staging.hyper_offset), self.state(Access::Update)]);
        args.extend(self.outcomes());
        args.push(size(n));
        let geometry = geometry::loss_finalize();
        self.launch("loss.finalize".into(), Launch { kernel: "loss_finalize".into(), geometry, args });
    }

    /// The running statistics of all batch norms that are trained take in the batch's, unless the loss is not finite.
    fn running_statistics(&mut self) {
        let channels = self.layout.trained_channels();
        if channels == 0 {
            return;
        }
        let args = vec![
            read(self.layout.statistics(Statistic::Mean, false)),
            read(self.layout.statistics(Statistic::Variance, false)),
            update(self.layout.group_running(false, false)),
            update(self.layout.group_running(false, true)),
            size(channels),
            Arg::F32(RUNNING_MOMENTUM as f32),
            self.state(Access::Read),
        ];
        let geometry = geometry::by_channel(channels);
        self.launch("bn_running".into(), Launch { kernel: "bn_running".into(), geometry, args });
    }

    /// scale = gamma / sqrt(running variance + eps) of all batch norms that are trained, or of those that are frozen.
    fn fold_running_statistics(&mut self, frozen: bool) {
        let gammas = if frozen { &self.layout.frozen_gammas } else { &self.layout.gammas };
        let (first, channels) = (gammas.start, gammas.len());
        if channels == 0 {
            return;
        }
        let variances = Region { arena: self.running_arena(), ..self.layout.group_running(frozen, true) };
        let args = vec![
            read(Region::new(self.vectors_arena(), 4 * first as u64, 4 * channels as u64)),
            read(variances),
            write(self.layout.statistics(Statistic::Scale, frozen)),
            size(channels),
            Arg::F32(EPS as f32),
        ];
        let geometry = geometry::by_channel(channels);
        let name = if frozen { "bn_fold.frozen" } else { "bn_fold" };
        self.launch(name.into(), Launch { kernel: "bn_fold".into(), geometry, args });
    }
}
