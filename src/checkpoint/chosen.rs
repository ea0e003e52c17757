//! Plain or averaged: which of its weights a checkpoint stands for.

use super::Checkpoint;
use crate::backend::{EMA_PREFIX, Weights};
use crate::error::{Error, Result};

/// One set of weights under plain names.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Without `ema.*`.
    pub checkpoint: Checkpoint,
    pub weights: Weights,
}

impl Checkpoint {
    /// The weights that are `wanted`; else the moving averages where the checkpoint has them, as in training's validation.
    /// What has no average, such as `num_batches_tracked`, goes with both.
    pub fn choose(mut self, wanted: Option<Weights>) -> Result<Chosen> {
        let averages: Vec<String> =
            self.tensors.keys().filter(|name| name.starts_with(EMA_PREFIX)).cloned().collect();
        let weights = match (wanted, averages.is_empty()) {
            (Some(Weights::Averaged), true) => {
                return Err(Error::usage("--ema: there are no moving averages in it; leave --ema out"));
            }
            (Some(wanted), _) => wanted,
            (None, true) => Weights::Live,
            (None, false) => Weights::Averaged,
        };
        for name in averages {
            let tensor = self.tensors.remove(&name).expect("it is one of the keys");
            if weights == Weights::Averaged {
                self.tensors.insert(name[EMA_PREFIX.len()..].to_owned(), tensor);
            }
        }
        Ok(Chosen { checkpoint: self, weights })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{StateDict, Tensor};

    fn checkpoint(names: &[&str]) -> Checkpoint {
        let tensors: StateDict =
            (0..).zip(names).map(|(i, &name)| (name.into(), Tensor::i64_scalar(i))).collect();
        Checkpoint { tensors, ..Checkpoint::default() }
    }

    #[test]
    fn averages_go_before_weights_and_each_can_be_asked_for() {
        let both = checkpoint(&["a", "b", "ema.a"]);
        for (wanted, weights, a) in [
            (None, Weights::Averaged, 2),
            (Some(Weights::Averaged), Weights::Averaged, 2),
            (Some(Weights::Live), Weights::Live, 0),
        ] {
            let chosen = both.clone().choose(wanted).unwrap();
            assert_eq!(chosen.weights, weights);
            let want = [("a", a), ("b", 1)].map(|(name, i)| (name.to_owned(), Tensor::i64_scalar(i)));
            assert_eq!(chosen.checkpoint.tensors, want.into(), "{wanted:?}");
        }
        let plain = checkpoint(&["a"]);
        assert_eq!(plain.clone().choose(None).unwrap().weights, Weights::Live);
        let error = plain.choose(Some(Weights::Averaged)).unwrap_err();
        assert!(error.message.contains("no moving averages") && error.exit_code() == 2, "{error}");
    }
}
