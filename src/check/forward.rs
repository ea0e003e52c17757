//! The forward pass, unit by unit.

use super::compare::{Allowed, UNIT, Want, dot_error, largest, longest_row, rounding, to_f64};
use super::fused::Operand;
use super::layers::Layers;
use super::oracle::{Affine, Bounded, classifier, moments};
use crate::backend::EPS;
use crate::backend::cpu::pooling::{self, PoolShape};
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::network::{from_stored, to_stored};
use crate::backend::cuda::plan::geometry::reduce_rows_per_block;
use crate::backend::cuda::plan::params::Statistic;
use crate::backend::cuda::plan::region::{Arena, Region};
use crate::backend::cuda::plan::stem::stem_shape;
use crate::backend::cuda::plan::{Plan, Purpose};
use crate::backend::cuda::storage::Storage;
use crate::error::Result;
use crate::model::graph::{ConvShape, ParamId, TensorId};
use crate::model::units::{ConvUnit, Unit};

/// f32 values of one reduction by channel that are added one after another, at most.
pub fn chain(rows: usize, channels: usize) -> f64 {
    let block = reduce_rows_per_block(rows, channels);
    (block.min(rows) + rows.div_ceil(block)) as f64
}

impl<M: Machine> Layers<'_, M> {
    pub fn evaluates(&self) -> bool {
        self.seen.plan.options.purpose == Purpose::Evaluate
    }

    /// Whether a unit's batch norm takes the running statistics.
    fn takes_running(&self, unit: &ConvUnit) -> bool {
        self.evaluates() || self.frozen(unit)
    }

    pub fn frozen(&self, unit: &ConvUnit) -> bool {
        let Plan { options, graph, .. } = self.seen.plan;
        options.recipe.freeze.has(graph.params[unit.gamma].part)
    }

    /// Names of kinds tell an evaluation from a training pass.
    fn kind(&self, training: &'static str, evaluation: &'static str) -> &'static str {
        if self.evaluates() { evaluation } else { training }
    }

    pub fn forward(&mut self) -> Result<()> {
        for unit in self.units.clone() {
            match unit {
                Unit::Conv(unit) => self.forward_conv(&unit)?,
                Unit::MaxPool { x, y } => self.max_pool(x, y)?,
                Unit::AvgPool { x, y } => self.average_pool(x, y)?,
                Unit::Linear { x, y, weight, bias } => self.classifier(x, y, weight, bias)?,
            }
        }
        Ok(())
    }

    /// The convolution as the card does it.
    pub fn shape(&self, unit: &ConvUnit) -> ConvShape {
        match unit.x == self.seen.plan.graph.input {
            true => stem_shape(self.seen.plan.options.form.stem, &unit.shape),
            false => unit.shape,
        }
    }

    fn forward_conv(&mut self, unit: &ConvUnit) -> Result<()> {
        let (shape, n) = (self.shape(unit), self.seen.n());
        let (Operand { x, doubt }, w) = (self.operand(unit, "forward")?, self.filters(unit)?);
        let raw = self.seen.activation(unit.raw)?;
        let y = self.oracle.forward(&shape, n, &x, &w);
        let terms = shape.r * shape.s * shape.c;
        let moved = 4.0 * doubt * largest(&w);
        let error = moved + dot_error(terms, longest_row(&x, shape.c), longest_row(&w, terms));
        let allowed = Allowed::Same(rounding(self.seen.storage(), largest(&y)) + error);
        let want = Want { values: to_f64(&y), allowed };
        let nodes = [self.seen.first_node(unit.raw, &["forward", "forward_stats"])];
        let kind = self.kind("convolution forward", "evaluation: convolution");
        let what = self.seen.name(unit.raw).to_owned();
        self.note(kind, &nodes, &what, &to_f64(&raw), &want);
        if !self.takes_running(unit) {
            self.statistics(unit, &raw)?;
        }
        if !self.is_stored(unit.y) {
            self.mapped(unit)?;
        } else if unit.relu || unit.residual.is_some() {
            self.apply(unit, &raw)?;
        }
        Ok(())
    }

    /// Mean, variance and what follows from them, from the convolution's output.
    fn statistics(&mut self, unit: &ConvUnit, raw: &[f32]) -> Result<()> {
        let channels = unit.shape.k;
        let rows = raw.len() / channels;
        let sum = chain(rows, channels) * UNIT;
        let unbias = if rows > 1 { rows as f64 / (rows - 1) as f64 } else { 1.0 };
        let gamma = self.seen.vector(unit.gamma);
        let summed = self.fused(unit.raw, "forward").sums.is_some();
        let half = if summed { rounding(self.seen.storage(), 1.0) } else { 0.0 };
        // Sums of x less a value of its own, which lies about as far from the mean as x does.
        let columns: Vec<[(f64, f64); 4]> = moments(raw, channels)
            .iter()
            .zip(&gamma)
            .map(|(of, &gamma)| {
                let rstd = 1.0 / (of.variance + f64::from(EPS as f32)).sqrt();
                // The library may sum what it has not rounded yet, and squares as they are: what is off is off relative to the
                // square's mean, not to the variance.
                let square = of.variance + of.mean * of.mean;
                let whole = if summed { (2.0 * half + sum) * square } else { 0.0 };
                let shifted = if summed { (half + sum) * square.sqrt() } else { 0.0 };
                let relative = whole / (of.variance + f64::from(EPS as f32));
                let (error, gamma) = (3.0 * sum + 4.0 * UNIT + relative, f64::from(gamma));
                [
                    (of.mean, 2.0 * sum * of.variance.sqrt() + 2.0 * UNIT * of.mean.abs() + shifted),
                    (rstd, error * rstd),
                    (gamma * rstd, (error + UNIT) * (gamma * rstd).abs()),
                    (of.variance * unbias, ((6.0 * sum + 4.0 * UNIT) * of.variance + 2.0 * whole) * unbias),
                ]
            })
            .collect();
        let kinds = [Statistic::Mean, Statistic::Rstd, Statistic::Scale, Statistic::Variance];
        let mut nodes = self.seen.norm_nodes(unit.raw, &["bn_stats", "bn_finalize"], "bn_slab");
        let first = ["bn_stats", "forward_stats", "bn_slab0", "bn_one_pass", "forward"];
        nodes[0] = self.seen.first_node(unit.raw, &first);
        for (at, kind) in kinds.into_iter().enumerate() {
            let got = to_f64(&self.seen.statistic(unit, kind)?);
            let values = columns.iter().map(|column| column[at].0).collect();
            let allowed = columns.iter().map(|column| column[at].1 + f64::from(f32::MIN_POSITIVE)).collect();
            let what = format!("{} {kind:?}", self.seen.name(unit.raw));
            self.note(
                "batch norm statistics",
                &nodes,
                &what,
                &got,
                &Want { values, allowed: Allowed::Each(allowed) },
            );
        }
        Ok(())
    }

    /// The affine map that the card computed a unit's batch norm with.
    pub fn affine(&self, unit: &ConvUnit) -> Result<Affine> {
        let mean = if self.takes_running(unit) {
            self.seen.running(unit, false)?
        } else {
            self.seen.statistic(unit, Statistic::Mean)?
        };
        Ok(Affine {
            mean,
            scale: self.seen.statistic(unit, Statistic::Scale)?,
            beta: self.seen.vector(unit.beta),
        })
    }

    /// The unit whose output is a shortcut's batch norm, which only the block's sum evaluates.
    pub fn shortcut(&self, residual: TensorId) -> Option<ConvUnit> {
        self.units.iter().find_map(|unit| match unit {
            Unit::Conv(unit) if unit.y == residual && !unit.relu && unit.residual.is_none() => {
                Some(unit.clone())
            }
            _ => None,
        })
    }

    /// What applies a batch norm: a kernel or several of its own, or the convolution that reads the output.
    fn apply_nodes(&self, unit: &ConvUnit) -> Vec<String> {
        let own = self.seen.norm_nodes(unit.raw, &["bn_apply"], "bn_slab");
        let exists = self.seen.plan.nodes.iter().any(|node| node.name == own[0]);
        let reader = self.units.iter().find_map(|other| match other {
            Unit::Conv(other) if other.x == unit.y => Some(self.seen.node(other.raw, "forward_stats")),
            _ => None,
        });
        reader.filter(|_| !exists).map_or(own, |reader| vec![reader])
    }

    fn apply(&mut self, unit: &ConvUnit, raw: &[f32]) -> Result<()> {
        let affine = self.affine(unit)?;
        let mut sums: Vec<Bounded> = (0..raw.len()).map(|index| affine.at(raw, index)).collect();
        if let Some(factors) = self.factors(unit)? {
            let image = sums.len() / factors.len();
            for (index, sum) in sums.iter_mut().enumerate() {
                let factor = f64::from(factors[index / image]);
                let value = sum.value * factor;
                *sum = Bounded { value, bound: sum.bound * factor + UNIT * value.abs() };
            }
        }
        if let Some(residual) = unit.residual {
            let add = |sum: &mut Bounded, other: Bounded| {
                sum.value += other.value;
                sum.bound += other.bound + 4.0 * UNIT * (sum.value.abs() + other.value.abs());
            };
            if let Some(shortcut) = self.shortcut(residual) {
                let (affine, raw) = (self.affine(&shortcut)?, self.seen.activation(shortcut.raw)?);
                sums.iter_mut().enumerate().for_each(|(index, sum)| add(sum, affine.at(&raw, index)));
            } else {
                let z = self.seen.activation(residual)?;
                let exact = |&z: &f32| Bounded { value: f64::from(z), bound: 0.0 };
                sums.iter_mut().zip(&z).for_each(|(sum, z)| add(sum, exact(z)));
            }
        }
        let nodes = self.apply_nodes(unit);
        let what = self.seen.name(unit.y).to_owned();
        if unit.residual.is_some() && !self.evaluates() && self.demand.wants(unit.y) {
            let mask = self.seen.mask(unit.y)?;
            let bit = |index: usize| f64::from(mask[index / 8] >> (index % 8) & 1);
            let got: Vec<f64> = (0..sums.len()).map(bit).collect();
            let values = sums.iter().map(|sum| f64::from(u8::from(sum.value > 0.0))).collect();
            let allowed =
                sums.iter().map(|sum| if sum.value.abs() <= sum.bound { 1.0 } else { 0.0 }).collect();
            self.note("mask", &nodes, &what, &got, &Want { values, allowed: Allowed::Each(allowed) });
        }
        let values: Vec<f64> =
            sums.iter().map(|sum| if unit.relu { sum.value.max(0.0) } else { sum.value }).collect();
        let storage = self.seen.storage();
        let allowed = values.iter().zip(&sums).map(|(&y, sum)| rounding(storage, y) + sum.bound).collect();
        let got = to_f64(&self.seen.activation(unit.y)?);
        let kind = self.kind("batch norm apply", "evaluation: batch norm");
        self.note(kind, &nodes, &what, &got, &Want { values, allowed: Allowed::Each(allowed) });
        Ok(())
    }

    pub fn pool_shape(&self, x: TensorId) -> PoolShape {
        let info = &self.seen.plan.graph.tensors[x];
        PoolShape { h: info.h, w: info.w, c: info.c }
    }

    /// A maximum and its place are exact.
    fn max_pool(&mut self, x: TensorId, y: TensorId) -> Result<()> {
        let (from, to) = (self.seen.activation(x)?, self.seen.activation(y)?);
        let (mut largest, mut places) = (vec![0.0; to.len()], vec![0; to.len()]);
        pooling::max_forward(self.oracle.cpu(), self.pool_shape(x), &from, &mut largest, &mut places);
        let nodes = [self.seen.node(y, "forward")];
        let what = self.seen.name(y).to_owned();
        let kind = self.kind("max pool forward", "evaluation: pools");
        self.note(kind, &nodes, &what, &to_f64(&to), &Want::exactly(&largest));
        let index = self.seen.bytes(self.seen.buffer(&format!("{what}.index"))?)?;
        let got: Vec<f64> = index.iter().map(|&place| f64::from(place)).collect();
        let want: Vec<f32> = places.iter().map(|&place| f32::from(place)).collect();
        self.note(kind, &nodes, &format!("{what}.index"), &got, &Want::exactly(&want));
        Ok(())
    }

    fn average_pool(&mut self, x: TensorId, y: TensorId) -> Result<()> {
        let PoolShape { h, w, c } = self.pool_shape(x);
        let from = self.seen.activation(x)?;
        let (mut values, mut allowed) = (vec![], vec![]);
        for image in from.chunks_exact(h * w * c) {
            for channel in 0..c {
                let pixels = || image[channel..].iter().step_by(c).map(|&x| f64::from(x));
                let count = (h * w) as f64;
                let (mean, size) =
                    (pixels().sum::<f64>() / count, pixels().map(f64::abs).sum::<f64>() / count);
                values.push(mean);
                allowed.push(rounding(self.seen.storage(), mean) + (count + 2.0) * UNIT * size);
            }
        }
        let got = to_f64(&self.seen.activation(y)?);
        let (nodes, what) = ([self.seen.node(y, "forward")], self.seen.name(y).to_owned());
        let kind = self.kind("average pool forward", "evaluation: pools");
        self.note(kind, &nodes, &what, &got, &Want { values, allowed: Allowed::Each(allowed) });
        Ok(())
    }

    /// Logits: without bias in training, with it in an evaluation.
    fn classifier(&mut self, x: TensorId, y: TensorId, weight: ParamId, bias: ParamId) -> Result<()> {
        let graph = &self.seen.plan.graph;
        let (n, features, classes) = (self.seen.n(), graph.tensors[x].c, graph.tensors[y].c);
        let (from, w) = (self.seen.activation(x)?, self.seen.weight(weight)?);
        let mut logits = self.oracle.forward(&classifier(n, features, classes), 1, &from, &w);
        let error = dot_error(features, longest_row(&from, features), longest_row(&w, features));
        let mut nodes = vec!["fc.forward".to_owned()];
        let got = if self.evaluates() {
            nodes.push("fc.bias".to_owned());
            let bias = self.seen.vector(bias);
            for row in logits.chunks_exact_mut(classes) {
                row.iter_mut().zip(&bias).for_each(|(logit, bias)| *logit += bias);
            }
            self.seen.f32s(Region::new(Arena::Logits, 0, 4 * logits.len() as u64))?
        } else {
            self.seen.f32s(self.seen.buffer("logits")?)?
        };
        let allowed = Allowed::Same(error + 2.0 * rounding(Storage::F32, largest(&logits)));
        let kind = self.kind("classifier forward", "evaluation: logits");
        self.note(kind, &nodes, "logits", &to_f64(&got), &Want { values: to_f64(&logits), allowed });
        Ok(())
    }

    /// The averages of the weights, rounded to the storage type.
    pub fn averages(&mut self) -> Result<()> {
        if self.seen.averaged() {
            let storage = self.seen.storage();
            let averages = self.seen.before.f32s(self.seen.plan.layout.all_f32(Arena::Ema));
            let got = to_f64(&self.seen.stored(self.seen.buffer("ema.weights")?)?);
            let want = Want::exactly(&from_stored(storage, &to_stored(storage, &averages)));
            self.note("evaluation: averages", &["ema.cast".to_owned()], "ema.weights", &got, &want);
        }
        Ok(())
    }

    /// scale = gamma / sqrt(running variance + eps), of what takes the running statistics.
    pub fn fold(&mut self) -> Result<()> {
        for unit in self.units.clone() {
            let Unit::Conv(unit) = unit else { continue };
            if !self.takes_running(&unit) {
                continue;
            }
            let variance = self.seen.running(&unit, true)?;
            let gamma = self.seen.vector(unit.gamma);
            let scale = |(&gamma, &variance): (&f32, &f32)| {
                f64::from(gamma) / (f64::from(variance) + f64::from(EPS as f32)).sqrt()
            };
            let values: Vec<f64> = gamma.iter().zip(&variance).map(scale).collect();
            let allowed = Allowed::Each(values.iter().map(|value| 4.0 * UNIT * value.abs()).collect());
            let got = to_f64(&self.seen.statistic(&unit, Statistic::Scale)?);
            let what = format!("{} Scale", self.seen.name(unit.raw));
            let node = if self.frozen(&unit) { "bn_fold.frozen" } else { "bn_fold" };
            let kind = self.kind("frozen: fold", "evaluation: fold");
            self.note(kind, &[node.to_owned()], &what, &got, &Want { values, allowed });
        }
        Ok(())
    }
}
