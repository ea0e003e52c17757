//! Transformed weights in the order in which the products read them.

use super::transform::Algorithm;
use super::{Element, GROUP};
use crate::model::graph::ConvShape;
use crate::simd::conv::pack::Shared;
use crate::simd::pool::Pool;

/// Input channels that are transformed side by side; even, so that no pair is torn.
const CHUNK: usize = 16;

/// f32 weight [k][3][3][c] -> panels [k / GROUP][tap][GROUP / width][c / PAIR][width][PAIR] of G g Gt, computed in f64 and
/// rounded once; zeros for the input and output channels that the last ones lack. PAIR is how many elements four bytes
/// hold; a length is counted in those.
pub(super) fn pack<E, A, const T: usize, const O: usize>(
    pool: &Pool,
    shape: &ConvShape,
    weight: &[f32],
    width: usize,
    panels: &mut [f32],
) where
    E: Element,
    A: Algorithm<T, O>,
{
    let ConvShape { c, k, .. } = *shape;
    let steps = c.div_ceil(E::PAIR);
    let group_floats = T * T * steps * GROUP;
    assert_eq!(weight.len(), shape.weights(), "length of the weight of {shape:?}");
    assert_eq!(panels.len(), k.div_ceil(GROUP) * group_floats);
    let panels = Shared::new(panels);
    // A task has the output channels of one panel: the places that it writes are no other's.
    pool.run(k.div_ceil(GROUP) * (GROUP / width), &|task| {
        let (group, panel) = (task / (GROUP / width), task % (GROUP / width));
        let first = group * GROUP + panel * width;
        let columns = width.min(k.saturating_sub(first));
        // [tap][CHUNK / PAIR][width][PAIR], one after the other: straight to their places, which lie a power of two apart,
        // the taps would push each other out of the cache. What is never written stays zero.
        let mut rows = vec![E::zeroed(); T * T * CHUNK * width];
        for from in (0..c).step_by(CHUNK) {
            let len = CHUNK.min(c - from);
            if len < CHUNK {
                rows.fill(E::zeroed());
            }
            for column in 0..columns {
                let filter = &weight[(first + column) * 9 * c..][..9 * c];
                let transformed = transform::<A, T, O>(filter, c, from, len);
                for (rows, values) in rows.chunks_exact_mut(CHUNK * width).zip(transformed.as_flattened()) {
                    for (i, value) in values[..len].iter().enumerate() {
                        rows[(i / E::PAIR * width + column) * E::PAIR + i % E::PAIR] = E::round(*value);
                    }
                }
            }
            for (tap, rows) in rows.chunks_exact(CHUNK * width).enumerate() {
                let at =
                    group * group_floats + (tap * GROUP + panel * width) * steps + from / E::PAIR * width;
                let count = len.div_ceil(E::PAIR) * width;
                // SAFETY: this panel of this tap is this task's own.
                let to = unsafe { panels.part(at, count) };
                to.copy_from_slice(&bytemuck::cast_slice(rows)[..count]);
            }
        }
    });
}

/// G g Gt of `len` input channels from `from` on, for one filter [3][3][c].
fn transform<A, const T: usize, const O: usize>(
    filter: &[f32],
    c: usize,
    from: usize,
    len: usize,
) -> [[[f64; CHUNK]; T]; T]
where
    A: Algorithm<T, O>,
{
    // [r][j] = g[r] Gt
    let mut rows = [[[0.0; CHUNK]; T]; 3];
    for (r, row) in rows.iter_mut().enumerate() {
        for s in 0..3 {
            let mut g = [0.0; CHUNK];
            for (g, value) in g.iter_mut().zip(&filter[(r * 3 + s) * c + from..][..len]) {
                *g = f64::from(*value);
            }
            for (sum, factors) in row.iter_mut().zip(&A::G) {
                add_scaled(sum, factors[s], &g);
            }
        }
    }
    let mut all = [[[0.0; CHUNK]; T]; T];
    for (sums, factors) in all.iter_mut().zip(&A::G) {
        for (row, factor) in rows.iter().zip(factors) {
            for (sum, values) in sums.iter_mut().zip(row) {
                add_scaled(sum, *factor, values);
            }
        }
    }
    all
}

fn add_scaled(sum: &mut [f64; CHUNK], factor: f64, values: &[f64; CHUNK]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}
