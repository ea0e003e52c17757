//! Batch norms at whose branches images may skip: against the plain kernels' oracle with one factor an image.

use super::By::{Memory, Null, U32, U64};
use super::{By, Bytes, Oracle, SUMS, Slot, named, run, slot, values};
use crate::compare::close;
use engine::backend::cpu::batch_norm::{self, Gate};
use engine::backend::cuda::abi::Hyper;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;

/// Images, rows of each, channels: also rows of several images in one thread, and packs that end in an image's middle.
const SHAPES: [(usize, usize, usize); 6] =
    [(4, 49, 64), (3, 37, 33), (5, 2, 10), (2, 300, 24), (7, 1, 264), (3, 9, 2056)];

/// Skipped, kept at several rates.
fn factors(images: usize) -> Vec<f32> {
    (0..images).map(|image| [0.0, 1.0, 1.25, 2.0][image % 4]).collect()
}

fn element(values: &[f32], channels: usize, index: usize) -> f64 {
    f64::from(values[index % channels])
}

#[test]
fn branches_are_multiplied_image_by_image() {
    for (storage, (images, image_rows, channels)) in
        Storage::ALL.into_iter().flat_map(|s| SHAPES.map(|shape| (s, shape)))
    {
        let name = format!("{storage:?} {images} x {image_rows} x {channels}");
        let (size, elements) = (image_rows * channels, images * image_rows * channels);
        let (x, z) = (values(1, elements, 0.0, 1.0, storage), values(2, elements, 0.0, 1.0, storage));
        let by = [3, 4, 5, 6, 7, 8].map(|seed| values(seed, channels, 0.5, 1.0, Storage::F32));
        let factors = factors(images);
        for normalised in [false, true] {
            let want: Vec<f32> = (0..elements)
                .map(|e| {
                    let of = |index: usize| element(&by[index], channels, e);
                    let branch = (f64::from(x[e]) - of(0)) * of(1) + of(2);
                    let other = f64::from(z[e]);
                    let other = if normalised { (other - of(3)) * of(4) + of(5) } else { other };
                    (branch * f64::from(factors[e / size]) + other).max(0.0) as f32
                })
                .collect();
            let mut memory = vec![Bytes::stored(storage, &x), Bytes::stored(storage, &z)];
            memory.extend(by.iter().map(|values| Bytes::f32(values)));
            memory.extend([
                Bytes::out(elements * storage.bytes() as usize),
                Bytes::out(elements.div_ceil(8)),
                Bytes::f32(&factors),
            ]);
            let mut args = vec![Memory(0), Memory(2), Memory(3), Memory(4), Memory(1)];
            args.extend(if normalised { [5, 6, 7].map(Memory) } else { [Null; 3] });
            args.extend([Memory(8), Memory(9), U64(elements), U32(channels), U32(1), Memory(10), U32(size)]);
            let geometry = geometry::bn_apply(elements, channels);
            let Some(result) = run(&named("bn_apply_drop", storage), geometry, &memory, &args) else {
                return;
            };
            let got = result[8].values(storage);
            close(&format!("{name}: y"), &got, &want, 2.0 * storage.roundoff() + 4e-6);
            let bit = |e: usize| result[9].get()[e / 8] >> (e % 8) & 1 == 1;
            assert!((0..elements).all(|e| bit(e) == (got[e] > 0.0) || got[e] == 0.0), "{name}: mask");
        }
    }
}

/// As the plain backward pass of a gradient that has been multiplied before; the sum's other term gets it as it was.
#[test]
fn gradients_into_branches_are_too() {
    let oracle = Oracle::new();
    for (storage, (images, image_rows, channels)) in
        Storage::ALL.into_iter().flat_map(|s| SHAPES.map(|shape| (s, shape)))
    {
        let name = format!("{storage:?} {images} x {image_rows} x {channels}");
        let (rows, size) = (images * image_rows, image_rows * channels);
        let elements = rows * channels;
        let (x, dy) = (values(1, elements, 0.5, 1.0, storage), values(2, elements, 0.1, 1.0, storage));
        let statistics = batch_norm::statistics(oracle.cpu(), &x, channels);
        let (scale, beta) = (values(3, channels, 1.0, 0.3, Storage::F32), vec![0.0; channels]);
        let [b, c] = [4, 5].map(|seed| values(seed, channels, 0.0, 0.3, Storage::F32));
        let factors = factors(images);
        let open = |e: usize| !(e * 7 / 3).is_multiple_of(3);
        let mask: Vec<u8> = (0..elements.div_ceil(8))
            .map(|byte| (0..8).fold(0, |bits, i| bits | u8::from(open(8 * byte + i)) << i))
            .collect();
        let gated: Vec<f32> = (0..elements).map(|e| if open(e) { dy[e] } else { 0.0 }).collect();
        let mut branch: Vec<f32> = gated.iter().enumerate().map(|(e, d)| d * factors[e / size]).collect();

        let per_block = geometry::reduce_rows_per_block(rows, channels);
        let blocks = rows.div_ceil(per_block);
        let stored = elements * storage.bytes() as usize;
        let memory = [
            Bytes::stored(storage, &dy),
            Bytes::stored(storage, &x),
            Bytes::new(&mask),
            Bytes::f32(&statistics.mean),
            Bytes::f32(&scale),
            Bytes::f32(&beta),
            Bytes::out(8 * blocks * channels),
            Bytes::f32(&b),
            Bytes::f32(&c),
            Bytes::out(stored),
            Bytes::out(stored),
            Bytes::f32(&factors),
        ];
        let common: Vec<By> = (0..6).map(Memory).collect();
        let sizes = [U32(rows), U32(channels), U32(per_block), U32(2), Memory(11), U32(image_rows)];
        let args = [&common[..], &[Memory(6)], &sizes].concat();
        let geometry = geometry::bn_backward_reduce(rows, channels);
        let Some(result) = run(&named("bn_backward_reduce_drop", storage), geometry, &memory, &args) else {
            return;
        };
        let want = batch_norm::backward_reduce(oracle.cpu(), &statistics, &x, Gate::Open, &mut branch);
        let partials: Vec<f32> = result[6].values(Storage::F32);
        let sum = |channel: usize, which: usize| -> f32 {
            (0..blocks).map(|block| partials[2 * (block * channels + channel) + which]).sum()
        };
        let beta_gradient: Vec<f32> = (0..channels).map(|channel| sum(channel, 0)).collect();
        let gamma_gradient: Vec<f32> =
            (0..channels).map(|channel| sum(channel, 1) * statistics.rstd[channel]).collect();
        close(&format!("{name}: dbeta"), &beta_gradient, &want.beta, SUMS);
        close(&format!("{name}: dgamma"), &gamma_gradient, &want.gamma, SUMS);

        let sizes = [U64(elements), U32(channels), U32(2), Memory(11), U32(size)];
        let args = [&common[..], &[7, 8, 9, 10].map(Memory), &sizes].concat();
        let geometry = geometry::bn_apply(elements, channels);
        let result = run(&named("bn_backward_apply_drop", storage), geometry, &memory, &args).unwrap();
        let want: Vec<f32> = (0..elements)
            .map(|e| {
                let of = |values: &[f32]| element(values, channels, e);
                let slope = of(&b) * (f64::from(x[e]) - of(&statistics.mean));
                (of(&scale) * f64::from(branch[e]) + slope + of(&c)) as f32
            })
            .collect();
        let tolerance = 2.0 * storage.roundoff() + 4e-6;
        close(&format!("{name}: dx"), &result[9].values(storage), &want, tolerance);
        assert_eq!(result[10].values(storage), gated, "{name}: dz");
    }
}

#[test]
fn factors_come_from_the_passs_slot() {
    let factors: Vec<f32> = (0..300).map(|index| index as f32 * 0.5).collect();
    // Where the slot has its images.
    let Slot { bytes, staging, state, .. } = slot(bytemuck::cast_slice(&factors), &[], Hyper::default());
    let memory = [staging, Bytes::new(bytemuck::bytes_of(&state)), Bytes::out(4 * 300)];
    let args = [Memory(0), U32(2), U64(bytes), U64(0), Memory(1), Memory(2), U32(300)];
    let geometry = geometry::drop_path_factors(300);
    let Some(result) = run("drop_path_factors", geometry, &memory, &args) else { return };
    assert_eq!(result[2].values(Storage::F32), factors);
}
