//! The 1x1 convolution that leaves its output's statistics, against the CPU's convolution on the same halves.

use super::By::{F32, Memory, U32};
use super::{By, Bytes, Oracle, SUMS, named, run, values};
use crate::compare::close;
use crate::machine::rsck_from_krsc;
use engine::backend::EPS;
use engine::backend::cpu::batch_norm;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;
use engine::model::graph::ConvShape;
use engine::simd::conv::{self, Scratch};
use engine::simd::isa::Isa;
use engine::simd::pool::Pool;

/// Rows, channels in, channels out: rows that end within a tile and within its half, slices and columns that are no power
/// of two.
const SHAPES: [(usize, usize, usize); 4] = [(1, 32, 64), (127, 64, 64), (321, 96, 128), (700, 64, 192)];

/// What goes through a batch norm and a ReLU first.
fn normalised(x: &[f32], c: usize, by: &[Vec<f32>]) -> Vec<f32> {
    let of = |(e, &x): (usize, &f32)| {
        let value =
            (f64::from(x) - f64::from(by[0][e % c])) * f64::from(by[1][e % c]) + f64::from(by[2][e % c]);
        value.max(0.0) as f32
    };
    x.iter().enumerate().map(of).collect()
}

/// y as f32 sums give it.
fn product(rows: usize, (c, k): (usize, usize), x: &[f32], w: &[f32]) -> Vec<f32> {
    let shape = ConvShape { h: 1, w: rows, c, k, r: 1, s: 1, stride: 1, pad: 0 };
    let mut y = vec![0.0; rows * k];
    let (pool, mut scratch) = (Pool::new(1), Scratch::default());
    conv::forward(&pool, Isa::current(), &shape, 1, x, &rsck_from_krsc(&shape, w), &mut y, &mut scratch);
    y
}

#[test]
fn products_leave_their_statistics() {
    let oracle = Oracle::new();
    for (rows, c, k) in SHAPES {
        for norm in [false, true] {
            check(&oracle, rows, c, k, norm);
        }
    }
}

fn check(oracle: &Oracle, rows: usize, c: usize, k: usize, norm: bool) {
    let (storage, name) = (Storage::F16, format!("{rows} x {c} -> {k}, batch norm before {norm}"));
    let (x, w) = (values(1, rows * c, 0.3, 1.0, storage), values(2, k * c, 0.0, 0.2, storage));
    let by: Vec<Vec<f32>> = [3, 4, 5].map(|seed| values(seed, c, 0.5, 0.3, Storage::F32)).to_vec();
    let per_block = geometry::conv1x1_rows_per_block(rows, k);
    let mut memory = vec![Bytes::stored(storage, &x)];
    memory.extend(by.iter().map(|values| Bytes::f32(values)));
    memory.extend([Bytes::out(2 * rows * c), Bytes::stored(storage, &w), Bytes::out(2 * rows * k)]);
    memory.push(Bytes::out(8 * rows.div_ceil(per_block) * k));
    let kernel = if norm { "conv1x1_norm_stats" } else { "conv1x1_stats" };
    let mut args: Vec<By> = if norm { (0..5).map(Memory).collect() } else { vec![Memory(0)] };
    args.extend([Memory(5), Memory(6), Memory(7), U32(rows), U32(c), U32(k)]);
    args.push(U32(geometry::conv1x1_tiles(rows, k)));
    let Some(result) = run(&named(kernel, storage), geometry::conv1x1(rows, k), &memory, &args) else {
        return;
    };

    let input = if norm {
        let a = result[4].values(storage);
        close(&format!("{name}: a"), &a, &normalised(&x, c, &by), 2.0 * storage.roundoff() + 2e-6);
        a
    } else {
        assert!(result[4].get().iter().all(|&byte| byte == 0xff), "{name}: nothing else is written");
        x
    };
    let y = result[6].values(storage);
    close(&format!("{name}: y"), &y, &product(rows, (c, k), &input, &w), 2.0 * storage.roundoff() + SUMS);

    // Of y as it is stored, to the end of the way that they go.
    let ones = vec![1.0; k];
    let mut finalize = vec![result[7].clone(), Bytes::f32(&ones)];
    finalize.extend([(); 4].map(|()| Bytes::out(4 * k)));
    let mut args: Vec<By> = (0..6).map(Memory).collect();
    args.extend([U32(rows), U32(k), U32(per_block), F32(EPS as f32)]);
    let got = run("bn_finalize", geometry::bn_finalize(k), &finalize, &args).unwrap();
    let want = batch_norm::statistics(oracle.cpu(), &y, k);
    close(&format!("{name}: mean"), &got[2].values(Storage::F32), &want.mean, SUMS);
    close(&format!("{name}: rstd"), &got[3].values(Storage::F32), &want.rstd, SUMS);
}
