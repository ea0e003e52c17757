//! The two micro-kernels, written once over a vector register type; the ISA files instantiate them under their
//! `#[target_feature]`, where everything here is inlined.
//!
//! Accumulators are only indexed, by loops with constant bounds: reached through an iterator or a variable index they
//! live in memory, stored at every step.
#![allow(clippy::needless_range_loop, reason = "see above")]

/// A register of f32 lanes. Methods are only called, and always inlined, inside functions that enable the instructions.
pub(in crate::simd) trait Lanes: Copy {
    const LANES: usize;

    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn splat(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    /// self + a * b
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// Starts to fetch a cache line that will be read; any address will do.
    unsafe fn prefetch(_line: *const f32) {}
    /// Starts to fetch a cache line that will be written; any address will do.
    unsafe fn prefetch_write(_line: *const f32) {}
}

/// Floats of a cache line.
pub(in crate::simd) const LINE: usize = 16;

/// One tile of `rows` output pixels by one panel of output channels:
/// `out[m][j] (+)= sum over taps t and channels i of sources[t][m][first + i] * panel[slices[t]][first + i][j]`.
pub(super) struct GatherTile<'a> {
    /// [taps][MR, rounded up to a multiple of 4] pointers to the channels of a source pixel, or to zeros.
    pub sources: &'a [*const f32],
    /// As many pointers to what is to be fetched meanwhile: the sources of the tile after this one.
    pub next: &'a [*const f32],
    /// [taps] which tap of the panel each one multiplies.
    pub slices: &'a [u32],
    /// First channel of the block, and how many.
    pub first: usize,
    pub len: usize,
    /// [taps of the filter][channels][NR]
    pub panel: *const f32,
    /// Channels of a tap in the panel.
    pub channels: usize,
    /// [MR] output pixels; only the first `rows` are written.
    pub out: &'a [*mut f32],
    /// This panel's first output channel.
    pub column: usize,
    pub rows: usize,
    /// Output channels that exist in this panel, at most NR.
    pub cols: usize,
    /// Add to what is there, or overwrite it.
    pub accumulate: bool,
}

/// # Safety
/// Every source has `first + len` readable floats, the panel `channels * NR` for every slice named, every output
/// pixel `cols` writable floats from `column` on; the machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn gather<V: Lanes, const MR: usize, const NV: usize>(tile: &GatherTile) {
    let (width, stride) = (V::LANES * NV, MR.next_multiple_of(4));
    assert!(tile.sources.len() == tile.slices.len() * stride && tile.next.len() == tile.sources.len());
    assert!(tile.out.len() == MR);
    // SAFETY: the caller's promise; table sizes are checked above.
    unsafe {
        for &row in tile.out {
            for line in (0..width).step_by(LINE) {
                V::prefetch_write(row.wrapping_add(tile.column + line));
            }
        }
        let mut acc = [[V::zero(); NV]; MR];
        for (t, &slice) in tile.slices.iter().enumerate() {
            let mut a = [std::ptr::null(); MR];
            for (m, a) in a.iter_mut().enumerate() {
                *a = tile.sources.get_unchecked(t * stride + m).add(tile.first);
            }
            let mut w = tile.panel.add((slice as usize * tile.channels + tile.first) * width);
            let ahead = tile.next.as_ptr().wrapping_add(t * stride);
            let mut i = 0;
            // Four steps at a time: the first MR steps of a line each fetch a line of the tile to come.
            while i + 4 <= tile.len {
                if i % LINE < stride {
                    for u in 0..4 {
                        let row = *ahead.wrapping_add(i % LINE + u);
                        V::prefetch(row.wrapping_add(tile.first + i - i % LINE));
                    }
                }
                step::<V, MR, NV>(&mut acc, &a, i, w);
                step::<V, MR, NV>(&mut acc, &a, i + 1, w.add(width));
                step::<V, MR, NV>(&mut acc, &a, i + 2, w.add(2 * width));
                step::<V, MR, NV>(&mut acc, &a, i + 3, w.add(3 * width));
                w = w.add(4 * width);
                i += 4;
            }
            while i < tile.len {
                step::<V, MR, NV>(&mut acc, &a, i, w);
                w = w.add(width);
                i += 1;
            }
        }
        let row = |m: usize| tile.out.get_unchecked(m).wrapping_add(tile.column);
        write_tile(&acc, row, tile.rows, tile.cols, tile.accumulate);
    }
}

/// One channel of every source pixel times one row of the panel.
///
/// # Safety
/// As [`gather`], which it is a part of.
#[inline(always)]
unsafe fn step<V: Lanes, const MR: usize, const NV: usize>(
    acc: &mut [[V; NV]; MR],
    a: &[*const f32; MR],
    i: usize,
    w: *const f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut b = [V::zero(); NV];
        for j in 0..NV {
            b[j] = V::load(w.add(j * V::LANES));
        }
        for m in 0..MR {
            let x = V::splat(a[m].add(i));
            for j in 0..NV {
                acc[m][j] = acc[m][j].mul_add(x, b[j]);
            }
        }
    }
}

/// `MR` rows of the weight gradient by one panel of its columns, summed over some pixels:
/// `out[m][j] (+)= sum over (x, y) in pixels of source[x + m] * gradient[y + j]`.
pub(super) struct OuterTile<'a> {
    /// Where each pixel starts in `source`, and in `gradient`.
    pub pixels: &'a [[u32; 2]],
    pub source: *const f32,
    pub gradient: *const f32,
    pub out: *mut f32,
    /// Floats from one row of `out` to the next.
    pub pitch: usize,
    /// Columns that exist in this panel, at most NR.
    pub cols: usize,
    pub accumulate: bool,
}

/// # Safety
/// For every pixel, `source` has `MR` readable floats and `gradient` NR; `out` has `MR` rows of `cols` writable floats;
/// the machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn outer<V: Lanes, const MR: usize, const NV: usize>(tile: &OuterTile) {
    // SAFETY: the caller's promise.
    unsafe {
        for m in 0..MR {
            for j in 0..(NV * V::LANES).div_ceil(LINE) {
                V::prefetch_write(tile.out.wrapping_add(m * tile.pitch + j * LINE));
            }
        }
        let mut acc = [[V::zero(); NV]; MR];
        for &[x, y] in tile.pixels {
            let a = tile.source.add(x as usize);
            let dy = tile.gradient.add(y as usize);
            let mut b = [V::zero(); NV];
            for j in 0..NV {
                b[j] = V::load(dy.add(j * V::LANES));
            }
            for m in 0..MR {
                let x = V::splat(a.add(m));
                for j in 0..NV {
                    acc[m][j] = acc[m][j].mul_add(x, b[j]);
                }
            }
        }
        write_tile(&acc, |m| tile.out.wrapping_add(m * tile.pitch), MR, tile.cols, tile.accumulate);
    }
}

/// Runs of floats to copy: from each of `offsets` in `source` to every `pitch`th float of `to`.
pub(super) struct Runs<'a> {
    pub source: *const f32,
    pub offsets: &'a [u32],
    /// Offsets that will be copied next, to be fetched meanwhile; any will do.
    pub ahead: &'a [u32],
    pub to: *mut f32,
    pub pitch: usize,
}

/// Copies `LEN` floats a run.
///
/// # Safety
/// `source` has `LEN` readable floats at each offset, `to` room for all.
#[inline(always)]
pub(super) unsafe fn collect<V: Lanes, const LEN: usize>(runs: &Runs) {
    // SAFETY: the caller's promise; an array of floats has the alignment of a float.
    unsafe {
        for &offset in runs.ahead {
            let next = runs.source.wrapping_add(offset as usize);
            V::prefetch(next);
            if LEN > LINE {
                V::prefetch(next.wrapping_add(LINE));
            }
        }
        for (i, &offset) in runs.offsets.iter().enumerate() {
            let run = *runs.source.add(offset as usize).cast::<[f32; LEN]>();
            *runs.to.add(i * runs.pitch).cast::<[f32; LEN]>() = run;
        }
    }
}

/// Writes the first `rows` rows and `cols` columns. Loops have constant bounds, or the accumulators would leave their
/// registers.
///
/// # Safety
/// `row(m)` has `cols` writable floats for every `m` below `rows`.
#[inline(always)]
unsafe fn write_tile<V: Lanes, const MR: usize, const NV: usize>(
    acc: &[[V; NV]; MR],
    row: impl Fn(usize) -> *mut f32,
    rows: usize,
    cols: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise; `edge` has room for the widest tile, which the assertion states.
    unsafe {
        if cols == V::LANES * NV {
            for m in 0..MR {
                if m < rows {
                    let to = row(m);
                    for j in 0..NV {
                        let to = to.add(j * V::LANES);
                        let sum = if accumulate { acc[m][j].add(V::load(to)) } else { acc[m][j] };
                        sum.store(to);
                    }
                }
            }
            return;
        }
        const EDGE: usize = 14 * 32;
        const { assert!(MR * NV * V::LANES <= EDGE) };
        let mut edge = [0.0f32; EDGE];
        for m in 0..MR {
            for j in 0..NV {
                acc[m][j].store(edge.as_mut_ptr().add((m * NV + j) * V::LANES));
            }
        }
        for m in 0..rows {
            let sums = &edge[m * NV * V::LANES..][..cols];
            let to = std::slice::from_raw_parts_mut(row(m), cols);
            for (to, sum) in to.iter_mut().zip(sums) {
                *to = if accumulate { *sum + *to } else { *sum };
            }
        }
    }
}

/// The micro-kernels of one instruction set and their tile sizes.
pub(super) struct Kernels {
    /// Output pixels of a gather tile.
    pub gather_rows: usize,
    /// Channels in a panel, NR, of both kernels.
    pub width: usize,
    pub gather: unsafe fn(&GatherTile),
    /// Copies runs of NR floats.
    pub collect: unsafe fn(&Runs),
    /// Indexed by the number of rows less one: `outer[12]` makes 13 rows.
    pub outer: &'static [Outer],
}

/// The wgrad kernels for one number of rows.
pub(super) struct Outer {
    pub multiply: unsafe fn(&OuterTile),
    /// Copies runs of as many floats.
    pub collect: unsafe fn(&Runs),
}

/// Instantiates both kernels for a register type under its target features: a module of its own per set.
macro_rules! kernels {
    ($features:literal, $lanes:ty, gather: $gather:literal x $vectors:literal, outer: [$($rows:literal)*]) => {
        #[target_feature(enable = $features)]
        unsafe fn gather(tile: &crate::simd::conv::kernel::GatherTile) {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { crate::simd::conv::kernel::gather::<$lanes, $gather, $vectors>(tile) }
        }

        #[target_feature(enable = $features)]
        unsafe fn outer<const MR: usize>(tile: &crate::simd::conv::kernel::OuterTile) {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { crate::simd::conv::kernel::outer::<$lanes, MR, $vectors>(tile) }
        }

        #[target_feature(enable = $features)]
        unsafe fn collect<const LEN: usize>(runs: &crate::simd::conv::kernel::Runs) {
            // SAFETY: this function's caller promises what the kernel asks for.
            unsafe { crate::simd::conv::kernel::collect::<$lanes, LEN>(runs) }
        }

        pub(super) static KERNELS: crate::simd::conv::kernel::Kernels = crate::simd::conv::kernel::Kernels {
            gather_rows: $gather,
            width: $vectors * <$lanes as crate::simd::conv::kernel::Lanes>::LANES,
            gather,
            collect: collect::<{ $vectors * <$lanes as crate::simd::conv::kernel::Lanes>::LANES }>,
            outer: &[$(crate::simd::conv::kernel::Outer { multiply: outer::<$rows>, collect: collect::<$rows> }),*],
        };
    };
}
pub(super) use kernels;
