//! The transforms of F(2x2, 3x3) between bf16 maps and f32.

use crate::simd::isa::{Isa, Set};
use half::bf16;

/// Elements of a transformed tile: 4 x 4.
pub const TAPS: usize = 16;

/// A tile's 4 x 4 pixels and where its taps go.
pub struct DataTile {
    /// `channels` bf16 each.
    pub sources: [*const u8; TAPS],
    /// A multiple of 16.
    pub channels: usize,
    /// bf16 [channels] of the first tap.
    pub to: *mut u8,
    /// Bytes to the next tap.
    pub pitch: usize,
}

/// A tile's products and where its 2 x 2 results go.
pub struct ResultTile {
    /// f32 [channels] of the first tap.
    pub from: *const u8,
    /// Bytes to the next tap.
    pub pitch: usize,
    pub bias: *const f32,
    /// A multiple of 16.
    pub channels: usize,
    pub relu: bool,
    /// bf16 [channels] each; null outside the map.
    pub out: [*mut u8; 4],
}

/// # Safety of the functions
/// The processor has the set; pointers are valid for what the tiles say.
pub struct Transforms {
    pub data: unsafe fn(&DataTile),
    pub result: unsafe fn(&ResultTile),
}

pub fn of(isa: Isa) -> Transforms {
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        Set::Avx512 if isa.has_bf16() => Transforms { data: avx512::data, result: avx512::result },
        _ => Transforms { data: data::<[f32; LANES]>, result: result::<[f32; LANES]> },
    }
}

const LANES: usize = 16;

/// 16 lanes of f32.
///
/// # Safety
/// The methods run inside functions that enable the set's features, on valid pointers of any alignment.
trait Vector: Copy {
    /// 16 bf16.
    unsafe fn widen(from: *const u8) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn relu(self) -> Self;
    /// To 16 bf16, rounded to the nearest, ties to even.
    unsafe fn narrow(self, to: *mut u8);
}

impl Vector for [f32; LANES] {
    unsafe fn widen(from: *const u8) -> Self {
        unsafe { from.cast::<[bf16; LANES]>().read_unaligned() }.map(bf16::to_f32)
    }

    unsafe fn load(from: *const f32) -> Self {
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }

    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }

    unsafe fn relu(self) -> Self {
        self.map(|value| value.max(0.0))
    }

    unsafe fn narrow(self, to: *mut u8) {
        unsafe { to.cast::<[bf16; LANES]>().write_unaligned(self.map(bf16::from_f32)) }
    }
}

/// Bt d
#[inline(always)]
unsafe fn data_row<V: Vector>(d: [V; 4]) -> [V; 4] {
    unsafe { [d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[1].sub(d[3])] }
}

/// At m
#[inline(always)]
unsafe fn result_row<V: Vector>(m: [V; 4]) -> [V; 2] {
    unsafe { [m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).sub(m[3])] }
}

// SAFETY of both: `Transforms`.
#[inline(always)]
unsafe fn data<V: Vector>(tile: &DataTile) {
    for c in (0..tile.channels).step_by(LANES) {
        unsafe {
            let mut d = [[V::widen(tile.sources[0].add(2 * c)); 4]; 4];
            for y in 0..4 {
                for x in 0..4 {
                    d[y][x] = V::widen(tile.sources[4 * y + x].add(2 * c));
                }
                d[y] = data_row(d[y]);
            }
            for x in 0..4 {
                let column = data_row([d[0][x], d[1][x], d[2][x], d[3][x]]);
                for y in 0..4 {
                    column[y].narrow(tile.to.add((4 * y + x) * tile.pitch + 2 * c));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn result<V: Vector>(tile: &ResultTile) {
    for c in (0..tile.channels).step_by(LANES) {
        unsafe {
            let bias = V::load(tile.bias.add(c));
            let mut m = [[bias; 2]; 4];
            for y in 0..4 {
                let mut taps = [bias; 4];
                for x in 0..4 {
                    taps[x] = V::load(tile.from.add((4 * y + x) * tile.pitch).cast::<f32>().add(c));
                }
                m[y] = result_row(taps);
            }
            for x in 0..2 {
                let column = result_row([m[0][x], m[1][x], m[2][x], m[3][x]]);
                for y in 0..2 {
                    let to = tile.out[2 * y + x];
                    if !to.is_null() {
                        let value = column[y].add(bias);
                        let value = if tile.relu { value.relu() } else { value };
                        value.narrow(to.add(2 * c));
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{DataTile, ResultTile, Vector};
    use std::arch::x86_64::*;

    // SAFETY of every method: as the trait's.
    impl Vector for __m512 {
        #[inline(always)]
        unsafe fn widen(from: *const u8) -> Self {
            unsafe {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm512_add_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { _mm512_sub_ps(self, other) }
        }

        #[inline(always)]
        unsafe fn relu(self) -> Self {
            unsafe { _mm512_max_ps(self, _mm512_setzero_ps()) }
        }

        #[inline(always)]
        unsafe fn narrow(self, to: *mut u8) {
            unsafe {
                let half = _mm512_cvtneps_pbh(self);
                _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(half));
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn data(tile: &DataTile) {
        unsafe { super::data::<__m512>(tile) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    pub unsafe fn result(tile: &ResultTile) {
        unsafe { super::result::<__m512>(tile) }
    }
}

/// f32 [k][3][3][c] -> tap `tap` of G g Gt as f32 [k][c], computed in f64 and rounded once.
pub fn weights(weight: &[f32], c: usize, tap: usize) -> Vec<f32> {
    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
    let (row, column) = (G[tap / 4], G[tap % 4]);
    let factors: [f64; 9] = std::array::from_fn(|i| row[i / 3] * column[i % 3]);
    let mut values = vec![0.0; weight.len() / 9];
    for (g, values) in weight.chunks_exact(9 * c).zip(values.chunks_exact_mut(c)) {
        for (channel, value) in values.iter_mut().enumerate() {
            let sum: f64 = (0..9).map(|i| factors[i] * f64::from(g[i * c + channel])).sum();
            *value = sum as f32;
        }
    }
    values
}
