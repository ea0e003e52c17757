//! What images go through outside batch norm: input and pooling.

use super::By::{F32, Memory, U32, U64};
use super::{Bytes, Oracle, Slot, named, run, slot, values};
use crate::compare::close;
use engine::backend::cpu::input;
use engine::backend::cpu::pooling::{self, PoolShape};
use engine::backend::cuda::abi::{self, Hyper, Item};
use engine::backend::cuda::network::item;
use engine::backend::cuda::plan::geometry;
use engine::backend::cuda::storage::Storage;
use engine::backend::{MEAN, STD};
use engine::data::{Batch, Blend, Erase, Fill, Mix, Rect, batch};
use engine::rng::{Purpose, Rng, nth};

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

#[test]
fn input_is_normalised_flipped_and_mixed() {
    // An odd number of pixels: the last pack is of one alone. The larger batch takes several blocks.
    input_of(5, 7);
    input_of(31, 33);
}

/// Rectangles of a colour and of noise, before images are mixed: a mixed image takes in its partner's rectangle as well.
#[test]
fn input_is_erased_before_it_is_mixed() {
    let (oracle, n, side) = (Oracle::new(), 4, 9);
    let mut rng = Rng::new(6, 0, 0, Purpose::Init);
    let images: Vec<u8> = (0..n * side * side * 3).map(|_| rng.below(256) as u8).collect();
    let mut plain = vec![0.0; images.len()];
    input::normalise(oracle.cpu(), &images, &mut plain);
    let key = 0xfedc_ba98_7654_3210u64;
    let own = Item { lambda: 1.0, ..Item::default() };
    let colour = [0.5f32, -1.25, 2.0];
    let noise = Item { erase: abi::NOISE, fill: [key as u32, (key >> 32) as u32, 0], ..own };
    let items = [
        Item { erase: abi::COLOUR, fill: colour.map(f32::to_bits), ex0: 1, ey0: 2, ex1: 4, ey1: 9, ..own },
        Item { ex0: 3, ey0: 0, ex1: 9, ey1: 5, ..noise },
        Item { mix: abi::MIXUP, partner: 1, lambda: 0.25, ..own },
        Item { mix: abi::CUTMIX, partner: 0, lambda: 0.5, x0: 0, y0: 0, x1: 6, y1: 6, flip: 1, ..noise },
    ];
    let value = |image: usize, row: usize, column: usize, c: usize| {
        let item = &items[image];
        let inside =
            (item.ex0..item.ex1).contains(&(column as u16)) && (item.ey0..item.ey1).contains(&(row as u16));
        let from = if item.flip == 1 { side - 1 - column } else { column };
        match item.erase {
            abi::COLOUR if inside => colour[c],
            abi::NOISE if inside => batch::noise(nth(key, ((row * side + column) * 3 + c) as u64)),
            _ => plain[((image * side + row) * side + from) * 3 + c],
        }
    };
    for (storage, channels) in Storage::ALL.into_iter().flat_map(|s| [(s, 4), (s, 8)]) {
        let mut want = vec![0.0; n * side * side * channels];
        for (i, want) in want.iter_mut().enumerate() {
            let (c, column, row, image) =
                (i % channels, i / channels % side, i / channels / side % side, i / channels / side / side);
            if c < 3 {
                *want = match image {
                    2 => 0.25 * value(2, row, column, c) + 0.75 * value(1, row, column, c),
                    3 if row < 6 && column < 6 => value(0, row, column, c),
                    image => value(image, row, column, c),
                };
            }
        }
        let Some(got) = made("input_erased", storage, [n, side, side, channels], &images, &items) else {
            return;
        };
        close(&format!("erased {storage:?} {channels}"), &got, &want, storage.roundoff() + 2e-6);
    }
}

/// timm's order: bytes are mixed, then normalised, then erased; a mixed image takes in nothing of its partner's rectangle.
#[test]
fn input_is_mixed_in_bytes_and_erased_afterwards() {
    let (oracle, n, side) = (Oracle::new(), 4, 9);
    let mut rng = Rng::new(7, 0, 0, Purpose::Init);
    let rect = Rect { top: 2, left: 1, height: 6, width: 3 };
    let fills = [Fill::Colour([0.5, -1.25, 2.0]), Fill::Noise(0xfedc_ba98_7654_3210)];
    let mix = |index: u32| {
        let region = (index % 2 == 1).then_some(Rect { top: 0, left: 2, height: 5, width: 7 });
        Mix { partner: 3 - index, lambda: [0.3, 0.6, 0.5, 0.9371][index as usize], region }
    };
    let batch = Batch {
        images: (0..n * side * side * 3).map(|_| rng.below(256) as u8).collect(),
        labels: vec![0; n],
        resolution: side,
        mixes: (0..4).map(mix).collect(),
        erased: (0..n).map(|index| (index < 3).then(|| Erase { rect, fill: fills[index % 2] })).collect(),
        blend: Blend::Bytes,
        ..Batch::default()
    };
    let mut plain = vec![0.0; batch.images.len()];
    assert!(input::load(oracle.cpu(), &batch, &mut plain, || unreachable!("bytes are mixed")).is_none());
    let items: Vec<Item> = (0..n).map(|index| item(&batch, index)).collect();
    for (storage, channels) in Storage::ALL.into_iter().flat_map(|s| [(s, 4), (s, 8)]) {
        let mut want = vec![0.0; n * side * side * channels];
        for (to, from) in want.chunks_exact_mut(channels).zip(plain.chunks_exact(3)) {
            to[..3].copy_from_slice(from);
        }
        let Some(got) = made("input_erased", storage, [n, side, side, channels], &batch.images, &items)
        else {
            return;
        };
        close(&format!("bytes {storage:?} {channels}"), &got, &want, storage.roundoff() + 2e-6);
    }
}

/// What an input kernel makes of `images`, [n][h][w][channels]; `None` where kernels cannot be run here.
fn made(
    kernel: &str,
    storage: Storage,
    [n, h, w, channels]: [usize; 4],
    images: &[u8],
    items: &[Item],
) -> Option<Vec<f32>> {
    let Slot { bytes, items, staging, state, .. } = slot(images, items, Hyper::default());
    let results = n * h * w * channels * storage.bytes() as usize;
    let memory = [staging, Bytes::new(bytemuck::bytes_of(&state)), Bytes::out(results)];
    let mut args = vec![Memory(0), U32(2), U64(bytes), U64(items), Memory(1), Memory(2)];
    args.extend([U32(n), U32(h), U32(w), U32(channels)]);
    args.extend(MEAN.iter().chain(&STD).map(|&value| F32(value)));
    let result = run(&named(kernel, storage), geometry::input(n * h * w * channels), &memory, &args)?;
    Some(result[2].values(storage))
}

fn input_of(h: usize, w: usize) {
    let (oracle, n) = (Oracle::new(), 3);
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
        let Some(got) = made("input", storage, [n, h, w, channels], &images, &items) else { return };
        close(&format!("input {storage:?}"), &got, &want, storage.roundoff() + 1e-6);
    }
}
