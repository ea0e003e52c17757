//! The stem where 2x2 pixels lie as one (`plan/stem.rs`): filters and their gradient are moved and nothing else.

use super::compare::{Want, to_f64};
use super::layers::Layers;
use crate::backend::cuda::machine::Machine;
use crate::backend::cuda::plan::stem::{Blocking, stem_shape};
use crate::error::Result;
use crate::model::graph::ParamId;
use crate::model::units::ConvUnit;

impl<M: Machine> Layers<'_, M> {
    /// Of the network's first convolution, where the plan's form has it so.
    pub fn blocking(&self, unit: &ConvUnit) -> Option<Blocking> {
        let options = &self.seen.plan.options;
        let first = unit.x == self.seen.plan.graph.input;
        if first { Blocking::of(options.form.stem, &unit.shape) } else { None }
    }

    /// The filters as the convolution reads them.
    pub fn filters(&mut self, unit: &ConvUnit) -> Result<Vec<f32>> {
        let w = self.seen.weight(unit.weight)?;
        let Some(by) = self.blocking(unit) else { return Ok(w) };
        let shape = stem_shape(self.seen.plan.options.form.stem, &unit.shape);
        let mut blocked = vec![0.0; shape.weights()];
        each_tap(&by, shape.k, |outside, place| blocked[place] = w[outside]);
        let got = self.seen.stored(self.seen.buffer("stem.filters")?)?;
        let node = ["stem.filters".to_owned()];
        self.note("stem filters", &node, "stem.filters", &to_f64(&got), &Want::exactly(&blocked));
        Ok(blocked)
    }

    /// What the convolution has left of its filters' gradient; and that the optimiser's copy is the same.
    pub fn filter_gradient(&mut self, unit: &ConvUnit, param: ParamId) -> Result<Vec<f32>> {
        let Some(by) = self.blocking(unit) else { return self.seen.param_gradient(param) };
        let blocked = self.seen.stored(self.seen.buffer("stem.gradient")?)?;
        let got = self.seen.param_gradient(param)?;
        let mut want = vec![0.0; got.len()];
        each_tap(&by, unit.shape.k, |outside, place| want[outside] = blocked[place]);
        let node = ["stem.gradient".to_owned()];
        self.note("stem gradient", &node, "stem.gradient", &to_f64(&got), &Want::exactly(&want));
        Ok(blocked)
    }
}

/// Calls `visit(element of [k][r][s][4], element of the blocked filter)` for every tap's channel.
fn each_tap(by: &Blocking, filters: usize, mut visit: impl FnMut(usize, usize)) {
    for (k, row) in (0..filters).flat_map(|k| (0..by.r).map(move |row| (k, row))) {
        for (column, c) in (0..by.s).flat_map(|column| (0..4).map(move |c| (column, c))) {
            visit(((k * by.r + row) * by.s + column) * 4 + c, by.place(k, row, column, c));
        }
    }
}
