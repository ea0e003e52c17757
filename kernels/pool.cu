// Pooling, NHWC. A thread has 8 consecutive elements of what it writes.
//
// max_pool           3x3, stride 2, padding 1; leaves which of the window's nine pixels each output came from: the first
//                    of equals, the last NaN. bytes: x, y and an index byte an output once; floor: those / bandwidth
// max_pool_backward  a gather: each input pixel looks at the at most four outputs whose windows hold it, so no atomics.
//                    bytes: dy and indices once (from cache the other times), dx once
// avg_pool           mean over all pixels; avg_pool_backward spreads it. bytes: x or dx once
#include "common.cuh"

// Element `e` of a tensor with `c` channels. Tensors have fewer than 2^32 elements, so that none of this is in 64 bits.
struct Place { u32 pixel, channel; };

__device__ inline Place place(u32 e, u32 c) { return {e / c, e % c}; }

// ---- max_pool: grid: n p q c / 2048, rounded up ----------------------------------------------------------------------

struct Window { u32 image, top, left; };  // top and left corner, one more than the row and column (padding)

__device__ inline Window window(u32 pixel, u32 p, u32 q) {
    return {pixel / (p * q), pixel / q % p * 2, pixel % q * 2};
}

template <class S>
__device__ inline void max_pool(const S* x, S* y, u8* index, u32 n, u32 h, u32 w, u32 c) {
    const u32 p = (h - 1) / 2 + 1, q = (w - 1) / 2 + 1;
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK, elements = n * p * q * c;
    if (e >= elements) return;
    const bool whole = c % PACK == 0;
    const u32 count = elements - e < PACK ? elements - e : PACK;
    Pack<S> best;
    u32 from[PACK];
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        best.v[i] = -bits_to_float(0x7f800000u);
        from[i] = 4;
    }
    for (u32 tap = 0; tap < 9; tap++) {
        Pack<S> pack;
        u32 inside = 0;
        if (whole) {
            const Place at = place(e, c);
            const Window o = window(at.pixel, p, q);
            const u32 row = o.top + tap / 3 - 1, column = o.left + tap % 3 - 1;
            if (row < h && column < w) {
                inside = 255;
                pack.load(x + (((u64)o.image * h + row) * w + column) * c + at.channel);
            }
        } else {
            for (u32 i = 0; i < count; i++) {
                const Place at = place(e + i, c);
                const Window o = window(at.pixel, p, q);
                const u32 row = o.top + tap / 3 - 1, column = o.left + tap % 3 - 1;
                if (row >= h || column >= w) continue;
                inside |= 1u << i;
                pack.v[i] = to_float(x[(((u64)o.image * h + row) * w + column) * c + at.channel]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            if (inside >> i & 1u && (pack.v[i] > best.v[i] || pack.v[i] != pack.v[i])) {
                best.v[i] = pack.v[i];
                from[i] = tap;
            }
        }
    }
    if (count == PACK) best.store(y + e); else store_some(best, y + e, count);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        if (i < count) index[e + i] = (u8)from[i];
    }
}

#define MAX_POOL(S, suffix)                                                                                             \
    KERNEL __launch_bounds__(BLOCK, 4)                                                                                    \
    max_pool_##suffix(const S* __restrict__ x, S* __restrict__ y, u8* __restrict__ index, u32 n, u32 h, u32 w, u32 c) { \
        max_pool<S>(x, y, index, n, h, w, c);                                                                           \
    }                                                                                                                   \
    EXPORT(max_pool_##suffix)
FOR_EACH_STORAGE(MAX_POOL)
#undef MAX_POOL

// ---- max_pool_backward: grid: n h w c / 2048, rounded up --------------------------------------------------------------

// The outputs along one side whose windows hold position `at`: `first` and, where `count` is 2, the next.
struct Holders { u32 first, count; };

__device__ inline Holders holders(u32 at, u32 outputs) {
    const u32 first = at / 2, count = at % 2 && first + 1 < outputs ? 2 : 1;
    return {first, count};
}

template <class S>
__device__ inline void max_pool_backward(const S* dy, const u8* index, S* dx, u32 n, u32 h, u32 w, u32 c) {
    const u32 p = (h - 1) / 2 + 1, q = (w - 1) / 2 + 1;
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK, elements = n * h * w * c;
    if (e >= elements) return;
    const bool whole = c % PACK == 0;
    const u32 count = elements - e < PACK ? elements - e : PACK;
    Pack<S> sum;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) sum.v[i] = 0.0f;
    for (u32 i = 0; i < (whole ? 1 : count); i++) {
        const Place at = place(e + i, c);
        const u32 column = at.pixel % w, row = at.pixel / w % h, image = at.pixel / (w * h);
        const Holders down = holders(row, p), across = holders(column, q);
        for (u32 a = down.first; a < down.first + down.count; a++) {
            for (u32 b = across.first; b < across.first + across.count; b++) {
                const u32 tap = (row + 1 - 2 * a) * 3 + (column + 1 - 2 * b);
                const u64 from = (((u64)image * p + a) * q + b) * c + at.channel;
                if (whole) {
                    Pack<S> pack;
                    pack.load(dy + from);
#pragma unroll
                    for (u32 k = 0; k < PACK; k++) sum.v[k] += index[from + k] == tap ? pack.v[k] : 0.0f;
                } else {
                    const f32 value = index[from] == tap ? to_float(dy[from]) : 0.0f;
#pragma unroll
                    for (u32 k = 0; k < PACK; k++) {
                        if (k == i) sum.v[k] += value;
                    }
                }
            }
        }
    }
    if (count == PACK) sum.store(dx + e); else store_some(sum, dx + e, count);
}

#define MAX_POOL_BACKWARD(S, suffix)                                                                                  \
    KERNEL __launch_bounds__(BLOCK, 4)                                                                                  \
    max_pool_backward_##suffix(const S* __restrict__ dy, const u8* __restrict__ index, S* __restrict__ dx, u32 n, u32 h, \
                               u32 w, u32 c) {                                                                        \
        max_pool_backward<S>(dy, index, dx, n, h, w, c);                                                              \
    }                                                                                                                 \
    EXPORT(max_pool_backward_##suffix)
FOR_EACH_STORAGE(MAX_POOL_BACKWARD)
#undef MAX_POOL_BACKWARD

// ---- avg_pool: grid: n c / 2048, rounded up; avg_pool_backward: n pixels c / 2048 -------------------------------------

template <class S>
__device__ inline void avg_pool(const S* x, S* y, u32 n, u32 pixels, u32 c) {
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK, elements = n * c;
    if (e >= elements) return;
    const u32 count = elements - e < PACK ? elements - e : PACK;
    const f32 share = 1.0f / (f32)pixels;
    Pack<S> sum;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) sum.v[i] = 0.0f;
    if (c % PACK == 0) {
        const S* from = x + (u64)(e / c * pixels) * c + e % c;
#pragma unroll 4
        for (u32 pixel = 0; pixel < pixels; pixel++) {
            Pack<S> pack;
            pack.load(from + (u64)pixel * c);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) sum.v[i] += pack.v[i];
        }
    } else {
        for (u32 pixel = 0; pixel < pixels; pixel++) {
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                if (i < count) sum.v[i] += to_float(x[(u64)((e + i) / c * pixels + pixel) * c + (e + i) % c]);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < PACK; i++) sum.v[i] *= share;
    if (count == PACK) sum.store(y + e); else store_some(sum, y + e, count);
}

template <class S>
__device__ inline void avg_pool_backward(const S* dy, S* dx, u32 n, u32 pixels, u32 c) {
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK, elements = n * pixels * c;
    if (e >= elements) return;
    const u32 count = elements - e < PACK ? elements - e : PACK;
    const u32 image = pixels * c;
    const f32 share = 1.0f / (f32)pixels;
    Pack<S> pack;
    if (c % PACK == 0) {
        pack.load(dy + e / image * c + e % c);
    } else {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            if (i < count) pack.v[i] = to_float(dy[(e + i) / image * c + (e + i) % c]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < PACK; i++) pack.v[i] *= share;
    if (count == PACK) pack.store(dx + e); else store_some(pack, dx + e, count);
}

#define AVG_POOL(S, suffix)                                                                                      \
    KERNEL __launch_bounds__(BLOCK, 4)                                                                             \
    avg_pool_##suffix(const S* __restrict__ x, S* __restrict__ y, u32 n, u32 pixels, u32 c) {                    \
        avg_pool<S>(x, y, n, pixels, c);                                                                         \
    }                                                                                                            \
    EXPORT(avg_pool_##suffix)                                                                                    \
    KERNEL __launch_bounds__(BLOCK, 4)                                                                             \
    avg_pool_backward_##suffix(const S* __restrict__ dy, S* __restrict__ dx, u32 n, u32 pixels, u32 c) {         \
        avg_pool_backward<S>(dy, dx, n, pixels, c);                                                              \
    }                                                                                                            \
    EXPORT(avg_pool_backward_##suffix)
FOR_EACH_STORAGE(AVG_POOL)
#undef AVG_POOL
