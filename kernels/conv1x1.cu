// A 1x1 convolution of stride 1 on tensor cores that leaves its output's statistics: y [rows][k] = x [rows][c] w [k][c], half
// in and out, f32 sums. For cards whose libraries have no such fusion (Volta, Turing), and layers that are bound by bytes.
//
// conv1x1_stats       y, and bn_stats of y as it is stored: a `Pair` a channel for each block of rows, for bn_finalize
//                     bytes: x, w and y once (convolution and bn_stats: y once more, which is most where k > c)
// conv1x1_norm_stats  the same of a = relu((x - mean) scale + beta), x the output of another convolution; a is stored as well,
//                     since the weight gradient reads it. bytes: x, w, a and y once (bn_apply, convolution, bn_stats: a and y
//                     once more, and a launch)
// floor: the larger of bytes / bandwidth and 2 rows c k / the rate of tensor cores. Where c k / (c + k) operations a byte are
// fewer than the card's ratio of the two (V100: 139), bytes decide: 51 for 64 and 256 channels, 102 for 128 and 512.
//
// c a multiple of 32, k of 64. Block of 256, 8 warps, a tile of 128 rows by 64 of k: 4 by 2 warps of 32 by 32, four
// accumulators of 16x16 each. A tile takes 2 * 128 * 64 operations from (128 + 64) * 2 bytes of cache, 43 a byte, and leaves
// room for two blocks on every multiprocessor from T4 on (30 KB of its 64). Grid: x over k, so that blocks that share rows
// run together and find them in the cache; y over blocks of `tiles` tiles of rows.
// Slices of 32 of c go from memory to registers while the one before is multiplied, then to the other half of shared memory.
#include "abi.cuh"

namespace conv1x1 {

const u32 ROWS = 128, COLUMNS = 64, SLICE = 32;
const u32 SIDE = 16;  // of a matrix that a warp multiplies
// Elements between rows in shared memory: 16-byte accesses of eight rows fall on different banks.
const u32 STRIDE = SLICE + 8, SUM_STRIDE = COLUMNS + 4;
// Rows of sums that are in shared memory at a time.
const u32 PART = ROWS / 2;
const u32 LANES = COLUMNS / PACK, HIGH = BLOCK / LANES;

struct Slices { half x[2][ROWS][STRIDE], w[2][COLUMNS][STRIDE]; };

union alignas(32) Shared {
    Slices slices;
    f32 sums[PART][SUM_STRIDE];
    f32 tree[PACK][2][BLOCK];
};

// ---- 16x16 matrices, spread over a warp -----------------------------------------------------------------------------

#ifdef CUDA_ON_CPU
typedef cuda_on_cpu::MatrixHalf Operand;
typedef cuda_on_cpu::MatrixFloat Sum;

inline void load_rows(Operand& to, const half* from, u32 stride) { cuda_on_cpu::load_matrix(to, &from->bits, stride, __LINE__); }
inline void load_columns(Operand& to, const half* from, u32 stride) { cuda_on_cpu::load_matrix(to, &from->bits, stride, __LINE__); }
inline void multiply_add(Sum& sum, const Operand& a, const Operand& b) {
    cuda_on_cpu::multiply_add(sum, a, b, [](u16 bits) { half h; h.bits = bits; return to_float(h); }, __LINE__);
}
inline void store_rows(f32* to, const Sum& from, u32 stride) { cuda_on_cpu::store_matrix(to, from, stride, __LINE__); }
#else
struct Operand { u32 r[8]; };
struct Sum { f32 r[8]; };

__device__ inline u32 shared_address(const void* at) {
    u32 address;
    asm("{ .reg .u64 t; cvta.to.shared.u64 t, %1; cvt.u32.u64 %0, t; }" : "=r"(address) : "l"(at));
    return address;
}

// [row][k]
__device__ inline void load_rows(Operand& to, const half* from, u32 stride) {
    asm volatile("wmma.load.a.sync.aligned.row.m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
                 : "=r"(to.r[0]), "=r"(to.r[1]), "=r"(to.r[2]), "=r"(to.r[3]), "=r"(to.r[4]), "=r"(to.r[5]), "=r"(to.r[6]),
                   "=r"(to.r[7])
                 : "r"(shared_address(from)), "r"(stride)
                 : "memory");
}

// [column][k]
__device__ inline void load_columns(Operand& to, const half* from, u32 stride) {
    asm volatile("wmma.load.b.sync.aligned.col.m16n16k16.shared.f16 {%0, %1, %2, %3, %4, %5, %6, %7}, [%8], %9;"
                 : "=r"(to.r[0]), "=r"(to.r[1]), "=r"(to.r[2]), "=r"(to.r[3]), "=r"(to.r[4]), "=r"(to.r[5]), "=r"(to.r[6]),
                   "=r"(to.r[7])
                 : "r"(shared_address(from)), "r"(stride)
                 : "memory");
}

__device__ inline void multiply_add(Sum& sum, const Operand& a, const Operand& b) {
    asm volatile("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, "
                 "{%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23}, "
                 "{%0, %1, %2, %3, %4, %5, %6, %7};"
                 : "+f"(sum.r[0]), "+f"(sum.r[1]), "+f"(sum.r[2]), "+f"(sum.r[3]), "+f"(sum.r[4]), "+f"(sum.r[5]),
                   "+f"(sum.r[6]), "+f"(sum.r[7])
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(a.r[4]), "r"(a.r[5]), "r"(a.r[6]), "r"(a.r[7]),
                   "r"(b.r[0]), "r"(b.r[1]), "r"(b.r[2]), "r"(b.r[3]), "r"(b.r[4]), "r"(b.r[5]), "r"(b.r[6]), "r"(b.r[7]));
}

__device__ inline void store_rows(f32* to, const Sum& from, u32 stride) {
    asm volatile("wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%0], {%1, %2, %3, %4, %5, %6, %7, %8}, %9;" ::"r"(
                     shared_address(to)),
                 "f"(from.r[0]), "f"(from.r[1]), "f"(from.r[2]), "f"(from.r[3]), "f"(from.r[4]), "f"(from.r[5]), "f"(from.r[6]),
                 "f"(from.r[7]), "r"(stride)
                 : "memory");
}
#endif

// ---- one tile -------------------------------------------------------------------------------------------------------

// What stands before the product: x as it is, or through a batch norm and its ReLU.
struct Before {
    const f32 *mean, *scale, *beta;
    half* a;
};

struct Product {
    const half *x, *w;
    Before before;
    half* y;
    u32 rows, c, k;
};

// A thread's share of a slice: two packs of x, HIGH_X rows apart, and one of w; all of the same eight channels.
const u32 SLICE_LANES = SLICE / PACK, HIGH_X = BLOCK / SLICE_LANES;

struct Fetched { Stored<half> x[ROWS / HIGH_X], w; };

__device__ inline void put_words(half* to, const Words& words) { *(Words*)to = words; }

template <bool NORM> struct Tile {
    const Product& of;
    u32 row, column;  // first of the tile

    // From memory to registers: channels from `c0` on. Rows behind the end are zero.
    __device__ void fetch(Fetched& to, u32 c0) const {
        const u32 c = c0 + threadIdx.x % SLICE_LANES * PACK, r = threadIdx.x / SLICE_LANES;
#pragma unroll
        for (u32 i = 0; i < ROWS / HIGH_X; i++) {
            const u32 at = row + r + i * HIGH_X;
            to.x[i].words[0] = Words{0, 0, 0, 0};
            if (at < of.rows) to.x[i].load(of.x + (u64)at * of.c + c);
        }
        to.w.load(of.w + (u64)(column + r) * of.c + c);
    }

    // From registers to shared memory, through the batch norm where there is one.
    __device__ void put(Slices& slices, u32 buffer, Fetched& from, u32 c0) const {
        const u32 lane = threadIdx.x % SLICE_LANES, r = threadIdx.x / SLICE_LANES;
        if (NORM) normalise(from, c0 + lane * PACK, row + r);
#pragma unroll
        for (u32 i = 0; i < ROWS / HIGH_X; i++) put_words(&slices.x[buffer][r + i * HIGH_X][lane * PACK], from.x[i].words[0]);
        put_words(&slices.w[buffer][r][lane * PACK], from.w.words[0]);
    }

    // The blocks of the first columns store what comes out.
    __device__ void normalise(Fetched& of_x, u32 c, u32 first) const {
        Pack<f32> mean, scale, beta;
        mean.load(of.before.mean + c);
        scale.load(of.before.scale + c);
        beta.load(of.before.beta + c);
#pragma unroll
        for (u32 i = 0; i < ROWS / HIGH_X; i++) {
            Pack<half> v;
            v.unpack(of_x.x[i]);
#pragma unroll
            for (u32 j = 0; j < PACK; j++) v.v[j] = positive(normalised(v.v[j], mean.v[j], scale.v[j], beta.v[j]));
            v.store((half*)of_x.x[i].words);
            const u32 at = first + i * HIGH_X;
            if (column == 0 && at < of.rows) v.store(of.before.a + (u64)at * of.c + c);
        }
    }

    // 32 by 32 of the tile, by the warp at `down` (32 rows) and `across` (32 columns).
    __device__ void multiply(const Slices& slices, u32 buffer, Sum (&sums)[2][2], u32 down, u32 across) const {
#pragma unroll
        for (u32 c = 0; c < SLICE; c += SIDE) {
            Operand a[2], b[2];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                load_rows(a[i], &slices.x[buffer][down * 2 * SIDE + i * SIDE][c], STRIDE);
                load_columns(b[i], &slices.w[buffer][across * 2 * SIDE + i * SIDE][c], STRIDE);
            }
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
#pragma unroll
                for (u32 j = 0; j < 2; j++) multiply_add(sums[i][j], a[i], b[j]);
            }
        }
    }

    __device__ void run(Shared& shared, Sum (&sums)[2][2], u32 down, u32 across) const {
        Fetched next;
        fetch(next, 0);
        // The last tile's sums have been read.
        __syncthreads();
        put(shared.slices, 0, next, 0);
        u32 buffer = 0;
        for (u32 c = 0; c < of.c; c += SLICE, buffer ^= 1) {
            __syncthreads();
            if (c + SLICE < of.c) fetch(next, c + SLICE);
            multiply(shared.slices, buffer, sums, down, across);
            if (c + SLICE < of.c) put(shared.slices, buffer ^ 1, next, c + SLICE);
        }
        __syncthreads();
    }
};

// ---- statistics -----------------------------------------------------------------------------------------------------

// Sums of y - pivot and its square over the thread's rows, of eight channels; the pivot is y in the block's first row, as in
// bn_stats.
struct Statistics { f32 pivot[PACK], sum[PACK], square[PACK]; };

// Rounds half of a tile's sums, stores them, and takes them into the statistics.
__device__ inline void finish(const Product& of, const Shared& shared, u32 first, u32 column, Statistics& to, bool sets_pivot) {
    const u32 lane = threadIdx.x % LANES;
    if (sets_pivot) {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) to.pivot[i] = rounded<half>(shared.sums[0][lane * PACK + i]);
    }
#pragma unroll
    for (u32 r = threadIdx.x / LANES; r < PART; r += HIGH) {
        if (first + r >= of.rows) break;
        Pack<half> y;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            y.v[i] = rounded<half>(shared.sums[r][lane * PACK + i]);
            const f32 d = y.v[i] - to.pivot[i];
            to.sum[i] += d;
            to.square[i] = fmaf(d, d, to.square[i]);
        }
        y.store(of.y + (u64)(first + r) * of.k + column + lane * PACK);
    }
}

// The block's sums, in a fixed tree, to one pair a channel.
__device__ inline void leave(Shared& shared, const Statistics& of, Pair* to, u32 count) {
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        shared.tree[i][0][threadIdx.x] = of.sum[i];
        shared.tree[i][1][threadIdx.x] = of.square[i];
    }
    for (u32 half_way = BLOCK / 2; half_way >= LANES; half_way >>= 1) {
        __syncthreads();
        if (threadIdx.x < half_way) {
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                shared.tree[i][0][threadIdx.x] += shared.tree[i][0][threadIdx.x + half_way];
                shared.tree[i][1][threadIdx.x] += shared.tree[i][1][threadIdx.x + half_way];
            }
        }
    }
    if (threadIdx.x >= LANES) return;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        const f32 total = shared.tree[i][0][threadIdx.x], shift = total / (f32)count;
        to[threadIdx.x * PACK + i] = {of.pivot[i] + shift, positive(shared.tree[i][1][threadIdx.x] - total * shift)};
    }
}

template <bool NORM> __device__ inline void run(const Product& of, Pair* partials, u32 tiles) {
    __shared__ Shared shared;
    const u32 warp = threadIdx.x / WARP, down = warp / 2, across = warp % 2, column = blockIdx.x * COLUMNS;
    const u32 begin = blockIdx.y * tiles * ROWS, end = min_u32(of.rows, begin + tiles * ROWS);
    Statistics statistics;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) statistics.sum[i] = statistics.square[i] = 0.0f;
#pragma unroll 1
    for (u32 row = begin; row < end; row += ROWS) {
        Sum sums[2][2];
#pragma unroll
        for (u32 i = 0; i < 32; i++) sums[i / 16][i / 8 % 2].r[i % 8] = 0.0f;
        Tile<NORM>{of, row, column}.run(shared, sums, down, across);
#pragma unroll 1
        for (u32 part = 0; part < 2; part++) {
            if (down / 2 == part) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    store_rows(&shared.sums[down % 2 * 2 * SIDE + i / 2 * SIDE][across * 2 * SIDE + i % 2 * SIDE], sums[i / 2][i % 2], SUM_STRIDE);
                }
            }
            __syncthreads();
            finish(of, shared, row + part * PART, column, statistics, row == begin && part == 0);
            __syncthreads();
        }
    }
    leave(shared, statistics, partials + (u64)blockIdx.y * of.k + column, end - begin);
}

}  // namespace conv1x1

KERNEL __launch_bounds__(BLOCK, 2)
conv1x1_stats_f16(const half* __restrict__ x, const half* __restrict__ w, half* __restrict__ y, Pair* __restrict__ partials,
                  u32 rows, u32 c, u32 k, u32 tiles) {
    conv1x1::run<false>({x, w, {}, y, rows, c, k}, partials, tiles);
}
EXPORT(conv1x1_stats_f16)

KERNEL __launch_bounds__(BLOCK, 2)
conv1x1_norm_stats_f16(const half* __restrict__ x, const f32* __restrict__ mean, const f32* __restrict__ scale,
                       const f32* __restrict__ beta, half* __restrict__ a, const half* __restrict__ w, half* __restrict__ y,
                       Pair* __restrict__ partials, u32 rows, u32 c, u32 k, u32 tiles) {
    conv1x1::run<true>({x, w, {mean, scale, beta, a}, y, rows, c, k}, partials, tiles);
}
EXPORT(conv1x1_norm_stats_f16)
