//! The three transforms of Winograd's minimal filtering: of data, weights and results.
//!
//! A tile of OxO results needs TxT data, T = O + 2: y = At [ (G g Gt) * (Bt d B) ] A, where * multiplies element by
//! element (Lavin, Gray: "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308, equation 8). F(2x2) is
//! evaluated at the points 0, 1, -1 and infinity, F(4x4) at 2 and -2 as well: T * T multiplications for 9 * O * O.
#![allow(
    clippy::needless_range_loop,
    reason = "arrays of registers are indexed by constants, as in conv::kernel"
)]

use crate::simd::conv::kernel::Lanes;
use bytemuck::Pod;

/// What the transforms need beyond [`Lanes`].
pub(super) trait Vector: Lanes {
    unsafe fn sub(self, other: Self) -> Self;

    /// max(self, 0), and a NaN where there is one.
    unsafe fn relu(self) -> Self;

    /// self + factor * other
    #[inline(always)]
    unsafe fn plus(self, factor: f32, other: Self) -> Self {
        // SAFETY: the address of a local.
        unsafe { self.mul_add(Self::splat(&raw const factor), other) }
    }
}

/// A number as feature maps hold it, read into and written from lanes of f32.
pub(super) trait Number<V: Vector>: Pod {
    unsafe fn load(from: *const Self) -> V;

    unsafe fn store(lanes: V, to: *mut Self);

    /// The first `len` lanes from memory, zeros in the others.
    #[inline(always)]
    unsafe fn load_part(from: *const Self, len: usize) -> V {
        let mut numbers = [Self::zeroed(); MOST_LANES];
        // SAFETY: the caller vouches for `len` numbers; a register has at most MOST_LANES.
        unsafe {
            std::ptr::copy_nonoverlapping(from, numbers.as_mut_ptr(), len.min(V::LANES));
            Self::load(numbers.as_ptr())
        }
    }

    /// The first `len` lanes to memory.
    #[inline(always)]
    unsafe fn store_part(lanes: V, to: *mut Self, len: usize) {
        let mut numbers = [Self::zeroed(); MOST_LANES];
        // SAFETY: as `load_part`.
        unsafe {
            Self::store(lanes, numbers.as_mut_ptr());
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, len.min(V::LANES));
        }
    }
}

impl<V: Vector> Number<V> for f32 {
    #[inline(always)]
    unsafe fn load(from: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }

    #[inline(always)]
    unsafe fn store(lanes: V, to: *mut Self) {
        // SAFETY: the caller's promise.
        unsafe { lanes.store(to) }
    }
}

const MOST_LANES: usize = 16;

/// The one-dimensional transforms of F(O, 3); the two-dimensional ones apply them to columns and then to rows.
pub(super) trait Algorithm<const T: usize, const O: usize> {
    /// G g
    fn filter(g: [f64; 3]) -> [f64; T];

    /// Bt d
    unsafe fn data<V: Vector>(d: [V; T]) -> [V; T];

    /// At m
    unsafe fn result<V: Vector>(m: [V; T]) -> [V; O];
}

pub(super) struct F2;

// SAFETY of the methods over vectors: called inside functions that enable the instructions of V.
impl Algorithm<4, 2> for F2 {
    #[inline(always)]
    fn filter(g: [f64; 3]) -> [f64; 4] {
        let (even, odd) = (0.5 * (g[0] + g[2]), 0.5 * g[1]);
        [g[0], even + odd, even - odd, g[2]]
    }

    #[inline(always)]
    unsafe fn data<V: Vector>(d: [V; 4]) -> [V; 4] {
        unsafe { [d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[1].sub(d[3])] }
    }

    #[inline(always)]
    unsafe fn result<V: Vector>(m: [V; 4]) -> [V; 2] {
        unsafe { [m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).sub(m[3])] }
    }
}

pub(super) struct F4;

// SAFETY of the methods over vectors: called inside functions that enable the instructions of V.
impl Algorithm<6, 4> for F4 {
    #[inline(always)]
    fn filter(g: [f64; 3]) -> [f64; 6] {
        // Factors, not divisors: the compiler keeps a division that it cannot replace without changing bits.
        let (even, odd) = (-1.0 / 6.0 * (g[0] + g[2]), -1.0 / 6.0 * g[1]);
        let (far, near) = (1.0 / 24.0 * g[0] + 1.0 / 6.0 * g[2], 1.0 / 12.0 * g[1]);
        [0.25 * g[0], even + odd, even - odd, far + near, far - near, g[2]]
    }

    #[inline(always)]
    unsafe fn data<V: Vector>(d: [V; 6]) -> [V; 6] {
        unsafe {
            let (even, odd) = (d[4].plus(-4.0, d[2]), d[3].plus(-4.0, d[1]));
            let (far, near) = (d[4].sub(d[2]), d[3].sub(d[1]));
            [
                far.plus(4.0, d[0].sub(d[2])),
                even.add(odd),
                even.sub(odd),
                far.plus(2.0, near),
                far.plus(-2.0, near),
                d[5].sub(d[3]).plus(-4.0, near),
            ]
        }
    }

    #[inline(always)]
    unsafe fn result<V: Vector>(m: [V; 6]) -> [V; 4] {
        unsafe {
            let (sum1, sum2) = (m[1].add(m[2]), m[3].add(m[4]));
            let (difference1, difference2) = (m[1].sub(m[2]), m[3].sub(m[4]));
            [
                m[0].add(sum1).add(sum2),
                difference1.plus(2.0, difference2),
                sum1.plus(4.0, sum2),
                difference1.plus(8.0, difference2).add(m[5]),
            ]
        }
    }
}
