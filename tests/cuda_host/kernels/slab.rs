//! Batch norm slab by slab, launch after launch as the plan has them, against the CPU backend.

use super::By::{F32, Memory, Null, U32};
use super::{By, Bytes, Oracle, SUMS, named, run, values};
use crate::compare::close;
use engine::backend::EPS;
use engine::backend::cpu::batch_norm::{self, Affine, BackwardApply, Epilogue, Gate};
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;
use std::ops::Range;

/// A layer and its slabs: rows that end within a block and within a thread's, last slabs that are narrower, one slab alone.
struct Shape {
    rows: usize,
    channels: usize,
    width: usize,
}

const SHAPES: [Shape; 5] = [
    Shape { rows: 1300, channels: 64, width: 32 },
    Shape { rows: 513, channels: 96, width: 64 },
    Shape { rows: 37, channels: 160, width: 64 },
    Shape { rows: 3, channels: 32, width: 32 },
    Shape { rows: 600, channels: 288, width: 288 },
];

/// All storage types at the first shape, half at the others.
fn cases() -> impl Iterator<Item = (Storage, &'static Shape)> {
    let types = Storage::ALL.into_iter().map(|storage| (storage, &SHAPES[0]));
    types.chain(SHAPES[1..].iter().map(|shape| (Storage::F16, shape)))
}

impl Shape {
    fn slabs(&self) -> Vec<Range<usize>> {
        let end = |first: usize| self.channels.min(first + self.width);
        (0..self.channels).step_by(self.width).map(|first| first..end(first)).collect()
    }

    fn elements(&self) -> usize {
        self.rows * self.channels
    }

    fn per_block(&self) -> usize {
        geometry::slab_rows_per_block(self.rows, self.width / 32)
    }

    fn partials(&self) -> Bytes {
        Bytes::out(8 * self.width * self.rows.div_ceil(self.per_block()))
    }

    /// Numbers of columns, blocks, rows of a block: those of the half that sums.
    fn sums(&self, slab: Option<&Range<usize>>) -> [By; 3] {
        let blocks = self.rows.div_ceil(self.per_block());
        match slab {
            Some(slab) => [U32(slab.len() / 32), U32(blocks), U32(self.per_block())],
            None => [U32(0); 3],
        }
    }

    fn geometry(&self, sums: Option<&Range<usize>>, applies: Option<&Range<usize>>) -> geometry::Geometry {
        let columns = |slab: Option<&Range<usize>>| slab.map_or(0, |slab| slab.len() / 32);
        geometry::bn_slab(self.rows, self.per_block(), columns(sums), columns(applies))
    }
}

/// A tensor, or a vector, at a slab's first channel.
fn at(memory: usize, bytes: usize, slab: Option<&Range<usize>>) -> By {
    slab.map_or(Null, |slab| By::Inside(memory, bytes * slab.start))
}

fn mask_at(memory: usize, slab: Option<&Range<usize>>) -> By {
    slab.map_or(Null, |slab| By::Inside(memory, slab.start / 8))
}

/// What is summed and what is applied, launch by launch.
fn launches(slabs: &[Range<usize>]) -> impl Iterator<Item = (Option<&Range<usize>>, Option<&Range<usize>>)> {
    (0..=slabs.len()).map(|k| (slabs.get(k), k.checked_sub(1).map(|k| &slabs[k])))
}

/// The second operand of a block's sum.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Addend {
    Nothing,
    Plain,
    Normalised,
}

#[test]
fn forward_is_the_cpus_in_slabs() {
    let oracle = Oracle::new();
    for (storage, shape) in cases() {
        for addend in [Addend::Nothing, Addend::Plain, Addend::Normalised] {
            forward(&oracle, storage, shape, addend);
        }
    }
}

fn forward(oracle: &Oracle, storage: Storage, shape: &Shape, addend: Addend) {
    let Shape { rows, channels, .. } = *shape;
    let name = format!("{storage:?} {rows} x {channels} {addend:?}");
    let elements = shape.elements();
    let (x, z) = (values(1, elements, 3.0, 2.0, storage), values(2, elements, 0.0, 1.0, storage));
    let [gamma, beta, z_mean, z_scale, z_beta] =
        [3, 4, 5, 6, 7].map(|seed| values(seed, channels, 0.6, 0.3, Storage::F32));
    let bytes = storage.bytes() as usize;
    let per_channel = Bytes::out(4 * channels);
    let mut memory = vec![Bytes::stored(storage, &x), Bytes::f32(&gamma), Bytes::f32(&beta)];
    memory.extend([(); 4].map(|()| per_channel.clone()));
    memory.extend([shape.partials(), Bytes::new(&vec![0; 4 * channels / 32]), Bytes::stored(storage, &z)]);
    memory.extend([&z_mean, &z_scale, &z_beta].map(|values| Bytes::f32(values)));
    memory.extend([Bytes::out(elements * bytes), Bytes::out(elements / 8)]);
    for (sums, applies) in launches(&shape.slabs()) {
        let mut args = vec![at(0, bytes, sums), at(1, 4, sums)];
        args.extend([3, 4, 5, 6].map(|memory| at(memory, 4, sums)));
        args.extend([F32(EPS as f32), Memory(7), Memory(8)]);
        args.extend(shape.sums(sums));
        args.extend([at(0, bytes, applies), at(3, 4, applies), at(5, 4, applies), at(2, 4, applies)]);
        args.push(if addend == Addend::Nothing { Null } else { at(9, bytes, applies) });
        args.extend(
            [10, 11, 12].map(|z| if addend == Addend::Normalised { at(z, 4, applies) } else { Null }),
        );
        args.extend([at(13, bytes, applies), mask_at(14, applies), U32(1)]);
        args.extend([U32(applies.map_or(0, |slab| slab.len() / 32)), U32(rows), U32(channels)]);
        match run(&named("bn_slab", storage), shape.geometry(sums, applies), &memory, &args) {
            Some(result) => memory = result,
            None => return,
        }
    }
    let got = |index: usize| memory[index].values(Storage::F32);
    assert!(memory[8].get().iter().all(|&byte| byte == 0), "{name}: counters");
    let want = batch_norm::statistics(oracle.cpu(), &x, channels);
    let unbias = rows as f64 / (rows as f64 - 1.0).max(1.0);
    let variance: Vec<f32> = want.var.iter().map(|var| (var * unbias) as f32).collect();
    let adding = (rows as f64).sqrt() * 2.0 * Storage::F32.roundoff();
    close(&format!("{name}: mean"), &got(3), &want.mean, 1e-6 + adding);
    close(&format!("{name}: rstd"), &got(4), &want.rstd, SUMS);
    close(&format!("{name}: scale"), &got(5), &want.scale(&gamma), SUMS);
    close(&format!("{name}: variance"), &got(6), &variance, SUMS);

    let residual: Vec<f32> = (0..elements)
        .map(|e| match addend {
            Addend::Normalised => {
                (z[e] - z_mean[e % channels]) * z_scale[e % channels] + z_beta[e % channels]
            }
            _ => z[e],
        })
        .collect();
    let affine = Affine { mean: &got(3), scale: &got(5), shift: &beta };
    let epilogue =
        Epilogue { residual: (addend != Addend::Nothing).then_some(residual.as_slice()), relu: true };
    let mut y = vec![0.0; elements];
    batch_norm::apply(oracle.cpu(), affine, epilogue, &x, &mut y);
    let stored = memory[13].values(storage);
    close(&format!("{name}: y"), &stored, &y, 2.0 * storage.roundoff() + 4e-6);
    let bit = |e: usize| memory[14].get()[e / 8] >> (e % 8) & 1 == 1;
    assert!((0..elements).all(|e| bit(e) == (stored[e] > 0.0) || stored[e] == 0.0), "{name}: mask");
}

#[test]
fn backward_is_the_cpus_in_slabs() {
    let oracle = Oracle::new();
    for (storage, shape) in cases() {
        for gate in 0..3 {
            backward(&oracle, storage, shape, gate);
        }
    }
}

fn backward(oracle: &Oracle, storage: Storage, shape: &Shape, gate: usize) {
    let Shape { rows, channels, .. } = *shape;
    let name = format!("{storage:?} {rows} x {channels}, gate {gate}");
    let elements = shape.elements();
    let (x, dy) = (values(1, elements, 0.5, 1.0, storage), values(2, elements, 0.1, 1.0, storage));
    let [gamma, beta] = [3, 4].map(|seed| values(seed, channels, 0.6, 0.3, Storage::F32));
    let statistics = batch_norm::statistics(oracle.cpu(), &x, channels);
    let scale = statistics.scale(&gamma);
    let affine = Affine { mean: &statistics.mean, scale: &scale, shift: &beta };
    let mut y = vec![0.0; elements];
    batch_norm::apply(oracle.cpu(), affine, Epilogue { residual: None, relu: true }, &x, &mut y);
    let bits = |y: &[f32]| y.iter().enumerate().fold(0, |bits, (i, y)| bits | u8::from(*y > 0.0) << i);
    let mask: Vec<u8> = y.chunks(8).map(bits).collect();
    let mut gated = dy.clone();
    let open = if gate == 0 { Gate::Open } else { Gate::Output(&y) };
    let gradients = batch_norm::backward_reduce(oracle.cpu(), &statistics, &x, open, &mut gated);
    let mut want = vec![0.0; elements];
    BackwardApply::new(&statistics, &gamma, &gradients).run(oracle.cpu(), &x, &gated, &mut want);

    let bytes = storage.bytes() as usize;
    let mut memory = vec![Bytes::stored(storage, &dy), Bytes::stored(storage, &x), Bytes::new(&mask)];
    memory.extend([&statistics.mean, &scale, &beta, &statistics.rstd].map(|values| Bytes::f32(values)));
    memory.extend([(); 4].map(|()| Bytes::out(4 * channels)));
    memory.extend([shape.partials(), Bytes::new(&vec![0; 4 * channels / 32])]);
    memory.extend([(); 2].map(|()| Bytes::out(elements * bytes)));
    for (sums, applies) in launches(&shape.slabs()) {
        let gate_of = |slab| {
            let mask = if gate == 2 { mask_at(2, slab) } else { Null };
            [at(0, bytes, slab), at(1, bytes, slab), mask, at(3, 4, slab), at(4, 4, slab), at(5, 4, slab)]
        };
        let mut args = gate_of(sums).to_vec();
        args.extend([6, 7, 8, 9, 10].map(|memory| at(memory, 4, sums)));
        args.extend([Memory(11), Memory(12)]);
        args.extend(shape.sums(sums));
        args.extend(gate_of(applies));
        args.extend([at(9, 4, applies), at(10, 4, applies), at(13, bytes, applies), at(14, bytes, applies)]);
        args.push(U32(gate));
        args.extend([U32(applies.map_or(0, |slab| slab.len() / 32)), U32(rows), U32(channels)]);
        match run(&named("bn_backward_slab", storage), shape.geometry(sums, applies), &memory, &args) {
            Some(result) => memory = result,
            None => return,
        }
    }
    assert!(memory[12].get().iter().all(|&byte| byte == 0), "{name}: counters");
    close(&format!("{name}: dgamma"), &memory[7].values(Storage::F32), &gradients.gamma, SUMS);
    close(&format!("{name}: dbeta"), &memory[8].values(Storage::F32), &gradients.beta, SUMS);
    let tolerance = 2.0 * storage.roundoff() + SUMS;
    if rows > 3 {
        close(&format!("{name}: dx"), &memory[13].values(storage), &want, tolerance);
    }
    assert_eq!(memory[14].values(storage), gated, "{name}: dz");
}
