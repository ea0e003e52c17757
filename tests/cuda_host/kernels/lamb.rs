//! LAMB's five launches. What is elementwise gives the oracle's bits for the same clip and ratio; those two come from sums
//! of squares in f32: 16 terms a thread and a tree of 8 levels, whose root halves the error, are off by at most
//! 12 roundings; a ratio is off by two such.

use super::By::{Memory, U32, U64};
use super::{By, Bytes, Slot, collect, named, run, slot, values};
use engine::backend::cuda::abi::{Hyper, State};
use engine::backend::cuda::network::to_stored;
use engine::backend::cuda::plan::chunks::Chunks;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;
use engine::optim::clip::divisor;
use engine::optim::lamb::{Corrections, Lamb, Moments};
use std::ops::Range;

const TOLERANCE: f32 = 26.0 / 16_777_216.0;

/// Matrices begin at multiples of 64 elements and may take several chunks; vectors follow each other anywhere.
const MATRICES: [Range<usize>; 4] = [0..5000, 5056..5065, 5120..13_312, 13_312..13_313];
const MATRIX_END: usize = 13_376;
const VECTORS: [Range<usize>; 4] = [13_376..13_386, 13_440..13_504, 13_504..13_507, 13_507..13_540];
const TOTAL: usize = 13_568;

struct Case {
    storage: Storage,
    /// Gradients summed over passes, f32.
    sum: bool,
    rule: Lamb,
    /// Of all gradients together; 0: no limit.
    clip_norm: f32,
    /// Number of the update.
    update: u32,
    weights: Vec<f32>,
    gradient: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Case {
    fn new(storage: Storage, sum: bool) -> Self {
        let between = |mut values: Vec<f32>| {
            let parameters: Vec<_> = MATRICES.into_iter().chain(VECTORS).collect();
            for (index, value) in values.iter_mut().enumerate() {
                if !parameters.iter().any(|range| range.contains(&index)) {
                    *value = 0.0;
                }
            }
            values
        };
        let of = |seed, std| between(values(seed, TOTAL, 0.0, std, Storage::F32));
        let mut gradient = of(3, 0.5);
        let stored = values(4, MATRIX_END, 0.0, 0.5, storage);
        gradient[..MATRIX_END].copy_from_slice(&stored);
        let rule = Lamb { lr: 5e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-6, weight_decay: 0.02 };
        Self {
            storage,
            sum,
            rule,
            clip_norm: 1.0,
            update: 7,
            weights: of(1, 1.0),
            gradient: between(gradient),
            first: of(2, 0.1),
            second: of(5, 0.1).iter().map(|value| value * value).collect(),
        }
    }

    fn parameters() -> impl Iterator<Item = (Range<usize>, bool)> {
        let matrices = MATRICES.into_iter().map(|range| (range, true));
        matrices.chain(VECTORS.into_iter().map(|range| (range, false)))
    }

    fn rule(&self, decays: bool) -> Lamb {
        Lamb { weight_decay: if decays { self.rule.weight_decay } else { 0.0 }, ..self.rule }
    }

    /// Gradients (storage, then f32; or sums), master, moments, copy, table, ranges, then what the launches hand on.
    fn memory(&self, state: State, staging: Bytes) -> Vec<Bytes> {
        let table = Chunks::cut(Self::parameters());
        let (chunks, parameters) = (table.chunks.len(), table.parameters.len());
        vec![
            Bytes::stored(self.storage, &self.gradient[..MATRIX_END]),
            Bytes::f32(&self.gradient[MATRIX_END..]),
            Bytes::f32(&self.gradient),
            Bytes::f32(&self.weights),
            Bytes::f32(&self.first),
            Bytes::f32(&self.second),
            Bytes::out(TOTAL * self.storage.bytes() as usize),
            Bytes::new(bytemuck::cast_slice(&table.chunks)),
            Bytes::new(bytemuck::cast_slice(&table.parameters)),
            Bytes::out(4 * chunks),
            Bytes::out(16),
            Bytes::out(8 * chunks),
            Bytes::out(4 * parameters),
            staging,
            Bytes::new(bytemuck::bytes_of(&state)),
        ]
    }

    /// The memory after all five launches.
    fn run(&self, skip: u32) -> Option<(Vec<Bytes>, Vec<Bytes>)> {
        let Lamb { lr, beta1, beta2, epsilon, weight_decay } = self.rule;
        let max_norm = self.clip_norm;
        let hyper = Hyper { lr, beta1, beta2, epsilon, weight_decay, max_norm, ..Hyper::default() };
        let Slot { bytes, hyper, staging, state, .. } = slot(&[], &[], hyper);
        let before = self.memory(State { updates: self.update, skip, ..state }, staging);
        let gradient: &[By] = if self.sum { &[Memory(2)] } else { &[Memory(0), Memory(1), U32(MATRIX_END)] };
        let constants = [Memory(13), U32(2), U64(bytes), U64(hyper), Memory(14)];
        let named = |kernel: &str| {
            if self.sum { format!("{kernel}_sum") } else { named(kernel, self.storage) }
        };
        let (chunks, parameters) = (before[7].get().len() / 16, before[8].get().len() / 8);
        let by_chunk = geometry::lamb(chunks);

        let args = [gradient, &[Memory(7), Memory(9), Memory(14)]].concat();
        let memory = run(&named("lamb_squares"), by_chunk, &before, &args)?;
        let args = [&[Memory(9), U32(chunks), Memory(10)], &constants[..]].concat();
        let memory = run("lamb_clip", geometry::lamb_clip(), &memory, &args)?;
        let args = [gradient, &[3, 4, 5, 7, 10, 11].map(Memory), &constants[..]].concat();
        let memory = run(&named("lamb_moments"), by_chunk, &memory, &args)?;
        let args = [&[11, 7, 8, 12].map(Memory), &constants[..]].concat();
        let memory = run("lamb_ratios", geometry::lamb(parameters), &memory, &args)?;
        let args = [&[3, 6, 4, 5, 7, 10, 12].map(Memory), &constants[..]].concat();
        let kernel = super::named("lamb_update", self.storage);
        let memory = run(&kernel, by_chunk, &memory, &args)?;
        Some((before, memory))
    }

    /// The update against the oracle's; `None` where there is no compiler. Returns clip and ratios.
    #[track_caller]
    fn compare(&self, name: &str) -> Option<(f32, Vec<f32>)> {
        let name = format!("{name} {:?} sum {}", self.storage, self.sum);
        let (_, after) = self.run(0)?;
        let gradient: Vec<f32> = self.gradient.iter().map(|g| g * 0.25).collect();
        let [clip, bias1, bias2_root, _] = collect::<f32>(after[10].get())[..] else { unreachable!() };
        let want = self.rule.corrections(divisor([&gradient[..]], self.clip_norm), self.update);
        assert_eq!((bias1, bias2_root), (want.bias1, want.bias2_root), "{name}");
        near(&format!("{name}: clip"), clip, want.clip);

        let by = Corrections { clip, ..want };
        let ratios = collect::<f32>(after[12].get());
        let [mut w, mut m, mut v] = [&self.weights, &self.first, &self.second].map(Clone::clone);
        let mut copy = after[6].clone();
        copy = Bytes::out(copy.get().len());
        let mut copied = copy.get().to_vec();
        let bytes = self.storage.bytes() as usize;
        for (index, (range, decays)) in Self::parameters().enumerate() {
            let rule = self.rule(decays);
            let of = &mut Moments { first: &mut m[range.clone()], second: &mut v[range.clone()] };
            rule.moments(&by, of, &gradient[range.clone()]);
            let ratio = rule.trust_ratio(&by, &w[range.clone()], of);
            near(&format!("{name}: ratio of {range:?}"), ratios[index], ratio);
            rule.apply(&by, ratios[index], &mut w[range.clone()], of);
            copied[bytes * range.start..bytes * range.end]
                .copy_from_slice(&to_stored(self.storage, &w[range.clone()]));
        }
        assert_eq!(after[4].values(Storage::F32), m, "{name}: first moments");
        assert_eq!(after[5].values(Storage::F32), v, "{name}: second moments");
        assert_eq!(after[3].values(Storage::F32), w, "{name}: weights");
        assert_eq!(after[6].get(), copied, "{name}: copy, and nothing between parameters");
        Some((clip, ratios))
    }
}

#[track_caller]
fn near(name: &str, got: f32, want: f32) {
    let apart = (got - want).abs();
    assert!(apart <= TOLERANCE * want.abs(), "{name}: {got}, wanted {want}; {apart:e} apart");
}

#[test]
fn lamb_gives_the_oracles_bits() {
    for (storage, sum) in Storage::ALL.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let Some((clip, _)) = Case::new(storage, sum).compare("clipped") else { return };
        assert!(clip > 1.0, "{clip}");
        let mut case = Case::new(storage, sum);
        case.clip_norm = 0.0;
        case.update = 1;
        case.first.fill(0.0);
        case.second.fill(0.0);
        let (clip, _) = case.compare("first step without a limit").unwrap();
        assert_eq!(clip, 1.0);
        case.rule.weight_decay = 0.0;
        let (_, ratios) = case.compare("without weight decay").unwrap();
        assert_eq!(ratios, [1.0; 8]);
    }
}

/// Parameters of zeros, gradients of zeros, gradients near the ends of the range, and a step count beyond any run's.
#[test]
fn lamb_at_its_extremes() {
    for (storage, sum) in Storage::ALL.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let mut case = Case::new(storage, sum);
        case.weights[MATRICES[1].clone()].fill(0.0);
        case.gradient[MATRICES[3].clone()].fill(0.0);
        for values in [&mut case.first, &mut case.second] {
            values[MATRICES[3].clone()].fill(0.0);
        }
        let Some((_, ratios)) = case.compare("zeros") else { return };
        assert_eq!(ratios[1], 1.0, "weights of zero");
        near("direction of weight decay alone", ratios[3], 1.0 / case.rule.weight_decay);
        case.weights[MATRICES[3].clone()].fill(0.0);
        assert_eq!(case.compare("nothing at all").unwrap().1[3], 1.0);

        let mut case = Case::new(storage, sum);
        case.update = 4_000_000_000;
        case.compare("late").unwrap();
        let largest = if storage == Storage::F16 { 60_000.0 } else { 1e15 };
        case.gradient[..MATRIX_END].iter_mut().for_each(|g| *g = if *g > 1.0 { largest } else { *g });
        case.gradient = super::from_stored(storage, &to_stored(storage, &case.gradient));
        assert!(case.compare("large").unwrap().0 > 1e4);
        case.gradient.iter_mut().for_each(|g| *g = if *g > 0.0 { 6e-8 } else { 0.0 });
        case.gradient = super::from_stored(storage, &to_stored(storage, &case.gradient));
        assert_eq!(case.compare("small").unwrap().0, 1.0);
    }
}

#[test]
fn a_skipped_lamb_step_changes_nothing_that_lasts() {
    for sum in [false, true] {
        let mut case = Case::new(Storage::F16, sum);
        case.gradient[17] = f32::NAN;
        let Some((before, after)) = case.run(1) else { return };
        for index in 0..9 {
            assert_eq!(before[index].get(), after[index].get(), "memory {index}");
        }
    }
}
