//! The first convolution in its forms ([`Stem`]), and the image as it reads it.
//!
//! Blocked: 2x2 pixels of 4 channels lie as one of 16, so that the 7x7 of stride 2 is a 4x4 without stride. Output row p reads
//! the image's rows 2p - 3 to 2p + 3, which are the rows of blocks p - 2 to p + 1: filters have `taps` blocks a side, the first
//! tap lies `shift` places inside, and the image has a margin of `before` blocks at the top and enough at the bottom that no
//! padding is left to do. Filters and gradients are moved between this order and the optimiser's within the pass, so that
//! nothing that outlives a pass, and no checkpoint, knows of it.

use super::builder::{Builder, MAIN, read, size, write};
use super::geometry;
use super::node::{Arg, Call, Launch, Stream};
use super::region::Region;
use crate::config::Stem;
use crate::model::graph::ConvShape;

/// Places of a blocked filter, and of the image's margin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocking {
    /// Rows and columns of a filter in the optimiser's order.
    pub r: usize,
    pub s: usize,
    /// Blocks a side of a filter.
    pub taps: usize,
    /// Places before the first tap.
    pub shift: usize,
    /// Blocks of the margin at the top and the left.
    pub before: usize,
    /// Blocks of the image with its margins.
    pub height: usize,
    pub width: usize,
}

/// Channels of a block: four pixels of four.
pub const BLOCK_CHANNELS: usize = 16;

impl Blocking {
    /// Of a convolution with stride 2; none where the form does not block.
    pub fn of(form: Stem, shape: &ConvShape) -> Option<Self> {
        if form != Stem::SpaceToDepth {
            return None;
        }
        debug_assert_eq!(shape.stride, 2);
        let before = shape.pad.div_ceil(2);
        let shift = 2 * before - shape.pad;
        let taps = (shape.r + shift).div_ceil(2);
        let sides = [shape.p(), shape.q()].map(|side| side + taps - 1);
        Some(Self { r: shape.r, s: shape.s, taps, shift, before, height: sides[0], width: sides[1] })
    }

    fn shape(&self, k: usize) -> ConvShape {
        ConvShape {
            h: self.height,
            w: self.width,
            c: BLOCK_CHANNELS,
            k,
            r: self.taps,
            s: self.taps,
            stride: 1,
            pad: 0,
        }
    }

    /// The element of a blocked filter that holds a tap's channel.
    pub fn place(&self, k: usize, row: usize, column: usize, channel: usize) -> usize {
        let (i, j) = (row + self.shift, column + self.shift);
        let block = (k * self.taps + i / 2) * self.taps + j / 2;
        block * BLOCK_CHANNELS + (i % 2 * 2 + j % 2) * 4 + channel
    }
}

/// The stem's convolution as the card does it; `shape` is the network's, of three channels.
pub fn stem_shape(form: Stem, shape: &ConvShape) -> ConvShape {
    match Blocking::of(form, shape) {
        Some(blocking) => blocking.shape(shape.k),
        None => ConvShape { c: form.pixel(), ..*shape },
    }
}

impl Builder<'_> {
    /// The stem's filters as its convolution reads them.
    pub fn stem_filters(&mut self, shape: &ConvShape, w: Region) -> Region {
        let Some(blocking) = Blocking::of(self.options.form.stem, shape) else { return w };
        let elements = blocking.shape(shape.k).weights();
        let blocked = self.buffer("stem.filters", self.options.storage.bytes() * elements as u64);
        let launch =
            self.blocked("stem_block_filters", elements, [read(w), write(blocked)], shape.k, blocking);
        self.push("stem.filters".into(), MAIN, Call::Kernel(launch));
        blocked
    }

    /// Where the stem's convolution leaves the gradient of its filters.
    pub fn stem_gradient(&mut self, shape: &ConvShape, dw: Region) -> Region {
        let Some(blocking) = Blocking::of(self.options.form.stem, shape) else { return dw };
        let elements = blocking.shape(shape.k).weights();
        self.buffer("stem.gradient", self.options.storage.bytes() * elements as u64)
    }

    /// From there to where the optimiser takes it.
    pub fn unblock_gradient(&mut self, shape: &ConvShape, from: Region, dw: Region, stream: Stream) {
        let Some(blocking) = Blocking::of(self.options.form.stem, shape) else { return };
        let elements = shape.k * shape.r * shape.s * 4;
        let launch =
            self.blocked("stem_unblock_gradient", elements, [read(from), write(dw)], shape.k, blocking);
        self.push("stem.gradient".into(), stream, Call::Kernel(launch));
    }

    fn blocked(&self, kernel: &str, elements: usize, ends: [Arg; 2], k: usize, by: Blocking) -> Launch {
        let mut args = ends.to_vec();
        args.extend([k, by.r, by.s, by.taps, by.shift].map(size));
        Launch { kernel: self.storage_kernel(kernel), geometry: geometry::single_elements(elements), args }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stem(side: usize) -> ConvShape {
        ConvShape { h: side, w: side, c: 3, k: 64, r: 7, s: 7, stride: 2, pad: 3 }
    }

    /// Every tap meets the pixel that it meets in the network's convolution, and no two taps have one place.
    #[test]
    fn a_blocked_tap_reads_the_pixel_of_the_tap() {
        for side in [224, 37] {
            let shape = stem(side);
            let by = Blocking::of(Stem::SpaceToDepth, &shape).unwrap();
            let blocked = stem_shape(Stem::SpaceToDepth, &shape);
            assert_eq!((blocked.p(), blocked.q()), (shape.p(), shape.q()), "{side}");
            let mut places = std::collections::BTreeSet::new();
            for (row, column) in (0..7).flat_map(|row| (0..7).map(move |column| (row, column))) {
                let place = by.place(0, row, column, 0);
                assert!(places.insert(place) && place < blocked.weights() / 64);
                let (block, inner) = (place / BLOCK_CHANNELS, place % BLOCK_CHANNELS / 4);
                for p in [0, 1, shape.p() - 1] {
                    // The row of the image that this place of output row p reads.
                    let read = 2 * (p + block / by.taps) as i64 - 2 * by.before as i64 + (inner / 2) as i64;
                    assert_eq!(read, 2 * p as i64 - 3 + row as i64);
                }
            }
        }
        let by = Blocking::of(Stem::SpaceToDepth, &stem(224)).unwrap();
        assert_eq!((by.taps, by.shift, by.before, by.height), (4, 1, 2, 115));
        assert_eq!(stem_shape(Stem::Padded8, &stem(224)), ConvShape { c: 8, ..stem(224) });
    }
}
