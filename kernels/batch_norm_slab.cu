// Batch norm slab by slab, NHWC: a slab is all rows of a few channels, few enough that it is still in the L2 cache when it is
// read for the second time. For channels that are a multiple of 32 and branches that no image skips; the plain kernels
// (batch_norm.cu, batch_norm_backward.cu) say what the formulas are.
//
// A layer of n slabs is n + 1 launches on one stream. Launch k sums slab k, from device memory, and applies slab k - 1, from
// the cache; the last block of a column to end adds the column's partials up, in their fixed order, whichever block it is.
// No block waits for another.
//
// bn_slab           bn_stats and bn_finalize of one slab, bn_apply of the one before
//                   bytes of a layer: x, z and y once, elements / 8 for the mask (plain: x twice)
// bn_backward_slab  bn_backward_reduce and bn_backward_finalize of one slab, bn_backward_apply of the one before
//                   bytes of a layer: dy, x (and a bit an element), dx (and dz) once (plain: dy, x and the mask twice)
// floor: those / bandwidth, and what n + 1 launches cost. A slab takes at least 64 bytes of each row: whole
// sectors of 32 bytes of the values, but of the mask only where it has 256 channels or more (plan/slab.rs counts that).
//
// A column is 32 channels. Block of 256: 4 lanes along channels, 8 channels each, by 64 rows. Grid: the blocks that sum come
// first, `columns` of them for each block of rows, then those that apply, so that the end of the sums is beside other work.
// y, dx and dz leave the cache first (st.global.cs): what they would push out is the slab that is read again.
#include "between_blocks.cuh"

namespace slab {

const u32 COLUMN = 32, LANES = COLUMN / PACK, HIGH = BLOCK / LANES;
// Rows of a block that applies.
const u32 APPLY_ROWS = 8 * HIGH;
// Threads that add up one channel's partials.
const u32 PARTS = BLOCK / COLUMN;

// A tensor's rows, and how many channels apart they begin.
struct Matrix { u32 rows, channels; };

// The half of a launch that sums; without columns it is missing. Partials: a row of `COLUMN` pairs for each block of rows
// of each column. Counters: one a column, zero between launches.
struct Sums {
    u32 columns, blocks, rows_per_block;
    Pair* partials;
    u32* counters;
};

// Adds two values of eight channels over the rows of a block, in a fixed tree; the sums are with the threads of row 0.
__device__ inline void over_rows(f32 (&shared)[PACK][2][BLOCK], f32 (&a)[PACK], f32 (&b)[PACK]) {
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        shared[i][0][threadIdx.x] = a[i];
        shared[i][1][threadIdx.x] = b[i];
    }
    for (u32 half_way = BLOCK / 2; half_way >= LANES; half_way >>= 1) {
        __syncthreads();
        if (threadIdx.x < half_way) {
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                shared[i][0][threadIdx.x] += shared[i][0][threadIdx.x + half_way];
                shared[i][1][threadIdx.x] += shared[i][1][threadIdx.x + half_way];
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        a[i] = shared[i][0][threadIdx.x];
        b[i] = shared[i][1][threadIdx.x];
    }
}

// The same over the parts of a column's partials; the sums are with the threads of part 0, one a channel.
__device__ inline void over_parts(f32 (&shared)[PACK][2][BLOCK], f32& a, f32& b) {
    __syncthreads();
    shared[0][0][threadIdx.x] = a;
    shared[0][1][threadIdx.x] = b;
    for (u32 half_way = BLOCK / 2; half_way >= COLUMN; half_way >>= 1) {
        __syncthreads();
        if (threadIdx.x < half_way) {
            shared[0][0][threadIdx.x] += shared[0][0][threadIdx.x + half_way];
            shared[0][1][threadIdx.x] += shared[0][1][threadIdx.x + half_way];
        }
    }
    a = shared[0][0][threadIdx.x];
    b = shared[0][1][threadIdx.x];
}

// Whether this block is the last of `count` to come here: what the others have written before is seen by it. Leaves the
// counter at zero. All threads of the block call it.
__device__ inline bool comes_last(u32* counter, u32 count) {
    __shared__ u32 last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(counter, 1u) + 1 == count;
        if (last) *counter = 0;
    }
    __syncthreads();
    if (last) __threadfence();
    return last;
}

// A block's place among those that sum.
struct Place {
    u32 column, block;    // of columns, of rows
    u32 channel;          // the thread's first, from the slab's
    u32 begin, row, end;  // the block's first row, the thread's, the block's end

    __device__ Place(const Sums& sums, u32 rows) {
        column = blockIdx.x % sums.columns;
        block = blockIdx.x / sums.columns;
        channel = column * COLUMN + threadIdx.x % LANES * PACK;
        begin = block * sums.rows_per_block;
        row = begin + threadIdx.x / LANES;
        end = min_u32(rows, begin + sums.rows_per_block);
    }

    // Where the block leaves the thread's channels.
    __device__ Pair* partials(const Sums& sums) const {
        return sums.partials + (u64)(column * sums.blocks + block) * COLUMN + threadIdx.x % LANES * PACK;
    }
};

// A thread's elements among the blocks that apply: rows `HIGH` apart.
struct Rows {
    u32 channel, row, end;

    __device__ Rows(u32 block, u32 columns, u32 rows) {
        channel = block % columns * COLUMN + threadIdx.x % LANES * PACK;
        const u32 begin = block / columns * APPLY_ROWS;
        row = begin + threadIdx.x / LANES;
        end = min_u32(rows, begin + APPLY_ROWS);
    }
};

// ---- forward --------------------------------------------------------------------------------------------------------
// All pointers are to the first channel of the half's slab.

template <class S> struct ForwardSums {
    const S* x;
    const f32* gamma;
    f32 *mean, *rstd, *scale, *variance;
    f32 eps;

    // Deviations from the block's first row, as bn_stats.
    __device__ void run(const Sums& sums, Matrix of, f32 (&shared)[PACK][2][BLOCK]) const {
        const Place at(sums, of.rows);
        Pack<S> pivot;
        f32 total[PACK], square[PACK];
        pivot.load(x + (u64)at.begin * of.channels + at.channel);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) total[i] = square[i] = 0.0f;
#pragma unroll 4
        for (u32 row = at.row; row < at.end; row += HIGH) {
            Pack<S> v;
            v.load(x + (u64)row * of.channels + at.channel);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                const f32 d = v.v[i] - pivot.v[i];
                total[i] += d;
                square[i] = fmaf(d, d, square[i]);
            }
        }
        over_rows(shared, total, square);
        if (threadIdx.x < LANES) {
            Pair* to = at.partials(sums);
            const f32 count = (f32)(at.end - at.begin);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                const f32 shift = total[i] / count;
                to[i] = {pivot.v[i] + shift, positive(square[i] - total[i] * shift)};
            }
        }
        if (comes_last(sums.counters + at.column, sums.blocks)) finalize(sums, of.rows, at.column, shared);
    }

    // As bn_finalize.
    __device__ void finalize(const Sums& sums, u32 rows, u32 column, f32 (&shared)[PACK][2][BLOCK]) const {
        const u32 own = threadIdx.x % COLUMN, c = column * COLUMN + own;
        const Pair* from = sums.partials + (u64)column * sums.blocks * COLUMN + own;
        const f32 pivot = load_fresh(from).a;
        f32 total = 0.0f, square = 0.0f;
#pragma unroll 8
        for (u32 b = threadIdx.x / COLUMN; b < sums.blocks; b += PARTS) {
            const Pair partial = load_fresh(from + b * COLUMN);
            const f32 count = (f32)min_u32(sums.rows_per_block, rows - b * sums.rows_per_block), delta = partial.a - pivot;
            total = fmaf(count, delta, total);
            square += fmaf(count * delta, delta, partial.b);
        }
        over_parts(shared, total, square);
        if (threadIdx.x >= COLUMN) return;
        const f32 n = (f32)rows, shift = total / n, m2 = positive(square - total * shift);
        const f32 r = 1.0f / sqrtf(m2 / n + eps);
        mean[c] = pivot + shift;
        rstd[c] = r;
        scale[c] = gamma[c] * r;
        variance[c] = m2 / (rows > 1 ? n - 1.0f : 1.0f);
    }
};

template <class S> struct ForwardApply {
    const S* x;
    const f32 *mean, *scale, *beta;
    const S* z;
    const f32 *z_mean, *z_scale, *z_beta;
    S* y;
    u8* mask;
    u32 relu;

    __device__ void run(Matrix of, const Rows& at) const {
        Affine by;
        by.load(mean, scale, beta, at.channel);
#pragma unroll 2
        for (u32 row = at.row; row < at.end; row += HIGH) {
            const u64 e = (u64)row * of.channels + at.channel;
            Pack<S> v, w;
            v.load(x + e);
            if (z) w.load(z + e);
            if (z_mean) normalise(w, at.channel);
            const u32 bits = finish_norm(v, by, 1.0f, w, z, relu);
            store_streaming(v, y + e);
            if (mask) mask[e / PACK] = (u8)bits;
        }
    }

    // Its parameters are read for every pack, as in bn_apply: few layers have a second batch norm.
    __device__ void normalise(Pack<S>& z, u32 channel) const {
        Affine by;
        by.load(z_mean, z_scale, z_beta, channel);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) z.v[i] = by.of(z.v[i], i);
    }
};

// ---- backward -------------------------------------------------------------------------------------------------------

// The gradient that comes, the batch norm's input, and what is between them.
template <class S> struct Gate {
    const S *dy, *x;
    const u8* mask;
    const f32 *mean, *scale, *beta;
    u32 gate;

    __device__ void load(Affine& by, u32 channel) const { by.load(mean, scale, beta, channel); }

    // dy where the gate lets it through, and x.
    __device__ void load(Pack<S>& d, Pack<S>& v, const Affine& by, u64 e) const {
        d.load(dy + e);
        v.load(x + e);
        const u32 bits = gate_bits(gate, mask, v, by, e);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            if (!(bits >> i & 1u)) d.v[i] = 0.0f;
        }
    }
};

template <class S> struct BackwardSums {
    Gate<S> gate;
    const f32* rstd;
    f32 *dgamma, *dbeta, *b, *c;

    __device__ void run(const Sums& sums, Matrix of, f32 (&shared)[PACK][2][BLOCK]) const {
        const Place at(sums, of.rows);
        Affine by;
        gate.load(by, at.channel);
        f32 total[PACK], product[PACK];
#pragma unroll
        for (u32 i = 0; i < PACK; i++) total[i] = product[i] = 0.0f;
#pragma unroll 2
        for (u32 row = at.row; row < at.end; row += HIGH) {
            Pack<S> d, v;
            gate.load(d, v, by, (u64)row * of.channels + at.channel);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                total[i] += d.v[i];
                product[i] = fmaf(d.v[i], v.v[i] - by.mean.v[i], product[i]);
            }
        }
        over_rows(shared, total, product);
        if (threadIdx.x < LANES) {
            Pair* to = at.partials(sums);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) to[i] = {total[i], product[i]};
        }
        if (comes_last(sums.counters + at.column, sums.blocks)) finalize(sums, of.rows, at.column, shared);
    }

    // As bn_backward_finalize.
    __device__ void finalize(const Sums& sums, u32 rows, u32 column, f32 (&shared)[PACK][2][BLOCK]) const {
        const u32 own = threadIdx.x % COLUMN, k = column * COLUMN + own;
        const Pair* from = sums.partials + (u64)column * sums.blocks * COLUMN + own;
        f32 total = 0.0f, product = 0.0f;
#pragma unroll 8
        for (u32 block = threadIdx.x / COLUMN; block < sums.blocks; block += PARTS) {
            const Pair partial = load_fresh(from + block * COLUMN);
            total += partial.a;
            product += partial.b;
        }
        over_parts(shared, total, product);
        if (threadIdx.x >= COLUMN) return;
        const f32 gamma_gradient = rstd[k] * product;
        dgamma[k] = gamma_gradient;
        dbeta[k] = total;
        b[k] = -gate.scale[k] * rstd[k] * (gamma_gradient / (f32)rows);
        c[k] = -gate.scale[k] * (total / (f32)rows);
    }
};

template <class S> struct BackwardApply {
    Gate<S> gate;
    const f32 *b, *c;
    S *dx, *dz;

    __device__ void run(Matrix of, const Rows& at) const {
        Affine by;
        Pack<f32> slope, constant;
        gate.load(by, at.channel);
        slope.load(b + at.channel);
        constant.load(c + at.channel);
#pragma unroll 1
        for (u32 row = at.row; row < at.end; row += HIGH) {
            const u64 e = (u64)row * of.channels + at.channel;
            Pack<S> d, v;
            gate.load(d, v, by, e);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                v.v[i] = input_gradient(d.v[i], v.v[i], by.mean.v[i], by.scale.v[i], slope.v[i], constant.v[i]);
            }
            if (dz) store_streaming(d, dz + e);
            store_streaming(v, dx + e);
        }
    }
};

// One launch: the first blocks sum, the others apply.
template <class A, class B>
__device__ inline void run(const A& half, const Sums& sums, const B& other, u32 columns, Matrix of) {
    __shared__ f32 shared[PACK][2][BLOCK];
    const u32 summing = sums.columns * sums.blocks;
    if (blockIdx.x < summing) {
        half.run(sums, of, shared);
    } else {
        other.run(of, Rows(blockIdx.x - summing, columns, of.rows));
    }
}

}  // namespace slab

#define BN_SLAB(S, suffix)                                                                                                 \
    KERNEL __launch_bounds__(BLOCK, 3)                                                                                     \
    bn_slab_##suffix(const S* __restrict__ x_sum, const f32* __restrict__ gamma, f32* __restrict__ mean_sum,               \
                     f32* __restrict__ rstd_sum, f32* __restrict__ scale_sum, f32* __restrict__ variance_sum, f32 eps,     \
                     Pair* partials, u32* counters, u32 sum_columns, u32 sum_blocks, u32 rows_per_block,                   \
                     const S* __restrict__ x, const f32* __restrict__ mean, const f32* __restrict__ scale,                 \
                     const f32* __restrict__ beta, const S* __restrict__ z, const f32* __restrict__ z_mean,                \
                     const f32* __restrict__ z_scale, const f32* __restrict__ z_beta, S* __restrict__ y,                   \
                     u8* __restrict__ mask, u32 relu, u32 columns, u32 rows, u32 channels) {                               \
        const slab::ForwardSums<S> sums{x_sum, gamma, mean_sum, rstd_sum, scale_sum, variance_sum, eps};                   \
        const slab::ForwardApply<S> apply{x, mean, scale, beta, z, z_mean, z_scale, z_beta, y, mask, relu};                \
        slab::run(sums, {sum_columns, sum_blocks, rows_per_block, partials, counters}, apply, columns, {rows, channels});  \
    }                                                                                                                      \
    EXPORT(bn_slab_##suffix)                                                                                               \
    KERNEL __launch_bounds__(BLOCK, 3)                                                                                     \
    bn_backward_slab_##suffix(const S* __restrict__ dy_sum, const S* __restrict__ x_sum, const u8* __restrict__ mask_sum,  \
                              const f32* __restrict__ mean_sum, const f32* __restrict__ scale_sum,                         \
                              const f32* __restrict__ beta_sum, const f32* __restrict__ rstd, f32* __restrict__ dgamma,    \
                              f32* __restrict__ dbeta, f32* __restrict__ b_sum, f32* __restrict__ c_sum, Pair* partials,   \
                              u32* counters, u32 sum_columns, u32 sum_blocks, u32 rows_per_block,                          \
                              const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,              \
                              const f32* __restrict__ mean, const f32* __restrict__ scale, const f32* __restrict__ beta,   \
                              const f32* __restrict__ b, const f32* __restrict__ c, S* __restrict__ dx, S* __restrict__ dz, \
                              u32 gate, u32 columns, u32 rows, u32 channels) {                                             \
        const slab::BackwardSums<S> sums{{dy_sum, x_sum, mask_sum, mean_sum, scale_sum, beta_sum, gate}, rstd, dgamma, dbeta, b_sum, c_sum}; \
        const slab::BackwardApply<S> apply{{dy, x, mask, mean, scale, beta, gate}, b, c, dx, dz};                          \
        slab::run(sums, {sum_columns, sum_blocks, rows_per_block, partials, counters}, apply, columns, {rows, channels});  \
    }                                                                                                                      \
    EXPORT(bn_backward_slab_##suffix)
FOR_EACH_STORAGE(BN_SLAB)
#undef BN_SLAB
