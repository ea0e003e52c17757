//! Winograd's algorithm in bf16: its buffers, and how a layer is divided among tasks.

use super::plan::{LARGE_MAP, Placed};
use super::program::{Program, Step, Work};
use crate::error::Result;
use crate::simd::direct::map::{Map, View};
use crate::simd::direct::winograd::{Scratch, Winograd};
use crate::simd::memory::Memory;
use std::sync::Mutex;

/// Memory between the transforms.
pub(super) struct Buffers {
    /// One a thread, of `bytes` each; those that no task holds are in `free`.
    memory: Memory,
    bytes: usize,
    free: Mutex<Vec<usize>>,
    /// Of a step whose tasks share the transformed data: `image_bytes` for each image.
    shared: Memory,
    image_bytes: usize,
}

/// Rows and columns of tiles.
fn tiles(map: &Map) -> (usize, usize) {
    (map.h.div_ceil(2), map.w.div_ceil(2))
}

/// Rows of tiles of one task where rows divide the layer: its data and products stay in L2.
fn block_rows(map: &Map) -> usize {
    let (high, wide) = tiles(map);
    high.div_ceil(14).max(14usize.div_ceil(wide)).min(high)
}

impl Buffers {
    pub fn new(steps: &[Step], tensors: &[Option<Placed>], threads: usize) -> Result<Self> {
        let (mut bytes, mut image_bytes, mut batch) = (0, 0, 0);
        for step in steps {
            let Work::WinogradBf16 { layer, y, .. } = &step.work else { continue };
            let map = tensors[*y].expect("a step's maps are planned").map;
            let (high, wide) = tiles(&map);
            batch = map.n;
            if map.h > LARGE_MAP {
                bytes = bytes.max(layer.scratch_bytes(block_rows(&map) * wide));
            } else {
                bytes = bytes.max(layer.scratch_bytes(high * wide));
                image_bytes = image_bytes.max(layer.scratch_bytes(high * wide));
            }
        }
        bytes = bytes.next_multiple_of(4096);
        image_bytes = image_bytes.next_multiple_of(4096);
        let (memory, shared) = (Memory::zeroed(threads * bytes)?, Memory::zeroed(batch * image_bytes)?);
        Ok(Self { memory, bytes, free: Mutex::new((0..threads).collect()), shared, image_bytes })
    }

    /// Lends a thread's buffer, for `tiles` tiles of a layer, to `work`.
    fn with(&self, tiles: usize, work: impl FnOnce(&Scratch)) {
        let taken = self.free.lock().expect("nobody panics with the lock held").pop();
        let index = taken.expect("as many buffers as threads");
        // SAFETY: buffer `index` lies within the memory.
        let base = unsafe { self.memory.ptr().add(index * self.bytes) };
        work(&Scratch { base, tiles });
        self.free.lock().expect("nobody panics with the lock held").push(index);
    }

    fn image(&self, image: usize, tiles: usize) -> Scratch {
        // SAFETY: the image's part of the shared memory.
        Scratch { base: unsafe { self.shared.ptr().add(image * self.image_bytes) }, tiles }
    }
}

impl Program {
    /// Large maps are divided by rows, each task with transforms of its own; small ones, whose weights outweigh them, by
    /// output channels, after tasks by rows have transformed the data for all.
    pub(super) fn winograd_bf16(&self, layer: &Winograd, w: *const u8, x: &View, y: &View, n: usize) {
        let (high, wide) = tiles(&y.map);
        for image in 0..n {
            // SAFETY: nobody else writes `y` before the step's tasks start.
            unsafe { y.clear_border(image, 0..y.map.h) };
        }
        let w = Weights(w);
        if y.map.h > LARGE_MAP {
            let block = block_rows(&y.map);
            let blocks = high.div_ceil(block);
            self.pool.run(n * blocks, &|task| {
                let (image, first) = (task / blocks, task % blocks * block);
                let rows = first..(first + block).min(high);
                let w = w;
                self.buffers.with(block * wide, |scratch| {
                    // SAFETY: the buffer is this task's, made for as many tiles; so are the rows of `y`; the plan keeps
                    // `y` apart from `x`, and compiling packed the weights at `w`.
                    unsafe {
                        layer.transform_data(x, image, rows.clone(), scratch, 0);
                        for panel in 0..layer.panels() {
                            layer.results(scratch, scratch, w.0, y, image, rows.clone(), panel);
                        }
                    }
                });
            });
            return;
        }
        self.pool.run(n * high, &|task| {
            let (image, row) = (task / high, task % high);
            let data = self.buffers.image(image, high * wide);
            // SAFETY: a row's places in the shared memory are one task's.
            unsafe { layer.transform_data(x, image, row..row + 1, &data, row * wide) };
        });
        let panels = layer.panels();
        self.pool.run(n * panels, &|task| {
            let (panel, image) = (task / n, task % n);
            let data = self.buffers.image(image, high * wide);
            let w = w;
            self.buffers.with(high * wide, |products| {
                // SAFETY: the data of all rows are there; the products are this task's, and so are the channels of `y`.
                unsafe { layer.results(&data, products, w.0, y, image, 0..high, panel) };
            });
        });
    }
}

#[derive(Clone, Copy)]
struct Weights(*const u8);

// SAFETY: packed weights, which nobody writes after compiling.
unsafe impl Sync for Weights {}
