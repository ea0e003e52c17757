//! The flat parameter space: one order of elements for weights, velocities, moving averages and gradients, so that the
//! whole optimiser is one launch.
//!
//! Matrices first (convolution weights KRSC in the order of the graph, then `fc.weight`), then `fc.bias`, then all
//! gammas, then all betas. Matrices begin at multiples of [`ALIGN`] elements; what lies between is zero and stays zero.
//! Which elements decay is then a prefix, whatever the policy.

use super::region::{Arena, Region};
use crate::backend::cuda::storage::Storage;
use crate::config::Decay;
use crate::model::graph::{BufferId, Graph, Op, ParamId};
use crate::model::params::Role;
use std::ops::Range;

/// Elements at whose multiples a matrix begins: 128 bytes of the smallest storage type.
pub const ALIGN: usize = 64;

/// Where one parameter lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// First element.
    pub offset: usize,
    /// KCRS, [classes, features] or [channels], as outside.
    pub shape: Vec<usize>,
    /// Input channels on the card: the stem's are padded with zeros.
    pub padded_c: usize,
}

impl Slot {
    /// Elements on the card.
    pub fn elements(&self) -> usize {
        match self.shape[..] {
            [k, _, r, s] => k * self.padded_c * r * s,
            _ => self.shape.iter().product(),
        }
    }

    /// From the outside's KCRS to the card's KRSC with padded channels; vectors and [classes, features] as they are.
    pub fn pack(&self, values: &[f32]) -> Vec<f32> {
        let mut packed = vec![0.0; self.elements()];
        self.each(|outside, card| packed[card] = values[outside]);
        packed
    }

    /// The inverse of `pack`.
    pub fn unpack(&self, packed: &[f32]) -> Vec<f32> {
        let mut values = vec![0.0; self.shape.iter().product()];
        self.each(|outside, card| values[outside] = packed[card]);
        values
    }

    /// Calls `visit(index outside, index on the card)` for every element.
    fn each(&self, mut visit: impl FnMut(usize, usize)) {
        let &[k, c, r, s] = &self.shape[..] else {
            return (0..self.elements()).for_each(|index| visit(index, index));
        };
        for (filter, channel) in (0..k).flat_map(|filter| (0..c).map(move |channel| (filter, channel))) {
            for pixel in 0..r * s {
                let outside = (filter * c + channel) * r * s + pixel;
                visit(outside, (filter * r * s + pixel) * self.padded_c + channel);
            }
        }
    }
}

/// Where everything that outlives a pass lies.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamLayout {
    /// By [`ParamId`].
    pub slots: Vec<Slot>,
    /// Elements before the first one that is not a matrix's.
    pub matrix_end: usize,
    /// Elements before the first gamma.
    pub bias_end: usize,
    pub gammas: Range<usize>,
    pub betas: Range<usize>,
    /// Elements in all.
    pub total: usize,
    /// First channel of each running statistic in the flat space of all batch norms, by [`BufferId`].
    pub channel: Vec<usize>,
    pub channels: usize,
}

impl ParamLayout {
    /// `input_channels`: what the image's three are padded to.
    pub fn new(graph: &Graph, input_channels: usize) -> Self {
        let mut slots: Vec<Slot> =
            graph.params.iter().map(|param| slot(&param.shape, input_channels)).collect();
        let mut next = 0;
        let mut assign = |wanted: fn(Role) -> bool, align: usize| {
            let begin = next;
            for (param, slot) in graph.params.iter().zip(&mut slots).filter(|(param, _)| wanted(param.role)) {
                debug_assert!(wanted(param.role));
                slot.offset = next;
                next = (next + slot.elements()).next_multiple_of(align);
            }
            let end = next;
            next = next.next_multiple_of(ALIGN);
            begin..end
        };
        assign(|role| matches!(role, Role::ConvWeight | Role::LinearWeight), ALIGN);
        let bias = assign(|role| role == Role::LinearBias, 1);
        let gammas = assign(|role| role == Role::Gamma, 1);
        let betas = assign(|role| role == Role::Beta, 1);
        let mut channel = vec![0; graph.buffers.len()];
        for op in &graph.ops {
            if let Op::BatchNorm { gamma, mean, var, .. } = *op {
                channel[mean] = slots[gamma].offset - gammas.start;
                channel[var] = channel[mean];
            }
        }
        Self {
            matrix_end: bias.start,
            bias_end: gammas.start,
            channels: gammas.len(),
            total: betas.end.next_multiple_of(ALIGN),
            slots,
            gammas,
            betas,
            channel,
        }
    }

    /// Elements before the first one that weight decay leaves alone.
    pub fn decay_end(&self, decay: Decay) -> usize {
        match decay {
            Decay::Weights => self.matrix_end,
            Decay::Unnormalised => self.bias_end,
            Decay::All => self.total,
        }
    }

    /// The parameter that has the element `index` of the flat space.
    pub fn param_at(&self, index: usize) -> Option<ParamId> {
        let holds = |slot: &Slot| (slot.offset..slot.offset + slot.elements()).contains(&index);
        self.slots.iter().position(holds)
    }

    /// An f32 parameter, velocity or average.
    pub fn in_f32(&self, arena: Arena, param: ParamId) -> Region {
        let slot = &self.slots[param];
        Region::new(arena, 4 * slot.offset as u64, 4 * slot.elements() as u64)
    }

    /// The copy of a matrix that convolutions read.
    pub fn weights(&self, storage: Storage, param: ParamId) -> Region {
        let slot = &self.slots[param];
        let bytes = storage.bytes();
        Region::new(Arena::Weights, bytes * slot.offset as u64, bytes * slot.elements() as u64)
    }

    /// One pass's gradient: of the storage type for a matrix, f32 for a vector.
    pub fn gradient(&self, storage: Storage, param: ParamId) -> Region {
        let slot = &self.slots[param];
        let elements = slot.elements() as u64;
        match slot.offset.checked_sub(self.matrix_end) {
            Some(offset) => Region::new(Arena::GradientVectors, 4 * offset as u64, 4 * elements),
            None => {
                let bytes = storage.bytes();
                Region::new(Arena::GradientMatrices, bytes * slot.offset as u64, bytes * elements)
            }
        }
    }

    /// All of an f32 arena of the parameter space.
    pub fn all_f32(&self, arena: Arena) -> Region {
        Region::new(arena, 0, 4 * self.total as u64)
    }

    /// All of [`Arena::Weights`].
    pub fn all_weights(&self, storage: Storage) -> Region {
        Region::new(Arena::Weights, 0, storage.bytes() * self.total as u64)
    }

    /// All gradients of one pass: matrices, vectors.
    pub fn all_gradients(&self, storage: Storage) -> (Region, Region) {
        let vectors = (self.total - self.matrix_end) as u64;
        (
            Region::new(Arena::GradientMatrices, 0, storage.bytes() * self.matrix_end as u64),
            Region::new(Arena::GradientVectors, 0, 4 * vectors),
        )
    }

    /// A batch's statistic by its kind, for the batch norm whose running mean is `mean`.
    pub fn statistic(&self, kind: Statistic, mean: BufferId, channels: usize) -> Region {
        let first = kind as usize * self.channels + self.channel[mean];
        Region::new(Arena::Channels, 4 * first as u64, 4 * channels as u64)
    }

    /// A statistic of all batch norms.
    pub fn all_statistics(&self, kind: Statistic) -> Region {
        let bytes = 4 * self.channels as u64;
        Region::new(Arena::Channels, kind as u64 * bytes, bytes)
    }

    /// A batch norm's running mean (`of_variance` false) or variance.
    pub fn running(&self, buffer: BufferId, channels: usize, of_variance: bool) -> Region {
        let first = usize::from(of_variance) * self.channels + self.channel[buffer];
        Region::new(Arena::Running, 4 * first as u64, 4 * channels as u64)
    }

    /// All running means or variances.
    pub fn all_running(&self, of_variance: bool) -> Region {
        let bytes = 4 * self.channels as u64;
        Region::new(Arena::Running, u64::from(of_variance) * bytes, bytes)
    }
}

fn slot(shape: &[usize], input_channels: usize) -> Slot {
    // The stem's is the only convolution whose input is not a batch norm's output.
    let padded_c = match *shape {
        [_, 3, _, _] => input_channels,
        [_, c, ..] => c,
        _ => 0,
    };
    Slot { offset: 0, shape: shape.to_vec(), padded_c }
}

/// What is kept by channel in [`Arena::Channels`], each for all batch norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistic {
    Mean,
    /// 1 / sqrt(biased variance + eps).
    Rstd,
    /// gamma rstd; in an evaluation, of the running variance.
    Scale,
    /// Unbiased.
    Variance,
    /// The backward pass's factor of x - mean.
    B,
    /// The backward pass's constant.
    C,
}

/// Kinds of [`Statistic`].
pub const STATISTICS: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::graph::lower;
    use crate::model::spec::{RESNET_TINY, RESNET50};

    #[test]
    fn every_element_has_one_place() {
        for spec in [RESNET_TINY, RESNET50] {
            let graph = lower(&spec, 64).unwrap();
            let layout = ParamLayout::new(&graph, 4);
            let mut taken = vec![false; layout.total];
            for slot in &layout.slots {
                for taken in &mut taken[slot.offset..slot.offset + slot.elements()] {
                    assert!(!std::mem::replace(taken, true), "{slot:?}");
                }
            }
            let padding = graph.params[0].shape[0] * 49;
            let elements: usize = graph.params.iter().map(|param| param.elements()).sum();
            assert_eq!(taken.iter().filter(|&&taken| taken).count(), elements + padding);
            assert!(layout.total < elements + padding + ALIGN * graph.params.len());
        }
    }

    #[test]
    fn decay_is_a_prefix() {
        let graph = lower(&RESNET_TINY, 32).unwrap();
        let layout = ParamLayout::new(&graph, 4);
        for decay in [Decay::Weights, Decay::Unnormalised, Decay::All] {
            for (param, slot) in graph.params.iter().zip(&layout.slots) {
                let decays = slot.offset < layout.decay_end(decay);
                assert_eq!(decays, decay.applies_to(param.role), "{decay:?} {}", param.name);
            }
        }
    }

    #[test]
    fn packing_is_undone() {
        let graph = lower(&RESNET_TINY, 32).unwrap();
        let layout = ParamLayout::new(&graph, 4);
        for (index, (param, slot)) in graph.params.iter().zip(&layout.slots).enumerate() {
            let values = param.initial_values(1, index, false);
            assert_eq!(slot.unpack(&slot.pack(&values)), values, "{}", param.name);
        }
        let stem = layout.slots[0].pack(&vec![1.0; graph.params[0].elements()]);
        assert_eq!(stem[..8], [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
    }
}
