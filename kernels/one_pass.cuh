// What batch norm in one pass is made of, both ways: who holds which rows where, and the sums of a group of blocks.
//
// A column is 32 channels: 64 bytes of a row of 16-bit values, whole sectors. Grid: one block a multiprocessor, in groups of
// `group`; a group takes every `groups`-th column, so that while one group waits for its sums others read and write. Each block
// of a group has a stretch of rows. Block of 256: 4 lanes along channels, 8 channels each, by 64 rows. Of a thread's packs the
// first stay in 128 of its registers, the next `kept` in shared memory, and the rest is read again, the last first: of those the
// L2 cache may still have some. All blocks of a group add the group's partials up, each for itself and in the same fixed order.
//
// The mask of a block's sum lies column by column here, 4 bytes a row: a column's part of a plain row is less than a sector.
// y, dx and dz leave the cache first, as in batch_norm_slab.cu.
#pragma once
#include "between_blocks.cuh"

namespace one_pass {

const u32 WARPS = BLOCK / WARP, COLUMN = 32, LANES = COLUMN / PACK, HIGH = BLOCK / LANES;

// Of a block, before the packs that are kept. A row of `warps` is padded so that eight of them do not share a bank.
struct Scratch {
    f32 warps[WARPS][2 * COLUMN + 4];
    f32 totals[2][COLUMN];
    f32 by_channel[3][COLUMN];
    u32 unused[64];
};
static_assert(sizeof(Scratch) == 3072 && sizeof(Scratch) % 16 == 0, "as ONE_PASS_SCRATCH of plan/geometry.rs");

// Who does what.
struct Grid {
    u32 group, kept, rows, channels;

    __device__ u32 groups() const { return gridDim.x / group; }
    __device__ u32 member() const { return blockIdx.x % group; }
    __device__ u32 own_group() const { return blockIdx.x / group; }
    __device__ u32 rows_per_block() const { return (rows + group - 1) / group; }
    // Of the block `member`: none where those before it have all rows.
    __device__ u32 rows_of(u32 member) const {
        const u64 begin = (u64)member * rows_per_block();
        return begin < rows ? min_u32(rows_per_block(), rows - (u32)begin) : 0;
    }
};

// A thread's packs of eight channels, `HIGH` rows apart.
struct Rows {
    u32 begin, end, first, packs;

    __device__ explicit Rows(const Grid& grid) {
        const u32 count = grid.rows_of(grid.member());
        begin = count ? grid.member() * grid.rows_per_block() : 0;
        end = begin + count;
        first = begin + threadIdx.x / LANES;
        packs = (count + HIGH - 1) / HIGH;
    }

    __device__ bool has(u32 p) const { return first + p * HIGH < end; }
    // The end of the last whole chunk of packs that begin at `first`.
    __device__ u32 last(u32 first, u32 chunk) const { return packs > first ? first + (packs - first + chunk - 1) / chunk * chunk : first; }
    // The block's first where the thread has no such pack.
    __device__ u32 of(u32 p) const { return has(p) ? first + p * HIGH : begin; }
};

// Where a thread's own packs lie in shared memory.
template <class S> struct Kept {
    Words* words;

    __device__ explicit Kept(Scratch* scratch) { words = (Words*)(scratch + 1) + threadIdx.x; }

    __device__ void put(u32 slot, const Stored<S>& pack) const {
#pragma unroll
        for (u32 i = 0; i < sizeof(S) / 2; i++) words[(slot * (u32)(sizeof(S) / 2) + i) * BLOCK] = pack.words[i];
    }
    __device__ Stored<S> get(u32 slot) const {
        Stored<S> pack;
#pragma unroll
        for (u32 i = 0; i < sizeof(S) / 2; i++) pack.words[i] = words[(slot * (u32)(sizeof(S) / 2) + i) * BLOCK];
        return pack;
    }
};

template <class S> __device__ inline f32 element(const Stored<S>& pack, u32 i) {
    Pack<S> values;
    values.unpack(pack);
    return values.v[i];
}

template <class S> __device__ inline void clear(Stored<S>& pack) {
#pragma unroll
    for (u32 i = 0; i < sizeof(S) / 2; i++) pack.words[i] = {0, 0, 0, 0};
}

// In a tree.
template <u32 N> __device__ inline f32 total(f32 (&v)[N]) {
#pragma unroll
    for (u32 width = N / 2; width; width /= 2) {
#pragma unroll
        for (u32 j = 0; j < width; j++) v[j] += v[j + width];
    }
    return v[0];
}

// Two values of each channel that every warp has left in `warps`, over the warps in a fixed tree, into `totals`.
__device__ inline void over_warps(Scratch& scratch) {
    __syncthreads();
    const u32 warp = threadIdx.x % WARPS, channel = threadIdx.x / WARPS;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        f32 value = scratch.warps[warp][i * COLUMN + channel];
        for (u32 lanes = 1; lanes < WARPS; lanes *= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
        if (warp == 0) scratch.totals[i][channel] = value;
    }
    __syncthreads();
}

// Two values of eight channels over all rows of the block.
__device__ inline void over_rows(Scratch& scratch, f32 (&a)[PACK], f32 (&b)[PACK]) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        for (u32 lanes = LANES; lanes < WARP; lanes *= 2) {
            a[i] += __shfl_xor_sync(0xffffffffu, a[i], lanes);
            b[i] += __shfl_xor_sync(0xffffffffu, b[i], lanes);
        }
        if (lane < LANES) {
            scratch.warps[warp][lane * PACK + i] = a[i];
            scratch.warps[warp][COLUMN + lane * PACK + i] = b[i];
        }
    }
    over_warps(scratch);
}

// Leaves the block's two values of a channel, waits for the group's other blocks, and adds all of theirs up: `add(sums, member,
// pair, first)` takes them one by one. The totals are in `totals`. Returns the first block's, the same for all.
template <class Add>
__device__ inline Pair over_group(Scratch& scratch, const Grid& grid, Pair* partials, u32* counter, const Pair& own, Add add) {
    const u32 channel = threadIdx.x % COLUMN, warp = threadIdx.x / WARP;
    if (threadIdx.x < COLUMN) partials[grid.member() * COLUMN + channel] = own;
    meet(counter, grid.group);
    const Pair first = load_fresh(partials + channel);
    Pair sums = {0.0f, 0.0f};
    for (u32 member = warp; member < grid.group; member += WARPS) {
        add(sums, member, load_fresh(partials + member * COLUMN + channel), first);
    }
    scratch.warps[warp][channel] = sums.a;
    scratch.warps[warp][COLUMN + channel] = sums.b;
    over_warps(scratch);
    return first;
}

// The place of a row's bits of a lane.
struct Mask {
    u8* bits;
    u32 in_columns;

    __device__ u64 at(const Grid& grid, u32 column, u32 row) const {
        const u32 lane = threadIdx.x % LANES;
        if (in_columns) return ((u64)column * grid.rows + row) * LANES + lane;
        return (u64)row * (grid.channels / PACK) + column * LANES + lane;
    }
};

__device__ inline void load_lane(Pack<f32>& to, const f32 (&from)[COLUMN]) { to.load(from + threadIdx.x % LANES * PACK); }

// The columns of the block's group. Each has partials and a counter of its own.
template <class A> __device__ inline void run(const A& work, const Grid& grid, Scratch* scratch) {
    for (u32 column = grid.own_group(); column < grid.channels / COLUMN; column += grid.groups()) {
        work.column(*scratch, grid, column);
    }
}

}  // namespace one_pass
