//! Where a value is not finite.

use super::Walk;
use crate::backend::cpu::params::Params;
use crate::backend::fault::BadOutput;
use crate::model::graph::{ParamId, TensorId, TensorInfo};
use crate::model::units::Unit;
use crate::tensor::{all_finite, first_non_finite};

impl Walk {
    /// Called when the loss is not finite: the first place in forward order where a value is not.
    pub(super) fn first_bad_value(&self, params: &Params) -> String {
        for unit in &self.units {
            let (reads, makes): (Vec<ParamId>, Vec<TensorId>) = match unit {
                Unit::Conv(unit) => (vec![unit.weight, unit.gamma, unit.beta], vec![unit.raw, unit.y]),
                Unit::Linear { y, weight, bias, .. } => (vec![*weight, *bias], vec![*y]),
                Unit::MaxPool { y, .. } | Unit::AvgPool { y, .. } => (vec![], vec![*y]),
            };
            if let Some(&param) = reads.iter().find(|&&param| !all_finite(&params.weight[param])) {
                return format!("the weights {} are not finite", self.graph.params[param].name);
            }
            if let Some(bad) = makes.iter().find_map(|&tensor| self.bad_output(tensor)) {
                return bad.to_string();
            }
        }
        "the loss alone is not finite".to_owned()
    }

    fn bad_output(&self, tensor: TensorId) -> Option<BadOutput> {
        let values = self.memory.activation[tensor].as_deref()?;
        let first = first_non_finite(values)?;
        let count = values.iter().filter(|value| !value.is_finite()).count();
        let TensorInfo { name, h, w, c } = self.graph.tensors[tensor].clone();
        Some(BadOutput { layer: name, count, of: values.len(), first, h, w, c })
    }
}
