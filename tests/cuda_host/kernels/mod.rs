//! Every kernel alone, at shapes with odd channel counts and tails, in all storage types and orders of threads and blocks, against the
//! CPU backend on the same rounded values.
//!
//! Tolerances: a result that is rounded to storage may be one roundoff from the oracle's, relative to the largest
//! value; sums over n values in f32 add about sqrt(n) 6e-8, for which `SUMS` stands at these sizes.

mod batch_norm;
mod conv1x1;
mod drop_path;
mod extremes;
mod images;
mod lamb;
mod lars;
mod loss;
mod one_pass;
mod slab;
mod sums;
mod update;
mod whole_norm;

use crate::harness::{Arg, Host, ORDERS, Order, sanitizes};
use engine::backend::cpu::Cpu;
use engine::backend::cuda::abi::{Hyper, Item, State};
use engine::backend::cuda::network::{from_stored, to_stored};
use engine::backend::cuda::plan::geometry::Geometry;
use engine::backend::cuda::ptx::MODULES;
use engine::backend::cuda::storage::Storage;
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
    /// The same from a byte on.
    Inside(usize, usize),
    Null,
    U32(usize),
    U64(usize),
    F32(f32),
}
use By::{F32, Memory, Null, U32, U64};

/// Runs a kernel in every order of threads and blocks on copies of `memory`; the results must be the same bits. Under the
/// sanitizers one order does: which bytes a kernel touches does not depend on it.
fn run(kernel: &str, geometry: Geometry, memory: &[Bytes], args: &[By]) -> Option<Vec<Bytes>> {
    let host = Host::kernels()?;
    let orders = if sanitizes() { &ORDERS[..1] } else { &ORDERS[..] };
    let run = |&order: &Order| {
        let mut copies = memory.to_vec();
        let args: Vec<Arg> = args
            .iter()
            .map(|by| match *by {
                Memory(index) => Arg::Pointer(copies[index].words.as_mut_ptr().cast()),
                By::Inside(index, from) => {
                    Arg::Pointer(copies[index].words.as_mut_ptr().cast::<u8>().wrapping_add(from))
                }
                Null => Arg::Pointer(std::ptr::null_mut()),
                U32(value) => Arg::U32(value as u32),
                U64(value) => Arg::U64(value as u64),
                F32(value) => Arg::F32(value),
            })
            .collect();
        // SAFETY: each test hands over what the kernel's declaration and shapes want; the sanitizer run checks it.
        unsafe { host.run(kernel, geometry, &args, order) }.unwrap();
        copies
    };
    let mut results = orders.iter().map(run);
    let first = results.next()?;
    assert!(
        results.all(|result| result == first),
        "{kernel}: other bits in another order of threads and blocks"
    );
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
