// Batch norm forward, NHWC. Rows are pixels of all images, columns are channels.
//
// bn_stats     mean and sum of squared deviations of a block's rows, by channel
//              bytes: reads x once; floor: rows * channels * sizeof(S) / bandwidth
// bn_finalize  the blocks' partials -> mean, rstd = 1 / sqrt(biased variance + eps), scale = gamma rstd, unbiased variance
//              (Chan, Golub, LeVeque 1983; deviations from the first block's mean, so that nothing large cancels)
// bn_apply     y = relu((x - mean) scale + beta + z), z an activation, another batch norm's output, or nothing; the
//              sum's ReLU leaves a bit an element. bytes: x, z and y once, elements / 8 for the mask; floor: those / bandwidth
// bn_running   running = (1 - momentum) running + momentum batch, of all layers at once
// bn_fold      scale = gamma / sqrt(running variance + eps), of all layers at once
#include "abi.cuh"

// ---- bn_stats -------------------------------------------------------------------------------------------------------
// Block of 256: `width` lanes along channels (8 channels each, or 1 where channels are no multiple of 8), the other
// direction over rows. Grid: x over groups of 32 lanes, y over blocks of `rows_per_block` rows.

// Mean and squared deviations of some rows.
struct Moments { f32 mean, m2; };

// `share`: the second's rows of all rows; `count`: the first's.
__device__ inline Moments merged(Moments a, Moments b, f32 count, f32 share) {
    const f32 delta = b.mean - a.mean;
    return {fmaf(delta, share, a.mean), a.m2 + b.m2 + delta * delta * count * share};
}

// One thread's rows, and the Moments of its channels.
struct Parts {
    f32 count[BLOCK];
    Moments of[PACK][BLOCK];
};

template <class S, u32 V> struct Lane {
    static __device__ inline void load(f32 (&v)[V], const S* from) {
        Pack<S> pack;
        pack.load(from);
#pragma unroll
        for (u32 i = 0; i < V; i++) v[i] = pack.v[i];
    }
};
template <class S> struct Lane<S, 1> {
    static __device__ inline void load(f32 (&v)[1], const S* from) { v[0] = to_float(*from); }
};

// Sums of x - pivot and its square over the thread's rows; the pivot is the thread's first row.
template <class S, u32 V>
__device__ inline void row_sums(const S* x, u32 begin, u32 end, u32 step, u32 channels, f32 (&pivot)[V], f32 (&sum)[V], f32 (&square)[V]) {
    Lane<S, V>::load(pivot, x + (u64)begin * channels);
#pragma unroll
    for (u32 i = 0; i < V; i++) sum[i] = square[i] = 0.0f;
#pragma unroll 4
    for (u32 row = begin + step; row < end; row += step) {
        f32 v[V];
        Lane<S, V>::load(v, x + (u64)row * channels);
#pragma unroll
        for (u32 i = 0; i < V; i++) {
            const f32 d = v[i] - pivot[i];
            sum[i] += d;
            square[i] = fmaf(d, d, square[i]);
        }
    }
}

template <class S, u32 V>
__device__ inline void stats(const S* x, f32* partials, u32 rows, u32 channels, u32 rows_per_block, Parts& parts) {
    const u32 lanes = channels / V, width = lanes < WARP ? lanes : WARP, high = BLOCK / width;
    const u32 lane = blockIdx.x * width + threadIdx.x % width, r = threadIdx.x / width;
    const u32 begin = blockIdx.y * rows_per_block + r;
    const u32 end = min_u32(rows, (blockIdx.y + 1) * rows_per_block);
    parts.count[threadIdx.x] = 0.0f;
    if (r < high && lane < lanes && begin < end) {
        f32 pivot[V], sum[V], square[V];
        row_sums<S, V>(x + lane * V, begin, end, high, channels, pivot, sum, square);
        const f32 count = (f32)((end - begin + high - 1) / high), each = 1.0f / count;
        parts.count[threadIdx.x] = count;
#pragma unroll
        for (u32 i = 0; i < V; i++) {
            const f32 shift = sum[i] * each;
            // Rounding may leave a little less than nothing.
            parts.of[i][threadIdx.x] = {pivot[i] + shift, positive(square[i] - sum[i] * shift)};
        }
    }
    for (u32 half_way = 128; half_way; half_way >>= 1) {
        __syncthreads();
        const u32 other = threadIdx.x + half_way * width;
        if (r < half_way && r + half_way < high && parts.count[other] > 0.0f) {
            const f32 count = parts.count[threadIdx.x], both = count + parts.count[other], share = parts.count[other] / both;
            parts.count[threadIdx.x] = both;
#pragma unroll
            for (u32 i = 0; i < V; i++) {
                parts.of[i][threadIdx.x] = merged(parts.of[i][threadIdx.x], parts.of[i][other], count, share);
            }
        }
    }
    if (r == 0 && lane < lanes) {
        f32* to = partials + 2 * ((u64)blockIdx.y * channels + lane * V);
#pragma unroll
        for (u32 i = 0; i < V; i++) {
            to[2 * i] = parts.of[i][threadIdx.x].mean;
            to[2 * i + 1] = parts.of[i][threadIdx.x].m2;
        }
    }
}

template <class S>
__device__ inline void bn_stats(const S* x, f32* partials, u32 rows, u32 channels, u32 rows_per_block) {
    __shared__ Parts parts;
    if (channels % PACK == 0) {
        stats<S, PACK>(x, partials, rows, channels, rows_per_block, parts);
    } else {
        stats<S, 1>(x, partials, rows, channels, rows_per_block, parts);
    }
}

#define BN_STATS(S, suffix)                                                                                            \
    KERNEL __launch_bounds__(BLOCK, 4)                                                                                   \
    bn_stats_##suffix(const S* __restrict__ x, f32* __restrict__ partials, u32 rows, u32 channels, u32 rows_per_block) { \
        bn_stats<S>(x, partials, rows, channels, rows_per_block);                                                      \
    }                                                                                                                  \
    EXPORT(bn_stats_##suffix)
FOR_EACH_STORAGE(BN_STATS)
#undef BN_STATS

// ---- bn_finalize ----------------------------------------------------------------------------------------------------
// Block of 1024: 16 channels by 64 parts of the row blocks; parts are added in a fixed tree.

KERNEL __launch_bounds__(1024)
bn_finalize(const f32* __restrict__ partials, const f32* __restrict__ gamma, f32* __restrict__ mean, f32* __restrict__ rstd,
            f32* __restrict__ scale, f32* __restrict__ variance, u32 rows, u32 channels, u32 rows_per_block, f32 eps) {
    __shared__ f32 shared[2][FINALIZE_PARTS][FINALIZE_CHANNELS];
    const u32 column = threadIdx.x % FINALIZE_CHANNELS, part = threadIdx.x / FINALIZE_CHANNELS;
    const u32 c = blockIdx.x * FINALIZE_CHANNELS + column, blocks = (rows + rows_per_block - 1) / rows_per_block;
    f32 sum = 0.0f, square = 0.0f, pivot = 0.0f;
    if (c < channels) {
        pivot = partials[2 * c];
#pragma unroll 4
        for (u32 b = part; b < blocks; b += FINALIZE_PARTS) {
            const f32* from = partials + 2 * ((u64)b * channels + c);
            const f32 count = (f32)min_u32(rows_per_block, rows - b * rows_per_block), delta = from[0] - pivot;
            sum = fmaf(count, delta, sum);
            square += fmaf(count * delta, delta, from[1]);
        }
    }
    add_parts(shared, sum, square, part, column);
    if (part == 0 && c < channels) {
        const f32 n = (f32)rows, shift = shared[0][0][column] / n;
        const f32 m2 = positive(shared[1][0][column] - shared[0][0][column] * shift);
        const f32 r = 1.0f / sqrtf(m2 / n + eps);
        mean[c] = pivot + shift;
        rstd[c] = r;
        scale[c] = gamma[c] * r;
        // A single value has no unbiased variance; its biased one, 0, is what it leaves.
        variance[c] = m2 / (rows > 1 ? n - 1.0f : 1.0f);
    }
}
EXPORT(bn_finalize)

// ---- bn_apply -------------------------------------------------------------------------------------------------------
// A thread has 8 consecutive elements, so one byte of the mask. Grid: elements / 2048, rounded up.

template <class S>
__device__ inline void bn_apply(const S* x, const f32* mean, const f32* scale, const f32* beta, const S* z, const f32* z_mean,
                                const f32* z_scale, const f32* z_beta, S* y, u8* mask, u64 elements, u32 channels, u32 relu) {
    const u64 e = ((u64)blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (e >= elements) return;
    const u32 count = elements - e < PACK ? (u32)(elements - e) : PACK, c = (u32)e % channels;
    Pack<S> px, pz;
    if (count == PACK) px.load(x + e); else load_some(px, x + e, count, 0.0f);
    if (z) {
        if (count == PACK) pz.load(z + e); else load_some(pz, z + e, count, 0.0f);
    }
    f32 m[PACK], s[PACK], b[PACK];
    load_channels(m, mean, c, channels);
    load_channels(s, scale, c, channels);
    load_channels(b, beta, c, channels);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) px.v[i] = normalised(px.v[i], m[i], s[i], b[i]);
    if (z_mean) {
        load_channels(m, z_mean, c, channels);
        load_channels(s, z_scale, c, channels);
        load_channels(b, z_beta, c, channels);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) pz.v[i] = normalised(pz.v[i], m[i], s[i], b[i]);
    }
    u32 bits = 0;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        if (z) px.v[i] += pz.v[i];
        bits |= (u32)(px.v[i] > 0.0f) << i;
        // Not fmaxf, which would turn NaN into 0.
        if (relu && px.v[i] < 0.0f) px.v[i] = 0.0f;
    }
    if (count == PACK) px.store(y + e); else store_some(px, y + e, count);
    if (mask) mask[e / PACK] = (u8)bits;
}

#define BN_APPLY(S, suffix)                                                                                            \
    KERNEL __launch_bounds__(BLOCK)                                                                                    \
    bn_apply_##suffix(const S* __restrict__ x, const f32* __restrict__ mean, const f32* __restrict__ scale,            \
                      const f32* __restrict__ beta, const S* __restrict__ z, const f32* __restrict__ z_mean,           \
                      const f32* __restrict__ z_scale, const f32* __restrict__ z_beta, S* __restrict__ y,              \
                      u8* __restrict__ mask, u64 elements, u32 channels, u32 relu) {                                   \
        bn_apply<S>(x, mean, scale, beta, z, z_mean, z_scale, z_beta, y, mask, elements, channels, relu);              \
    }                                                                                                                  \
    EXPORT(bn_apply_##suffix)
FOR_EACH_STORAGE(BN_APPLY)
#undef BN_APPLY

// ---- all layers at once: a thread a channel --------------------------------------------------------------------------

KERNEL __launch_bounds__(BLOCK)
bn_running(const f32* __restrict__ mean, const f32* __restrict__ variance, f32* __restrict__ running_mean,
           f32* __restrict__ running_var, u32 channels, f32 momentum, const State* __restrict__ state) {
    const u32 c = blockIdx.x * BLOCK + threadIdx.x;
    if (c >= channels || state->loss_bad || state->halted) return;
    running_mean[c] = fmaf(momentum, mean[c], (1.0f - momentum) * running_mean[c]);
    running_var[c] = fmaf(momentum, variance[c], (1.0f - momentum) * running_var[c]);
}
EXPORT(bn_running)

KERNEL __launch_bounds__(BLOCK)
bn_fold(const f32* __restrict__ gamma, const f32* __restrict__ running_var, f32* __restrict__ scale, u32 channels, f32 eps) {
    const u32 c = blockIdx.x * BLOCK + threadIdx.x;
    if (c < channels) scale[c] = gamma[c] / sqrtf(running_var[c] + eps);
}
EXPORT(bn_fold)
