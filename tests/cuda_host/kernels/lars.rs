//! LARS's three launches: the oracle's bits for the same clip and ratio; a ratio comes from sums of squares in f32, as LAMB's.

use super::By::{Memory, Null, U32, U64};
use super::lamb::{MATRICES, MATRIX_END, TOLERANCE, TOTAL, VECTORS};
use super::{By, Bytes, Slot, collect, named, run, slot, values};
use engine::backend::cuda::abi::{Hyper, State};
use engine::backend::cuda::network::to_stored;
use engine::backend::cuda::plan::chunks::Chunks;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;
use engine::optim::lars::Lars;
use std::ops::Range;

const RULE: Lars =
    Lars { lr: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.02, trust: 0.001, epsilon: 1e-8 };

/// What gradients are divided by, where they are.
const CLIP: f32 = 2.5;

fn parameters() -> impl Iterator<Item = (Range<usize>, bool)> {
    let matrices = MATRICES.into_iter().map(|range| (range, true));
    matrices.chain(VECTORS.into_iter().map(|range| (range, false)))
}

/// Values of parameters; what lies between them is zero.
fn of_parameters(seed: u64, std: f64, storage: Storage) -> Vec<f32> {
    let mut spread = values(seed, TOTAL, 0.0, std, storage);
    for (index, value) in spread.iter_mut().enumerate() {
        if !parameters().any(|(range, _)| range.contains(&index)) {
            *value = 0.0;
        }
    }
    spread
}

struct Case {
    storage: Storage,
    sum: bool,
    clipped: bool,
    rule: Lars,
    weights: Vec<f32>,
    velocity: Vec<f32>,
    gradient: Vec<f32>,
}

impl Case {
    fn new(storage: Storage, sum: bool, clipped: bool) -> Self {
        Self {
            storage,
            sum,
            clipped,
            rule: RULE,
            weights: of_parameters(1, 1.0, Storage::F32),
            velocity: of_parameters(2, 0.1, Storage::F32),
            gradient: of_parameters(3, 0.5, storage),
        }
    }

    fn run(&self, skip: u32) -> Option<(Vec<Bytes>, Vec<Bytes>)> {
        let Lars { lr, momentum, nesterov, weight_decay, trust, epsilon } = self.rule;
        let nesterov = u32::from(nesterov);
        let hyper = Hyper { lr, momentum, nesterov, weight_decay, trust, epsilon, ..Hyper::default() };
        let Slot { bytes, hyper, staging, state, .. } = slot(&[], &[], hyper);
        let table = Chunks::cut(parameters());
        let (chunks, parameters) = (table.chunks.len(), table.parameters.len());
        let before = vec![
            Bytes::stored(self.storage, &self.gradient[..MATRIX_END]),
            Bytes::f32(&self.gradient[MATRIX_END..]),
            Bytes::f32(&self.gradient),
            Bytes::f32(&self.weights),
            Bytes::f32(&self.velocity),
            Bytes::out(TOTAL * self.storage.bytes() as usize),
            Bytes::new(bytemuck::cast_slice(&table.chunks)),
            Bytes::new(bytemuck::cast_slice(&table.parameters)),
            Bytes::out(8 * chunks),
            Bytes::f32(&[CLIP, 0.0, 0.0, 0.0]),
            Bytes::out(4 * parameters),
            staging,
            Bytes::new(bytemuck::bytes_of(&State { skip, ..state })),
        ];
        let gradient: &[By] = if self.sum { &[Memory(2)] } else { &[Memory(0), Memory(1), U32(MATRIX_END)] };
        let constants = [Memory(11), U32(2), U64(bytes), U64(hyper), Memory(12)];
        let clip = if self.clipped { Memory(9) } else { Null };
        let by_chunk = geometry::by_chunk(chunks);
        let norms = if self.sum { "lars_norms_sum".to_owned() } else { named("lars_norms", self.storage) };
        let args = [gradient, &[3, 6, 8, 12].map(Memory)].concat();
        let memory = run(&norms, by_chunk, &before, &args)?;
        let args = [&[Memory(8), Memory(6), Memory(7), clip, Memory(10)], &constants[..]].concat();
        let memory = run("lars_ratios", geometry::by_chunk(parameters), &memory, &args)?;
        let moved = [Memory(3), Memory(4), Memory(5), Memory(6), clip, Memory(10)];
        let args = [gradient, &moved, &constants].concat();
        let update = if self.sum { "lars_update_sum" } else { "lars_update" };
        let memory = run(&named(update, self.storage), by_chunk, &memory, &args)?;
        Some((before, memory))
    }

    /// The update against the oracle's; the ratios.
    #[track_caller]
    fn compare(&self, name: &str) -> Option<Vec<f32>> {
        let name = format!("{name} {:?} sum {} clipped {}", self.storage, self.sum, self.clipped);
        let (before, after) = self.run(0)?;
        let ratios = collect::<f32>(after[10].get());
        let clip = if self.clipped { CLIP } else { 1.0 };
        let gradient: Vec<f32> = self.gradient.iter().map(|g| g * 0.25).collect();
        let [mut w, mut v] = [&self.weights, &self.velocity].map(Clone::clone);
        let mut copied = before[5].get().to_vec();
        let bytes = self.storage.bytes() as usize;
        for (index, (range, decays)) in parameters().enumerate() {
            let weight_decay = if decays { self.rule.weight_decay } else { 0.0 };
            let (rule, g) = (Lars { weight_decay, ..self.rule }, &gradient[range.clone()]);
            let ratio = rule.trust_ratio(clip, &w[range.clone()], g);
            let apart = (ratios[index] - ratio).abs();
            assert!(
                apart <= TOLERANCE * ratio,
                "{name}: ratio of {range:?} is {}, wanted {ratio}",
                ratios[index]
            );
            rule.apply(clip, ratios[index], &mut w[range.clone()], &mut v[range.clone()], g);
            copied[bytes * range.start..bytes * range.end]
                .copy_from_slice(&to_stored(self.storage, &w[range.clone()]));
        }
        assert_eq!(after[4].values(Storage::F32), v, "{name}: velocities");
        assert_eq!(after[3].values(Storage::F32), w, "{name}: weights");
        assert_eq!(after[5].get(), copied, "{name}: copy, and nothing between parameters");
        Some(ratios)
    }
}

#[test]
fn lars_gives_the_oracles_bits() {
    let kinds = [(false, false), (false, true), (true, false), (true, true)];
    for (storage, (sum, clipped)) in Storage::ALL.into_iter().flat_map(|s| kinds.map(|kind| (s, kind))) {
        let mut case = Case::new(storage, sum, clipped);
        let Some(ratios) = case.compare("plain") else { return };
        assert!(ratios[..4].iter().all(|&ratio| ratio < 0.1) && ratios[4..] == [1.0; 4], "{ratios:?}");
        case.rule.nesterov = false;
        case.weights[MATRICES[1].clone()].fill(0.0);
        case.gradient[MATRICES[3].clone()].fill(0.0);
        let ratios = case.compare("zeros").unwrap();
        assert_eq!((ratios[1], ratios[3]), (1.0, 1.0), "a norm of zero");
        case.rule.weight_decay = 0.0;
        assert_eq!(case.compare("without weight decay").unwrap(), [1.0; 8]);
    }
}

#[test]
fn a_skipped_lars_step_changes_nothing_that_lasts() {
    for sum in [false, true] {
        let mut case = Case::new(Storage::F16, sum, true);
        case.gradient[17] = f32::NAN;
        let Some((before, after)) = case.run(1) else { return };
        for index in 0..8 {
            assert_eq!(before[index].get(), after[index].get(), "memory {index}");
        }
    }
}
