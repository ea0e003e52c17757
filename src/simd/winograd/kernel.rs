//! The three steps of a block of tiles, written once over a vector register type; the ISA files instantiate them under
//! their `#[target_feature]`, where everything here is inlined.
#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers are indexed by constants, as in conv::kernel"
)]

use super::transform::{Algorithm, Vector};
use crate::simd::conv::kernel::LINE;

/// Most taps that a tile has: F(4x4).
pub(super) const MOST_TAPS: usize = 36;
/// Most results that a tile has.
pub(super) const MOST_RESULTS: usize = 16;

/// Bt d B of one tile, all channels: `to[tap][channel]`.
pub(super) struct DataTile<'a> {
    /// [T][T] where the channels of each pixel start; zeros for those outside of the map.
    pub sources: &'a [*const f32; MOST_TAPS],
    pub channels: usize,
    pub to: *mut f32,
    /// Floats from one tap to the next.
    pub pitch: usize,
}

/// # Safety
/// The first T * T sources have `channels` readable floats; `to` has T * T rows of `channels`, rounded up to whole
/// registers, writable floats; the machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn data<V, A, const T: usize, const O: usize>(tile: &DataTile)
where
    V: Vector,
    A: Algorithm<T, O>,
{
    let whole = tile.channels - tile.channels % V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for first in (0..whole).step_by(V::LANES) {
            data_block::<V, A, T, O, false>(tile, first);
        }
        if whole < tile.channels {
            data_block::<V, A, T, O, true>(tile, whole);
        }
    }
}

/// One register of channels from `first` on; with `PART` the last ones, which do not fill it.
///
/// # Safety
/// As [`data`], which it is a part of.
#[inline(always)]
unsafe fn data_block<V, A, const T: usize, const O: usize, const PART: bool>(tile: &DataTile, first: usize)
where
    V: Vector,
    A: Algorithm<T, O>,
{
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [[V::zero(); T]; T];
        for i in 0..T {
            let mut d = [V::zero(); T];
            for j in 0..T {
                let from = tile.sources[i * T + j].add(first);
                d[j] = if PART { V::load_part(from, tile.channels - first) } else { V::load(from) };
            }
            rows[i] = A::data(d);
        }
        for j in 0..T {
            let mut column = [V::zero(); T];
            for i in 0..T {
                column[i] = rows[i][j];
            }
            let column = A::data(column);
            for i in 0..T {
                column[i].store(tile.to.add((i * T + j) * tile.pitch + first));
            }
        }
    }
}

/// y = relu(At m A + bias + residual) of one tile, some channels.
pub(super) struct ResultTile<'a> {
    /// [tap][channel]
    pub from: *const f32,
    /// Floats from one tap to the next.
    pub pitch: usize,
    pub bias: *const f32,
    pub channels: usize,
    pub relu: bool,
    /// [O][O] where the channels of each result start; null for those outside of the map.
    pub out: &'a [*mut f32; MOST_RESULTS],
    /// Likewise; null everywhere where nothing is to be added.
    pub residual: &'a [*const f32; MOST_RESULTS],
}

/// # Safety
/// `from` has T * T rows, and `bias` one row, of `channels`, rounded up to whole registers, readable floats; the first
/// O * O pointers of `out` and `residual` are null or have `channels` writable, or readable, floats; the machine has
/// the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn result<V, A, const T: usize, const O: usize>(tile: &ResultTile)
where
    V: Vector,
    A: Algorithm<T, O>,
{
    let whole = tile.channels - tile.channels % V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for first in (0..whole).step_by(V::LANES) {
            result_block::<V, A, T, O, false>(tile, first);
        }
        if whole < tile.channels {
            result_block::<V, A, T, O, true>(tile, whole);
        }
    }
}

/// One register of channels from `first` on; with `PART` the last ones, which do not fill it.
///
/// # Safety
/// As [`result`], which it is a part of.
#[inline(always)]
unsafe fn result_block<V, A, const T: usize, const O: usize, const PART: bool>(
    tile: &ResultTile,
    first: usize,
) where
    V: Vector,
    A: Algorithm<T, O>,
{
    // SAFETY: the caller's promise.
    unsafe {
        let mut columns = [[V::zero(); O]; T];
        for j in 0..T {
            let mut m = [V::zero(); T];
            for i in 0..T {
                m[i] = V::load(tile.from.add((i * T + j) * tile.pitch + first));
            }
            columns[j] = A::result(m);
        }
        let bias = V::load(tile.bias.add(first));
        let rest = tile.channels - first;
        for i in 0..O {
            let mut row = [V::zero(); T];
            for j in 0..T {
                row[j] = columns[j][i];
            }
            let row = A::result(row);
            for j in 0..O {
                let (out, residual) = (tile.out[i * O + j], tile.residual[i * O + j]);
                if out.is_null() {
                    continue;
                }
                let mut y = row[j].add(bias);
                if !residual.is_null() {
                    let from = residual.add(first);
                    y = y.add(if PART { V::load_part(from, rest) } else { V::load(from) });
                }
                if tile.relu {
                    y = y.relu();
                }
                let to = out.add(first);
                if PART { y.store_part(to, rest) } else { y.store(to) }
            }
        }
    }
}

/// `out[m][j] = sum over depth i of a[m][i] * panel[i][j]`: some tiles by one panel of output channels, at one tap.
pub(super) struct Product {
    pub a: *const f32,
    /// Floats from one row of `a` to the next.
    pub a_pitch: usize,
    pub depth: usize,
    /// [depth][NR]
    pub panel: *const f32,
    pub out: *mut f32,
    /// Floats from one row of `out` to the next.
    pub out_pitch: usize,
}

/// # Safety
/// `a` has MR rows of `depth`, `panel` `depth` rows of NR readable floats, `out` MR rows of NR writable ones; the machine
/// has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector, const MR: usize, const NV: usize>(product: &Product) {
    let width = NV * V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[V::zero(); NV]; MR];
        let mut w = product.panel;
        for i in 0..product.depth {
            let mut b = [V::zero(); NV];
            for j in 0..NV {
                b[j] = V::load(w.add(j * V::LANES));
            }
            for line in (0..width).step_by(LINE) {
                V::prefetch(w.wrapping_add(AHEAD + line));
            }
            for m in 0..MR {
                let x = V::splat(product.a.add(m * product.a_pitch + i));
                for j in 0..NV {
                    acc[m][j] = acc[m][j].mul_add(x, b[j]);
                }
            }
            w = w.add(width);
        }
        for m in 0..MR {
            for j in 0..NV {
                acc[m][j].store(product.out.add(m * product.out_pitch + j * V::LANES));
            }
        }
    }
}

/// How many floats ahead a panel is fetched: weights come from memory, and panels follow one another.
const AHEAD: usize = 512;

/// What an instruction set gives, and its tile of the product.
pub(super) struct Kernels {
    /// Output channels of a panel, NR.
    pub width: usize,
    /// Indexed by the number of rows less one: `multiply[6]` makes 7 rows.
    pub multiply: &'static [unsafe fn(&Product)],
    pub f2: Transforms,
    pub f4: Transforms,
}

/// Data and result transforms of one tile size.
pub(super) struct Transforms {
    pub data: unsafe fn(&DataTile),
    pub result: unsafe fn(&ResultTile),
}

/// Instantiates the steps for a register type under its target features: a module of its own per set.
macro_rules! kernels {
    ($features:meta, $lanes:ty, vectors: $vectors:literal, rows: [$($rows:literal)*]) => {
        #[$features]
        unsafe fn multiply<const MR: usize>(product: &crate::simd::winograd::kernel::Product) {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { crate::simd::winograd::kernel::multiply::<$lanes, MR, $vectors>(product) }
        }

        #[$features]
        unsafe fn data<A, const T: usize, const O: usize>(tile: &crate::simd::winograd::kernel::DataTile)
        where
            A: crate::simd::winograd::transform::Algorithm<T, O>,
        {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { crate::simd::winograd::kernel::data::<$lanes, A, T, O>(tile) }
        }

        #[$features]
        unsafe fn result<A, const T: usize, const O: usize>(tile: &crate::simd::winograd::kernel::ResultTile)
        where
            A: crate::simd::winograd::transform::Algorithm<T, O>,
        {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { crate::simd::winograd::kernel::result::<$lanes, A, T, O>(tile) }
        }

        pub(super) static KERNELS: crate::simd::winograd::kernel::Kernels = crate::simd::winograd::kernel::Kernels {
            width: $vectors * <$lanes as crate::simd::conv::kernel::Lanes>::LANES,
            multiply: &[$(multiply::<$rows>),*],
            f2: crate::simd::winograd::kernel::Transforms {
                data: data::<crate::simd::winograd::transform::F2, 4, 2>,
                result: result::<crate::simd::winograd::transform::F2, 4, 2>,
            },
            f4: crate::simd::winograd::kernel::Transforms {
                data: data::<crate::simd::winograd::transform::F4, 6, 4>,
                result: result::<crate::simd::winograd::transform::F4, 6, 4>,
            },
        };
    };
}
pub(super) use kernels;
