//! How gradients move the weights: one of the rules, with a step's constants.

use super::lamb::Lamb;
use super::lars::Lars;
use super::sgd::Sgd;
use crate::config::RuleKind;

/// A rule's weight decay is for parameters whose role is not exempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    Sgd(Sgd),
    Lamb(Lamb),
    Lars(Lars),
}

impl Rule {
    pub fn kind(&self) -> RuleKind {
        match self {
            Self::Sgd(_) => RuleKind::Sgd,
            Self::Lamb(_) => RuleKind::Lamb,
            Self::Lars(_) => RuleKind::Lars,
        }
    }

    pub fn lr(&self) -> f32 {
        match self {
            Self::Sgd(rule) => rule.lr,
            Self::Lamb(rule) => rule.lr,
            Self::Lars(rule) => rule.lr,
        }
    }

    pub fn weight_decay(&self) -> f32 {
        match self {
            Self::Sgd(rule) => rule.weight_decay,
            Self::Lamb(rule) => rule.weight_decay,
            Self::Lars(rule) => rule.weight_decay,
        }
    }
}
