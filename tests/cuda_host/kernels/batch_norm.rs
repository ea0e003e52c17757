//! Batch norm, both ways.

use super::By::{F32, Memory, Null, U32, U64};
use super::{By, Bytes, Oracle, SUMS, named, run, values};
use crate::compare::close;
use engine::backend::EPS;
use engine::backend::cpu::batch_norm::{self, Affine, BackwardApply, Epilogue, Gate};
use engine::backend::cuda::abi::State;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;

/// Rows, channels.
/// With 24 and 264 channels some threads of a block idle; 2056 have more groups of eight than a block has threads.
const SHAPES: [(usize, usize); 9] =
    [(1, 8), (2, 3), (300, 64), (37, 33), (129, 10), (1000, 24), (5, 264), (70, 2048), (9, 2056)];

#[test]
fn batch_norm_forward() {
    let oracle = Oracle::new();
    for (storage, (rows, channels)) in Storage::ALL.into_iter().flat_map(|s| SHAPES.map(|shape| (s, shape))) {
        // With few rows the deviation itself can be small by chance, and has no digits beside a large mean.
        let (mean, std) = if storage == Storage::F32 && rows > 30 { (1000.0, 1.0) } else { (3.0, 2.0) };
        let name = format!("{storage:?} {rows} x {channels}");
        // Every deviation from a mean of f32 is off by up to the mean's own rounding, on both sides.
        let sums = SUMS + 2.0 * mean / std * Storage::F32.roundoff();
        let x = values(1, rows * channels, mean, std, storage);
        let (gamma, beta) =
            (values(2, channels, 1.0, 0.3, Storage::F32), values(3, channels, 0.0, 0.5, Storage::F32));
        let z = values(4, rows * channels, 0.0, 1.0, storage);
        let want = batch_norm::statistics(oracle.cpu(), &x, channels);
        let per_block = geometry::reduce_rows_per_block(rows, channels);
        let blocks = rows.div_ceil(per_block);
        let memory = [Bytes::stored(storage, &x), Bytes::out(8 * blocks * channels)];
        let args = [Memory(0), Memory(1), U32(rows), U32(channels), U32(per_block)];
        let Some(result) =
            run(&named("bn_stats", storage), geometry::bn_stats(rows, channels), &memory, &args)
        else {
            return;
        };
        let per_channel = Bytes::out(4 * channels);
        let mut memory = vec![result[1].clone(), Bytes::f32(&gamma)];
        memory.extend([(); 4].map(|()| per_channel.clone()));
        let mut args: Vec<By> = (0..6).map(Memory).collect();
        args.extend([U32(rows), U32(channels), U32(per_block), F32(EPS as f32)]);
        let result = run("bn_finalize", geometry::bn_finalize(channels), &memory, &args).unwrap();
        let got = |index: usize| result[index].values(Storage::F32);
        let unbias = rows as f64 / (rows as f64 - 1.0).max(1.0);
        let variance: Vec<f32> = want.var.iter().map(|var| (var * unbias) as f32).collect();
        // The oracle adds the values themselves, in f32.
        let adding = (rows as f64).sqrt() * 2.0 * Storage::F32.roundoff();
        close(&format!("{name}: mean"), &got(2), &want.mean, 1e-6 + adding);
        close(&format!("{name}: rstd"), &got(3), &want.rstd, sums);
        close(&format!("{name}: scale"), &got(4), &want.scale(&gamma), sums);
        if rows > 1 {
            close(&format!("{name}: variance"), &got(5), &variance, sums);
        }
        apply(&oracle, storage, channels, [&x, &z], [&got(2), &got(4), &beta], &name);
    }
}

/// With the card's own statistics, so that only the map itself is compared; with ReLU, sum and mask, and without.
fn apply(
    oracle: &Oracle,
    storage: Storage,
    channels: usize,
    [x, z]: [&Vec<f32>; 2],
    by: [&Vec<f32>; 3],
    name: &str,
) {
    let affine = Affine { mean: by[0], scale: by[1], shift: by[2] };
    let elements = x.len();
    let tolerance = 2.0 * storage.roundoff() + 2e-6;
    for (residual, relu) in [(false, true), (false, false), (true, true)] {
        let mut want = vec![0.0; elements];
        let epilogue = Epilogue { residual: residual.then_some(z.as_slice()), relu };
        batch_norm::apply(oracle.cpu(), affine, epilogue, x, &mut want);
        let mut memory: Vec<Bytes> = vec![Bytes::stored(storage, x)];
        memory.extend(by.map(|values| Bytes::f32(values)));
        memory.push(Bytes::stored(storage, z));
        memory.push(Bytes::out(elements * storage.bytes() as usize));
        memory.push(Bytes::out(elements.div_ceil(8)));
        let z_arg = if residual { Memory(4) } else { Null };
        let mask = if residual { Memory(6) } else { Null };
        let mut args = vec![Memory(0), Memory(1), Memory(2), Memory(3), z_arg, Null, Null, Null];
        args.extend([Memory(5), mask, U64(elements), U32(channels), U32(usize::from(relu))]);
        let result =
            run(&named("bn_apply", storage), geometry::bn_apply(elements, channels), &memory, &args).unwrap();
        let got = result[5].values(storage);
        close(&format!("{name}: bn_apply, sum {residual}, ReLU {relu}"), &got, &want, tolerance);
        if residual {
            let bit = |e: usize| result[6].get()[e / 8] >> (e % 8) & 1 == 1;
            assert!((0..elements).all(|e| bit(e) == (got[e] > 0.0) || got[e] == 0.0), "{name}: mask");
        }
    }
}

#[test]
fn batch_norm_backward() {
    let oracle = Oracle::new();
    for (storage, (rows, channels)) in Storage::ALL.into_iter().flat_map(|s| SHAPES.map(|shape| (s, shape))) {
        if rows < 3 {
            // Two values are always one standard deviation from their mean: dx is rounding alone.
            continue;
        }
        let name = format!("{storage:?} {rows} x {channels}");
        let elements = rows * channels;
        let (x, dy) = (values(1, elements, 0.5, 1.0, storage), values(2, elements, 0.1, 1.0, storage));
        let (gamma, beta) =
            (values(3, channels, 1.0, 0.3, Storage::F32), values(4, channels, 0.2, 0.5, Storage::F32));
        let statistics = batch_norm::statistics(oracle.cpu(), &x, channels);
        let scale = statistics.scale(&gamma);
        let affine = Affine { mean: &statistics.mean, scale: &scale, shift: &beta };
        let mut y = vec![0.0; elements];
        batch_norm::apply(oracle.cpu(), affine, Epilogue { residual: None, relu: true }, &x, &mut y);
        let mask: Vec<u8> = y
            .chunks(8)
            .map(|y| y.iter().enumerate().fold(0, |m, (i, y)| m | u8::from(*y > 0.0) << i))
            .collect();
        for gate in 0..3 {
            let mut gated = dy.clone();
            let open = if gate == 0 { Gate::Open } else { Gate::Output(&y) };
            let gradients = batch_norm::backward_reduce(oracle.cpu(), &statistics, &x, open, &mut gated);
            let mut want = vec![0.0; elements];
            BackwardApply::new(&statistics, &gamma, &gradients).run(oracle.cpu(), &x, &gated, &mut want);

            let per_block = geometry::reduce_rows_per_block(rows, channels);
            let blocks = rows.div_ceil(per_block);
            let f32s = |values: &[f32]| Bytes::f32(values);
            let memory = [
                Bytes::stored(storage, &dy),
                Bytes::stored(storage, &x),
                Bytes::new(&mask),
                f32s(&statistics.mean),
                f32s(&scale),
                f32s(&beta),
                Bytes::out(8 * blocks * channels),
            ];
            let mask_arg = if gate == 2 { Memory(2) } else { Null };
            let common = [Memory(0), Memory(1), mask_arg, Memory(3), Memory(4), Memory(5)];
            let mut args = common.to_vec();
            args.extend([Memory(6), U32(rows), U32(channels), U32(per_block), U32(gate)]);
            let geometry = geometry::bn_backward_reduce(rows, channels);
            let Some(partials) = run(&named("bn_backward_reduce", storage), geometry, &memory, &args) else {
                return;
            };

            let per_channel = Bytes::out(4 * channels);
            let mut finalize = vec![partials[6].clone(), f32s(&statistics.rstd), f32s(&scale)];
            finalize.extend([(); 4].map(|()| per_channel.clone()));
            let mut args: Vec<By> = (0..7).map(Memory).collect();
            args.extend([U32(rows), U32(channels), U32(blocks)]);
            let sums =
                run("bn_backward_finalize", geometry::bn_finalize(channels), &finalize, &args).unwrap();
            close(
                &format!("{name} gate {gate}: dgamma"),
                &sums[3].values(Storage::F32),
                &gradients.gamma,
                SUMS,
            );
            close(
                &format!("{name} gate {gate}: dbeta"),
                &sums[4].values(Storage::F32),
                &gradients.beta,
                SUMS,
            );

            let mut apply = memory[..6].to_vec();
            apply.extend([sums[5].clone(), sums[6].clone()]);
            apply.extend([(); 2].map(|()| Bytes::out(elements * storage.bytes() as usize)));
            let mut args = common.to_vec();
            args.extend([
                Memory(6),
                Memory(7),
                Memory(8),
                Memory(9),
                U64(elements),
                U32(channels),
                U32(gate),
            ]);
            let result = run(
                &named("bn_backward_apply", storage),
                geometry::bn_apply(elements, channels),
                &apply,
                &args,
            )
            .unwrap();
            let tolerance = 2.0 * storage.roundoff() + SUMS;
            close(&format!("{name} gate {gate}: dx"), &result[8].values(storage), &want, tolerance);
            assert_eq!(result[9].values(storage), gated, "{name} gate {gate}: dz");
        }
    }
}

#[test]
fn running_statistics_and_evaluation_scales() {
    let channels = 300;
    let [mean, var, running_mean, gamma] =
        [1, 2, 3, 4].map(|seed| values(seed, channels, 0.5, 1.0, Storage::F32));
    let running_var: Vec<f32> = var.iter().map(|var| var.abs() + 0.1).collect();
    for loss_bad in [0, 1] {
        let state = State { loss_bad, ..State::default() };
        let mut memory = [&mean, &var, &running_mean, &running_var].map(|values| Bytes::f32(values)).to_vec();
        memory.push(Bytes::new(bytemuck::bytes_of(&state)));
        let args = [Memory(0), Memory(1), Memory(2), Memory(3), U32(channels), F32(0.1), Memory(4)];
        let Some(result) = run("bn_running", geometry::by_channel(channels), &memory, &args) else { return };
        for (index, before, batch) in [(2, &running_mean, &mean), (3, &running_var, &var)] {
            let step = if loss_bad == 1 { 0.0 } else { 0.1 };
            let want: Vec<f32> =
                before.iter().zip(batch).map(|(old, new)| (1.0 - step) * old + step * new).collect();
            close("running", &result[index].values(Storage::F32), &want, 1e-6);
        }
    }
    let memory = [Bytes::f32(&gamma), Bytes::f32(&running_var), Bytes::out(4 * channels)];
    let args = [Memory(0), Memory(1), Memory(2), U32(channels), F32(EPS as f32)];
    let result = run("bn_fold", geometry::by_channel(channels), &memory, &args).unwrap();
    let want: Vec<f32> = gamma
        .iter()
        .zip(&running_var)
        .map(|(gamma, var)| gamma / (f64::from(*var) + EPS).sqrt() as f32)
        .collect();
    close("bn_fold", &result[2].values(Storage::F32), &want, 1e-6);
}

/// Partials of three ranks go through one merged partial each; results are those of all rows together.
#[test]
fn batch_norm_of_ranks() {
    const RANKS: usize = 3;
    let oracle = Oracle::new();
    for (rows, channels) in [(2, 3), (300, 64), (37, 33), (70, 2048)] {
        let name = format!("{RANKS} ranks, {rows} x {channels}");
        let (all, elements) = (RANKS * rows, rows * channels);
        // Ranks whose means are far apart, as the combining must stand.
        let x: Vec<Vec<f32>> = (0..RANKS)
            .map(|rank| values(rank as u64, elements, 5.0 * rank as f64, 2.0, Storage::F32))
            .collect();
        let gamma = values(9, channels, 1.0, 0.3, Storage::F32);
        let want = batch_norm::statistics(oracle.cpu(), &x.concat(), channels);
        let per_block = geometry::reduce_rows_per_block(rows, channels);
        let blocks = rows.div_ceil(per_block);
        let mut merged = vec![];
        for own in &x {
            let memory = [Bytes::f32(own), Bytes::out(8 * blocks * channels)];
            let args = [Memory(0), Memory(1), U32(rows), U32(channels), U32(per_block)];
            let Some(partials) = run("bn_stats_f32", geometry::bn_stats(rows, channels), &memory, &args)
            else {
                return;
            };
            let memory = [partials[1].clone(), Bytes::out(8 * channels)];
            let result = run("bn_merge", geometry::bn_finalize(channels), &memory, &args).unwrap();
            merged.extend(result[1].values(Storage::F32));
        }
        let mut memory = vec![Bytes::f32(&merged), Bytes::f32(&gamma)];
        memory.extend([(); 4].map(|()| Bytes::out(4 * channels)));
        let mut args: Vec<By> = (0..6).map(Memory).collect();
        args.extend([U32(all), U32(channels), U32(rows), F32(EPS as f32)]);
        let result = run("bn_finalize", geometry::bn_finalize(channels), &memory, &args).unwrap();
        let got = |index: usize| result[index].values(Storage::F32);
        close(&format!("{name}: mean"), &got(2), &want.mean, SUMS);
        close(&format!("{name}: rstd"), &got(3), &want.rstd, SUMS);
        close(&format!("{name}: scale"), &got(4), &want.scale(&gamma), SUMS);
        backward_of_ranks(&oracle, &x, &want, &gamma, &name);
    }
}

/// Each rank's own gradients of gamma and beta, and the constants that come of their sums.
fn backward_of_ranks(
    oracle: &Oracle,
    x: &[Vec<f32>],
    statistics: &batch_norm::Statistics,
    gamma: &[f32],
    name: &str,
) {
    let (channels, ranks) = (gamma.len(), x.len());
    let rows = x[0].len() / channels;
    let scale = statistics.scale(gamma);
    let (mut sums, mut total) = (vec![], [vec![0.0; channels], vec![0.0; channels]]);
    let (per_block, f32s) =
        (geometry::reduce_rows_per_block(rows, channels), |values: &[f32]| Bytes::f32(values));
    let blocks = rows.div_ceil(per_block);
    for (rank, own) in x.iter().enumerate() {
        let mut dy = values(20 + rank as u64, own.len(), 0.1, 1.0, Storage::F32);
        let mut memory = vec![f32s(&dy), f32s(own), f32s(&statistics.mean), f32s(&scale), f32s(&scale)];
        memory.push(Bytes::out(8 * blocks * channels));
        let mut args = vec![Memory(0), Memory(1), Null, Memory(2), Memory(3), Memory(4), Memory(5)];
        args.extend([U32(rows), U32(channels), U32(per_block), U32(0)]);
        let reduced =
            run("bn_backward_reduce_f32", geometry::bn_backward_reduce(rows, channels), &memory, &args)
                .unwrap();
        let mut memory = vec![reduced[5].clone(), f32s(&statistics.rstd)];
        memory.extend([4, 4, 8].map(|bytes| Bytes::out(bytes * channels)));
        let mut args: Vec<By> = (0..5).map(Memory).collect();
        args.extend([U32(channels), U32(blocks)]);
        let result = run("bn_backward_merge", geometry::bn_finalize(channels), &memory, &args).unwrap();
        let want = batch_norm::backward_reduce(oracle.cpu(), statistics, own, Gate::Open, &mut dy);
        close(&format!("{name}: dgamma of rank {rank}"), &result[2].values(Storage::F32), &want.gamma, SUMS);
        close(&format!("{name}: dbeta of rank {rank}"), &result[3].values(Storage::F32), &want.beta, SUMS);
        for (total, own) in total.iter_mut().zip([&want.gamma, &want.beta]) {
            total.iter_mut().zip(own).for_each(|(total, own)| *total += own);
        }
        sums.extend(result[4].values(Storage::F32));
    }
    let mut memory = vec![f32s(&sums), f32s(&statistics.rstd), f32s(&scale)];
    memory.extend([(); 2].map(|()| Bytes::out(4 * channels)));
    let mut args: Vec<By> = (0..5).map(Memory).collect();
    args.extend([U32(ranks * rows), U32(channels), U32(ranks)]);
    let result = run("bn_backward_ranks", geometry::by_channel(channels), &memory, &args).unwrap();
    let all = (ranks * rows) as f32;
    let [b, c] = [0, 1].map(|kind| -> Vec<f32> {
        let of = |channel: usize| match kind {
            0 => -scale[channel] * statistics.rstd[channel] * total[0][channel] / all,
            _ => -scale[channel] * total[1][channel] / all,
        };
        (0..channels).map(of).collect()
    });
    close(&format!("{name}: b"), &result[3].values(Storage::F32), &b, SUMS);
    close(&format!("{name}: c"), &result[4].values(Storage::F32), &c, SUMS);
}
