//! The backward pass, unit by unit, from the loss to the image.

use super::compare::{
    Allowed, UNIT, Want, dot_error, largest, longest_column, longest_row, rounding, to_f64,
};
use super::forward::chain;
use super::fused::Operand;
use super::layers::Layers;
use super::oracle::{Gated, classifier};
use crate::backend::cpu::pooling;
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::plan::params::Statistic;
use crate::error::Result;
use crate::model::graph::{ConvShape, ParamId, TensorId};
use crate::model::units::{ConvUnit, Unit};
use std::collections::BTreeMap;

/// What has come to an activation's gradient so far; the card adds the parts up in place, so the sum alone can be seen.
struct Part {
    values: Vec<f64>,
    allowed: f64,
    nodes: Vec<String>,
}

/// A part that has just been made.
struct Made {
    kind: &'static str,
    nodes: Vec<String>,
    values: Vec<f64>,
    /// How far each element may be, its rounding to the storage type not counted.
    allowed: Vec<f64>,
}

/// Gradients of activations that more parts will come to.
struct Joins {
    /// Parts to come.
    left: BTreeMap<TensorId, usize>,
    parts: BTreeMap<TensorId, Part>,
}

impl<M: Machine> Layers<'_, M> {
    pub fn backward(&mut self) -> Result<()> {
        let units = self.units.clone();
        let mut joins = Joins { left: BTreeMap::new(), parts: BTreeMap::new() };
        let walked: Vec<&Unit> = units.iter().filter(|unit| self.demand.wants(unit.output())).collect();
        for tensor in walked.iter().flat_map(|unit| unit.inputs()) {
            *joins.left.entry(tensor).or_default() += 1;
        }
        for unit in walked.into_iter().rev() {
            match unit {
                Unit::Conv(unit) => self.backward_conv(unit, &mut joins)?,
                Unit::MaxPool { x, y } => self.max_pool_backward(*x, *y, &mut joins)?,
                Unit::AvgPool { x, y } => self.average_pool_backward(*x, *y, &mut joins)?,
                Unit::Linear { x, y, weight, bias } => {
                    self.classifier_backward([*x, *y], *weight, *bias, &mut joins)?;
                }
            }
        }
        Ok(())
    }

    /// Takes a part of `tensor`'s gradient; compares the sum once it is whole.
    fn join(&mut self, joins: &mut Joins, tensor: TensorId, made: Made) -> Result<()> {
        let Made { kind, mut nodes, mut values, mut allowed } = made;
        let storage = self.seen.storage();
        let left = joins.left.get_mut(&tensor).expect("every reader of an activation gives it a gradient");
        *left -= 1;
        if let Some(earlier) = joins.parts.remove(&tensor) {
            nodes.splice(0..0, earlier.nodes);
            values.iter_mut().zip(&earlier.values).for_each(|(sum, part)| *sum += part);
            allowed.iter_mut().for_each(|allowed| *allowed += earlier.allowed);
        }
        let most = values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let rounded = rounding(storage, most);
        if *left > 0 {
            let allowed = allowed.iter().fold(0.0f64, |most, &one| most.max(one)) + rounded;
            joins.parts.insert(tensor, Part { values, allowed, nodes });
            return Ok(());
        }
        allowed.iter_mut().for_each(|allowed| *allowed += rounded);
        let got = to_f64(&self.seen.gradient(tensor)?);
        let what = format!("grad.{}", self.seen.name(tensor));
        self.note(kind, &nodes, &what, &got, &Want { values, allowed: Allowed::Each(allowed) });
        Ok(())
    }

    /// The gradient of one parameter matrix, which is of the storage type.
    fn matrix(
        &mut self,
        kind: &'static str,
        node: String,
        param: ParamId,
        got: &[f32],
        dw: &[f32],
        error: f64,
    ) {
        let allowed = Allowed::Same(rounding(self.seen.storage(), largest(dw)) + error);
        let what = format!("grad.{}", self.seen.plan.graph.params[param].name);
        self.note(kind, &[node], &what, &to_f64(got), &Want { values: to_f64(dw), allowed });
    }

    fn backward_conv(&mut self, unit: &ConvUnit, joins: &mut Joins) -> Result<()> {
        self.norm_backward(unit, joins)?;
        let (shape, n) = (self.shape(unit), self.seen.n());
        let dy = self.seen.gradient(unit.raw)?;
        if !self.frozen(unit) {
            let Operand { x, doubt } = self.operand(unit, "wgrad")?;
            let dw = self.oracle.wgrad(&shape, n, &x, &dy);
            // With a stride a tap sees one in stride^2 pixels, which may be the larger ones.
            let seen = longest_column(&x, shape.c) * shape.stride as f64;
            let moved = 4.0 * doubt * largest(&dy);
            let error = moved + dot_error(n * shape.p() * shape.q(), seen, longest_column(&dy, shape.k));
            let node = self.seen.node(unit.raw, "wgrad");
            let got = self.filter_gradient(unit, unit.weight)?;
            self.matrix("convolution wgrad", node, unit.weight, &got, &dw, error);
        }
        if !self.demand.wants(unit.x) {
            return Ok(());
        }
        let w = self.seen.weight(unit.weight)?;
        let dx = self.oracle.dgrad(&shape, n, &dy, &w);
        let terms = shape.r * shape.s * shape.k;
        let error = dot_error(terms, longest_row(&dy, shape.k), longest_column(&w, shape.c));
        let mut made = Made {
            kind: "convolution dgrad",
            nodes: vec![self.seen.node(unit.raw, "dgrad")],
            allowed: vec![error; dx.len()],
            values: to_f64(&dx),
        };
        // Where another kernel adds it, the part itself is rounded as well.
        let add = self.seen.node(unit.raw, "gradient_add");
        if self.seen.plan.nodes.iter().any(|node| node.name == add) {
            let rounded = rounding(self.seen.storage(), largest(&dx));
            made.allowed.iter_mut().for_each(|allowed| *allowed += rounded);
            made.nodes.push(add);
        }
        self.join(joins, unit.x, made)
    }

    /// The gradient that comes to a unit, behind its ReLU. A shortcut's unit shares both with the block's sum.
    fn gated(&self, unit: &ConvUnit, raw: &[f32]) -> Result<Gated> {
        let sum = self.units.iter().find_map(|other| match other {
            Unit::Conv(other) if other.residual == Some(unit.y) && !unit.relu => Some(other.y),
            _ => None,
        });
        let from = sum.unwrap_or(unit.y);
        let dy = self.seen.gradient(from)?;
        Ok(if sum.is_some() || unit.residual.is_some() {
            Gated::masked(&dy, &self.seen.mask(from)?)
        } else if unit.relu {
            Gated::recomputed(&dy, raw, &self.affine(unit)?)
        } else {
            Gated::open(&dy)
        })
    }

    fn norm_backward(&mut self, unit: &ConvUnit, joins: &mut Joins) -> Result<()> {
        let raw = self.seen.activation(unit.raw)?;
        let gated = self.gated(unit, &raw)?;
        // What goes into the branch; the sum's other term gets the gradient as it is.
        let factors = self.factors(unit)?;
        let branch = factors.map_or_else(|| gated.clone(), |factors| gated.scaled(&factors));
        if !self.frozen(unit) {
            self.reduce(unit, &raw, &branch)?;
        }
        let nodes = self.seen.norm_nodes(unit.raw, &["bn_backward_apply"], "bn_backward_slab");
        let affine = self.affine(unit)?;
        let (b, c) = (self.seen.statistic(unit, Statistic::B)?, self.seen.statistic(unit, Statistic::C)?);
        let (mut values, mut allowed) = (vec![], vec![]);
        for (index, (&x, (&d, &doubt))) in raw.iter().zip(branch.d.iter().zip(&branch.doubt)).enumerate() {
            let channel = index % unit.shape.k;
            let scale = f64::from(affine.scale[channel]);
            let slope = f64::from(b[channel]) * (f64::from(x) - f64::from(affine.mean[channel]));
            let terms = [scale * d, slope, f64::from(c[channel])];
            let value: f64 = terms.iter().sum();
            let size: f64 = terms.iter().map(|term| term.abs()).sum();
            values.push(value);
            allowed.push(rounding(self.seen.storage(), value) + 5.0 * UNIT * size + scale.abs() * doubt);
        }
        let got = to_f64(&self.seen.gradient(unit.raw)?);
        let what = format!("grad.{}", self.seen.name(unit.raw));
        let want = Want { values, allowed: Allowed::Each(allowed) };
        self.note("batch norm backward apply", &nodes, &what, &got, &want);
        // The sum hands the same gradient to its other term; a shortcut's batch norm reads it where it is.
        let joins_sum =
            |&residual: &TensorId| self.demand.wants(residual) && self.shortcut(residual).is_none();
        match unit.residual.filter(joins_sum) {
            Some(residual) => {
                let allowed = gated.doubt;
                let made = Made { kind: "batch norm backward apply", nodes, values: gated.d, allowed };
                self.join(joins, residual, made)
            }
            None => Ok(()),
        }
    }

    /// dgamma and dbeta, and the constants of the large kernel.
    fn reduce(&mut self, unit: &ConvUnit, raw: &[f32], gated: &Gated) -> Result<()> {
        let channels = unit.shape.k;
        let rows = raw.len() / channels;
        let mean = self.seen.statistic(unit, Statistic::Mean)?;
        let rstd = self.seen.statistic(unit, Statistic::Rstd)?;
        let scale = self.seen.statistic(unit, Statistic::Scale)?;
        let error = (chain(rows, channels) + 5.0) * UNIT;
        let (mut gamma, mut beta) = (vec![(0.0, 0.0); channels], vec![(0.0, 0.0); channels]);
        for (index, (&x, (&d, &doubt))) in raw.iter().zip(gated.d.iter().zip(&gated.doubt)).enumerate() {
            let channel = index % channels;
            let centred = (f64::from(x) - f64::from(mean[channel])) * f64::from(rstd[channel]);
            gamma[channel].0 += d * centred;
            gamma[channel].1 += (d.abs() * error + doubt) * centred.abs();
            beta[channel].0 += d;
            beta[channel].1 += d.abs() * error + doubt;
        }
        let of = |plain: &[&str]| self.seen.norm_nodes(unit.raw, plain, "bn_backward_slab");
        let nodes = of(&["bn_backward_reduce", "bn_backward_finalize"]);
        let last = of(&["bn_backward_finalize"]);
        let kind = "batch norm backward reduce";
        for (param, sums) in [(unit.gamma, gamma), (unit.beta, beta)] {
            let got = to_f64(&self.seen.param_gradient(param)?);
            let what = format!("grad.{}", self.seen.plan.graph.params[param].name);
            let least = f64::from(f32::MIN_POSITIVE);
            let (values, allowed) = sums.into_iter().map(|(value, allowed)| (value, allowed + least)).unzip();
            self.note(kind, &nodes, &what, &got, &Want { values, allowed: Allowed::Each(allowed) });
        }
        let (dgamma, dbeta) = (self.seen.param_gradient(unit.gamma)?, self.seen.param_gradient(unit.beta)?);
        let by_channel = |value: &dyn Fn(usize) -> f64| (0..channels).map(value).collect::<Vec<f64>>();
        let share = |sum: f32, c: usize| -f64::from(scale[c]) * f64::from(sum) / rows as f64;
        let b = by_channel(&|c| share(dgamma[c], c) * f64::from(rstd[c]));
        let c = by_channel(&|c| share(dbeta[c], c));
        for (statistic, values) in [(Statistic::B, b), (Statistic::C, c)] {
            let got = to_f64(&self.seen.statistic(unit, statistic)?);
            let bound = |value: &f64| 8.0 * UNIT * value.abs() + f64::from(f32::MIN_POSITIVE);
            let allowed = Allowed::Each(values.iter().map(bound).collect());
            let what = format!("{} {statistic:?}", self.seen.name(unit.raw));
            self.note(kind, &last, &what, &got, &Want { values, allowed });
        }
        Ok(())
    }

    fn max_pool_backward(&mut self, x: TensorId, y: TensorId, joins: &mut Joins) -> Result<()> {
        let (dy, shape) = (self.seen.gradient(y)?, self.pool_shape(x));
        let index = self.seen.bytes(self.seen.buffer(&format!("{}.index", self.seen.name(y)))?)?;
        let pixels = self.seen.n() * shape.h * shape.w * shape.c;
        let (mut dx, mut size) = (vec![0.0; pixels], vec![0.0; pixels]);
        pooling::max_backward(self.oracle.cpu(), shape, &dy, &index, &mut dx);
        let absolute: Vec<f32> = dy.iter().map(|dy| dy.abs()).collect();
        pooling::max_backward(self.oracle.cpu(), shape, &absolute, &index, &mut size);
        // At most four windows hold a pixel.
        let allowed = size.iter().map(|&size| 8.0 * UNIT * f64::from(size)).collect();
        let nodes = vec![self.seen.node(y, "backward")];
        self.join(joins, x, Made { kind: "max pool backward", nodes, values: to_f64(&dx), allowed })
    }

    fn average_pool_backward(&mut self, x: TensorId, y: TensorId, joins: &mut Joins) -> Result<()> {
        let (dy, shape) = (self.seen.gradient(y)?, self.pool_shape(x));
        let pixels = shape.h * shape.w;
        let values: Vec<f64> = dy
            .chunks_exact(shape.c)
            .flat_map(|image| {
                (0..pixels).flat_map(move |_| image.iter().map(move |&dy| f64::from(dy) / pixels as f64))
            })
            .collect();
        let allowed = values.iter().map(|value| 4.0 * UNIT * value.abs()).collect();
        let nodes = vec![self.seen.node(y, "backward")];
        self.join(joins, x, Made { kind: "average pool backward", nodes, values, allowed })
    }

    fn classifier_backward(
        &mut self,
        [x, y]: [TensorId; 2],
        weight: ParamId,
        bias: ParamId,
        joins: &mut Joins,
    ) -> Result<()> {
        let graph = &self.seen.plan.graph;
        let (n, features, classes) = (self.seen.n(), graph.tensors[x].c, graph.tensors[y].c);
        let shape = classifier(n, features, classes);
        let (from, dy, w) = (self.seen.activation(x)?, self.seen.gradient(y)?, self.seen.weight(weight)?);
        if !self.demand.trains[self.units.len() - 1] {
            return self.classifier_dgrad([x, y], &shape, &dy, &w, joins);
        }
        let dw = self.oracle.wgrad(&shape, 1, &from, &dy);
        let error = dot_error(n, longest_column(&from, features), longest_column(&dy, classes));
        let got = self.seen.param_gradient(weight)?;
        self.matrix("classifier wgrad", "fc.wgrad".to_owned(), weight, &got, &dw, error);
        let sums = |class: usize| dy[class..].iter().step_by(classes).map(|&dy| f64::from(dy));
        let values = (0..classes).map(|class| sums(class).sum()).collect();
        let size = |class: usize| sums(class).map(f64::abs).sum::<f64>();
        let allowed = Allowed::Each(
            (0..classes).map(|class| n as f64 * UNIT * size(class) + f64::from(f32::MIN_POSITIVE)).collect(),
        );
        let got = to_f64(&self.seen.param_gradient(bias)?);
        let nodes = ["fc.bias_gradient".to_owned()];
        self.note("classifier bias gradient", &nodes, "grad.fc.bias", &got, &Want { values, allowed });
        if !self.demand.wants(x) {
            return Ok(());
        }
        self.classifier_dgrad([x, y], &shape, &dy, &w, joins)
    }

    fn classifier_dgrad(
        &mut self,
        [x, y]: [TensorId; 2],
        shape: &ConvShape,
        dy: &[f32],
        w: &[f32],
        joins: &mut Joins,
    ) -> Result<()> {
        let graph = &self.seen.plan.graph;
        let (features, classes) = (graph.tensors[x].c, graph.tensors[y].c);
        let dx = self.oracle.dgrad(shape, 1, dy, w);
        let error = dot_error(classes, longest_row(dy, classes), longest_column(w, features));
        let allowed = vec![error; dx.len()];
        let made = Made {
            kind: "classifier dgrad",
            nodes: vec!["fc.dgrad".to_owned()],
            values: to_f64(&dx),
            allowed,
        };
        self.join(joins, x, made)
    }
}
