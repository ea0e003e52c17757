//! Batch norm slab by slab, launch after launch as the plan has them, against the CPU backend.

use super::By::{F32, Memory, Null, U32};
use super::whole_norm::{Addend, Backward, Forward, Layer, bits};
use super::{By, Bytes, Oracle, named, run};
use engine::backend::EPS;
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

    fn layer(&self, storage: Storage) -> Layer {
        Layer { storage, rows: self.rows, channels: self.channels }
    }

    fn per_block(&self) -> usize {
        geometry::slab_rows_per_block(self.rows, self.width / 32)
    }

    /// Partial sums and counters.
    fn shared(&self) -> [Bytes; 2] {
        let partials = Bytes::out(8 * self.width * self.rows.div_ceil(self.per_block()));
        [partials, Bytes::new(&vec![0; 4 * self.channels / 32])]
    }

    /// Numbers of columns, rows and channels: those of the half that applies.
    fn applied(&self, slab: Option<&Range<usize>>) -> [By; 3] {
        [slab.map_or(0, |slab| slab.len() / 32), self.rows, self.channels].map(U32)
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

#[test]
fn forward_is_the_cpus_in_slabs() {
    let oracle = Oracle::new();
    for (storage, shape) in cases() {
        for addend in Addend::ALL {
            forward(&oracle, storage, shape, addend);
        }
    }
}

fn forward(oracle: &Oracle, storage: Storage, shape: &Shape, addend: Addend) {
    let (layer, bytes) = (shape.layer(storage), storage.bytes() as usize);
    let name = format!("{storage:?} {} x {} {addend:?}", layer.rows, layer.channels);
    let case = Forward::new(layer, name.clone());
    let mut memory = case.memory(shape.shared());
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
        args.extend(shape.applied(applies));
        match run(&named("bn_slab", storage), shape.geometry(sums, applies), &memory, &args) {
            Some(result) => memory = result,
            None => return,
        }
    }
    let stored = case.compare(oracle, addend, &memory);
    let bit = |e: usize| memory[14].get()[e / 8] >> (e % 8) & 1 == 1;
    assert!((0..stored.len()).all(|e| bit(e) == (stored[e] > 0.0) || stored[e] == 0.0), "{name}: mask");
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
    let (layer, bytes) = (shape.layer(storage), storage.bytes() as usize);
    let name = format!("{storage:?} {} x {}, gate {gate}", layer.rows, layer.channels);
    let case = Backward::new(oracle, layer, name);
    let mut memory = case.memory(&bits(&case.y), shape.shared());
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
        args.extend(shape.applied(applies));
        match run(&named("bn_backward_slab", storage), shape.geometry(sums, applies), &memory, &args) {
            Some(result) => memory = result,
            None => return,
        }
    }
    case.compare(oracle, gate == 0, &memory);
}
