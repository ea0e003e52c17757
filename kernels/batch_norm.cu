// Batch norm forward, NHWC. Rows are pixels of all images, columns are channels.
//
// bn_stats     mean and sum of squared deviations of a block's rows, by channel
//              bytes: reads x once; floor: rows * channels * sizeof(S) / bandwidth
// bn_finalize  the blocks' partials -> mean, rstd = 1 / sqrt(biased variance + eps), scale = gamma rstd, unbiased variance
//              (Chan, Golub, LeVeque 1983; deviations from the first block's mean, so that nothing large cancels)
// bn_merge     the blocks' partials -> one, where batch norm is of several ranks: all ranks' go into bn_finalize, each as a block
// bn_apply     y = relu((x - mean) scale + beta + z), z an activation, another batch norm's output, or nothing; the
//              sum's ReLU leaves a bit an element. bytes: x, z and y once, elements / 8 for the mask; floor: those / bandwidth
// bn_apply_drop  the same where images may skip the branch (drop_path.cu): y = relu(factor of the image ((x - mean) scale + beta) + z)
// bn_running   running = (1 - momentum) running + momentum batch, of all layers at once
// bn_fold      scale = gamma / sqrt(running variance + eps), of all layers at once
#include "abi.cuh"

// ---- bn_stats -------------------------------------------------------------------------------------------------------
// Block of 256: `width` lanes along channels (8 channels each, or 1 where channels are no multiple of 8), the other
// direction over rows. Grid: x over groups of 32 lanes, y over blocks of `rows_per_block` rows.

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

// Sums of x - pivot and its square over the thread's rows. All threads of a block share a channel's pivot, the block's
// first row, so that the sums add up as they are, and nothing as large as the mean is rounded among them.
template <class S, u32 V>
__device__ inline void row_sums(const S* x, u32 begin, u32 end, u32 step, u32 channels, const f32 (&pivot)[V], f32 (&sum)[V], f32 (&square)[V]) {
#pragma unroll 4
    for (u32 row = begin; row < end; row += step) {
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
__device__ inline void stats(const S* x, Pair* partials, u32 rows, u32 channels, u32 rows_per_block, f32 (*shared)[2][BLOCK]) {
    const u32 lanes = channels / V, width = lanes < WARP ? lanes : WARP, high = BLOCK / width;
    const u32 lane = blockIdx.x * width + threadIdx.x % width, r = threadIdx.x / width;
    const u32 first = blockIdx.y * rows_per_block, end = min_u32(rows, first + rows_per_block);
    f32 pivot[V], sum[V], square[V];
#pragma unroll
    for (u32 i = 0; i < V; i++) pivot[i] = sum[i] = square[i] = 0.0f;
    if (r < high && lane < lanes) {
        Lane<S, V>::load(pivot, x + (u64)first * channels + lane * V);
        row_sums<S, V>(x + lane * V, first + r, end, high, channels, pivot, sum, square);
    }
#pragma unroll
    for (u32 i = 0; i < V; i++) {
        shared[i][0][threadIdx.x] = sum[i];
        shared[i][1][threadIdx.x] = square[i];
    }
    for (u32 half_way = 128; half_way; half_way >>= 1) {
        __syncthreads();
        if (r < half_way && r + half_way < high) {
#pragma unroll
            for (u32 i = 0; i < V; i++) {
                shared[i][0][threadIdx.x] += shared[i][0][threadIdx.x + half_way * width];
                shared[i][1][threadIdx.x] += shared[i][1][threadIdx.x + half_way * width];
            }
        }
    }
    if (r == 0 && lane < lanes) {
        Pair* to = partials + (u64)blockIdx.y * channels + lane * V;
#pragma unroll
        for (u32 i = 0; i < V; i++) {
            const f32 total = shared[i][0][threadIdx.x], shift = total / (f32)(end - first);
            // Rounding may leave a little less than nothing.
            to[i] = {pivot[i] + shift, positive(shared[i][1][threadIdx.x] - total * shift)};
        }
    }
}

template <class S>
__device__ inline void bn_stats(const S* x, Pair* partials, u32 rows, u32 channels, u32 rows_per_block) {
    __shared__ f32 shared[PACK][2][BLOCK];
    if (channels % PACK == 0) {
        stats<S, PACK>(x, partials, rows, channels, rows_per_block, shared);
    } else {
        stats<S, 1>(x, partials, rows, channels, rows_per_block, shared);
    }
}

#define BN_STATS(S, suffix)                                                                                            \
    KERNEL __launch_bounds__(BLOCK, 4)                                                                                   \
    bn_stats_##suffix(const S* __restrict__ x, Pair* __restrict__ partials, u32 rows, u32 channels, u32 rows_per_block) { \
        bn_stats<S>(x, partials, rows, channels, rows_per_block);                                                      \
    }                                                                                                                  \
    EXPORT(bn_stats_##suffix)
FOR_EACH_STORAGE(BN_STATS)
#undef BN_STATS

// ---- bn_finalize, bn_merge ------------------------------------------------------------------------------------------
// Block of 1024: 16 channels by 64 parts of the row blocks; parts are added in a fixed tree.

// Mean and sum of squared deviations of all rows of channel c, in part 0. All threads of the block call it.
__device__ inline Pair moments(const Pair* partials, u32 rows, u32 channels, u32 rows_per_block, u32 c, u32 part, u32 column,
                               f32 (&shared)[2][FINALIZE_PARTS][FINALIZE_CHANNELS]) {
    const u32 blocks = (rows + rows_per_block - 1) / rows_per_block;
    f32 sum = 0.0f, square = 0.0f, pivot = 0.0f;
    if (c < channels) {
        pivot = partials[c].a;
#pragma unroll 4
        for (u32 b = part; b < blocks; b += FINALIZE_PARTS) {
            const Pair from = partials[(u64)b * channels + c];
            const f32 count = (f32)min_u32(rows_per_block, rows - b * rows_per_block), delta = from.a - pivot;
            sum = fmaf(count, delta, sum);
            square += fmaf(count * delta, delta, from.b);
        }
    }
    add_parts(shared, sum, square, part, column);
    if (part) return {0.0f, 0.0f};
    const f32 total = shared[0][0][column], shift = total / (f32)rows;
    return {pivot + shift, positive(shared[1][0][column] - total * shift)};
}

KERNEL __launch_bounds__(1024)
bn_finalize(const Pair* __restrict__ partials, const f32* __restrict__ gamma, f32* __restrict__ mean, f32* __restrict__ rstd,
            f32* __restrict__ scale, f32* __restrict__ variance, u32 rows, u32 channels, u32 rows_per_block, f32 eps) {
    __shared__ f32 shared[2][FINALIZE_PARTS][FINALIZE_CHANNELS];
    const u32 column = threadIdx.x % FINALIZE_CHANNELS, part = threadIdx.x / FINALIZE_CHANNELS;
    const u32 c = blockIdx.x * FINALIZE_CHANNELS + column;
    const Pair all = moments(partials, rows, channels, rows_per_block, c, part, column, shared);
    if (part == 0 && c < channels) {
        const f32 n = (f32)rows, r = 1.0f / sqrtf(all.b / n + eps);
        mean[c] = all.a;
        rstd[c] = r;
        scale[c] = gamma[c] * r;
        // A single value has no unbiased variance; its biased one, 0, is what it leaves.
        variance[c] = all.b / (rows > 1 ? n - 1.0f : 1.0f);
    }
}
EXPORT(bn_finalize)

KERNEL __launch_bounds__(1024)
bn_merge(const Pair* __restrict__ partials, Pair* __restrict__ merged, u32 rows, u32 channels, u32 rows_per_block) {
    __shared__ f32 shared[2][FINALIZE_PARTS][FINALIZE_CHANNELS];
    const u32 column = threadIdx.x % FINALIZE_CHANNELS, part = threadIdx.x / FINALIZE_CHANNELS;
    const u32 c = blockIdx.x * FINALIZE_CHANNELS + column;
    const Pair all = moments(partials, rows, channels, rows_per_block, c, part, column, shared);
    if (part == 0 && c < channels) merged[c] = all;
}
EXPORT(bn_merge)

// ---- bn_apply -------------------------------------------------------------------------------------------------------
// A thread has 4 packs of 8 consecutive elements, each a byte of the mask; where channels are a multiple of eight all four
// are of the same channels, whose parameters (12 bytes an element of a pack) are read once. A second batch norm's are read
// for every pack: few layers have one, and all would pay for its registers. Grid: packs / (4 apply_threads), rounded up.

// What is added.
const u32 NOTHING = 0, PLAIN = 1, NORMALISED = 2;

// DROP: whether images may skip the branch.
template <class S, bool DROP> struct Apply {
    const S* x;
    const f32 *mean, *scale, *beta;
    const S* z;
    const f32 *z_mean, *z_scale, *z_beta;
    S* y;
    u8* mask;
    u64 elements;
    u32 channels, relu;
    DropPath drop;

    __device__ void load(Affine& by, u64 e) const { by.load(mean, scale, beta, (u32)e % channels); }

    // Eight elements from `e` on, of as many channels.
    template <u32 RESIDUAL>
    __device__ void pack(const Affine& by, const Stored<S>& from, const Stored<S>& from_z, u64 e) const {
        Pack<S> px, pz;
        if (RESIDUAL != NOTHING) pz.unpack(from_z);
        if (RESIDUAL == NORMALISED) {
            Affine other;
            other.load(z_mean, z_scale, z_beta, (u32)e % channels);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) pz.v[i] = other.of(pz.v[i], i);
        }
        px.unpack(from);
        const u32 bits = finish_norm(px, by, DROP ? drop.of(e) : 1.0f, pz, RESIDUAL != NOTHING, relu);
        px.store(y + e);
        if (mask) mask[e / PACK] = (u8)bits;
    }

    // The packs of one thread, `step` elements apart. Two are under way at a time.
    template <u32 RESIDUAL> __device__ void packs(u64 e, u64 step) const {
        const bool same = channels / PACK <= BLOCK;
        Affine by;
        load(by, e);
#pragma unroll 1
        for (u32 j = 0; j < APPLY_PACKS && e < elements; j += 2, e += 2 * step) {
            const bool second = e + step < elements;
            Stored<S> a, b, za, zb;
            a.load(x + e);
            if (RESIDUAL != NOTHING) za.load(z + e);
            b.load(x + (second ? e + step : e));
            if (RESIDUAL != NOTHING) zb.load(z + (second ? e + step : e));
            if (!same) load(by, e);
            pack<RESIDUAL>(by, a, za, e);
            if (!second) return;
            if (!same) load(by, e + step);
            pack<RESIDUAL>(by, b, zb, e + step);
        }
    }

    // Up to eight elements from `e` on, of channels that wrap around anywhere.
    __device__ void some(u64 e) const {
        const u32 count = elements - e < PACK ? (u32)(elements - e) : PACK;
        u32 c = (u32)e % channels, bits = 0;
        for (u32 i = 0; i < count; i++) {
            f32 value = normalised(to_float(x[e + i]), mean[c], scale[c], beta[c]);
            if (DROP) value *= drop.of(e + i);
            if (z) {
                const f32 other = to_float(z[e + i]);
                value += z_mean ? normalised(other, z_mean[c], z_scale[c], z_beta[c]) : other;
            }
            bits |= (u32)(value > 0.0f) << i;
            y[e + i] = from_float<S>(relu ? positive(value) : value);
            c = c + 1 == channels ? 0 : c + 1;
        }
        if (mask) mask[e / PACK] = (u8)bits;
    }
};

template <class S, bool DROP> __device__ inline void bn_apply(const Apply<S, DROP>& apply) {
    const u32 threads = apply_threads(apply.channels);
    const u64 step = (u64)threads * PACK;
    u64 e = (u64)blockIdx.x * APPLY_PACKS * step + threadIdx.x * PACK;
    if (threadIdx.x >= threads || e >= apply.elements) return;
    if (apply.channels % PACK) {
        for (u32 j = 0; j < APPLY_PACKS && e < apply.elements; j++, e += step) apply.some(e);
    } else if (!apply.z) {
        apply.template packs<NOTHING>(e, step);
    } else if (!apply.z_mean) {
        apply.template packs<PLAIN>(e, step);
    } else {
        apply.template packs<NORMALISED>(e, step);
    }
}

#define BN_APPLY(S, suffix)                                                                                            \
    KERNEL __launch_bounds__(BLOCK)                                                                                    \
    bn_apply_##suffix(const S* __restrict__ x, const f32* __restrict__ mean, const f32* __restrict__ scale,            \
                      const f32* __restrict__ beta, const S* __restrict__ z, const f32* __restrict__ z_mean,           \
                      const f32* __restrict__ z_scale, const f32* __restrict__ z_beta, S* __restrict__ y,              \
                      u8* __restrict__ mask, u64 elements, u32 channels, u32 relu) {                                   \
        bn_apply<S, false>({x, mean, scale, beta, z, z_mean, z_scale, z_beta, y, mask, elements, channels, relu, {}}); \
    }                                                                                                                  \
    EXPORT(bn_apply_##suffix)                                                                                          \
    KERNEL __launch_bounds__(BLOCK)                                                                                    \
    bn_apply_drop_##suffix(const S* __restrict__ x, const f32* __restrict__ mean, const f32* __restrict__ scale,       \
                           const f32* __restrict__ beta, const S* __restrict__ z, const f32* __restrict__ z_mean,      \
                           const f32* __restrict__ z_scale, const f32* __restrict__ z_beta, S* __restrict__ y,         \
                           u8* __restrict__ mask, u64 elements, u32 channels, u32 relu, const f32* __restrict__ factors, \
                           u32 image_elements) {                                                                       \
        bn_apply<S, true>({x, mean, scale, beta, z, z_mean, z_scale, z_beta, y, mask, elements, channels, relu,        \
                           {factors, image_elements}});                                                                \
    }                                                                                                                  \
    EXPORT(bn_apply_drop_##suffix)
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
