//! The three steps of a block of tiles, written once over a vector register type; the ISA files instantiate them under
//! their `#[target_feature]`, where everything here is inlined.
#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers are indexed by constants, as in conv::kernel"
)]

use super::transform::{Algorithm, Number, Vector};
use crate::simd::conv::kernel::{LINE, Lanes};

/// Most taps that a tile has: F(4x4).
pub(super) const MOST_TAPS: usize = 36;
/// Most results that a tile has.
pub(super) const MOST_RESULTS: usize = 16;

/// Bt d B of one tile, all channels: `to[tap][channel]`.
pub(super) struct DataTile<'a, E> {
    /// [T][T] where the channels of each pixel start; zeros for those outside of the map.
    pub sources: &'a [*const E; MOST_TAPS],
    pub channels: usize,
    pub to: *mut E,
    /// Elements from one tap to the next.
    pub pitch: usize,
}

/// # Safety
/// The first T * T sources have `channels` readable floats; `to` has T * T rows of `channels`, rounded up to whole
/// registers, writable floats; the machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn data<E, V, A, const T: usize, const O: usize>(tile: &DataTile<E>)
where
    E: Number<V>,
    V: Vector,
    A: Algorithm<T, O>,
{
    let whole = tile.channels - tile.channels % V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for first in (0..whole).step_by(V::LANES) {
            data_block::<E, V, A, T, O, false>(tile, first);
        }
        if whole < tile.channels {
            data_block::<E, V, A, T, O, true>(tile, whole);
        }
    }
}

/// One register of channels from `first` on; with `PART` the last ones, which do not fill it.
///
/// # Safety
/// As [`data`], which it is a part of.
#[inline(always)]
unsafe fn data_block<E, V, A, const T: usize, const O: usize, const PART: bool>(
    tile: &DataTile<E>,
    first: usize,
) where
    E: Number<V>,
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
                d[j] = if PART { E::load_part(from, tile.channels - first) } else { E::load(from) };
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
                E::store(column[i], tile.to.add((i * T + j) * tile.pitch + first));
            }
        }
    }
}

/// y = relu(At m A + bias + residual) of one tile, some channels.
pub(super) struct ResultTile<'a, E> {
    /// [tap][channel]
    pub from: *const f32,
    /// Floats from one tap to the next.
    pub pitch: usize,
    pub bias: *const f32,
    pub channels: usize,
    pub relu: bool,
    /// [O][O] where the channels of each result start; null for those outside of the map.
    pub out: &'a [*mut E; MOST_RESULTS],
    /// Likewise; null everywhere where nothing is to be added.
    pub residual: &'a [*const E; MOST_RESULTS],
}

/// # Safety
/// `from` has T * T rows, and `bias` one row, of `channels`, rounded up to whole registers, readable floats; the first
/// O * O pointers of `out` and `residual` are null or have `channels` writable, or readable, floats; the machine has
/// the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn result<E, V, A, const T: usize, const O: usize>(tile: &ResultTile<E>)
where
    E: Number<V>,
    V: Vector,
    A: Algorithm<T, O>,
{
    let whole = tile.channels - tile.channels % V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        for first in (0..whole).step_by(V::LANES) {
            result_block::<E, V, A, T, O, false>(tile, first);
        }
        if whole < tile.channels {
            result_block::<E, V, A, T, O, true>(tile, whole);
        }
    }
}

/// One register of channels from `first` on; with `PART` the last ones, which do not fill it.
///
/// # Safety
/// As [`result`], which it is a part of.
#[inline(always)]
unsafe fn result_block<E, V, A, const T: usize, const O: usize, const PART: bool>(
    tile: &ResultTile<E>,
    first: usize,
) where
    E: Number<V>,
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
                    y = y.add(if PART { E::load_part(from, rest) } else { E::load(from) });
                }
                if tile.relu {
                    y = y.relu();
                }
                let to = out.add(first);
                if PART { E::store_part(y, to, rest) } else { E::store(y, to) }
            }
        }
    }
}

/// `out[m][j] = sum over depth i of a[m][i] * panel[i][j]`: some tiles by one panel of output channels, at one tap.
///
/// `a` and `panel` are counted in steps of four bytes, whatever is in them: a float, or a pair of bf16 whose two products
/// `Lanes::mul_add` sums.
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
pub(super) unsafe fn multiply<V: Lanes, const MR: usize, const NV: usize>(product: &Product) {
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

/// What an instruction set gives for a type of number, and its tile of the product.
pub(super) struct Kernels<E: 'static> {
    /// Output channels of a panel, NR.
    pub width: usize,
    /// Indexed by the number of rows less one: `multiply[6]` makes 7 rows.
    pub multiply: &'static [unsafe fn(&Product)],
    /// Indexed by [`super::Tile`]; those that there are.
    pub transforms: &'static [Transforms<E>],
}

/// Data and result transforms of one tile size.
pub(super) struct Transforms<E> {
    pub data: unsafe fn(&DataTile<E>),
    pub result: unsafe fn(&ResultTile<E>),
}

/// Instantiates the steps for a type of number under target features: a module of its own per set. Transforms compute in
/// registers of `$lanes`, products in those of `$steps`.
macro_rules! kernels {
    ($features:meta, $number:ty, $lanes:ty, product: $steps:ty, vectors: $vectors:literal, rows: [$($rows:literal)*],
     tiles: [$($algorithm:ident $t:literal $o:literal),*]) => {
        #[$features]
        unsafe fn multiply<const MR: usize>(product: &kernel::Product) {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { kernel::multiply::<$steps, MR, $vectors>(product) }
        }

        #[$features]
        unsafe fn data<A, const T: usize, const O: usize>(tile: &kernel::DataTile<$number>)
        where
            A: transform::Algorithm<T, O>,
        {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { kernel::data::<$number, $lanes, A, T, O>(tile) }
        }

        #[$features]
        unsafe fn result<A, const T: usize, const O: usize>(tile: &kernel::ResultTile<$number>)
        where
            A: transform::Algorithm<T, O>,
        {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { kernel::result::<$number, $lanes, A, T, O>(tile) }
        }

        pub(super) static KERNELS: kernel::Kernels<$number> = kernel::Kernels {
            width: $vectors * <$lanes as crate::simd::conv::kernel::Lanes>::LANES,
            multiply: &[$(multiply::<$rows>),*],
            transforms: &[$(kernel::Transforms {
                data: data::<transform::$algorithm, $t, $o>,
                result: result::<transform::$algorithm, $t, $o>,
            }),*],
        };
    };
}
pub(super) use kernels;
