//! The search for each convolution's routine: cuDNN's algorithms, and cuBLAS where the convolution is a matrix product.

use super::algorithms::{self, Candidate, Rule, is_product};
use super::card::{Card, Lane};
use super::cublas::Layer;
use super::cudnn::{Convolution as Descriptors, Operands};
use crate::backend::cuda::plan::node::{Convolution, Node};
use crate::config::Routines;
use crate::error::{Error, Result};

/// Samples of a candidate's time, of which the median counts.
const SAMPLES: usize = 9;

impl Card {
    pub(super) fn rule(&self) -> Rule {
        Rule {
            storage: self.options.storage,
            tf32: self.options.tf32,
            has_tf32: self.context.capability >= (8, 0),
            deterministic: self.options.deterministic,
            workspace: self.options.search.workspace_bytes(),
        }
    }

    /// What was chosen before, or the fastest that is found now, timed as the run will call it. Overwrites the
    /// convolution's result, which lives for one pass: no pass may be under way.
    pub(super) fn choose(
        &mut self,
        node: &Node,
        conv: &Convolution,
        descriptors: &Descriptors,
    ) -> Result<Candidate> {
        let rule = self.rule();
        let key = algorithms::key(conv, &rule);
        let earlier = self.choices.get(&key).and_then(|text| text.parse().ok());
        if let Some(candidate) = earlier.filter(|candidate| rule.allows(candidate, conv)) {
            return Ok(candidate);
        }
        let lane = &self.lanes[node.stream];
        let found = descriptors.find(&lane.cudnn, conv.pass, &self.operands(lane, conv))?;
        let mut candidates: Vec<_> = rule.shortlist(&found).into_iter().map(Candidate::Cudnn).collect();
        if is_product(conv) && self.options.search.routines != Routines::Cudnn {
            candidates.push(Candidate::Cublas);
        }
        let (mut timed, mut refused) = (vec![], None);
        for candidate in candidates {
            let run = || self.convolve(lane, conv, descriptors, &candidate);
            match self.time(&lane.stream, SAMPLES, &run) {
                Ok(seconds) => timed.push((candidate, seconds)),
                // A library may refuse what it has offered; where the card is lost, so are all others.
                Err(error) => refused = Some(error),
            }
        }
        let chosen = algorithms::fastest(&timed).ok_or_else(|| {
            refused.unwrap_or_else(|| {
                let kind = if rule.deterministic { "deterministic " } else { "" };
                Error::device(format!(
                    "cuDNN offers no {kind}algorithm for {key} within {} MiB; device.deterministic = false may help",
                    self.options.search.workspace
                ))
            })
        })?;
        self.choices.insert(key, chosen.to_string());
        Ok(chosen)
    }

    fn operands(&self, lane: &Lane, conv: &Convolution) -> Operands {
        let [x, w, y] = [conv.x, conv.w, conv.y].map(|region| self.at(region));
        let bytes = self.options.search.workspace_bytes();
        Operands { x, w, y, workspace: lane.workspace.at(0, bytes), workspace_bytes: bytes as usize }
    }

    /// Sends a convolution to a lane's stream.
    pub(super) fn convolve(
        &self,
        lane: &Lane,
        conv: &Convolution,
        descriptors: &Descriptors,
        by: &Candidate,
    ) -> Result<()> {
        let operands = self.operands(lane, conv);
        match by {
            Candidate::Cudnn(algorithm) => {
                descriptors.run(&lane.cudnn, conv.pass, algorithm, &operands, conv.accumulate)
            }
            Candidate::Cublas => {
                let Operands { x, w, y, .. } = operands;
                let (rows, inputs, outputs) =
                    (conv.n * conv.shape.h * conv.shape.w, conv.shape.c, conv.shape.k);
                let layer = Layer { pass: conv.pass, rows, inputs, outputs, x, w, y };
                lane.cublas.run(&layer.product(self.options.storage, conv.accumulate))
            }
        }
    }
}
