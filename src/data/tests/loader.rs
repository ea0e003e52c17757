use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::order::epoch_order;
use super::super::*;
use super::class_folders;

fn options() -> TrainOptions {
    TrainOptions { seed: 3, epoch: 2, workers: 1, ..TrainOptions::new(TrainTransform::new(24), 5) }
}

fn data(train: usize, val: usize) -> (tempfile::TempDir, Dataset) {
    let dir = tempfile::tempdir().unwrap();
    class_folders(dir.path(), train, val);
    let data = Dataset::open(dir.path()).unwrap();
    (dir, data)
}

fn batches(split: &Arc<Split>, options: TrainOptions) -> Vec<Batch> {
    Loader::train(Arc::clone(split), options).unwrap().map(Result::unwrap).collect()
}

fn eval_options(workers: usize) -> EvalOptions {
    let transform = EvalTransform { resize: 30, crop: 24, interpolation: Interpolation::Bicubic };
    EvalOptions { workers, ..EvalOptions::new(transform, 4) }
}

#[test]
fn batches_depend_on_neither_workers_nor_start() {
    let (_dir, data) = data(9, 1);
    let want = batches(&data.train, options());
    // 27 images in batches of 5: the last 2 are dropped.
    assert_eq!(want.len(), 5);
    let order = epoch_order(27, 0, 3, 2);
    assert!(want.iter().flat_map(|b| &b.samples).eq(&order[..25]));
    for batch in &want {
        assert_eq!(batch.images.len(), 5 * 24 * 24 * 3);
        assert!(batch.samples.iter().zip(&batch.labels).all(|(&s, &l)| data.train.label(s as usize) == l));
    }
    for workers in [1, 2, 8] {
        for start_batch in 0..=6 {
            let got = batches(&data.train, TrainOptions { workers, start_batch, ..options() });
            assert!(got == want[start_batch.min(5)..], "{workers} workers from batch {start_batch}");
        }
    }
    for other in [TrainOptions { seed: 4, ..options() }, TrainOptions { epoch: 3, ..options() }] {
        let got = batches(&data.train, other);
        assert!(got[0] != want[0]);
    }
}

#[test]
fn memory_that_is_given_back_changes_nothing() {
    let (_dir, data) = data(9, 1);
    let want = batches(&data.train, options());
    let mut loader = Loader::train(Arc::clone(&data.train), options()).unwrap();
    assert_eq!(loader.batches_per_epoch(), 5);
    for want in want {
        let got = loader.next().unwrap().unwrap();
        assert!(got == want);
        loader.recycle(got);
    }
    assert!(loader.next().is_none() && loader.waited() > Duration::ZERO);
}

#[test]
fn a_training_image_is_the_crop_then_the_flip() {
    use crate::rng::{Purpose, Rng};
    let (_dir, data) = data(3, 1);
    let mut flips = 0;
    for batch in batches(&data.train, TrainOptions { batch: 1, ..options() }) {
        let sample = batch.samples[0];
        let image = decode(&data.train.read(sample as usize).unwrap(), "x", Limits::default()).unwrap();
        let mut rng = Rng::new(3, 2, u64::from(sample), Purpose::Crop);
        let rect =
            augment::random_resized_crop(image.height, image.width, &Crop::default(), &mut || rng.unit());
        let region = decode::Region { pixels: &image.pixels, height: image.height, width: image.width, rect };
        let mut want = vec![0; 24 * 24 * 3];
        resize::Resizer::default().resize(region, Interpolation::Bilinear, 24, 24, &mut want).unwrap();
        if Rng::new(3, 2, u64::from(sample), Purpose::Flip).unit() < 0.5 {
            flips += 1;
            let row = |row: &[u8]| row.chunks_exact(3).rev().flatten().copied().collect::<Vec<u8>>();
            want = want.chunks_exact(24 * 3).flat_map(row).collect();
        }
        assert!(batch.images == want);
    }
    assert!((1..9).contains(&flips), "both kinds occur");
}

#[test]
fn evaluation_gives_every_image_once_in_order() {
    let (_dir, data) = data(1, 3);
    let run = |workers| -> Vec<Batch> {
        Loader::eval(Arc::clone(&data.val), eval_options(workers)).unwrap().map(Result::unwrap).collect()
    };
    let got = run(1);
    assert_eq!(got.iter().map(|b| b.labels.len()).collect::<Vec<_>>(), [4, 4, 1]);
    assert!(got.iter().flat_map(|b| b.samples.iter().copied()).eq(0..9));
    assert!(got == run(2) && got == run(8));
}

#[test]
fn an_image_smaller_than_the_crop_is_padded() {
    let (_dir, data) = data(1, 1);
    let transform = EvalTransform { resize: 10, crop: 24, interpolation: Interpolation::Bilinear };
    let mut loader = Loader::eval(Arc::clone(&data.val), EvalOptions::new(transform, 1)).unwrap();
    let batch = loader.next().unwrap().unwrap();
    // 40 x 48 becomes 10 x 12: rows 7 to 16 and columns 6 to 17 hold it.
    for (i, pixel) in batch.images.chunks_exact(3).enumerate() {
        let inside = (7..17).contains(&(i / 24)) && (6..18).contains(&(i % 24));
        assert_eq!(pixel != [0, 0, 0], inside, "row {}, column {}", i / 24, i % 24);
    }
}

#[test]
fn a_limit_is_the_same_subset_for_every_seed() {
    let (_dir, data) = data(9, 1);
    let samples = |seed, epoch| {
        let batches = batches(&data.train, TrainOptions { limit: 10, seed, epoch, ..options() });
        let mut samples: Vec<u32> = batches.into_iter().flat_map(|b| b.samples).collect();
        assert_eq!(samples.len(), 10);
        samples.sort_unstable();
        samples
    };
    assert_eq!(samples(0, 0), samples(7, 5));
    assert_ne!(samples(0, 0), (0..10).collect::<Vec<u32>>());
}

#[test]
fn a_bad_file_is_named_and_replaced_by_the_next_good_one() {
    let (dir, data) = data(9, 3);
    let clean = batches(&data.train, TrainOptions { batch: 27, ..options() }).remove(0);
    let slots = [4usize, 5, 26];
    for (slot, bytes) in slots.iter().zip([&b""[..], b"hello world", b"\xff\xd8\xff\xe0"]) {
        fs::write(data.train.name(clean.samples[*slot] as usize), bytes).unwrap();
    }
    for workers in [1, 4] {
        let options = TrainOptions { batch: 27, bad_share: 0.2, workers, ..options() };
        let mut loader = Loader::train(Arc::clone(&data.train), options).unwrap();
        let batch = loader.next().unwrap().unwrap();
        let stride = 24 * 24 * 3;
        for slot in 0..27 {
            let from = match slot {
                4 | 5 => 6,
                26 => 0,
                _ => slot,
            };
            assert_eq!((batch.samples[slot], batch.labels[slot]), (clean.samples[from], clean.labels[from]));
            assert!(
                batch.images[slot * stride..][..stride] == clean.images[from * stride..][..stride],
                "{slot}"
            );
        }
        assert_eq!(
            loader.bad().iter().map(|b| b.sample).collect::<Vec<_>>(),
            slots.map(|s| clean.samples[s])
        );
        assert!(loader.bad()[0].message.contains(&data.train.name(clean.samples[4] as usize)));
        assert!(loader.bad()[0].message.contains("no bytes"));
    }
    // 27 images allow max(1, 0.01 * 27) = 1 bad one.
    let mut loader = Loader::train(Arc::clone(&data.train), TrainOptions { batch: 27, ..options() }).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.message.starts_with("3 of 27 images could not be used, more than the 1 that"), "{error}");
    assert!(error.message.contains("no bytes") && loader.next().is_none());

    // One bad file never stops a run, unless none is allowed; in evaluation it is left out.
    fs::write(dir.path().join("val/dog/dog_001.jpg"), b"").unwrap();
    let mut loader = Loader::eval(Arc::clone(&data.val), eval_options(2)).unwrap();
    let samples: Vec<u32> = loader.by_ref().flat_map(|b| b.unwrap().samples).collect();
    assert_eq!(samples, [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(loader.bad().len(), 1);
    let none = EvalOptions { bad_share: 0.0, ..eval_options(2) };
    assert!(Loader::eval(Arc::clone(&data.val), none).unwrap().any(|b| b.is_err()));
}

#[test]
fn a_missing_file_is_a_bad_file() {
    let (dir, data) = data(9, 1);
    fs::remove_file(dir.path().join("train/owl/owl_003.jpg")).unwrap();
    let mut loader = Loader::train(Arc::clone(&data.train), TrainOptions { batch: 27, ..options() }).unwrap();
    assert!(loader.next().unwrap().is_ok());
    assert!(loader.bad()[0].message.contains("owl_003.jpg: cannot read it"), "{:?}", loader.bad());
}

#[test]
fn a_panic_in_a_worker_is_an_error_and_not_a_hang() {
    let mut split = Split::default();
    // A place that does not exist.
    (0..5).for_each(|_| split.push(7, 0, "x.jpg", 0, 0));
    let mut loader = Loader::eval(Arc::new(split), eval_options(2)).unwrap();
    let error = loader.next().unwrap().unwrap_err();
    assert!(error.message.contains("a data worker panicked on it: index out of bounds"), "{error}");
    assert!(loader.next().is_none());
}

#[test]
fn dropping_a_loader_stops_its_workers() {
    let (_dir, data) = data(9, 1);
    let begin = Instant::now();
    for _ in 0..20 {
        let options = TrainOptions { batch: 1, workers: 8, ..options() };
        let mut loader = Loader::train(Arc::clone(&data.train), options).unwrap();
        assert!(loader.next().unwrap().is_ok());
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn impossible_batches_are_refused() {
    let (_dir, data) = data(1, 1);
    for batch in [0, 4] {
        let error =
            Loader::train(Arc::clone(&data.train), TrainOptions { batch, ..options() }).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.message.contains("the training set has 3 images"), "{error}");
    }
    let none = EvalOptions { batch: 0, ..eval_options(1) };
    assert!(Loader::eval(Arc::clone(&data.val), none).err().unwrap().message.contains("batch 0, resize 30"));
}
