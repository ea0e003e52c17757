// Batch norm backward, NHWC, with the ReLU behind it and the block's sum. d is the gradient that the ReLU lets through.
//
// bn_backward_reduce    sums of d and of d (x - mean) over a block's rows, by channel
//                       bytes: reads dy, x (and a bit an element) once; floor: those / bandwidth
// bn_backward_finalize  dbeta = sum d, dgamma = rstd sum d (x - mean), and what the last kernel needs of them:
//                       b = -scale rstd dgamma / rows, c = -scale dbeta / rows
// bn_backward_merge     where batch norm is of several ranks: this rank's dbeta and dgamma, and its two sums, which go to all;
// bn_backward_ranks     from all ranks' sums b and c, rows being those of all
// bn_backward_apply     dx = scale d + b (x - mean) + c (Ioffe and Szegedy, arXiv:1502.03167, section 3); dz = d
//                       bytes: reads dy, x (and a bit an element), writes dx (and dz) once; floor: those / bandwidth
// ..._drop              the two large ones where images may skip the branch (drop_path.cu): d is multiplied by the image's
//                       factor on its way into the branch; dz is not. For the gate that bn_apply has left alone.
#include "abi.cuh"

// ---- bn_backward_reduce: grid and block as bn_stats -----------------------------------------------------------------

// A row's channels of one thread: dy, where the mask lets it through, and x.
template <class S, u32 V, u32 GATE> struct Gated;

template <class S, u32 GATE> struct Gated<S, PACK, GATE> {
    static __device__ inline void load(f32 (&d)[PACK], f32 (&x)[PACK], const S* dy, const S* from, const u8* mask, u64 e) {
        Pack<S> p, q;
        p.load(dy + e);
        q.load(from + e);
        const u32 bits = GATE == GATE_MASK ? mask[e / PACK] : 255u;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            d[i] = bits >> i & 1u ? p.v[i] : 0.0f;
            x[i] = q.v[i];
        }
    }
};

template <class S, u32 GATE> struct Gated<S, 1, GATE> {
    static __device__ inline void load(f32 (&d)[1], f32 (&x)[1], const S* dy, const S* from, const u8* mask, u64 e) {
        const u32 bit = GATE == GATE_MASK ? mask[e / PACK] >> (e % PACK) & 1u : 1u;
        d[0] = bit ? to_float(dy[e]) : 0.0f;
        x[0] = to_float(from[e]);
    }
};

// Sums of d and d (x - mean) over the thread's rows. `lane`: its first channel.
template <class S, u32 V, u32 GATE, bool DROP>
__device__ inline void row_products(const S* dy, const S* x, const u8* mask, const f32* mean, const f32* scale, const f32* beta,
                                    u32 begin, u32 end, u32 step, u32 channels, u32 lane, DropPath drop, f32 (&sum)[V], f32 (&product)[V]) {
    f32 m[V], s[V], b[V];
#pragma unroll
    for (u32 i = 0; i < V; i++) {
        m[i] = mean[lane + i];
        s[i] = GATE == GATE_RECOMPUTED ? scale[lane + i] : 0.0f;
        b[i] = GATE == GATE_RECOMPUTED ? beta[lane + i] : 0.0f;
    }
#pragma unroll 2
    for (u32 row = begin; row < end; row += step) {
        f32 d[V], v[V];
        Gated<S, V, GATE>::load(d, v, dy, x, mask, (u64)row * channels + lane);
        const f32 factor = DROP ? drop.of(row) : 1.0f;
#pragma unroll
        for (u32 i = 0; i < V; i++) {
            if (DROP) d[i] *= factor;
            if (GATE == GATE_RECOMPUTED && !(normalised(v[i], m[i], s[i], b[i]) > 0.0f)) d[i] = 0.0f;
            sum[i] += d[i];
            product[i] = fmaf(d[i], v[i] - m[i], product[i]);
        }
    }
}

template <class S, u32 V, bool DROP>
__device__ inline void reduce(const S* dy, const S* x, const u8* mask, const f32* mean, const f32* scale, const f32* beta,
                              Pair* partials, u32 rows, u32 channels, u32 rows_per_block, u32 gate, DropPath drop,
                              f32 (*shared)[2][BLOCK]) {
    const u32 lanes = channels / V, width = lanes < WARP ? lanes : WARP, high = BLOCK / width;
    const u32 lane = blockIdx.x * width + threadIdx.x % width, r = threadIdx.x / width;
    const u32 begin = blockIdx.y * rows_per_block + r;
    const u32 end = r < high && lane < lanes ? min_u32(rows, (blockIdx.y + 1) * rows_per_block) : 0;
    f32 sum[V], product[V];
#pragma unroll
    for (u32 i = 0; i < V; i++) sum[i] = product[i] = 0.0f;
    if (begin < end) {
        if (DROP || gate == GATE_MASK) {
            row_products<S, V, GATE_MASK, DROP>(dy, x, mask, mean, scale, beta, begin, end, high, channels, lane * V, drop, sum, product);
        } else if (gate == GATE_RECOMPUTED) {
            row_products<S, V, GATE_RECOMPUTED, false>(dy, x, mask, mean, scale, beta, begin, end, high, channels, lane * V, drop, sum, product);
        } else {
            row_products<S, V, GATE_OPEN, false>(dy, x, mask, mean, scale, beta, begin, end, high, channels, lane * V, drop, sum, product);
        }
    }
#pragma unroll
    for (u32 i = 0; i < V; i++) {
        shared[i][0][threadIdx.x] = sum[i];
        shared[i][1][threadIdx.x] = product[i];
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
        for (u32 i = 0; i < V; i++) to[i] = {shared[i][0][threadIdx.x], shared[i][1][threadIdx.x]};
    }
}

template <class S, bool DROP>
__device__ inline void bn_backward_reduce(const S* dy, const S* x, const u8* mask, const f32* mean, const f32* scale, const f32* beta,
                                          Pair* partials, u32 rows, u32 channels, u32 rows_per_block, u32 gate, DropPath drop) {
    __shared__ f32 shared[PACK][2][BLOCK];
    if (channels % PACK == 0) {
        reduce<S, PACK, DROP>(dy, x, mask, mean, scale, beta, partials, rows, channels, rows_per_block, gate, drop, shared);
    } else {
        reduce<S, 1, DROP>(dy, x, mask, mean, scale, beta, partials, rows, channels, rows_per_block, gate, drop, shared);
    }
}

#define BN_BACKWARD_REDUCE(S, suffix)                                                                                    \
    KERNEL __launch_bounds__(BLOCK)                                                                                      \
    bn_backward_reduce_##suffix(const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,          \
                                const f32* __restrict__ mean, const f32* __restrict__ scale, const f32* __restrict__ beta, \
                                Pair* __restrict__ partials, u32 rows, u32 channels, u32 rows_per_block, u32 gate) {     \
        bn_backward_reduce<S, false>(dy, x, mask, mean, scale, beta, partials, rows, channels, rows_per_block, gate, {}); \
    }                                                                                                                    \
    EXPORT(bn_backward_reduce_##suffix)                                                                                  \
    KERNEL __launch_bounds__(BLOCK)                                                                                      \
    bn_backward_reduce_drop_##suffix(const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,     \
                                     const f32* __restrict__ mean, const f32* __restrict__ scale,                        \
                                     const f32* __restrict__ beta, Pair* __restrict__ partials, u32 rows, u32 channels,  \
                                     u32 rows_per_block, u32 gate, const f32* __restrict__ factors, u32 image_rows) {    \
        bn_backward_reduce<S, true>(dy, x, mask, mean, scale, beta, partials, rows, channels, rows_per_block, gate,      \
                                    {factors, image_rows});                                                              \
    }                                                                                                                    \
    EXPORT(bn_backward_reduce_drop_##suffix)
FOR_EACH_STORAGE(BN_BACKWARD_REDUCE)
#undef BN_BACKWARD_REDUCE

// ---- bn_backward_finalize: grid and block as bn_finalize ------------------------------------------------------------

// Sums of d and of d (x - mean) of channel c over all blocks, in part 0. All threads of the block call it.
__device__ inline Pair block_sums(const Pair* partials, u32 channels, u32 row_blocks, u32 c, u32 part, u32 column,
                                  f32 (&shared)[2][FINALIZE_PARTS][FINALIZE_CHANNELS]) {
    f32 sum = 0.0f, product = 0.0f;
    if (c < channels) {
#pragma unroll 4
        for (u32 block = part; block < row_blocks; block += FINALIZE_PARTS) {
            const Pair from = partials[(u64)block * channels + c];
            sum += from.a;
            product += from.b;
        }
    }
    add_parts(shared, sum, product, part, column);
    if (part) return {0.0f, 0.0f};
    return {shared[0][0][column], shared[1][0][column]};
}

KERNEL __launch_bounds__(1024)
bn_backward_finalize(const Pair* __restrict__ partials, const f32* __restrict__ rstd, const f32* __restrict__ scale,
                     f32* __restrict__ dgamma, f32* __restrict__ dbeta, f32* __restrict__ b, f32* __restrict__ c_out, u32 rows,
                     u32 channels, u32 row_blocks) {
    __shared__ f32 shared[2][FINALIZE_PARTS][FINALIZE_CHANNELS];
    const u32 column = threadIdx.x % FINALIZE_CHANNELS, part = threadIdx.x / FINALIZE_CHANNELS;
    const u32 c = blockIdx.x * FINALIZE_CHANNELS + column;
    const Pair sums = block_sums(partials, channels, row_blocks, c, part, column, shared);
    if (part == 0 && c < channels) {
        const f32 gamma_gradient = rstd[c] * sums.b, beta_gradient = sums.a;
        dgamma[c] = gamma_gradient;
        dbeta[c] = beta_gradient;
        b[c] = -scale[c] * rstd[c] * (gamma_gradient / (f32)rows);
        c_out[c] = -scale[c] * (beta_gradient / (f32)rows);
    }
}
EXPORT(bn_backward_finalize)

KERNEL __launch_bounds__(1024)
bn_backward_merge(const Pair* __restrict__ partials, const f32* __restrict__ rstd, f32* __restrict__ dgamma, f32* __restrict__ dbeta,
                  Pair* __restrict__ merged, u32 channels, u32 row_blocks) {
    __shared__ f32 shared[2][FINALIZE_PARTS][FINALIZE_CHANNELS];
    const u32 column = threadIdx.x % FINALIZE_CHANNELS, part = threadIdx.x / FINALIZE_CHANNELS;
    const u32 c = blockIdx.x * FINALIZE_CHANNELS + column;
    const Pair sums = block_sums(partials, channels, row_blocks, c, part, column, shared);
    if (part == 0 && c < channels) {
        dgamma[c] = rstd[c] * sums.b;
        dbeta[c] = sums.a;
        merged[c] = sums;
    }
}
EXPORT(bn_backward_merge)

// A thread a channel; ranks in their order.
KERNEL __launch_bounds__(BLOCK)
bn_backward_ranks(const Pair* __restrict__ merged, const f32* __restrict__ rstd, const f32* __restrict__ scale, f32* __restrict__ b,
                  f32* __restrict__ c_out, u32 rows, u32 channels, u32 ranks) {
    const u32 c = blockIdx.x * BLOCK + threadIdx.x;
    if (c >= channels) return;
    f32 sum = 0.0f, product = 0.0f;
    for (u32 rank = 0; rank < ranks; rank++) {
        const Pair from = merged[(u64)rank * channels + c];
        sum += from.a;
        product += from.b;
    }
    b[c] = -scale[c] * rstd[c] * (rstd[c] * product / (f32)rows);
    c_out[c] = -scale[c] * (sum / (f32)rows);
}
EXPORT(bn_backward_ranks)

// ---- bn_backward_apply ----------------------------------------------------------------------------------------------
// Grid, block and packs of a thread as bn_apply; parameters (20 bytes an element of a pack) are read once a thread.

// What dx is made with, of eight channels.
struct Factors { Affine norm; Pack<f32> b, c; };

template <class S, bool DROP> struct BackwardApply {
    const S *dy, *x;
    const u8* mask;
    const f32 *mean, *scale, *beta, *b, *c;
    S *dx, *dz;
    u64 elements;
    u32 channels, gate;
    DropPath drop;

    __device__ void load(Factors& by, u64 e) const {
        const u32 from = (u32)e % channels;
        by.norm.mean.load(mean + from);
        by.norm.scale.load(scale + from);
        if (gate == GATE_RECOMPUTED) by.norm.beta.load(beta + from);
        by.b.load(b + from);
        by.c.load(c + from);
    }

    // Eight elements from `e` on, of as many channels.
    __device__ void pack(const Factors& by, u64 e) const {
        Pack<S> d, v;
        d.load(dy + e);
        v.load(x + e);
        const u32 bits = gate_bits(gate, mask, v, by.norm, e);
        const f32 factor = DROP ? drop.of(e) : 1.0f;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            if (!(bits >> i & 1u)) d.v[i] = 0.0f;
            v.v[i] = input_gradient(DROP ? d.v[i] * factor : d.v[i], v.v[i], by.norm.mean.v[i], by.norm.scale.v[i], by.b.v[i], by.c.v[i]);
        }
        if (dz) d.store(dz + e);
        v.store(dx + e);
    }

    // Up to eight elements from `e` on, of channels that wrap around anywhere.
    __device__ void some(u64 e) const {
        const u32 bits = gate == GATE_MASK ? mask[e / PACK] : 255u;
        const u32 count = elements - e < PACK ? (u32)(elements - e) : PACK;
        u32 k = (u32)e % channels;
        for (u32 i = 0; i < count; i++) {
            const f32 value = to_float(x[e + i]);
            const bool open = gate == GATE_RECOMPUTED ? normalised(value, mean[k], scale[k], beta[k]) > 0.0f : bits >> i & 1u;
            const f32 d = open ? to_float(dy[e + i]) : 0.0f;
            if (dz) dz[e + i] = from_float<S>(d);
            const f32 factor = DROP ? drop.of(e + i) : 1.0f;
            dx[e + i] = from_float<S>(input_gradient(DROP ? d * factor : d, value, mean[k], scale[k], b[k], c[k]));
            k = k + 1 == channels ? 0 : k + 1;
        }
    }
};

template <class S, bool DROP> __device__ inline void bn_backward_apply(const BackwardApply<S, DROP>& apply) {
    const u32 threads = apply_threads(apply.channels);
    const u64 step = (u64)threads * PACK;
    u64 e = (u64)blockIdx.x * APPLY_PACKS * step + threadIdx.x * PACK;
    if (threadIdx.x >= threads || e >= apply.elements) return;
    if (apply.channels % PACK) {
        for (u32 j = 0; j < APPLY_PACKS && e < apply.elements; j++, e += step) apply.some(e);
        return;
    }
    const bool same = apply.channels / PACK <= BLOCK;
    Factors by;
    apply.load(by, e);
#pragma unroll 1
    for (u32 j = 0; j < APPLY_PACKS && e < apply.elements; j++, e += step) {
        if (!same) apply.load(by, e);
        apply.pack(by, e);
    }
}

#define BN_BACKWARD_APPLY(S, suffix)                                                                                    \
    KERNEL __launch_bounds__(BLOCK, 3)                                                                                  \
    bn_backward_apply_##suffix(const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,          \
                               const f32* __restrict__ mean, const f32* __restrict__ scale, const f32* __restrict__ beta, \
                               const f32* __restrict__ b, const f32* __restrict__ c, S* __restrict__ dx,                \
                               S* __restrict__ dz, u64 elements, u32 channels, u32 gate) {                              \
        bn_backward_apply<S, false>({dy, x, mask, mean, scale, beta, b, c, dx, dz, elements, channels, gate, {}});      \
    }                                                                                                                   \
    EXPORT(bn_backward_apply_##suffix)                                                                                  \
    KERNEL __launch_bounds__(BLOCK, 3)                                                                                  \
    bn_backward_apply_drop_##suffix(const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,     \
                                    const f32* __restrict__ mean, const f32* __restrict__ scale,                        \
                                    const f32* __restrict__ beta, const f32* __restrict__ b, const f32* __restrict__ c, \
                                    S* __restrict__ dx, S* __restrict__ dz, u64 elements, u32 channels, u32 gate,       \
                                    const f32* __restrict__ factors, u32 image_elements) {                              \
        bn_backward_apply<S, true>({dy, x, mask, mean, scale, beta, b, c, dx, dz, elements, channels, gate,             \
                                    {factors, image_elements}});                                                        \
    }                                                                                                                   \
    EXPORT(bn_backward_apply_drop_##suffix)
FOR_EACH_STORAGE(BN_BACKWARD_APPLY)
#undef BN_BACKWARD_APPLY
