//! The flat parameter space: one order of elements for weights, velocities, moving averages and gradients, so that the
//! whole optimiser is one launch.
//!
//! Matrices first (convolution weights KRSC in the order of the graph, then `fc.weight`), then `fc.bias`, then all
//! gammas, then all betas; behind all of those, in the same order, what is frozen. Matrices begin at multiples of [`ALIGN`]
//! elements; what lies between is zero and stays zero. Which elements are trained is then a prefix, and which decay one of that,
//! whatever the policy.

use super::region::{Arena, Region};
use crate::backend::cuda::storage::Storage;
use crate::config::Decay;
use crate::model::freeze::Freeze;
use crate::model::graph::{BufferId, Graph, Op, ParamId};
use crate::model::params::{Param, Role};
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
    /// Trained elements before the first one that is not a matrix's.
    pub matrix_end: usize,
    /// Trained elements before the first gamma.
    pub bias_end: usize,
    /// Of what is trained.
    pub gammas: Range<usize>,
    pub frozen_gammas: Range<usize>,
    /// Elements before the first frozen one.
    pub trained: usize,
    /// Elements in all.
    pub total: usize,
    /// First channel of each running statistic in the flat space of all batch norms, by [`BufferId`]: the trained ones first.
    pub channel: Vec<usize>,
    pub channels: usize,
}

impl ParamLayout {
    /// `input_channels`: what the image's three are padded to.
    pub fn new(graph: &Graph, input_channels: usize, freeze: Freeze) -> Self {
        let mut slots: Vec<Slot> =
            graph.params.iter().map(|param| slot(&param.shape, input_channels)).collect();
        let mut next = 0;
        let mut assign = |frozen: bool, wanted: fn(Role) -> bool, align: usize| {
            let begin = next;
            let is_here = |param: &Param| wanted(param.role) && freeze.has(param.part) == frozen;
            for (_, slot) in graph.params.iter().zip(&mut slots).filter(|(param, _)| is_here(param)) {
                slot.offset = next;
                next = (next + slot.elements()).next_multiple_of(align);
            }
            let end = next;
            next = next.next_multiple_of(ALIGN);
            begin..end
        };
        let [trained, frozen] = [false, true].map(|frozen| {
            assign(frozen, |role| matches!(role, Role::ConvWeight | Role::LinearWeight), ALIGN);
            let bias = assign(frozen, |role| role == Role::LinearBias, 1);
            let gammas = assign(frozen, |role| role == Role::Gamma, 1);
            let betas = assign(frozen, |role| role == Role::Beta, 1);
            Group { matrix_end: bias.start, gammas, end: betas.end.next_multiple_of(ALIGN) }
        });
        let mut channel = vec![0; graph.buffers.len()];
        for op in &graph.ops {
            if let Op::BatchNorm { gamma, mean, var, .. } = *op {
                let offset = slots[gamma].offset;
                channel[mean] = match offset.checked_sub(frozen.gammas.start) {
                    Some(offset) => trained.gammas.len() + offset,
                    None => offset - trained.gammas.start,
                };
                channel[var] = channel[mean];
            }
        }
        Self {
            matrix_end: trained.matrix_end,
            bias_end: trained.gammas.start,
            channels: trained.gammas.len() + frozen.gammas.len(),
            trained: trained.end,
            total: frozen.end,
            slots,
            gammas: trained.gammas,
            frozen_gammas: frozen.gammas,
            channel,
        }
    }

    /// Whether the elements of `slot` are among the trained ones.
    pub fn is_trained(&self, slot: &Slot) -> bool {
        slot.offset < self.trained
    }

    /// Channels of the batch norms that are trained.
    pub fn trained_channels(&self) -> usize {
        self.gammas.len()
    }

    /// Trained elements before the first one that weight decay leaves alone.
    pub fn decay_end(&self, decay: Decay) -> usize {
        match decay {
            Decay::Weights => self.matrix_end,
            Decay::Unnormalised => self.bias_end,
            Decay::All => self.trained,
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

    /// One pass's gradient of what is trained: of the storage type for a matrix, f32 for a vector.
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

    /// All of an f32 arena of the parameter space: weights and averages have the frozen ones, others do not.
    pub fn all_f32(&self, arena: Arena) -> Region {
        let elements = match arena {
            Arena::Master | Arena::Ema => self.total,
            _ => self.trained,
        };
        Region::new(arena, 0, 4 * elements as u64)
    }

    /// The trained elements of an f32 arena.
    pub fn trained_f32(&self, arena: Arena) -> Region {
        Region::new(arena, 0, 4 * self.trained as u64)
    }

    /// The trained elements of [`Arena::Weights`].
    pub fn trained_weights(&self, storage: Storage) -> Region {
        Region::new(Arena::Weights, 0, storage.bytes() * self.trained as u64)
    }

    /// All of [`Arena::Weights`].
    pub fn all_weights(&self, storage: Storage) -> Region {
        Region::new(Arena::Weights, 0, storage.bytes() * self.total as u64)
    }

    /// All gradients of one pass: matrices, vectors.
    pub fn all_gradients(&self, storage: Storage) -> (Region, Region) {
        let vectors = (self.trained - self.matrix_end) as u64;
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

    /// A statistic of all batch norms that are trained, or of those that are frozen.
    pub fn statistics(&self, kind: Statistic, frozen: bool) -> Region {
        let channels = self.group(frozen);
        let first = kind as usize * self.channels + channels.start;
        Region::new(Arena::Channels, 4 * first as u64, 4 * channels.len() as u64)
    }

    /// A batch norm's running mean (`of_variance` false) or variance.
    pub fn running(&self, buffer: BufferId, channels: usize, of_variance: bool) -> Region {
        let channel = self.channel[buffer];
        let frozen = channel >= self.trained_channels();
        let group = self.group_running(frozen, of_variance);
        let first = 4 * (channel - self.group(frozen).start) as u64;
        Region { offset: group.offset + first, bytes: 4 * channels as u64, ..group }
    }

    /// Running means or variances of all batch norms that are trained, or of those that are frozen: the trained ones' means, their
    /// variances, then the frozen ones'.
    pub fn group_running(&self, frozen: bool, of_variance: bool) -> Region {
        let channels = self.group(frozen);
        let first = 2 * channels.start + usize::from(of_variance) * channels.len();
        Region::new(Arena::Running, 4 * first as u64, 4 * channels.len() as u64)
    }

    /// All running statistics that training moves.
    pub fn trained_running(&self, arena: Arena) -> Region {
        Region::new(arena, 0, 8 * self.trained_channels() as u64)
    }

    fn group(&self, frozen: bool) -> Range<usize> {
        if frozen { self.trained_channels()..self.channels } else { 0..self.trained_channels() }
    }
}

/// What is trained, or what is frozen.
struct Group {
    matrix_end: usize,
    gammas: Range<usize>,
    end: usize,
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
    use crate::model::freeze::Part;
    use crate::model::graph::lower;
    use crate::model::spec::{RESNET_TINY, RESNET50};

    const SOME: [Freeze; 4] =
        [Freeze::NONE, Freeze::up_to(1), Freeze::only(Part::Layer(2)), Freeze::only(Part::Fc)];

    #[test]
    fn every_element_has_one_place() {
        for (spec, freeze) in [RESNET_TINY, RESNET50].into_iter().flat_map(|s| SOME.map(|f| (s, f))) {
            let graph = lower(&spec, 64).unwrap();
            let layout = ParamLayout::new(&graph, 4, freeze);
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
        let layout = ParamLayout::new(&graph, 4, Freeze::up_to(1));
        for decay in [Decay::Weights, Decay::Unnormalised, Decay::All] {
            for (param, slot) in graph.params.iter().zip(&layout.slots) {
                let decays = slot.offset < layout.decay_end(decay);
                let trained = !Freeze::up_to(1).has(param.part);
                assert_eq!(decays, trained && decay.applies_to(param.role), "{decay:?} {}", param.name);
                assert_eq!(layout.is_trained(slot), trained, "{}", param.name);
            }
        }
    }

    #[test]
    fn every_running_statistic_has_one_place() {
        let graph = lower(&RESNET50, 64).unwrap();
        for freeze in SOME {
            let layout = ParamLayout::new(&graph, 4, freeze);
            let mut taken = vec![false; 2 * layout.channels];
            for (index, buffer) in graph.buffers.iter().enumerate() {
                let of_variance = buffer.name.ends_with("running_var");
                let first = layout.running(index, buffer.channels, of_variance).offset as usize / 4;
                for taken in &mut taken[first..first + buffer.channels] {
                    assert!(!std::mem::replace(taken, true), "{freeze:?} {}", buffer.name);
                }
                let moves = 4 * first < layout.trained_running(Arena::Running).bytes as usize;
                assert_eq!(moves, !freeze.has(buffer.part), "{freeze:?} {}", buffer.name);
            }
            assert!(taken.iter().all(|&taken| taken));
        }
    }

    #[test]
    fn packing_is_undone() {
        let graph = lower(&RESNET_TINY, 32).unwrap();
        let layout = ParamLayout::new(&graph, 4, Freeze::NONE);
        for (index, (param, slot)) in graph.params.iter().zip(&layout.slots).enumerate() {
            let values = param.initial_values(1, index, false);
            assert_eq!(slot.unpack(&slot.pack(&values)), values, "{}", param.name);
        }
        let stem = layout.slots[0].pack(&vec![1.0; graph.params[0].elements()]);
        assert_eq!(stem[..8], [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]);
    }
}
