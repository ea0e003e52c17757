//! Batch norm and pooling where it is hard: a mean far above the deviations, hundreds of row blocks, a sum with another
//! batch norm's output, and values that are not finite.

use super::By::{F32, Memory, Null, U32, U64};
use super::{By, Bytes, Oracle, SUMS, named, run, values};
use crate::compare::close;
use engine::backend::EPS;
use engine::backend::cpu::batch_norm::{self, Affine, Epilogue, Gate};
use engine::backend::cpu::pooling::{self, PoolShape};
use engine::backend::cuda::plan::geometry::{self, Geometry};
use engine::backend::cuda::storage::Storage;

/// A reduction with `per_block` rows a block, which the plan would only choose for larger tensors.
fn in_blocks(rows: usize, channels: usize, per_block: usize) -> Geometry {
    let [columns, _, _] = geometry::bn_stats(rows, channels).grid;
    Geometry::plain([columns, rows.div_ceil(per_block) as u32, 1], 256)
}

/// mean, rstd, scale, variance.
fn statistics(storage: Storage, x: &[f32], channels: usize, per_block: usize) -> Option<[Vec<f32>; 4]> {
    let rows = x.len() / channels;
    let memory = [Bytes::stored(storage, x), Bytes::out(8 * rows.div_ceil(per_block) * channels)];
    let args = [Memory(0), Memory(1), U32(rows), U32(channels), U32(per_block)];
    let grid = in_blocks(rows, channels, per_block);
    let partials = run(&named("bn_stats", storage), grid, &memory, &args)?;
    let mut memory = vec![partials[1].clone(), Bytes::f32(&vec![1.0; channels])];
    memory.extend([(); 4].map(|()| Bytes::out(4 * channels)));
    let mut args: Vec<By> = (0..6).map(Memory).collect();
    args.extend([U32(rows), U32(channels), U32(per_block), F32(EPS as f32)]);
    let result = run("bn_finalize", geometry::bn_finalize(channels), &memory, &args)?;
    Some([2, 3, 4, 5].map(|index| result[index].values(Storage::F32)))
}

/// dgamma, dbeta without a gate.
fn sums(
    storage: Storage,
    dy: &[f32],
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    per_block: usize,
) -> Option<[Vec<f32>; 2]> {
    let channels = mean.len();
    let (rows, blocks) = (x.len() / channels, (x.len() / channels).div_ceil(per_block));
    let [dy, x] = [dy, x].map(|values| Bytes::stored(storage, values));
    let memory = [dy, x, Bytes::f32(mean), Bytes::out(8 * blocks * channels)];
    let mut args = vec![Memory(0), Memory(1), Null, Memory(2), Null, Null, Memory(3)];
    args.extend([U32(rows), U32(channels), U32(per_block), U32(0)]);
    let grid = in_blocks(rows, channels, per_block);
    let partials = run(&named("bn_backward_reduce", storage), grid, &memory, &args)?;
    let mut memory = vec![partials[3].clone(), Bytes::f32(rstd), Bytes::f32(rstd)];
    memory.extend([(); 4].map(|()| Bytes::out(4 * channels)));
    let mut args: Vec<By> = (0..7).map(Memory).collect();
    args.extend([U32(rows), U32(channels), U32(blocks)]);
    let result = run("bn_backward_finalize", geometry::bn_finalize(channels), &memory, &args)?;
    Some([3, 4].map(|index| result[index].values(Storage::F32)))
}

/// With mean 1000 and deviation 1 a sum of squares in f32 would have no correct digit of the variance. Exact sums are the
/// oracle here, since the CPU backend adds 1000 rows of such values in f32. The mean is rounded twice; the variance
/// takes the rounding of each block's mean, 1000 2^-24 against the deviation 1, at most twice.
#[test]
fn hundreds_of_row_blocks_and_a_large_mean() {
    let oracle = Oracle::new();
    let mean = 1000.0;
    for storage in Storage::ALL {
        for (rows, channels, per_block) in [(1000, 8, 3), (700, 10, 1), (401, 20, 5), (2000, 3, 2000)] {
            let name = format!("{storage:?} {rows} x {channels} by {per_block}");
            let x = values(1, rows * channels, mean, 1.0, storage);
            let column = |c: usize| x[c..].iter().step_by(channels).map(|&x| f64::from(x));
            let means: Vec<f64> = (0..channels).map(|c| column(c).sum::<f64>() / rows as f64).collect();
            let squares = |c: usize| column(c).map(|x| (x - means[c]) * (x - means[c])).sum::<f64>();
            let f32s = |of: &dyn Fn(usize) -> f64| (0..channels).map(|c| of(c) as f32).collect::<Vec<_>>();
            let Some([got, rstd, _, variance]) = statistics(storage, &x, channels, per_block) else { return };
            let tolerance = SUMS + 2.0 * mean * Storage::F32.roundoff();
            let exact = f32s(&|c| means[c]);
            close(&format!("{name}: mean"), &got, &exact, 2.0 * Storage::F32.roundoff());
            let exact = f32s(&|c| 1.0 / (squares(c) / rows as f64 + EPS).sqrt());
            close(&format!("{name}: rstd"), &rstd, &exact, tolerance);
            let exact = f32s(&|c| squares(c) / (rows - 1) as f64);
            close(&format!("{name}: variance"), &variance, &exact, tolerance);

            let want = batch_norm::statistics(oracle.cpu(), &x, channels);
            let mut dy = values(2, rows * channels, 0.1, 1.0, storage);
            let gradients = batch_norm::backward_reduce(oracle.cpu(), &want, &x, Gate::Open, &mut dy);
            let [dgamma, dbeta] = sums(storage, &dy, &x, &want.mean, &want.rstd, per_block).unwrap();
            close(&format!("{name}: dgamma"), &dgamma, &gradients.gamma, SUMS);
            close(&format!("{name}: dbeta"), &dbeta, &gradients.beta, SUMS);
        }
    }
}

/// The shortcut's batch norm is applied where its block's sum is taken. One rounding to storage, and a few of f32.
#[test]
fn a_sum_with_another_batch_norm() {
    let oracle = Oracle::new();
    for storage in Storage::ALL {
        for (rows, channels) in [(1, 1), (9, 64), (40, 33), (77, 10), (6, 2048), (700, 24), (5, 2056)] {
            let n = rows * channels;
            let [x, z] = [1, 2].map(|seed| values(seed, n, 0.5, 2.0, storage));
            let by = [3, 4, 5, 6, 7, 8].map(|seed| values(seed, channels, 0.3, 1.0, Storage::F32));
            let [mean, scale, shift, z_mean, z_scale, z_shift] = &by;
            let (mut residual, mut want) = (vec![0.0; n], vec![0.0; n]);
            let affine = Affine { mean: z_mean, scale: z_scale, shift: z_shift };
            batch_norm::apply(
                oracle.cpu(),
                affine,
                Epilogue { residual: None, relu: false },
                &z,
                &mut residual,
            );
            let affine = Affine { mean, scale, shift };
            let epilogue = Epilogue { residual: Some(&residual), relu: true };
            batch_norm::apply(oracle.cpu(), affine, epilogue, &x, &mut want);
            let mut memory = vec![Bytes::stored(storage, &x), Bytes::stored(storage, &z)];
            memory.extend(by.iter().map(|values| Bytes::f32(values)));
            memory.extend([Bytes::out(n * storage.bytes() as usize), Bytes::out(n.div_ceil(8))]);
            let mut args = [0, 2, 3, 4, 1, 5, 6, 7, 8, 9].map(Memory).to_vec();
            args.extend([U64(n), U32(channels), U32(1)]);
            let name = named("bn_apply", storage);
            let Some(result) = run(&name, geometry::bn_apply(n, channels), &memory, &args) else { return };
            let got = result[8].values(storage);
            close(&format!("{name} {rows} x {channels}"), &got, &want, storage.roundoff() + 1e-6);
            let bit = |e: usize| result[9].get()[e / 8] >> (e % 8) & 1 == 1;
            assert!(
                (0..n).all(|e| bit(e) == (got[e] > 0.0) || got[e] == 0.0),
                "{name} {rows} x {channels}: mask"
            );
        }
    }
}

#[test]
fn what_is_not_finite_shows_in_its_channel_alone() {
    for (storage, bad) in Storage::ALL.into_iter().flat_map(|s| [f32::NAN, f32::INFINITY].map(|bad| (s, bad)))
    {
        for (rows, channels, at, channel) in [(90, 16, 0, 3), (90, 16, 89, 15), (90, 10, 44, 9), (1, 3, 0, 0)]
        {
            let name = format!("{storage:?} {bad} in row {at} of {rows} x {channels}");
            let clean = values(1, rows * channels, 0.0, 1.0, storage);
            let mut x = clean.clone();
            x[at * channels + channel] = bad;
            let Some(got) = statistics(storage, &x, channels, 32) else { return };
            let want = statistics(storage, &clean, channels, 32).unwrap();
            let only_there = |got: &[f32], want: &[f32]| {
                (0..channels).all(|c| if c == channel { !got[c].is_finite() } else { got[c] == want[c] })
            };
            for (index, what) in [(0, "mean"), (1, "rstd"), (3, "variance")] {
                assert!(only_there(&got[index], &want[index]), "{name}: {what} is {:?}", got[index]);
            }
            let zeros = vec![0.5; channels];
            let got = sums(storage, &x, &clean, &zeros, &zeros, 32).unwrap();
            let want = sums(storage, &clean, &clean, &zeros, &zeros, 32).unwrap();
            assert!(
                only_there(&got[0], &want[0]) && only_there(&got[1], &want[1]),
                "{name}: dgamma, dbeta {got:?}"
            );

            // ReLU keeps NaN, and the mask shuts it.
            let n = rows * channels;
            let memory = [
                Bytes::stored(storage, &x),
                Bytes::f32(&zeros),
                Bytes::out(n * storage.bytes() as usize),
                Bytes::out(n.div_ceil(8)),
            ];
            let mut args = vec![
                Memory(0),
                Memory(1),
                Memory(1),
                Memory(1),
                Null,
                Null,
                Null,
                Null,
                Memory(2),
                Memory(3),
            ];
            args.extend([U64(n), U32(channels), U32(1)]);
            let result =
                run(&named("bn_apply", storage), geometry::bn_apply(n, channels), &memory, &args).unwrap();
            let (y, e) = (result[2].values(storage), at * channels + channel);
            assert!(y[e].is_nan() == bad.is_nan() && !y[e].is_finite(), "{name}: bn_apply {}", y[e]);
            assert_eq!(result[3].get()[e / 8] >> (e % 8) & 1 == 1, !bad.is_nan(), "{name}: mask");
            assert_eq!(y.iter().filter(|y| !y.is_finite()).count(), 1, "{name}: bn_apply");
        }
    }
}

/// Bits, so that NaN equals itself.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
}

#[test]
fn maxima_of_what_is_not_finite() {
    let oracle = Oracle::new();
    for (storage, c) in Storage::ALL.into_iter().flat_map(|s| [8, 12, 3, 24].map(|c| (s, c))) {
        let (n, h, w) = (2, 6, 5);
        let (shape, name) = (PoolShape { h, w, c }, format!("{storage:?}, {c} channels"));
        let mut x = values(1, n * h * w * c, 0.0, 1.0, storage);
        let special = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0, -0.0];
        for (e, x) in x.iter_mut().enumerate() {
            // The second image has windows of nothing but minus infinity.
            match e * 7919 % 11 {
                _ if e >= h * w * c && e % c % 2 == 0 => *x = f32::NEG_INFINITY,
                kind if kind < special.len() => *x = special[kind],
                _ => {}
            }
        }
        let outputs = n * shape.p() * shape.q() * c;
        let (mut y, mut index) = (vec![0.0; outputs], vec![0; outputs]);
        pooling::max_forward(oracle.cpu(), shape, &x, &mut y, &mut index);
        let bytes = storage.bytes() as usize;
        let memory = [Bytes::stored(storage, &x), Bytes::out(outputs * bytes), Bytes::out(outputs)];
        let args = [Memory(0), Memory(1), Memory(2), U32(n), U32(h), U32(w), U32(c)];
        let Some(result) = run(&named("max_pool", storage), geometry::pool(outputs), &memory, &args) else {
            return;
        };
        assert_eq!(bits(&result[1].values(storage)), bits(&y), "{name}: maxima");
        assert_eq!(result[2].get(), index, "{name}: indices");

        let mut dy = values(2, outputs, 0.0, 1.0, storage);
        dy.iter_mut().step_by(5).for_each(|dy| *dy = f32::NAN);
        let mut dx = vec![0.0; x.len()];
        pooling::max_backward(oracle.cpu(), shape, &dy, &index, &mut dx);
        let memory = [Bytes::stored(storage, &dy), Bytes::new(&index), Bytes::out(x.len() * bytes)];
        let result =
            run(&named("max_pool_backward", storage), geometry::pool(x.len()), &memory, &args).unwrap();
        let got = result[2].values(storage);
        assert!(got.iter().zip(&dx).all(|(got, want)| got.is_nan() == want.is_nan()), "{name}: dx, NaN");
        let [got, want] =
            [&got, &dx].map(|dx| dx.iter().map(|&dx| if dx.is_nan() { 0.0 } else { dx }).collect::<Vec<_>>());
        close(&format!("{name}: dx"), &got, &want, storage.roundoff());
    }
}
