// Batch norm backward, NHWC, with the ReLU behind it and the block's sum. d is the gradient that the ReLU lets through.
//
// bn_backward_reduce    sums of d and of d (x - mean) over a block's rows, by channel
//                       bytes: reads dy, x (and a bit an element) once; floor: those / bandwidth
// bn_backward_finalize  dbeta = sum d, dgamma = rstd sum d (x - mean), and what the last kernel needs of them:
//                       b = -scale rstd dgamma / rows, c = -scale dbeta / rows
// bn_backward_apply     dx = scale d + b (x - mean) + c (Ioffe and Szegedy, arXiv:1502.03167, section 3); dz = d
//                       bytes: reads dy, x (and a bit an element), writes dx (and dz) once; floor: those / bandwidth
#include "abi.cuh"

// What d is made of dy by; 0: no ReLU.
const u32 GATE_RECOMPUTED = 1;  // the ReLU's input is computed again, by the very expression of bn_apply
const u32 GATE_MASK = 2;        // bn_apply left a bit an element

// ---- bn_backward_reduce: grid and block as bn_stats -----------------------------------------------------------------

template <class S, u32 V> struct Gated;

// Eight channels of one row.
template <class S> struct Gated<S, PACK> {
    static __device__ inline void load(f32 (&d)[PACK], f32 (&x)[PACK], const S* dy, const S* from, const u8* mask, u64 e) {
        Pack<S> p, q;
        p.load(dy + e);
        q.load(from + e);
        const u32 bits = mask ? mask[e / PACK] : 255u;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            d[i] = bits >> i & 1u ? p.v[i] : 0.0f;
            x[i] = q.v[i];
        }
    }
};

// One element.
template <class S> struct Gated<S, 1> {
    static __device__ inline void load(f32 (&d)[1], f32 (&x)[1], const S* dy, const S* from, const u8* mask, u64 e) {
        const u32 bit = mask ? mask[e / PACK] >> (e % PACK) & 1u : 1u;
        d[0] = bit ? to_float(dy[e]) : 0.0f;
        x[0] = to_float(from[e]);
    }
};

template <class S, u32 V>
__device__ inline void reduce(const S* dy, const S* x, const u8* mask, const f32* mean, const f32* scale, const f32* beta,
                              f32* partials, u32 rows, u32 channels, u32 rows_per_block, u32 gate, f32 (*shared)[2][BLOCK]) {
    const u32 lanes = channels / V, width = lanes < WARP ? lanes : WARP, high = BLOCK / width;
    const u32 lane = blockIdx.x * width + threadIdx.x % width, r = threadIdx.x / width;
    const u32 begin = blockIdx.y * rows_per_block + r;
    const u32 end = min_u32(rows, (blockIdx.y + 1) * rows_per_block);
    f32 sum[V], product[V];
#pragma unroll
    for (u32 i = 0; i < V; i++) sum[i] = product[i] = 0.0f;
    if (r < high && lane < lanes) {
        f32 m[V], s[V], b[V];
#pragma unroll
        for (u32 i = 0; i < V; i++) {
            m[i] = mean[lane * V + i];
            s[i] = scale[lane * V + i];
            b[i] = beta[lane * V + i];
        }
#pragma unroll 2
        for (u32 row = begin; row < end; row += high) {
            f32 d[V], v[V];
            Gated<S, V>::load(d, v, dy, x, mask, (u64)row * channels + lane * V);
#pragma unroll
            for (u32 i = 0; i < V; i++) {
                if (gate == GATE_RECOMPUTED && !(normalised(v[i], m[i], s[i], b[i]) > 0.0f)) d[i] = 0.0f;
                sum[i] += d[i];
                product[i] = fmaf(d[i], v[i] - m[i], product[i]);
            }
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
        f32* to = partials + 2 * ((u64)blockIdx.y * channels + lane * V);
#pragma unroll
        for (u32 i = 0; i < V; i++) {
            to[2 * i] = shared[i][0][threadIdx.x];
            to[2 * i + 1] = shared[i][1][threadIdx.x];
        }
    }
}

template <class S>
__device__ inline void bn_backward_reduce(const S* dy, const S* x, const u8* mask, const f32* mean, const f32* scale, const f32* beta,
                                          f32* partials, u32 rows, u32 channels, u32 rows_per_block, u32 gate) {
    __shared__ f32 shared[PACK][2][BLOCK];
    if (channels % PACK == 0) {
        reduce<S, PACK>(dy, x, mask, mean, scale, beta, partials, rows, channels, rows_per_block, gate, shared);
    } else {
        reduce<S, 1>(dy, x, mask, mean, scale, beta, partials, rows, channels, rows_per_block, gate, shared);
    }
}

#define BN_BACKWARD_REDUCE(S, suffix)                                                                                    \
    KERNEL __launch_bounds__(BLOCK)                                                                                      \
    bn_backward_reduce_##suffix(const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,          \
                                const f32* __restrict__ mean, const f32* __restrict__ scale, const f32* __restrict__ beta, \
                                f32* __restrict__ partials, u32 rows, u32 channels, u32 rows_per_block, u32 gate) {      \
        bn_backward_reduce<S>(dy, x, mask, mean, scale, beta, partials, rows, channels, rows_per_block, gate);           \
    }                                                                                                                    \
    EXPORT(bn_backward_reduce_##suffix)
FOR_EACH_STORAGE(BN_BACKWARD_REDUCE)
#undef BN_BACKWARD_REDUCE

// ---- bn_backward_finalize: grid and block as bn_finalize ------------------------------------------------------------

KERNEL __launch_bounds__(1024)
bn_backward_finalize(const f32* __restrict__ partials, const f32* __restrict__ rstd, const f32* __restrict__ scale,
                     f32* __restrict__ dgamma, f32* __restrict__ dbeta, f32* __restrict__ b, f32* __restrict__ c_out, u32 rows,
                     u32 channels, u32 row_blocks) {
    __shared__ f32 shared[2][FINALIZE_PARTS][FINALIZE_CHANNELS];
    const u32 column = threadIdx.x % FINALIZE_CHANNELS, part = threadIdx.x / FINALIZE_CHANNELS;
    const u32 c = blockIdx.x * FINALIZE_CHANNELS + column;
    f32 sum = 0.0f, product = 0.0f;
    if (c < channels) {
#pragma unroll 4
        for (u32 block = part; block < row_blocks; block += FINALIZE_PARTS) {
            const f32* from = partials + 2 * ((u64)block * channels + c);
            sum += from[0];
            product += from[1];
        }
    }
    add_parts(shared, sum, product, part, column);
    if (part == 0 && c < channels) {
        const f32 gamma_gradient = rstd[c] * shared[1][0][column], beta_gradient = shared[0][0][column];
        dgamma[c] = gamma_gradient;
        dbeta[c] = beta_gradient;
        b[c] = -scale[c] * rstd[c] * (gamma_gradient / (f32)rows);
        c_out[c] = -scale[c] * (beta_gradient / (f32)rows);
    }
}
EXPORT(bn_backward_finalize)

// ---- bn_backward_apply: a thread has 8 consecutive elements ---------------------------------------------------------

template <class S>
__device__ inline void bn_backward_apply(const S* dy, const S* x, const u8* mask, const f32* mean, const f32* scale, const f32* beta,
                                         const f32* b, const f32* c_in, S* dx, S* dz, u64 elements, u32 channels, u32 gate) {
    const u64 e = ((u64)blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (e >= elements) return;
    const u32 count = elements - e < PACK ? (u32)(elements - e) : PACK, c = (u32)e % channels;
    Pack<S> d, v;
    if (count == PACK) {
        d.load(dy + e);
        v.load(x + e);
    } else {
        load_some(d, dy + e, count, 0.0f);
        load_some(v, x + e, count, 0.0f);
    }
    f32 m[PACK], s[PACK], p[PACK];
    load_channels(m, mean, c, channels);
    load_channels(s, scale, c, channels);
    if (gate == GATE_MASK) {
        const u32 bits = mask[e / PACK];
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            if (!(bits >> i & 1u)) d.v[i] = 0.0f;
        }
    } else if (gate == GATE_RECOMPUTED) {
        load_channels(p, beta, c, channels);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            if (!(normalised(v.v[i], m[i], s[i], p[i]) > 0.0f)) d.v[i] = 0.0f;
        }
    }
    if (dz) {
        if (count == PACK) d.store(dz + e); else store_some(d, dz + e, count);
    }
    load_channels(p, b, c, channels);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) v.v[i] = fmaf(p[i], v.v[i] - m[i], s[i] * d.v[i]);
    load_channels(p, c_in, c, channels);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) v.v[i] += p[i];
    if (count == PACK) v.store(dx + e); else store_some(v, dx + e, count);
}

#define BN_BACKWARD_APPLY(S, suffix)                                                                                    \
    KERNEL __launch_bounds__(BLOCK)                                                                                     \
    bn_backward_apply_##suffix(const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,          \
                               const f32* __restrict__ mean, const f32* __restrict__ scale, const f32* __restrict__ beta, \
                               const f32* __restrict__ b, const f32* __restrict__ c, S* __restrict__ dx,                \
                               S* __restrict__ dz, u64 elements, u32 channels, u32 gate) {                              \
        bn_backward_apply<S>(dy, x, mask, mean, scale, beta, b, c, dx, dz, elements, channels, gate);                   \
    }                                                                                                                   \
    EXPORT(bn_backward_apply_##suffix)
FOR_EACH_STORAGE(BN_BACKWARD_APPLY)
#undef BN_BACKWARD_APPLY
