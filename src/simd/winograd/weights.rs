//! Transformed weights in the order in which the products read them.

use super::transform::{Algorithm, F2, F4};
use super::{Element, GROUP, Tile};
use crate::model::graph::ConvShape;
use crate::simd::dispatch::multiversion;
use crate::simd::filters::Filters;
use crate::simd::isa::Isa;

/// Output channels that are transformed side by side; the width of every panel is a multiple of it.
const LANES: usize = 8;
/// Input channels of a block; even, so that no pair is torn.
const CHUNK: usize = 16;

/// Filters [3][3] of LANES output channels, by input channel.
pub(super) type Block = [[[f64; LANES]; 9]; CHUNK];

/// f32 filters [k][c][3][3] -> panels [k / GROUP][tap][GROUP / width][c / PAIR][width][PAIR] of G g Gt, computed in f64 and
/// rounded once; zeros for the input and output channels that the last ones lack. PAIR is how many elements four bytes
/// hold; the length of `panels` is counted in those.
pub(super) fn pack<E: Element>(
    isa: Isa,
    tile: Tile,
    shape: &ConvShape,
    filters: Filters,
    width: usize,
    panels: &mut [f32],
) {
    let ConvShape { c, k, .. } = *shape;
    assert_eq!(filters.weight.len(), shape.weights(), "length of the weight of {shape:?}");
    assert_eq!(filters.factor.len(), k, "length of the factors of {shape:?}");
    assert_eq!(panels.len() * E::PAIR, super::packed_len::<E>(shape, tile));
    assert_eq!(width % LANES, 0, "output channels of a panel");
    let (taps, steps, group_panels) = (tile.taps(), c.div_ceil(E::PAIR), GROUP / width);
    // [tap][CHUNK / PAIR][width][PAIR], one after the other: straight to their places, which lie a power of two apart, the
    // taps would push each other out of the cache.
    let mut rows = vec![E::zeroed(); taps * CHUNK * width];
    let mut block = [[[0.0; LANES]; 9]; CHUNK];
    for panel in 0..k.div_ceil(GROUP) * group_panels {
        let (group, panel_of_group) = (panel / group_panels, panel % group_panels);
        for from in (0..c).step_by(CHUNK) {
            for column in (0..width).step_by(LANES) {
                read(shape, filters, panel * width + column, from, &mut block);
                E::transform(isa, tile, &block, &mut Columns { rows: &mut rows, width, column });
            }
            let count = CHUNK.min(c - from).div_ceil(E::PAIR) * width;
            for (tap, row) in rows.chunks_exact(CHUNK * width).enumerate() {
                let at = ((group * taps + tap) * group_panels + panel_of_group) * steps * width;
                let to = &mut panels[at + from / E::PAIR * width..][..count];
                to.copy_from_slice(&bytemuck::cast_slice(row)[..count]);
            }
        }
    }
}

/// LANES output channels from `first` on, CHUNK input channels from `from` on; zeros where there are no more. Never inlined
/// into code for wider registers, which would gather what scalar moves bring sooner.
#[inline(never)]
fn read(shape: &ConvShape, filters: Filters, first: usize, from: usize, block: &mut Block) {
    let ConvShape { c, k, .. } = *shape;
    if first + LANES > k || from + CHUNK > c {
        *block = [[[0.0; LANES]; 9]; CHUNK];
    }
    for lane in 0..LANES.min(k.saturating_sub(first)) {
        let factor = filters.factor[first + lane];
        let filter = &filters.weight[(first + lane) * c * 9..(first + lane + 1) * c * 9];
        for (to, taps) in block.iter_mut().zip(&filter.as_chunks::<9>().0[from..]) {
            for (to, tap) in to.iter_mut().zip(taps) {
                to[lane] = f64::from(*tap) * factor;
            }
        }
    }
}

/// Where LANES output channels of a panel go: [tap][CHUNK / PAIR][width][PAIR].
pub(super) struct Columns<'a, E> {
    rows: &'a mut [E],
    width: usize,
    column: usize,
}

macro_rules! transforms {
    ($($name:ident $element:ty, $algorithm:ident $t:literal $o:literal;)*) => {$(
        multiversion! {
            pub(super) fn $name(block: &Block, to: &mut Columns<$element>) {
                transform::<$element, $algorithm, $t, $o>(block, to);
            }
        }
    )*};
}

transforms! {
    f32_f2 f32, F2 4 2;
    f32_f4 f32, F4 6 4;
    bf16_f2 half::bf16, F2 4 2;
}

/// G g Gt of a block.
#[inline(always)]
fn transform<E, A, const T: usize, const O: usize>(block: &Block, to: &mut Columns<E>)
where
    E: Element,
    A: Algorithm<T, O>,
{
    let Columns { ref mut rows, width, column } = *to;
    for (i, filter) in block.iter().enumerate() {
        // [j][r] = (g[r] Gt)[j]
        let mut half = [[[0.0; LANES]; 3]; T];
        for (r, g) in filter.as_chunks::<3>().0.iter().enumerate() {
            for lane in 0..LANES {
                let row = A::filter([g[0][lane], g[1][lane], g[2][lane]]);
                for j in 0..T {
                    half[j][r][lane] = row[j];
                }
            }
        }
        for (j, g) in half.iter().enumerate() {
            let mut taps = [[E::zeroed(); LANES]; T];
            for lane in 0..LANES {
                let row = A::filter([g[0][lane], g[1][lane], g[2][lane]]);
                for a in 0..T {
                    taps[a][lane] = E::round(row[a]);
                }
            }
            for (a, taps) in taps.iter().enumerate() {
                let first = (((a * T + j) * CHUNK / E::PAIR + i / E::PAIR) * width + column) * E::PAIR;
                let to = rows[first + i % E::PAIR..].iter_mut().step_by(E::PAIR);
                to.zip(taps).for_each(|(to, tap)| *to = *tap);
            }
        }
    }
}
