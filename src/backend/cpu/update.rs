//! The end of an optimiser step: gradients move the weights, by the step's rule, and averages follow.
//!
//! Elementwise work is cut into pieces; norms are added up parameter by parameter, in order.

use super::Cpu;
use super::params::Params;
use crate::backend::Step;
use crate::model::graph::Graph;
use crate::optim::Rule;
use crate::optim::clip::divisor;
use crate::optim::lamb::{Corrections, Lamb, Moments};
use crate::optim::lars::Lars;
use crate::optim::sgd::Sgd;
use crate::simd::dispatch::multiversion;

/// Elements of one task.
const CHUNK: usize = 64 * 1024;

/// Everything that a rule has of one parameter, or of a piece of it.
struct Piece<'a> {
    weight: &'a mut [f32],
    /// The velocity, or LAMB's first moment.
    first: &'a mut [f32],
    /// LAMB's second moment; empty for other rules.
    second: &'a mut [f32],
    gradient: &'a [f32],
}

impl Params {
    /// One optimiser step over all parameters.
    pub fn update(&mut self, cpu: Cpu, graph: &Graph, step: &Step) {
        let clip = divisor(self.gradient.iter().map(Vec::as_slice), step.clip_norm);
        self.updates += 1;
        match &step.rule {
            Rule::Sgd(rule) => self.sgd(cpu, graph, clip, rule),
            Rule::Lamb(rule) => self.lamb(cpu, graph, clip, rule),
            Rule::Lars(rule) => self.lars(cpu, graph, clip, rule),
        }
        if let Some(decay) = step.ema_decay {
            self.follow(cpu, graph, decay);
        }
    }

    /// Weight decay of each parameter that is trained.
    fn decays(&self, graph: &Graph, weight_decay: f32) -> Vec<f32> {
        let of = |applies: bool| if applies { weight_decay } else { 0.0 };
        let trained = graph.params.iter().filter(|param| !self.freeze.has(param.part));
        trained.map(|param| of(self.decay.applies_to(param.role))).collect()
    }

    /// Each parameter that is trained, whole: others have no gradient.
    fn wholes(&mut self) -> impl Iterator<Item = Piece<'_>> {
        let second = self.second.iter_mut().map(Vec::as_mut_slice);
        let seconds = second.chain(std::iter::repeat_with(|| [].as_mut_slice()));
        let vectors = self.weight.iter_mut().zip(&mut self.velocity).zip(&self.gradient).zip(seconds);
        let wholes =
            vectors.map(|(((weight, first), gradient), second)| Piece { weight, first, second, gradient });
        wholes.filter(|whole| !whole.gradient.is_empty())
    }

    fn sgd(&mut self, cpu: Cpu, graph: &Graph, clip: f32, rule: &Sgd) {
        let decays = self.decays(graph, rule.weight_decay);
        let mut items = vec![];
        for (weight_decay, whole) in decays.into_iter().zip(self.wholes()) {
            let rule = Sgd { weight_decay, ..*rule };
            items.extend(pieces(whole).map(|piece| (rule, piece)));
        }
        cpu.pool.for_each(items, |(rule, Piece { weight, first, gradient, .. })| {
            sgd(cpu.isa, &rule, clip, weight, first, gradient);
        });
    }

    fn lamb(&mut self, cpu: Cpu, graph: &Graph, clip: f32, rule: &Lamb) {
        let by = rule.corrections(clip, self.updates);
        let decays = self.decays(graph, rule.weight_decay);
        let rules: Vec<Lamb> =
            decays.into_iter().map(|weight_decay| Lamb { weight_decay, ..*rule }).collect();
        let mut items = vec![];
        self.wholes().for_each(|whole| items.extend(pieces(whole)));
        cpu.pool.for_each(items, |Piece { first, second, gradient, .. }| {
            moments(cpu.isa, rule, &by, first, second, gradient);
        });
        let wholes = rules.iter().zip(self.wholes()).collect();
        let ratios = cpu.pool.map(wholes, |(rule, Piece { weight, first, second, .. })| {
            rule.trust_ratio(&by, weight, &Moments { first, second })
        });
        let mut items = vec![];
        for ((rule, ratio), whole) in rules.iter().zip(ratios).zip(self.wholes()) {
            items.extend(pieces(whole).map(|piece| (rule, ratio, piece)));
        }
        cpu.pool.for_each(items, |(rule, ratio, Piece { weight, first, second, .. })| {
            lamb(cpu.isa, rule, &by, ratio, weight, first, second);
        });
    }

    fn lars(&mut self, cpu: Cpu, graph: &Graph, clip: f32, rule: &Lars) {
        let decays = self.decays(graph, rule.weight_decay);
        let rules: Vec<Lars> =
            decays.into_iter().map(|weight_decay| Lars { weight_decay, ..*rule }).collect();
        let wholes = rules.iter().zip(self.wholes()).collect();
        let ratios = cpu
            .pool
            .map(wholes, |(rule, Piece { weight, gradient, .. })| rule.trust_ratio(clip, weight, gradient));
        let mut items = vec![];
        for ((rule, ratio), whole) in rules.iter().zip(ratios).zip(self.wholes()) {
            items.extend(pieces(whole).map(|piece| (rule, ratio, piece)));
        }
        cpu.pool.for_each(items, |(rule, ratio, Piece { weight, first, gradient, .. })| {
            lars(cpu.isa, rule, clip, ratio, weight, first, gradient);
        });
    }

    /// Averages of what is frozen are copies, to the bit.
    fn follow(&mut self, cpu: Cpu, graph: &Graph, decay: f32) {
        let Some(averages) = &mut self.averages else { return };
        let parts = graph.params.iter().map(|param| param.part);
        let parts = parts.chain(graph.buffers.iter().map(|buffer| buffer.part));
        let live = self.weight.iter().chain(&self.running);
        let vectors = averages.weight.iter_mut().chain(&mut averages.running).zip(live);
        let mut items = vec![];
        for (_, (average, live)) in parts.zip(vectors).filter(|(part, _)| !self.freeze.has(*part)) {
            items.extend(average.chunks_mut(CHUNK).zip(live.chunks(CHUNK)));
        }
        cpu.pool.for_each(items, |(average, live)| follow(cpu.isa, decay, average, live));
    }
}

fn pieces(whole: Piece<'_>) -> impl Iterator<Item = Piece<'_>> {
    let Piece { weight, first, second, gradient } = whole;
    let seconds = second.chunks_mut(CHUNK).chain(std::iter::repeat_with(|| [].as_mut_slice()));
    let vectors =
        weight.chunks_mut(CHUNK).zip(first.chunks_mut(CHUNK)).zip(gradient.chunks(CHUNK)).zip(seconds);
    vectors.map(|(((weight, first), gradient), second)| Piece { weight, first, second, gradient })
}

multiversion! {
    fn sgd(rule: &Sgd, clip: f32, weight: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        if clip == 1.0 {
            rule.step(weight, velocity, gradient);
            return;
        }
        let mut shorter = [0.0; 256];
        let blocks = weight.chunks_mut(256).zip(velocity.chunks_mut(256)).zip(gradient.chunks(256));
        for ((weight, velocity), gradient) in blocks {
            let shorter = &mut shorter[..gradient.len()];
            shorter.iter_mut().zip(gradient).for_each(|(to, &g)| *to = g / clip);
            rule.step(weight, velocity, shorter);
        }
    }
}

multiversion! {
    fn moments(rule: &Lamb, by: &Corrections, first: &mut [f32], second: &mut [f32], gradient: &[f32]) {
        rule.moments(by, &mut Moments { first, second }, gradient);
    }
}

multiversion! {
    fn lamb(rule: &Lamb, by: &Corrections, ratio: f32, weight: &mut [f32], first: &mut [f32], second: &mut [f32]) {
        rule.apply(by, ratio, weight, &Moments { first, second });
    }
}

multiversion! {
    fn lars(rule: &Lars, clip: f32, ratio: f32, weight: &mut [f32], velocity: &mut [f32], gradient: &[f32]) {
        rule.apply(clip, ratio, weight, velocity, gradient);
    }
}

multiversion! {
    fn follow(decay: f32, average: &mut [f32], live: &[f32]) {
        let share = 1.0 - decay;
        for (average, &live) in average.iter_mut().zip(live) {
            *average = decay * *average + share * live;
        }
    }
}
