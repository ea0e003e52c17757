//! Grid and block of every kernel: functions of the shapes alone, so that results do not depend on the card.

/// Blocks along x, y and z; threads of a block; bytes of shared memory of a block beside what its kernel declares; whether all
/// blocks must run at once, because they wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub cooperative: bool,
}

impl Geometry {
    /// Blocks that wait for nobody.
    pub fn plain(grid: [u32; 3], threads: usize) -> Self {
        Self { grid, block: [threads as u32, 1, 1], shared: 0, cooperative: false }
    }
}

/// Threads of a block, as `BLOCK` of `kernels/common.cuh`.
const BLOCK: usize = 256;
/// Elements of a thread of the elementwise kernels.
const PACK: usize = 8;
/// Packs of a thread of `input`, and of `bn_apply` and `bn_backward_apply`.
const INPUT_PACKS: usize = 4;
const APPLY_PACKS: usize = 4;
/// Lanes along channels of a reduction's block.
const LANES: usize = 32;
/// Channels of a block that adds partials up.
const FINALIZE_CHANNELS: usize = 16;

/// Channels of a column of `bn_slab` and `bn_backward_slab`.
pub const SLAB_COLUMN: usize = 32;
/// Rows of a block that applies, and the fewest of one that sums: eight of each thread.
const SLAB_ROWS: usize = 512;
/// Partials of a channel, at most: the last block of a column adds them up by itself.
const SLAB_PARTIALS: usize = 256;
/// `bn_stats`, `bn_finalize`, `bn_apply`, and as many on the way back.
pub const PLAIN_NORM_LAUNCHES: u64 = 3;

/// Rows that the threads of a block of `bn_one_pass` and `bn_backward_one_pass` have at a time.
pub const ONE_PASS_ROWS: usize = BLOCK * PACK / SLAB_COLUMN;
/// Bytes of a pack of every thread: of a type of two bytes.
pub const ONE_PASS_PACK_BYTES: usize = BLOCK * PACK * 2;
/// Bytes of shared memory before the packs, as `one_pass::Scratch`.
pub const ONE_PASS_SCRATCH: usize = 3072;
/// Packs of a thread in registers, of each operand together: `HELD` of the two kernels, by operands.
pub const ONE_PASS_HELD: usize = 32;

/// Rows and columns of a tile of `conv1x1_stats`.
const CONV1X1_ROWS: usize = 128;
const CONV1X1_COLUMNS: usize = 64;

/// Blocks of a reduction, about: eight for each multiprocessor of a large card.
const REDUCE_BLOCKS: usize = 1024;
/// Rows that a thread of a reduction takes at least: fewer would not hide the combining.
const ROWS_A_THREAD: usize = 8;

fn line(blocks: usize, threads: usize) -> Geometry {
    let blocks = u32::try_from(blocks.max(1)).expect("tensors have fewer than 2^32 elements");
    Geometry::plain([blocks, 1, 1], threads)
}

/// A thread for every 8 of `elements`.
fn packs(elements: usize) -> Geometry {
    line(elements.div_ceil(BLOCK * PACK), BLOCK)
}

/// Lanes along channels in all, and of one block.
fn lanes(channels: usize) -> (usize, usize) {
    let all = if channels.is_multiple_of(PACK) { channels / PACK } else { channels };
    (all, all.min(LANES))
}

/// Rows of one block of `bn_stats` and `bn_backward_reduce`.
pub fn reduce_rows_per_block(rows: usize, channels: usize) -> usize {
    let (all, width) = lanes(channels);
    let columns = all.div_ceil(width);
    let least = BLOCK / width * ROWS_A_THREAD;
    rows.div_ceil((REDUCE_BLOCKS / columns).max(1)).max(least)
}

fn reduce(rows: usize, channels: usize) -> Geometry {
    let (all, width) = lanes(channels);
    let blocks = rows.div_ceil(reduce_rows_per_block(rows, channels));
    Geometry::plain([all.div_ceil(width) as u32, blocks as u32, 1], BLOCK)
}

/// `elements` of the image as the stem reads it.
pub fn input(elements: usize) -> Geometry {
    line(elements.div_ceil(PACK * INPUT_PACKS * BLOCK), BLOCK)
}

pub fn bn_stats(rows: usize, channels: usize) -> Geometry {
    reduce(rows, channels)
}

pub fn bn_backward_reduce(rows: usize, channels: usize) -> Geometry {
    reduce(rows, channels)
}

/// `bn_finalize` and `bn_backward_finalize`.
pub fn bn_finalize(channels: usize) -> Geometry {
    line(channels.div_ceil(FINALIZE_CHANNELS), 1024)
}

/// `bn_apply` and `bn_backward_apply`. Threads that work are a multiple of the groups of eight channels, as
/// `apply_threads` of `kernels/common.cuh`.
pub fn bn_apply(elements: usize, channels: usize) -> Geometry {
    let groups = if channels.is_multiple_of(PACK) { channels / PACK } else { 1 };
    let threads = if groups <= BLOCK { BLOCK / groups * groups } else { BLOCK };
    line(elements.div_ceil(PACK * APPLY_PACKS * threads), BLOCK)
}

/// Tiles of rows of a block of `conv1x1_stats` and `conv1x1_norm_stats`: so many that partials are as few as `bn_stats` leaves.
pub fn conv1x1_tiles(rows: usize, k: usize) -> usize {
    rows.div_ceil(CONV1X1_ROWS).div_ceil((REDUCE_BLOCKS / (k / CONV1X1_COLUMNS)).max(1))
}

pub fn conv1x1_rows_per_block(rows: usize, k: usize) -> usize {
    conv1x1_tiles(rows, k) * CONV1X1_ROWS
}

/// `conv1x1_stats` and `conv1x1_norm_stats`.
pub fn conv1x1(rows: usize, k: usize) -> Geometry {
    let blocks = rows.div_ceil(conv1x1_rows_per_block(rows, k));
    Geometry::plain([(k / CONV1X1_COLUMNS) as u32, blocks as u32, 1], BLOCK)
}

/// Rows of one block of the half of `bn_slab` or `bn_backward_slab` that sums `columns` columns.
pub fn slab_rows_per_block(rows: usize, columns: usize) -> usize {
    let blocks = (REDUCE_BLOCKS / columns.max(1)).clamp(1, SLAB_PARTIALS);
    rows.div_ceil(blocks).max(SLAB_ROWS)
}

/// `bn_slab` and `bn_backward_slab`: blocks that sum, then blocks that apply.
pub fn bn_slab(rows: usize, per_block: usize, sums: usize, applies: usize) -> Geometry {
    line(sums * rows.div_ceil(per_block) + applies * rows.div_ceil(SLAB_ROWS), BLOCK)
}

/// `bn_one_pass` and `bn_backward_one_pass`: groups of as many blocks each, one a multiprocessor; `kept` packs of a thread in
/// shared memory, of each of `operands`.
pub fn bn_one_pass(groups: usize, group: usize, kept: usize, operands: usize) -> Geometry {
    let shared = ONE_PASS_SCRATCH + kept * operands * ONE_PASS_PACK_BYTES;
    Geometry { shared: shared as u32, cooperative: true, ..line(groups * group, BLOCK) }
}

/// `bn_running` and `bn_fold`: a thread a channel.
pub fn by_channel(channels: usize) -> Geometry {
    line(channels.div_ceil(BLOCK), BLOCK)
}

/// Pooling, both ways: `elements` of what is written.
pub fn pool(elements: usize) -> Geometry {
    packs(elements)
}

/// `softmax_loss` and `bce_loss`: a block a row.
pub fn loss(rows: usize) -> Geometry {
    line(rows, BLOCK)
}

pub fn loss_finalize() -> Geometry {
    line(1, BLOCK)
}

pub fn bias_add(elements: usize) -> Geometry {
    line(elements.div_ceil(BLOCK), BLOCK)
}

pub fn bias_gradient(classes: usize) -> Geometry {
    line(classes.div_ceil(LANES), BLOCK)
}

/// Everything over the flat parameter space: `accumulate`, `finite_check`, `sgd`, `ema_update`, `cast`.
pub fn flat(elements: usize) -> Geometry {
    packs(elements)
}

/// `lamb_moments`, `lamb_update`, `lars_norms`, `lars_update`: a block a chunk. `lamb_ratios`, `lars_ratios`: a block a parameter.
pub fn by_chunk(blocks: usize) -> Geometry {
    line(blocks, BLOCK)
}

/// Two packs of eight a thread.
pub fn gradient_squares(elements: usize) -> Geometry {
    line(elements.div_ceil(2 * BLOCK * PACK), BLOCK)
}

pub fn clip_gradients() -> Geometry {
    line(1, BLOCK)
}

pub fn drop_path_factors(count: usize) -> Geometry {
    single_elements(count)
}

/// `stem_block_filters`, `stem_unblock_gradient`: a thread an element.
pub fn single_elements(count: usize) -> Geometry {
    line(count.div_ceil(BLOCK), BLOCK)
}

/// Two gradients of a tensor.
pub fn gradient_add(elements: usize) -> Geometry {
    packs(elements)
}

/// `update_scale` and `end_pass`.
pub fn single() -> Geometry {
    line(1, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_cover_all_rows_and_fill_a_card() {
        for (rows, channels) in [(256 * 112 * 112, 64), (256 * 49, 2048), (1, 3), (7, 33), (802_816, 256)] {
            let per_block = reduce_rows_per_block(rows, channels);
            let Geometry { grid, .. } = bn_stats(rows, channels);
            let [columns, blocks, _] = grid.map(|blocks| blocks as usize);
            assert!(
                blocks * per_block >= rows && (blocks - 1) * per_block < rows,
                "{rows} x {channels}: {grid:?}"
            );
            assert!(columns * blocks <= 2 * REDUCE_BLOCKS, "{rows} x {channels}: {grid:?}");
        }
    }
}
