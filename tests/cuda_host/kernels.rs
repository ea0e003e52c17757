//! Every kernel alone, at shapes with odd channel counts and tails, in all storage types and thread orders, against the
//! CPU backend on the same rounded values.
//!
//! Tolerances: a result that is rounded to storage may be one roundoff from the oracle's, relative to the largest
//! value; sums over n values in f32 add about sqrt(n) 6e-8, for which `SUMS` stands at these sizes.

use crate::compare::close;
use crate::harness::{Arg, Host, ORDERS};
use engine::backend::cpu::batch_norm::{self, Affine, BackwardApply, Epilogue, Gate};
use engine::backend::cpu::pooling::{self, PoolShape};
use engine::backend::cpu::{Cpu, input};
use engine::backend::cuda::abi::{self, Hyper, Item, Outcome, RowScore, State};
use engine::backend::cuda::network::{from_stored, to_stored};
use engine::backend::cuda::plan::geometry::{self, Geometry};
use engine::backend::cuda::ptx::MODULES;
use engine::backend::cuda::storage::Storage;
use engine::backend::loss::{LossOptions, softmax_cross_entropy};
use engine::backend::{EPS, MEAN, STD};
use engine::optim::sgd::Sgd;
use engine::rng::{Purpose, Rng};
use engine::simd::isa::Isa;
use engine::simd::pool::Pool;

/// Error of f32 sums, relative.
const SUMS: f64 = 2e-5;

/// Memory as a card aligns it.
#[derive(Clone, PartialEq, Debug)]
struct Bytes {
    words: Vec<u128>,
    len: usize,
}

impl Bytes {
    fn new(bytes: &[u8]) -> Self {
        let mut words = vec![0u128; bytes.len().div_ceil(16).max(1)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, len: bytes.len() }
    }

    /// Poisoned: what is not written shows.
    fn out(len: usize) -> Self {
        Self::new(&vec![0xff; len])
    }

    fn stored(storage: Storage, values: &[f32]) -> Self {
        Self::new(&to_stored(storage, values))
    }

    fn f32(values: &[f32]) -> Self {
        Self::new(bytemuck::cast_slice(values))
    }

    fn get(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    fn values(&self, storage: Storage) -> Vec<f32> {
        from_stored(storage, self.get())
    }
}

/// An argument: memory by its number, or a value.
#[derive(Clone, Copy)]
enum By {
    Memory(usize),
    Null,
    U32(usize),
    U64(usize),
    F32(f32),
}
use By::{F32, Memory, Null, U32, U64};

/// Runs a kernel in every thread order on copies of `memory`; the results must be the same bits.
fn run(kernel: &str, geometry: Geometry, memory: &[Bytes], args: &[By]) -> Option<Vec<Bytes>> {
    let host = Host::kernels()?;
    let results = ORDERS.map(|order| {
        let mut copies = memory.to_vec();
        let args: Vec<Arg> = args
            .iter()
            .map(|by| match *by {
                Memory(index) => Arg::Pointer(copies[index].words.as_mut_ptr().cast()),
                Null => Arg::Pointer(std::ptr::null_mut()),
                U32(value) => Arg::U32(value as u32),
                U64(value) => Arg::U64(value as u64),
                F32(value) => Arg::F32(value),
            })
            .collect();
        // SAFETY: each test hands over what the kernel's declaration and shapes want; the sanitizer run checks it.
        unsafe { host.launch(kernel, geometry.grid, geometry.block, &args, order) }.unwrap();
        copies
    });
    assert!(
        results.iter().all(|result| *result == results[0]),
        "{kernel}: other bits in another order of threads"
    );
    let [first, ..] = results;
    Some(first)
}

fn named(kernel: &str, storage: Storage) -> String {
    format!("{kernel}_{}", storage.suffix())
}

fn values(seed: u64, n: usize, mean: f64, std: f64, storage: Storage) -> Vec<f32> {
    let mut rng = Rng::new(seed, 0, 0, Purpose::Init);
    let values: Vec<f32> = (0..n).map(|_| (mean + std * rng.normal()) as f32).collect();
    from_stored(storage, &to_stored(storage, &values))
}

struct Oracle {
    pool: Pool,
}

impl Oracle {
    fn new() -> Self {
        Self { pool: Pool::new(1) }
    }

    fn cpu(&self) -> Cpu<'_> {
        Cpu { pool: &self.pool, isa: Isa::current() }
    }
}

/// Rows, channels.
const SHAPES: [(usize, usize); 8] =
    [(1, 8), (2, 3), (300, 64), (37, 33), (129, 10), (1000, 24), (5, 264), (70, 2048)];

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
        close(&format!("{name}: mean"), &got(2), &want.mean, 1e-6);
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
        let result = run(&named("bn_apply", storage), geometry::bn_apply(elements), &memory, &args).unwrap();
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
            let result =
                run(&named("bn_backward_apply", storage), geometry::bn_apply(elements), &apply, &args)
                    .unwrap();
            let tolerance = 2.0 * storage.roundoff() + SUMS;
            close(&format!("{name} gate {gate}: dx"), &result[8].values(storage), &want, tolerance);
            assert_eq!(result[9].values(storage), gated, "{name} gate {gate}: dz");
        }
    }
}

/// n, h, w, c.
const IMAGES: [(usize, usize, usize, usize); 5] =
    [(2, 8, 8, 16), (1, 7, 9, 3), (3, 5, 4, 10), (1, 1, 1, 8), (2, 16, 3, 33)];

#[test]
fn pooling_both_ways() {
    let oracle = Oracle::new();
    for (storage, (n, h, w, c)) in Storage::ALL.into_iter().flat_map(|s| IMAGES.map(|shape| (s, shape))) {
        let name = format!("{storage:?} {n}x{h}x{w}x{c}");
        let (shape, bytes) = (PoolShape { h, w, c }, storage.bytes() as usize);
        // Few values, so that there are ties.
        let x: Vec<f32> =
            values(1, n * h * w * c, 0.0, 2.0, storage).iter().map(|value| value.round()).collect();
        let outputs = n * shape.p() * shape.q() * c;
        let (mut y, mut index) = (vec![0.0; outputs], vec![0; outputs]);
        pooling::max_forward(oracle.cpu(), shape, &x, &mut y, &mut index);
        let sizes = [U32(n), U32(h), U32(w), U32(c)];
        let memory = [Bytes::stored(storage, &x), Bytes::out(outputs * bytes), Bytes::out(outputs)];
        let mut args = vec![Memory(0), Memory(1), Memory(2)];
        args.extend(sizes);
        let Some(result) = run(&named("max_pool", storage), geometry::pool(outputs), &memory, &args) else {
            return;
        };
        assert_eq!(result[1].values(storage), y, "{name}: maxima");
        assert_eq!(result[2].get(), index, "{name}: indices");

        let dy = values(2, outputs, 0.0, 1.0, storage);
        let mut dx = vec![0.0; x.len()];
        pooling::max_backward(oracle.cpu(), shape, &dy, &index, &mut dx);
        let memory = [Bytes::stored(storage, &dy), Bytes::new(&index), Bytes::out(x.len() * bytes)];
        let result =
            run(&named("max_pool_backward", storage), geometry::pool(x.len()), &memory, &args).unwrap();
        close(&format!("{name}: max dx"), &result[2].values(storage), &dx, storage.roundoff() + 1e-6);

        let mut mean = vec![0.0; n * c];
        pooling::average_forward(oracle.cpu(), shape, &x, &mut mean);
        let args = [Memory(0), Memory(1), U32(n), U32(h * w), U32(c)];
        let memory = [Bytes::stored(storage, &x), Bytes::out(n * c * bytes)];
        let result = run(&named("avg_pool", storage), geometry::pool(n * c), &memory, &args).unwrap();
        close(&format!("{name}: mean"), &result[1].values(storage), &mean, storage.roundoff() + 1e-5);
        let dy = values(3, n * c, 0.0, 1.0, storage);
        pooling::average_backward(oracle.cpu(), shape, &dy, &mut dx);
        let memory = [Bytes::stored(storage, &dy), Bytes::out(x.len() * bytes)];
        let result =
            run(&named("avg_pool_backward", storage), geometry::pool(x.len()), &memory, &args).unwrap();
        close(&format!("{name}: mean dx"), &result[1].values(storage), &dx, storage.roundoff() + 1e-6);
    }
}

/// Two slots of which the second is read: what the state's count of passes says.
struct Slot {
    bytes: usize,
    items: usize,
    hyper: usize,
    staging: Bytes,
    state: State,
}

fn slot(images: &[u8], items: &[Item], hyper: Hyper) -> Slot {
    let at = images.len().next_multiple_of(256);
    let hyper_at = (at + size_of_val(items)).next_multiple_of(256);
    let bytes = hyper_at + 256;
    let mut staging = vec![0xff; 2 * bytes];
    staging[bytes..][..images.len()].copy_from_slice(images);
    staging[bytes + at..][..size_of_val(items)].copy_from_slice(bytemuck::cast_slice(items));
    staging[bytes + hyper_at..][..64].copy_from_slice(bytemuck::bytes_of(&hyper));
    let state = State { pass: 3, scale: 4.0, unscale: 0.25, ..State::default() };
    Slot { bytes, items: at, hyper: hyper_at, staging: Bytes::new(&staging), state }
}

#[test]
fn input_is_normalised_flipped_and_mixed() {
    let oracle = Oracle::new();
    let (n, h, w) = (3, 5, 7);
    let mut rng = Rng::new(5, 0, 0, Purpose::Init);
    let images: Vec<u8> = (0..n * h * w * 3).map(|_| rng.below(256) as u8).collect();
    let mut plain = vec![0.0; images.len()];
    input::normalise(oracle.cpu(), &images, &mut plain);
    let own = Item { lambda: 1.0, ..Item::default() };
    let items = [
        Item { flip: 1, ..own },
        Item { mix: abi::MIXUP, partner: 0, lambda: 0.25, ..own },
        Item { mix: abi::CUTMIX, partner: 1, lambda: 0.8, x0: 2, x1: 5, y0: 1, y1: 4, ..own },
    ];
    let at = |image: usize, row: usize, column: usize, c: usize| {
        let column = if items[image].flip == 1 { w - 1 - column } else { column };
        plain[((image * h + row) * w + column) * 3 + c]
    };
    for (storage, channels) in Storage::ALL.into_iter().flat_map(|s| [(s, 4), (s, 8)]) {
        let mut want = vec![0.0; n * h * w * channels];
        for (i, value) in want.iter_mut().enumerate() {
            let (c, column, row, image) =
                (i % channels, i / channels % w, i / channels / w % h, i / channels / w / h);
            if c < 3 {
                let inside = (2..5).contains(&column) && (1..4).contains(&row);
                *value = match image {
                    1 => 0.25 * at(1, row, column, c) + 0.75 * at(0, row, column, c),
                    2 if inside => at(1, row, column, c),
                    image => at(image, row, column, c),
                };
            }
        }
        let Slot { bytes, items, staging, state, .. } = slot(&images, &items, Hyper::default());
        let memory = [
            staging,
            Bytes::new(bytemuck::bytes_of(&state)),
            Bytes::out(want.len() * storage.bytes() as usize),
        ];
        let mut args = vec![Memory(0), U32(2), U64(bytes), U64(items), Memory(1), Memory(2)];
        args.extend([U32(n), U32(h), U32(w), U32(channels)]);
        args.extend(MEAN.iter().chain(&STD).map(|&value| F32(value)));
        let Some(result) = run(&named("input", storage), geometry::input(n * h * w), &memory, &args) else {
            return;
        };
        close(&format!("input {storage:?}"), &result[2].values(storage), &want, storage.roundoff() + 1e-6);
    }
}

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

/// Targets of mixup with smoothing, against the formula in f64, for both losses; and a logit that is not a number.
#[test]
fn losses_on_mixed_targets() {
    let (n, classes, smoothing) = (2, 12, 0.1);
    let logits = values(1, n * classes, 0.0, 2.0, Storage::F32);
    let mixed = Item { label: 3, partner: 1, lambda: 0.3, mix: abi::MIXUP, ..Item::default() };
    let items = [mixed, Item { label: 7, lambda: 1.0, ..Item::default() }];
    let target = |row: usize, k: usize| {
        let share = match (row, k) {
            (0, 3) => 0.3,
            (0, 7) => 0.7,
            (1, 7) => 1.0,
            _ => 0.0,
        };
        (1.0 - smoothing) * share + smoothing / classes as f64
    };
    let hyper =
        Hyper { label_smoothing: smoothing as f32, gradient_scale: 0.5, images: 2, ..Hyper::default() };
    let Slot { bytes, items, hyper, staging, state } = slot(&[], &items, hyper);
    for (kernel, binary) in [("softmax_loss_f32", false), ("bce_loss_f32", true)] {
        let memory = [
            Bytes::f32(&logits),
            Bytes::f32(&vec![0.0; classes]),
            staging.clone(),
            Bytes::new(bytemuck::bytes_of(&state)),
            Bytes::out(4 * n * classes),
            Bytes::out(n * size_of::<RowScore>()),
        ];
        let mut args = vec![Memory(0), Memory(1), Memory(2), U32(2), U64(bytes), U64(items), U64(hyper)];
        args.extend([Memory(3), Memory(4), Memory(5), U32(n), U32(classes)]);
        let Some(result) = run(kernel, geometry::loss(n), &memory, &args) else { return };
        let rows: Vec<RowScore> = collect(result[5].get());
        let gradient = result[4].values(Storage::F32);
        for (row, z) in logits.chunks(classes).enumerate() {
            let z: Vec<f64> = z.iter().map(|&z| f64::from(z)).collect();
            let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
            let probability =
                |k: usize| if binary { 1.0 / (1.0 + (-z[k]).exp()) } else { (z[k] - log_sum).exp() };
            let (mut loss, share) = (0.0, if binary { 1.0 / classes as f64 } else { 1.0 });
            for k in 0..classes {
                let (p, t) = (probability(k), target(row, k));
                loss -= share * (t * p.ln() + if binary { (1.0 - t) * (1.0 - p).ln() } else { 0.0 });
                // gradient_scale 0.5 times a loss scale of 4.
                let (got, want) = (f64::from(gradient[row * classes + k]), (p - t) * share * 2.0);
                assert!((got - want).abs() < 1e-5, "{kernel} row {row} class {k}: {got}, wanted {want}");
            }
            assert!(
                (f64::from(rows[row].loss) - loss).abs() < 1e-5 * loss,
                "{kernel}: {:?}, wanted {loss}",
                rows[row]
            );
        }
        let mut broken = memory.clone();
        broken[0] = Bytes::f32(&[&[f32::NAN], &logits[1..]].concat());
        let rows: Vec<RowScore> = collect(run(kernel, geometry::loss(n), &broken, &args).unwrap()[5].get());
        assert!(rows[0].loss.is_nan() && rows[0].top1 == 0 && rows[1].loss.is_finite());
    }
}

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
            ]
        };
        let mut args: Vec<By> = (0..5).map(Memory).collect();
        args.extend([
            U32(matrix_end),
            U32(total),
            U32(decay_end),
            Memory(5),
            U32(2),
            U64(bytes),
            U64(hyper),
            Memory(6),
        ]);
        let Some(result) = run(&named("sgd", storage), geometry::flat(total), &memory(0), &args) else {
            return;
        };
        assert_eq!(result[0].values(Storage::F32), w, "{storage:?}: weights");
        assert_eq!(result[1].values(Storage::F32), v, "{storage:?}: velocities");
        assert_eq!(result[2].get(), to_stored(storage, &w), "{storage:?}: copy");
        let skipped = run(&named("sgd", storage), geometry::flat(total), &memory(1), &args).unwrap();
        assert_eq!(skipped, memory(1), "a skipped step changes nothing");

        let mut args = vec![Memory(0), Memory(1), Memory(2), Memory(7), U32(total), U32(decay_end)];
        args.extend([Memory(5), U32(2), U64(bytes), U64(hyper), Memory(6)]);
        let sum = run(&named("sgd_sum", storage), geometry::flat(total), &memory(0), &args).unwrap();
        assert_eq!(sum[..3], result[..3], "{storage:?}: from sums");
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
    let total = 72;
    let (ema, master) = (values(1, total, 0.0, 1.0, Storage::F32), values(2, total, 0.0, 1.0, Storage::F32));
    let Slot { bytes, hyper, staging, state, .. } =
        slot(&[], &[], Hyper { ema_decay: 0.99, ..Hyper::default() });
    let memory = [Bytes::f32(&ema), Bytes::f32(&master), staging, Bytes::new(bytemuck::bytes_of(&state))];
    let args = [Memory(0), Memory(1), U32(total), Memory(2), U32(2), U64(bytes), U64(hyper), Memory(3)];
    let Some(result) = run("ema_update", geometry::flat(total), &memory, &args) else { return };
    let want: Vec<f32> =
        ema.iter().zip(&master).map(|(ema, master)| 0.99 * ema + (1.0 - 0.99) * master).collect();
    close("ema", &result[0].values(Storage::F32), &want, 1e-6);
    for storage in Storage::ALL {
        let memory = [Bytes::f32(&master), Bytes::out(total * storage.bytes() as usize)];
        let args = [Memory(0), Memory(1), U32(total)];
        let result = run(&named("cast", storage), geometry::flat(total), &memory, &args).unwrap();
        assert_eq!(result[1].get(), to_stored(storage, &master), "{storage:?}");
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

#[test]
fn every_kernel_is_in_the_ptx() {
    let Some(host) = Host::kernels() else { return };
    let names = host.names();
    assert!(names.len() > 40, "{names:?}");
    for name in names {
        let entry = format!(".entry {name}(");
        assert!(
            MODULES.iter().any(|(_, ptx)| ptx.contains(&entry)),
            "{name} is in no PTX: run kernels/build.py"
        );
    }
}

fn collect<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}
