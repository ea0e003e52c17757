//! The loader's memory: what an image takes is there before it comes.
//!
//! Rust's allocations are counted, not those inside libjpeg-turbo, which has a pool of its own for each picture. A program
//! of its own, since the allocator counts for all threads.

use engine::data::{Loader, Splits, TrainOptions, TrainTransform};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: everything is the system allocator's; only a counter is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Pictures of different sizes in a tar of class folders: JPEGs of `engine data synth`.
fn pictures(folder: &Path) -> std::path::PathBuf {
    let tar = folder.join("pictures.tar");
    let mut builder = tar::Builder::new(fs::File::create(&tar).unwrap());
    for size in [40, 96, 151, 230] {
        let options = engine::data::synth::SynthOptions {
            train_per_class: 8,
            val_per_class: 1,
            size,
            ..Default::default()
        };
        let from = folder.join(size.to_string());
        engine::data::synth::write(&from, &options).unwrap();
        for class in fs::read_dir(from.join("train")).unwrap().map(|entry| entry.unwrap()) {
            let name = class.file_name().into_string().unwrap();
            for (i, file) in fs::read_dir(class.path()).unwrap().enumerate() {
                let inside = format!("{name}/{size}-{i}.jpg");
                builder.append_path_with_name(file.unwrap().path(), inside).unwrap();
            }
        }
    }
    builder.finish().unwrap();
    tar
}

#[test]
fn an_image_of_a_shard_allocates_nothing() {
    const BATCH: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    let splits = Splits::open(&pictures(folder.path())).unwrap().splits;
    let split = Arc::clone(&splits[0].1);
    assert_eq!(split.len(), 320);
    for workers in [1, 3] {
        // Two epochs: in the first, each worker's buffers grow to the largest picture it meets.
        let mut counts = Vec::new();
        for epoch in 0..4 {
            let options =
                TrainOptions { workers, epoch, ..TrainOptions::new(TrainTransform::new(96), BATCH) };
            let mut loader = Loader::train(Arc::clone(&split), options).unwrap();
            let batches = loader.batches_per_epoch();
            // The workers are fresh with each loader, so the first batches warm them up.
            let mut measured = None;
            for number in 0..batches {
                let batch = loader.next().unwrap().unwrap();
                loader.recycle(batch);
                if number + 1 == batches / 2 {
                    measured = Some(ALLOCATIONS.load(Ordering::Relaxed));
                }
            }
            let images = (batches - batches / 2) * BATCH;
            counts.push((ALLOCATIONS.load(Ordering::Relaxed) - measured.unwrap()) as f64 / images as f64);
        }
        counts.sort_by(f64::total_cmp);
        println!("{workers} workers: {counts:.3?} allocations an image");
        // Labels, sample numbers and the batch's place in the window are a few a batch. zune-jpeg has its own buffers.
        let allowed = if cfg!(feature = "turbojpeg") { 0.5 } else { f64::INFINITY };
        assert!(counts[1] < allowed, "{workers} workers: {counts:?} allocations an image");
    }
}
