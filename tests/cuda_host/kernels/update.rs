//! From gradients to weights.

use super::By::{F32, Memory, Null, U32, U64};
use super::{By, Bytes, Slot, named, run, slot, values};
use crate::compare::close;
use engine::backend::cuda::abi::{self, Hyper, Outcome, State};
use engine::backend::cuda::network::to_stored;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;
use engine::optim::sgd::Sgd;

#[test]
fn sgd_gives_the_oracles_bits() {
    let (matrix_end, total, decay_end) = (192, 320, 192);
    let (weights, velocity) =
        (values(1, total, 0.0, 1.0, Storage::F32), values(2, total, 0.0, 0.1, Storage::F32));
    for (storage, nesterov) in Storage::ALL.into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let mut gradient = values(3, total, 0.0, 1.0, storage);
        gradient[matrix_end..].copy_from_slice(&values(4, total - matrix_end, 0.0, 1.0, Storage::F32));
        let rule = Sgd { lr: 0.1, momentum: 0.9, nesterov, weight_decay: 1e-2 };
        let hyper = Hyper {
            lr: rule.lr,
            momentum: rule.momentum,
            nesterov: u32::from(nesterov),
            weight_decay: rule.weight_decay,
            ..Hyper::default()
        };
        let Slot { bytes, hyper, staging, state, .. } = slot(&[], &[], hyper);
        let (mut w, mut v) = (weights.clone(), velocity.clone());
        let unscaled: Vec<f32> = gradient.iter().map(|g| g * 0.25).collect();
        rule.step(&mut w[..decay_end], &mut v[..decay_end], &unscaled[..decay_end]);
        let exempt = Sgd { weight_decay: 0.0, ..rule };
        exempt.step(&mut w[decay_end..], &mut v[decay_end..], &unscaled[decay_end..]);
        let memory = |skip| {
            [
                Bytes::f32(&weights),
                Bytes::f32(&velocity),
                Bytes::out(total * storage.bytes() as usize),
                Bytes::stored(storage, &gradient[..matrix_end]),
                Bytes::f32(&gradient[matrix_end..]),
                staging.clone(),
                Bytes::new(bytemuck::bytes_of(&State { skip, ..state })),
                Bytes::f32(&gradient),
                Bytes::f32(&[3.0, 0.0, 0.0, 0.0]),
            ]
        };
        let constants = [Memory(5), U32(2), U64(bytes), U64(hyper), Memory(6)];
        let mut args: Vec<By> = (0..5).map(Memory).collect();
        args.extend([U32(matrix_end), U32(total), U32(decay_end), Null]);
        args.extend(constants);
        let Some(result) = run(&named("sgd", storage), geometry::flat(total), &memory(0), &args) else {
            return;
        };
        assert_eq!(result[0].values(Storage::F32), w, "{storage:?}: weights");
        assert_eq!(result[1].values(Storage::F32), v, "{storage:?}: velocities");
        assert_eq!(result[2].get(), to_stored(storage, &w), "{storage:?}: copy");
        let skipped = run(&named("sgd", storage), geometry::flat(total), &memory(1), &args).unwrap();
        assert_eq!(skipped, memory(1), "a skipped step changes nothing");

        let mut args = vec![Memory(0), Memory(1), Memory(2), Memory(7), U32(total), U32(decay_end), Null];
        args.extend(constants);
        let sum = run(&named("sgd_sum", storage), geometry::flat(total), &memory(0), &args).unwrap();
        assert_eq!(sum[..3], result[..3], "{storage:?}: from sums");

        args[6] = Memory(8);
        let clipped = run(&named("sgd_sum", storage), geometry::flat(total), &memory(0), &args).unwrap();
        let (mut w, mut v) = (weights.clone(), velocity.clone());
        let shorter: Vec<f32> = unscaled.iter().map(|g| g / 3.0).collect();
        rule.step(&mut w[..decay_end], &mut v[..decay_end], &shorter[..decay_end]);
        exempt.step(&mut w[decay_end..], &mut v[decay_end..], &shorter[decay_end..]);
        assert_eq!(clipped[0].values(Storage::F32), w, "{storage:?}: clipped");
    }
}

#[test]
fn gradients_are_added_up_and_checked() {
    let (matrix_end, total) = (128, 192);
    for storage in Storage::ALL {
        let gradient = values(1, total, 0.0, 1.0, storage);
        let before = values(2, total, 0.0, 1.0, Storage::F32);
        for first in [true, false] {
            let Slot { bytes, hyper, staging, state, .. } =
                slot(&[], &[], Hyper { first: u32::from(first), ..Hyper::default() });
            let memory = [
                Bytes::stored(storage, &gradient[..matrix_end]),
                Bytes::f32(&gradient[matrix_end..]),
                Bytes::f32(&before),
                staging,
                Bytes::new(bytemuck::bytes_of(&state)),
            ];
            let args = [
                Memory(0),
                Memory(1),
                Memory(2),
                U32(matrix_end),
                U32(total),
                Memory(3),
                U32(2),
                U64(bytes),
                U64(hyper),
                Memory(4),
            ];
            let Some(result) = run(&named("accumulate", storage), geometry::flat(total), &memory, &args)
            else {
                return;
            };
            let want: Vec<f32> =
                gradient.iter().zip(&before).map(|(g, sum)| if first { *g } else { g + sum }).collect();
            assert_eq!(result[2].values(Storage::F32), want, "{storage:?} first {first}");
        }
        for (bad, value) in
            [(None, 0.0), (Some(5), f32::NAN), (Some(150), f32::INFINITY), (Some(127), f32::NEG_INFINITY)]
        {
            let mut gradient = gradient.clone();
            if let Some(index) = bad {
                gradient[index] = value;
                gradient[0] = f32::NAN;
            }
            let memory = [
                Bytes::stored(storage, &gradient[..matrix_end]),
                Bytes::f32(&gradient[matrix_end..]),
                Bytes::new(bytemuck::bytes_of(&State::default())),
            ];
            let args = [Memory(0), Memory(1), U32(matrix_end), U32(total), Memory(2)];
            let result = run(&named("finite_check", storage), geometry::flat(total), &memory, &args).unwrap();
            let state: State = bytemuck::pod_read_unaligned(result[2].get());
            assert_eq!(state.bad, bad.map_or(0, |index| index as u32 + 1), "{storage:?} {bad:?}");
        }
    }
}

/// (scale, clean, bad, loss_bad, halted) before -> (scale, clean, skip, halted, updates, skipped) after; interval 3,
/// floor 1, ceiling 8.
#[test]
fn the_loss_scale_moves_as_it_should() {
    let cases = [
        ("clean", (4.0, 0, 0, 0, 0), (4.0, 1, 0, 0, 1, 0)),
        ("grows at the interval", (4.0, 2, 0, 0, 0), (8.0, 0, 0, 0, 1, 0)),
        ("not above the ceiling", (8.0, 2, 0, 0, 0), (8.0, 0, 0, 0, 1, 0)),
        ("backs off", (4.0, 2, 9, 0, 0), (2.0, 0, 1, 0, 0, 1)),
        ("stops at the floor", (1.0, 2, 9, 0, 0), (1.0, 0, 1, 1, 0, 0)),
        ("a bad loss stops at once", (4.0, 2, 9, 1, 0), (4.0, 2, 1, 1, 0, 0)),
        ("stays stopped", (4.0, 2, 0, 0, 1), (4.0, 2, 1, 1, 0, 0)),
    ];
    for (name, (scale, clean, bad, loss_bad, halted), want) in cases {
        let state = State { scale, clean, bad, loss_bad, halted, ..State::default() };
        let memory = [Bytes::new(bytemuck::bytes_of(&state))];
        let args = [Memory(0), F32(2.0), F32(0.5), U32(3), F32(1.0), F32(8.0)];
        let Some(result) = run("update_scale", geometry::single(), &memory, &args) else { return };
        let got: State = bytemuck::pod_read_unaligned(result[0].get());
        assert_eq!((got.scale, got.clean, got.skip, got.halted, got.updates, got.skipped), want, "{name}");
        assert_eq!(got.unscale, 1.0 / scale, "{name}");
        let memory = [result[0].clone(), Bytes::out(2 * 64)];
        let result =
            run("end_pass", geometry::single(), &memory, &[Memory(0), Memory(1), U32(2), U32(1)]).unwrap();
        let after: State = bytemuck::pod_read_unaligned(result[0].get());
        let outcome: Outcome = bytemuck::pod_read_unaligned(&result[1].get()[..64]);
        let flags = want.2 * abi::SKIPPED + want.3 * abi::HALTED + loss_bad * abi::LOSS_NOT_FINITE;
        assert_eq!((outcome.flags, outcome.scale, outcome.bad), (flags, scale, bad), "{name}");
        assert_eq!(
            (after.pass, after.skip, after.bad, after.loss_bad, after.halted),
            (1, 0, 0, 0, want.3),
            "{name}"
        );
    }
}

#[test]
fn averages_and_copies() {
    // Running statistics need not be a multiple of eight.
    for total in [72, 77, 3, 2048 + 9] {
        averages(total);
    }
    let total = 72;
    let master = values(2, total, 0.0, 1.0, Storage::F32);
    for storage in Storage::ALL {
        let memory = [Bytes::f32(&master), Bytes::out(total * storage.bytes() as usize)];
        let args = [Memory(0), Memory(1), U32(total)];
        let Some(result) = run(&named("cast", storage), geometry::flat(total), &memory, &args) else {
            return;
        };
        assert_eq!(result[1].get(), to_stored(storage, &master), "{storage:?}");
    }
}

fn averages(total: usize) {
    let (ema, master) = (values(1, total, 0.0, 1.0, Storage::F32), values(2, total, 0.0, 1.0, Storage::F32));
    let Slot { bytes, hyper, staging, state, .. } =
        slot(&[], &[], Hyper { ema_decay: 0.99, ..Hyper::default() });
    let memory = [Bytes::f32(&ema), Bytes::f32(&master), staging, Bytes::new(bytemuck::bytes_of(&state))];
    let args = [Memory(0), Memory(1), U32(total), Memory(2), U32(2), U64(bytes), U64(hyper), Memory(3)];
    let Some(result) = run("ema_update", geometry::flat(total), &memory, &args) else { return };
    let want: Vec<f32> =
        ema.iter().zip(&master).map(|(ema, master)| 0.99 * ema + (1.0 - 0.99) * master).collect();
    close("ema", &result[0].values(Storage::F32), &want, 1e-6);
    // A decay of 1 is no update.
    let still = slot(&[], &[], Hyper { ema_decay: 1.0, ..Hyper::default() }).staging;
    let unmoved = [memory[0].clone(), memory[1].clone(), still, memory[3].clone()];
    assert_eq!(run("ema_update", geometry::flat(total), &unmoved, &args).unwrap()[0], memory[0]);
    let skipped = State { skip: 1, ..state };
    let memory =
        [memory[0].clone(), memory[1].clone(), memory[2].clone(), Bytes::new(bytemuck::bytes_of(&skipped))];
    let result = run("ema_update", geometry::flat(total), &memory, &args).unwrap();
    assert_eq!(result[0], memory[0], "a skipped step changes nothing");
}
