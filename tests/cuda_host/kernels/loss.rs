//! Bias, losses and counts.

use super::By::{Memory, U32, U64};
use super::{Bytes, SUMS, Slot, collect, named, run, slot, values};
use crate::compare::close;
use engine::backend::cuda::abi::{self, Hyper, Item, Outcome, RowScore};
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;
use engine::backend::loss::{LossOptions, softmax_cross_entropy};

#[test]
fn softmax_loss_is_the_cpu_backends() {
    for (storage, classes) in
        Storage::ALL.into_iter().flat_map(|s| [10, 1000, 37].map(|classes| (s, classes)))
    {
        let (n, valid) = (6, 5);
        let (logits, bias) =
            (values(1, n * classes, 0.0, 3.0, Storage::F32), values(2, classes, 0.0, 1.0, Storage::F32));
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 7 % classes as u32).collect();
        let items: Vec<Item> =
            labels.iter().map(|&label| Item { label, lambda: 1.0, ..Item::default() }).collect();
        let hyper =
            Hyper { label_smoothing: 0.1, gradient_scale: 0.125, images: valid as u32, ..Hyper::default() };
        let Slot { bytes, items, hyper, staging, state } = slot(&[], &items, hyper);
        let biased: Vec<f32> =
            logits.iter().enumerate().map(|(i, logit)| logit + bias[i % classes]).collect();
        // The loss scale of `slot` is 4.
        let options = LossOptions { label_smoothing: 0.1, scale: 0.125 * 4.0 };
        let mut want = vec![0.0; n * classes];
        let score = softmax_cross_entropy(
            &biased[..valid * classes],
            &labels[..valid],
            options,
            Some(&mut want[..valid * classes]),
        );

        let state = Bytes::new(bytemuck::bytes_of(&state));
        let memory = [
            Bytes::f32(&logits),
            Bytes::f32(&bias),
            staging.clone(),
            state.clone(),
            Bytes::out(n * classes * storage.bytes() as usize),
            Bytes::out(n * size_of::<RowScore>()),
        ];
        let mut args = vec![Memory(0), Memory(1), Memory(2), U32(2), U64(bytes), U64(items), U64(hyper)];
        args.extend([Memory(3), Memory(4), Memory(5), U32(n), U32(classes)]);
        let Some(result) = run(&named("softmax_loss", storage), geometry::loss(n), &memory, &args) else {
            return;
        };
        let name = format!("{storage:?} {classes} classes");
        close(&format!("{name}: dlogits"), &result[4].values(storage), &want, storage.roundoff() + SUMS);

        let memory = [result[5].clone(), staging, state, Bytes::out(8 * size_of::<Outcome>())];
        let args =
            [Memory(0), Memory(1), U32(2), U64(bytes), U64(hyper), Memory(2), Memory(3), U32(8), U32(n)];
        let sums = run("loss_finalize", geometry::loss_finalize(), &memory, &args).unwrap();
        let outcomes: Vec<Outcome> = collect(sums[3].get());
        let got = outcomes[3];
        assert!((got.loss - score.loss).abs() < SUMS * score.loss, "{name}: {} {}", got.loss, score.loss);
        let hits = (u64::from(got.top1), u64::from(got.top5), u64::from(got.count));
        assert_eq!(hits, (score.top1, score.top5, score.count), "{name}");

        let dlogits = result[4].values(storage);
        let sums: Vec<f32> = (0..classes).map(|k| dlogits.iter().skip(k).step_by(classes).sum()).collect();
        let memory = [result[4].clone(), Bytes::out(4 * classes)];
        let args = [Memory(0), Memory(1), U32(n), U32(classes)];
        let result =
            run(&named("bias_gradient", storage), geometry::bias_gradient(classes), &memory, &args).unwrap();
        close(&format!("{name}: bias gradient"), &result[1].values(Storage::F32), &sums, SUMS);
    }
}

/// Which loss, and its form.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Softmax,
    /// 0: targets as they are.
    Binary {
        threshold: f32,
        sum: bool,
    },
}

/// Loss and probabilities of a row of logits in f64, on these targets; neither overflows.
fn exact(form: Form, z: &[f64], targets: &[f64]) -> (f64, Vec<f64>) {
    if let Form::Binary { sum, .. } = form {
        let term = |(z, t): (&f64, &f64)| z.max(0.0) - z * t + (-z.abs()).exp().ln_1p();
        let over = if sum { 1.0 } else { z.len() as f64 };
        let loss = z.iter().zip(targets).map(term).sum::<f64>() / over;
        let sigmoid = |z: &f64| if *z < 0.0 { z.exp() / (1.0 + z.exp()) } else { 1.0 / (1.0 + (-z).exp()) };
        return (loss, z.iter().map(sigmoid).collect());
    }
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
    let loss = z.iter().zip(targets).map(|(z, t)| t * (log_sum - z)).sum();
    (loss, z.iter().map(|z| (z - log_sum).exp()).collect())
}

/// Targets of mixup with smoothing, against the formula in f64, for both losses; logits far out; and one that is not a
/// number.
#[test]
fn losses_on_mixed_targets() {
    let binary = [(0.0, false), (0.0, true), (0.2, false), (0.2, true)];
    let binary = binary.map(|(threshold, sum)| Form::Binary { threshold, sum });
    let forms = [vec![Form::Softmax], binary.to_vec()].concat();
    for (storage, form) in Storage::ALL.into_iter().flat_map(|s| forms.iter().map(move |&form| (s, form))) {
        for classes in [12, 300] {
            let mut logits = values(1, 2 * classes, 0.0, 2.0, Storage::F32);
            mixed_targets(storage, form, classes, &logits);
            for (logit, far) in logits.iter_mut().zip([90.0, -90.0, 1e4, -1e4, 0.0, 3e4, 88.8, -104.0]) {
                *logit = far;
            }
            mixed_targets(storage, form, classes, &logits);
        }
    }
}

fn mixed_targets(storage: Storage, form: Form, classes: usize, logits: &[f32]) {
    let (n, smoothing) = (2, 0.1);
    let mixed = Item { label: 3, partner: 1, lambda: 0.3, mix: abi::MIXUP, ..Item::default() };
    let items = [mixed, Item { label: 7, lambda: 1.0, ..Item::default() }];
    let target = |row: usize, k: usize| {
        let share = match (row, k) {
            (0, 3) => 0.3,
            (0, 7) => 0.7,
            (1, 7) => 1.0,
            _ => 0.0,
        };
        let target = (1.0 - smoothing) * share + smoothing / classes as f64;
        match form {
            Form::Binary { threshold, .. } if threshold > 0.0 => {
                f64::from(u8::from(target > f64::from(threshold)))
            }
            _ => target,
        }
    };
    let (threshold, sum) = match form {
        Form::Softmax => (0.0, false),
        Form::Binary { threshold, sum } => (threshold, sum),
    };
    let hyper = Hyper {
        label_smoothing: smoothing as f32,
        gradient_scale: 0.5,
        images: 2,
        threshold,
        sum_classes: u32::from(sum),
        ..Hyper::default()
    };
    let Slot { bytes, items, hyper, staging, state } = slot(&[], &items, hyper);
    let kernel = named(if form == Form::Softmax { "softmax_loss" } else { "bce_loss" }, storage);
    let memory = [
        Bytes::f32(logits),
        Bytes::f32(&vec![0.0; classes]),
        staging.clone(),
        Bytes::new(bytemuck::bytes_of(&state)),
        Bytes::out(n * classes * storage.bytes() as usize),
        Bytes::out(n * size_of::<RowScore>()),
    ];
    let mut args = vec![Memory(0), Memory(1), Memory(2), U32(2), U64(bytes), U64(items), U64(hyper)];
    args.extend([Memory(3), Memory(4), Memory(5), U32(n), U32(classes)]);
    let Some(result) = run(&kernel, geometry::loss(n), &memory, &args) else { return };
    let rows: Vec<RowScore> = collect(result[5].get());
    let gradient = result[4].values(storage);
    for (row, z) in logits.chunks(classes).enumerate() {
        let z: Vec<f64> = z.iter().map(|&z| f64::from(z)).collect();
        let targets: Vec<f64> = (0..classes).map(|k| target(row, k)).collect();
        let (loss, probabilities) = exact(form, &z, &targets);
        let share = if form == Form::Softmax || sum { 1.0 } else { 1.0 / classes as f64 };
        for (k, (p, t)) in probabilities.iter().zip(&targets).enumerate() {
            // gradient_scale 0.5 times a loss scale of 4.
            let (got, want) = (f64::from(gradient[row * classes + k]), (p - t) * share * 2.0);
            // One rounding to storage, half a step of half's subnormals at the least.
            let allowed = 1e-5 + storage.roundoff() * want.abs() + 2f64.powi(-25);
            assert!((got - want).abs() < allowed, "{kernel} row {row} class {k}: {got}, wanted {want}");
        }
        let got = f64::from(rows[row].loss);
        assert!((got - loss).abs() < 1e-5 * loss, "{kernel}, {classes} classes: {got}, wanted {loss}");
    }
    let mut broken = memory.clone();
    broken[0] = Bytes::f32(&[&[f32::NAN], &logits[1..]].concat());
    let rows: Vec<RowScore> = collect(run(&kernel, geometry::loss(n), &broken, &args).unwrap()[5].get());
    assert!(rows[0].loss.is_nan() && rows[0].top1 == 0 && rows[1].loss.is_finite());
}
