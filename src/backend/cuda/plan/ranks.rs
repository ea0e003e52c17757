//! What the passes of several ranks exchange: gradients are added up in buckets, which leave while the backward pass goes on;
//! every rank takes in the batch statistics of all, or has batch norm see the images of all; and a loss that is not finite anywhere is known everywhere.
//!
//! Buckets are fixed by the layout: neighbours in the parameter space, the last layers first, since the backward pass makes
//! theirs first. Gradients carry one over the images of the whole optimiser step, all ranks together, so a sum leaves fp16's
//! range only where a single rank's would.

use super::builder::{Builder, COMM, SIDE, read, size, update, write};
use super::geometry;
use super::node::{Arg, Call, Collective, Exchange, Launch};
use super::params::{ParamLayout, Statistic};
use super::region::{Access, Arena, Region};
use super::{Purpose, Recipe};
use crate::backend::cuda::abi;
use crate::backend::cuda::storage::Storage;
use crate::backend::{BUCKET_BYTES, RUNNING_MOMENTUM};
use crate::model::graph::{Graph, ParamId};
use crate::model::units::{ConvUnit, Unit};
use std::ops::Range;

/// The bucket that is made last has nothing left to hide behind: it is small, as PyTorch's first one is.
const LAST_BYTES: u64 = 1 << 20;

/// Neighbours of the parameter space, whose gradients are added up at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Elements of the flat space.
    pub elements: Range<usize>,
    /// The parameters that have not their gradient yet.
    pub waiting: Vec<ParamId>,
}

/// The matrices in buckets, in the order in which the backward pass fills them. `element`: bytes of one.
pub fn buckets(graph: &Graph, layout: &ParamLayout, element: u64) -> Vec<Bucket> {
    let mut matrices: Vec<ParamId> =
        (0..graph.params.len()).filter(|&param| layout.slots[param].offset < layout.matrix_end).collect();
    matrices.sort_by_key(|&param| layout.slots[param].offset);
    let bytes = |param: &ParamId| element * layout.slots[*param].elements() as u64;
    let totals = matrices.iter().scan(0, |total, param| {
        *total += bytes(param);
        Some(*total)
    });
    let small = totals.take_while(|&total| total <= LAST_BYTES).count();
    let mut groups: Vec<Vec<ParamId>> = vec![];
    let mut room = 0;
    for &param in matrices[small..].iter().rev() {
        if room < bytes(&param) {
            groups.push(vec![]);
            room = BUCKET_BYTES;
        }
        room = room.saturating_sub(bytes(&param));
        groups.last_mut().expect("pushed above").push(param);
    }
    groups.push(matrices[..small].iter().rev().copied().collect());
    let mut end = layout.matrix_end;
    let mut bucket = |waiting: Vec<ParamId>| {
        let begin = waiting.last().map_or(end, |&param| layout.slots[param].offset);
        let elements = begin..std::mem::replace(&mut end, begin);
        Bucket { elements, waiting }
    };
    groups.into_iter().filter(|group| !group.is_empty()).map(&mut bucket).collect()
}

impl Builder<'_> {
    /// Whether the pass ends with gradients that are sums over ranks.
    pub fn reduces(&self) -> bool {
        self.options.recipe.ranks.is_some() && matches!(self.options.purpose, Purpose::Finish { .. })
    }

    /// Whether gradients of earlier passes are added on this rank first.
    fn sums_passes(&self) -> bool {
        self.options.purpose == (Purpose::Finish { sum: true })
    }

    /// Opens the buckets of a pass that reduces.
    pub fn open_buckets(&mut self) {
        if self.reduces() {
            let element = if self.sums_passes() { 4 } else { self.options.storage.bytes() };
            self.buckets = buckets(self.graph, self.layout, element);
        }
    }

    /// After a unit's backward pass: buckets that are full leave.
    pub fn send_full_buckets(&mut self, unit: &Unit) {
        let made = match unit {
            Unit::Conv(unit) => unit.weight,
            Unit::Linear { weight, .. } => *weight,
            Unit::MaxPool { .. } | Unit::AvgPool { .. } => return,
        };
        for number in 0..self.buckets.len() {
            let waiting = &mut self.buckets[number].waiting;
            let before = waiting.len();
            waiting.retain(|&param| param != made);
            if waiting.is_empty() && before > 0 {
                let elements = self.buckets[number].elements.clone();
                self.send_bucket(&format!("bucket {}", number + 1), elements);
            }
        }
    }

    /// What is no matrix comes last: it is there when all batch norms have gone back.
    pub fn send_vectors(&mut self) {
        let elements = self.layout.matrix_end..self.layout.trained;
        self.send_bucket(&format!("bucket {}", self.buckets.len() + 1), elements);
    }

    fn send_bucket(&mut self, name: &str, elements: Range<usize>) {
        let (storage, matrix_end) = (self.options.storage, self.layout.matrix_end);
        let is_matrix = elements.start < matrix_end;
        let element = if is_matrix { storage.bytes() } else { 4 };
        let (arena, first) =
            if is_matrix { (Arena::GradientMatrices, 0) } else { (Arena::GradientVectors, matrix_end) };
        let bytes =
            |size: u64, from: usize| (size * (elements.start - from) as u64, size * elements.len() as u64);
        let (offset, length) = bytes(element, first);
        let own = Region::new(arena, offset, length);
        let kind = if is_matrix { Exchange::sum(storage) } else { Exchange::sum(Storage::F32) };
        if !self.sums_passes() {
            return self.exchange(format!("all_reduce.{name}"), kind, own, own);
        }
        let (offset, length) = bytes(4, 0);
        let sum = Region::new(Arena::GradientSum, offset, length);
        // The kernel reads matrices below `matrix_end` and vectors from there on: this bucket has one of the two.
        let split = if is_matrix { elements.len() } else { 0 };
        let mut args = vec![read(own), read(own), update(sum), size(split), size(elements.len())];
        args.extend(self.constants());
        let geometry = geometry::flat(elements.len());
        let launch = Launch { kernel: self.storage_kernel("accumulate"), geometry, args };
        self.push(format!("accumulate.{name}"), SIDE, Call::Kernel(launch));
        self.exchange(format!("all_reduce.{name}"), Exchange::sum(Storage::F32), sum, sum);
    }

    fn exchange(&mut self, name: String, kind: Exchange, from: Region, to: Region) {
        self.push(name, COMM, Call::Collective(Collective { kind, from, to }));
    }

    /// How many ranks see each other's images in batch norm, where several do. A forward pass that is looked at again is the
    /// rank's own, so that what is wrong shows at the rank that it comes from.
    pub fn synced(&self) -> Option<usize> {
        let Recipe { sync_norms, ranks, .. } = self.options.recipe;
        ranks.filter(|&ranks| sync_norms && ranks > 1 && self.options.purpose.trains())
    }

    /// The partials of a convolution's statistics of every rank, one each, in the order of ranks.
    pub fn gather_moments(&mut self, unit: &ConvUnit, partials: Region, per_block: usize) -> Region {
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let own = self.buffer(self.name(unit.raw, "moments"), 8 * channels as u64);
        let args = vec![read(partials), write(own), size(rows), size(channels), size(per_block)];
        let launch = Launch { kernel: "bn_merge".into(), geometry: geometry::bn_finalize(channels), args };
        self.launch(self.name(unit.raw, "bn_merge"), launch);
        self.gather(unit, "moments", own)
    }

    /// This rank's gradients of gamma and beta, and from the sums of all ranks what the batch norm's backward pass needs.
    pub fn finalize_of_ranks(&mut self, unit: &ConvUnit, partials: Region, blocks: usize, ranks: usize) {
        let (rows, channels) = (self.rows(unit.raw), unit.shape.k);
        let own = self.buffer(self.name(unit.raw, "sums"), 8 * channels as u64);
        let gradient = |param| self.layout.gradient(self.options.storage, param);
        let mut args = vec![read(partials), read(self.statistic(unit, Statistic::Rstd))];
        args.extend([gradient(unit.gamma), gradient(unit.beta), own].map(write));
        args.extend([channels, blocks].map(size));
        let geometry = geometry::bn_finalize(channels);
        let launch = Launch { kernel: "bn_backward_merge".into(), geometry, args };
        self.launch(self.name(unit.raw, "bn_backward_merge"), launch);
        let all = self.gather(unit, "sums", own);
        let mut args = vec![read(all)];
        args.extend([Statistic::Rstd, Statistic::Scale].map(|kind| read(self.statistic(unit, kind))));
        args.extend([Statistic::B, Statistic::C].map(|kind| write(self.statistic(unit, kind))));
        args.extend([ranks * rows, channels, ranks].map(size));
        let geometry = geometry::by_channel(channels);
        let launch = Launch { kernel: "bn_backward_ranks".into(), geometry, args };
        self.launch(self.name(unit.raw, "bn_backward_ranks"), launch);
    }

    /// Every rank's `own`, in their order.
    fn gather(&mut self, unit: &ConvUnit, what: &str, own: Region) -> Region {
        let ranks = self.synced().expect("several ranks gather");
        let all = self.buffer(self.name(unit.raw, &format!("ranks.{what}")), own.bytes * ranks as u64);
        self.exchange(format!("all_gather.{}", self.name(unit.raw, what)), Exchange::Gather, own, all);
        all
    }

    /// Running statistics take in those of every rank's batch, in the order of ranks, as one rank would that had seen all.
    pub fn running_statistics_of(&mut self, ranks: usize) {
        let channels = self.layout.trained_channels();
        if channels == 0 {
            return;
        }
        let kinds = [(Statistic::Mean, "mean"), (Statistic::Variance, "variance")];
        let gathered = kinds.map(|(kind, name)| {
            let own = self.layout.statistics(kind, false);
            let all = self.buffer(format!("ranks.{name}"), own.bytes * ranks as u64);
            self.exchange(format!("all_gather.{name}"), Exchange::Gather, own, all);
            all
        });
        for rank in 0..ranks {
            let of_rank = |all: Region| {
                let bytes = 4 * channels as u64;
                read(Region { offset: all.offset + rank as u64 * bytes, bytes, ..all })
            };
            let mut args: Vec<Arg> = gathered.map(of_rank).to_vec();
            args.extend([
                update(self.layout.group_running(false, false)),
                update(self.layout.group_running(false, true)),
            ]);
            args.extend([size(channels), Arg::F32(RUNNING_MOMENTUM as f32), self.state(Access::Read)]);
            let geometry = geometry::by_channel(channels);
            self.launch(format!("bn_running.{rank}"), Launch { kernel: "bn_running".into(), geometry, args });
        }
    }

    /// Whether a loss is not finite, of any rank, becomes what every rank's state says.
    pub fn agree_on_loss(&mut self) {
        let bad = Region::new(Arena::State, std::mem::offset_of!(abi::State, loss_bad) as u64, 4);
        self.exchange("all_reduce.loss_bad".into(), Exchange::Max, bad, bad);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::freeze::Freeze;
    use crate::model::graph::lower;
    use crate::model::spec::RESNET50;

    #[test]
    fn buckets_cover_all_matrices_and_the_last_is_small() {
        let graph = lower(&RESNET50, 224).unwrap();
        let layout = ParamLayout::new(&graph, 4, Freeze::NONE);
        for element in [2, 4] {
            let buckets = buckets(&graph, &layout, element);
            let bytes: Vec<u64> =
                buckets.iter().map(|bucket| element * bucket.elements.len() as u64).collect();
            println!("{element} bytes an element: buckets of {bytes:?}");
            let ends: Vec<usize> = buckets.iter().map(|bucket| bucket.elements.end).collect();
            let begins: Vec<usize> = buckets.iter().map(|bucket| bucket.elements.start).collect();
            assert_eq!((ends[0], begins[begins.len() - 1]), (layout.matrix_end, 0));
            assert_eq!(ends[1..], begins[..begins.len() - 1]);
            assert!(bytes.iter().all(|&bytes| bytes <= BUCKET_BYTES + LAST_BYTES), "{bytes:?}");
            assert!(bytes[bytes.len() - 1] <= LAST_BYTES, "{bytes:?}");
            let params: usize = buckets.iter().map(|bucket| bucket.waiting.len()).sum();
            assert_eq!(params, 54, "53 convolutions and the classifier");
        }
    }
}
