//! Batch norm in one pass against the CPU backend, and against the plain kernels, to which it must not be inferior.

use super::By::{F32, Memory, Null, U32};
use super::whole_norm::{Addend, Backward, Forward, Layer, bits};
use super::{By, Bytes, Oracle, named, run, values};
use engine::backend::EPS;
use engine::backend::cuda::plan::geometry::{self, Geometry, SLAB_COLUMN};
use engine::backend::cuda::storage::Storage;

/// A layer and its blocks: rows that end within a thread's packs, blocks without rows, packs in registers alone, in shared memory
/// too, and read again; groups with one column and with several.
struct Shape {
    rows: usize,
    channels: usize,
    groups: usize,
    group: usize,
    kept: usize,
}

const SHAPES: [Shape; 6] = [
    Shape { rows: 5000, channels: 64, groups: 1, group: 2, kept: 3 },
    Shape { rows: 1300, channels: 64, groups: 2, group: 2, kept: 0 },
    Shape { rows: 513, channels: 160, groups: 1, group: 3, kept: 0 },
    Shape { rows: 3, channels: 32, groups: 1, group: 4, kept: 0 },
    Shape { rows: 65, channels: 192, groups: 3, group: 2, kept: 0 },
    Shape { rows: 2500, channels: 32, groups: 1, group: 1, kept: 9 },
];

const STORAGES: [Storage; 2] = [Storage::F16, Storage::Bf16];

/// Both storage types at the first shape, half at the others.
fn cases() -> impl Iterator<Item = (Storage, &'static Shape)> {
    let types = STORAGES.into_iter().map(|storage| (storage, &SHAPES[0]));
    types.chain(SHAPES[1..].iter().map(|shape| (Storage::F16, shape)))
}

impl Shape {
    fn layer(&self, storage: Storage) -> Layer {
        Layer { storage, rows: self.rows, channels: self.channels }
    }

    fn geometry(&self, operands: usize) -> Geometry {
        geometry::bn_one_pass(self.groups, self.group, self.kept, operands)
    }

    /// Partials and counters.
    fn waits(&self) -> [Bytes; 2] {
        [Bytes::out(8 * self.channels * self.group), Bytes::new(&vec![0; 4 * self.channels / SLAB_COLUMN])]
    }

    /// The last arguments.
    fn shares(&self) -> [By; 4] {
        [self.group, self.kept, self.rows, self.channels].map(U32)
    }

    /// Bits of elements as they lie column by column.
    fn in_columns(&self, bits: &[u8]) -> Vec<u8> {
        let (row, part) = (self.channels / 8, SLAB_COLUMN / 8);
        let mut columns = vec![0; bits.len()];
        for (index, &byte) in bits.iter().enumerate() {
            let (r, b) = (index / row, index % row);
            columns[(b / part * self.rows + r) * part + b % part] = byte;
        }
        columns
    }
}

#[test]
fn forward_is_the_cpus_in_one_pass() {
    let oracle = Oracle::new();
    for (storage, shape) in cases() {
        for addend in Addend::ALL {
            for in_columns in [false, true] {
                forward(&oracle, storage, shape, addend, in_columns);
            }
        }
    }
}

fn forward(oracle: &Oracle, storage: Storage, shape: &Shape, addend: Addend, in_columns: bool) {
    let layer = shape.layer(storage);
    let name = format!("{storage:?} {} x {} {addend:?} {in_columns}", layer.rows, layer.channels);
    let case = Forward::new(layer, name.clone());
    let mut args: Vec<By> = (0..7).map(Memory).collect();
    args.extend([F32(EPS as f32), Memory(7), Memory(8)]);
    args.push(if addend == Addend::Nothing { Null } else { Memory(9) });
    args.extend([10, 11, 12].map(|z| if addend == Addend::Normalised { Memory(z) } else { Null }));
    args.extend([Memory(13), Memory(14), U32(usize::from(in_columns)), U32(1)]);
    args.extend(shape.shares());
    let (kernel, memory) = (named("bn_one_pass", storage), case.memory(shape.waits()));
    let Some(memory) = run(&kernel, shape.geometry(1), &memory, &args) else { return };
    let stored = case.compare(oracle, addend, &memory);
    let plain = bits(&stored);
    let mask = if in_columns { shape.in_columns(&plain) } else { plain };
    // Where a sum is so small that it is stored as zero the bit may be set.
    let apart: u32 = memory[14].get().iter().zip(&mask).map(|(got, want)| (got ^ want).count_ones()).sum();
    let zero = stored.iter().filter(|&&y| y == 0.0).count();
    assert!(memory[14].get().iter().zip(&mask).all(|(got, want)| got & want == *want), "{name}: mask");
    assert!(apart as usize * 1000 <= zero.max(1), "{name}: mask, {apart} bits of {zero} zeros");
}

#[test]
fn backward_is_the_cpus_in_one_pass() {
    let oracle = Oracle::new();
    for (storage, shape) in cases() {
        for (gate, in_columns) in [(0, false), (1, false), (2, false), (2, true)] {
            backward(&oracle, storage, shape, gate, in_columns);
        }
    }
}

fn backward(oracle: &Oracle, storage: Storage, shape: &Shape, gate: usize, in_columns: bool) {
    let layer = shape.layer(storage);
    let name = format!("{storage:?} {} x {}, gate {gate} {in_columns}", layer.rows, layer.channels);
    let case = Backward::new(oracle, layer, name);
    let plain = bits(&case.y);
    let mask = if in_columns { shape.in_columns(&plain) } else { plain };
    let mut args = vec![Memory(0), Memory(1), if gate == 2 { Memory(2) } else { Null }];
    args.extend((3..15).map(Memory));
    args.extend([U32(gate), U32(usize::from(in_columns))]);
    args.extend(shape.shares());
    let (kernel, memory) = (named("bn_backward_one_pass", storage), case.memory(&mask, shape.waits()));
    let Some(memory) = run(&kernel, shape.geometry(2), &memory, &args) else { return };
    case.compare(oracle, gate == 0, &memory);
}

/// As many rows a thread as a layer of 14x14 has on a V100 at batch 256, and values far from zero: mean and variance are no farther
/// from their exact values than those of the plain kernels, by a factor that leaves room for chance.
#[test]
fn sums_are_as_exact_as_the_plain_kernels() {
    let shape = Shape { rows: 12_544, channels: 64, groups: 1, group: 5, kept: 8 };
    let Shape { rows, channels, .. } = shape;
    let x = values(1, rows * channels, 50.0, 1.0, Storage::F16);
    let gamma = vec![1.0; channels];
    let mut memory = vec![Bytes::stored(Storage::F16, &x), Bytes::f32(&gamma), Bytes::f32(&gamma)];
    memory.extend([(); 4].map(|()| Bytes::out(4 * channels)));
    memory.extend(shape.waits());
    memory.push(Bytes::out(2 * rows * channels));
    let mut args: Vec<By> = (0..7).map(Memory).collect();
    args.extend([F32(EPS as f32), Memory(7), Memory(8), Null, Null, Null, Null, Memory(9), Null]);
    args.extend([U32(0), U32(0)]);
    args.extend(shape.shares());
    let Some(one_pass) = run("bn_one_pass_f16", shape.geometry(1), &memory, &args) else { return };

    let per_block = geometry::reduce_rows_per_block(rows, channels);
    memory[7] = Bytes::out(8 * channels * rows.div_ceil(per_block));
    let sizes = [rows, channels, per_block].map(U32);
    let args = [&[Memory(0), Memory(7)], &sizes[..]].concat();
    let Some(memory) = run("bn_stats_f16", geometry::bn_stats(rows, channels), &memory, &args) else {
        return;
    };
    let mut args = vec![Memory(7), Memory(1), Memory(3), Memory(4), Memory(5), Memory(6)];
    args.extend(sizes);
    args.push(F32(EPS as f32));
    let Some(plain) = run("bn_finalize", geometry::bn_finalize(channels), &memory, &args) else { return };

    let column = |c: usize| x[c..].iter().step_by(channels).map(|&x| f64::from(x));
    let mean: Vec<f64> = (0..channels).map(|c| column(c).sum::<f64>() / rows as f64).collect();
    let squares = |c: usize| column(c).map(|x| (x - mean[c]).powi(2)).sum::<f64>();
    let variance: Vec<f64> = (0..channels).map(|c| squares(c) / (rows - 1) as f64).collect();
    for (name, index, want) in [("mean", 3, mean), ("variance", 6, variance)] {
        let [got, other] = [&one_pass, &plain].map(|memory| {
            let apart = memory[index].values(Storage::F32).into_iter().map(f64::from).zip(&want);
            apart.map(|(got, want)| (got - want).abs()).fold(0.0, f64::max)
        });
        println!("{name}: {got:.2e} from the exact one, the plain kernels' {other:.2e}");
        assert!(
            got <= 2.0 * other + 1e-7,
            "{name}: {got:.2e} from the exact one, the plain kernels' {other:.2e}"
        );
    }
}
