//! The source pixels that a block of wgrad's output pixels needs, and which of them meets which through each tap.

use super::kernel::LINE;
use super::wgrad::Outer;
use std::ops::Range;

#[derive(Default)]
pub(super) struct Window {
    /// Offsets in floats of the source pixels, in the order in which they are packed.
    pub source: Vec<u32>,
    /// Offsets in the packed source and in the packed gradient, for the pixels where a tap falls inside the source.
    pixels: Vec<[u32; 2]>,
    /// Where each tap's `pixels` end.
    ends: Vec<usize>,
}

/// How source pixels are numbered: rows of `columns`. Without padding, a single row (column) of taps needs only every
/// `stride`th row (column), and only those are packed.
struct Numbering {
    sparse_rows: bool,
    sparse_columns: bool,
    /// First output row, counted over all images, and first column.
    first_row: usize,
    first_q: usize,
    /// First source row, counted over all images, where rows are not sparse.
    first_source_row: usize,
    columns: usize,
}

impl Window {
    /// For output pixels `pixels` and a source of `source_len` floats; rows of the packed gradient are `width` floats.
    /// The kernels rely on what is asserted on the way: source pixels with their channels are inside the source, lines
    /// inside the packed source, rows of the gradient inside the packed gradient.
    pub fn fill(&mut self, outer: &Outer, source_len: usize, width: usize, pixels: &Range<usize>) {
        self.source.clear();
        self.pixels.clear();
        self.ends.clear();
        if pixels.is_empty() {
            self.ends.resize(outer.taps(), 0);
            return;
        }
        let rows = pixels.start / outer.q..(pixels.end - 1) / outer.q + 1;
        let sparse_columns = outer.pad == 0 && outer.taps_across == 1;
        let within_row = sparse_columns && rows.len() == 1;
        let top =
            |row: usize| row / outer.p * outer.h + (row % outer.p * outer.stride).saturating_sub(outer.pad);
        let numbering = Numbering {
            sparse_rows: outer.pad == 0 && outer.taps_down == 1,
            sparse_columns,
            first_row: rows.start,
            first_q: if within_row { pixels.start % outer.q } else { 0 },
            first_source_row: top(rows.start),
            columns: match (within_row, sparse_columns) {
                (true, _) => pixels.len(),
                (_, true) => outer.q,
                _ => outer.w,
            },
        };
        self.number_source(outer, source_len, &numbering, rows.clone());
        for tap in 0..outer.taps() {
            self.push_tap(outer, &numbering, tap, width, pixels, rows.clone());
            self.ends.push(self.pixels.len());
        }
    }

    fn number_source(&mut self, outer: &Outer, source_len: usize, numbering: &Numbering, rows: Range<usize>) {
        let step = if numbering.sparse_columns { outer.stride } else { 1 };
        let mut push = |row: usize| {
            let first = (row * outer.w + numbering.first_q * step) * outer.pitch;
            let step = step * outer.pitch;
            assert!(
                first + (numbering.columns - 1) * step + outer.channels <= source_len,
                "a source pixel too far"
            );
            self.source.extend((0..numbering.columns).map(|x| (first + x * step) as u32));
        };
        if numbering.sparse_rows {
            rows.for_each(|row| push(row / outer.p * outer.h + row % outer.p * outer.stride));
        } else {
            let (image, p) = ((rows.end - 1) / outer.p, (rows.end - 1) % outer.p);
            let bottom = (p * outer.stride + outer.taps_down).saturating_sub(outer.pad).clamp(1, outer.h);
            (numbering.first_source_row..image * outer.h + bottom).for_each(push);
        }
    }

    fn push_tap(
        &mut self,
        outer: &Outer,
        numbering: &Numbering,
        tap: usize,
        width: usize,
        pixels: &Range<usize>,
        rows: Range<usize>,
    ) {
        let Outer { h, w, pad, stride, p: p_size, q: q_size, .. } = *outer;
        let (r, s) = (tap / outer.taps_across, tap % outer.taps_across);
        let first_q = pad.saturating_sub(s).div_ceil(stride);
        let past_q = (w + pad).saturating_sub(s).div_ceil(stride).min(q_size);
        for row in rows {
            let (image, y) = (row / p_size, row % p_size * stride + r);
            if y < pad || y - pad >= h {
                continue;
            }
            let packed_row = if numbering.sparse_rows {
                row - numbering.first_row
            } else {
                image * h + y - pad - numbering.first_source_row
            };
            let first = first_q.max(pixels.start.saturating_sub(row * q_size));
            let past = past_q.min(pixels.end - row * q_size);
            if first >= past {
                continue;
            }
            let (column, step) = if numbering.sparse_columns {
                (first - numbering.first_q, 1)
            } else {
                (first * stride + s - pad, stride)
            };
            let source = packed_row * numbering.columns + column;
            let gradient = row * q_size + first - pixels.start;
            let count = past - first;
            assert!(source + (count - 1) * step < self.source.len() && gradient + count <= pixels.len());
            let pair = |i: usize| [((source + i * step) * LINE) as u32, ((gradient + i) * width) as u32];
            self.pixels.extend((0..count).map(pair));
        }
    }

    pub fn of(&self, tap: usize) -> &[[u32; 2]] {
        let start = if tap == 0 { 0 } else { self.ends[tap - 1] };
        &self.pixels[start..self.ends[tap]]
    }
}
