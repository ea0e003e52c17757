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

// Eight bytes in one access.
struct alignas(8) EightBytes { u32 low, high; };

__device__ inline void store_bytes(u8* to, const u32 (&v)[PACK]) {
    *(EightBytes*)to = {v[0] | v[1] << 8 | v[2] << 16 | v[3] << 24, v[4] | v[5] << 8 | v[6] << 16 | v[7] << 24};
}

__device__ inline void load_bytes(u32 (&v)[PACK], const u8* from) {
    const EightBytes bytes = *(const EightBytes*)from;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) v[i] = (i < 4 ? bytes.low : bytes.high) >> (8 * (i % 4)) & 255u;
}

// ---- max_pool: grid: n p q c / 2048, rounded up ----------------------------------------------------------------------

struct Window { u32 image, top, left; };  // top and left corner, one more than the row and column (padding)

__device__ inline Window window(u32 pixel, u32 p, u32 q) {
    return {pixel / (p * q), pixel / q % p * 2, pixel % q * 2};
}

// The larger of what was best and the next tap's value.
__device__ inline void keep_larger(f32& best, u32& from, f32 value, u32 tap) {
    if (value > best || value != value) {
        best = value;
        from = tap;
    }
}

const u32 CENTRE = 4, NO_TAP = 9;

template <class S>
__device__ inline void max_pool(const S* x, S* y, u8* index, u32 n, u32 h, u32 w, u32 c) {
    const u32 p = (h - 1) / 2 + 1, q = (w - 1) / 2 + 1;
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK, elements = n * p * q * c;
    if (e >= elements) return;
    const f32 lowest = -bits_to_float(0x7f800000u);
    if (c % PACK == 0) {
        const Place at = place(e, c);
        const Window o = window(at.pixel, p, q);
        Pack<S> best;
        u32 from[PACK];
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            best.v[i] = lowest;
            from[i] = CENTRE;
        }
#pragma unroll
        for (u32 tap = 0; tap < 9; tap++) {
            const u32 row = o.top + tap / 3 - 1, column = o.left + tap % 3 - 1;
            const bool inside = row < h && column < w;
            // The centre, which exists, stands for a tap that does not: no branch, so that loads overlap.
            const u32 pixel = inside ? (o.image * h + row) * w + column : (o.image * h + o.top) * w + o.left;
            Pack<S> pack;
            pack.load(x + (u64)pixel * c + at.channel);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) {
                if (inside) keep_larger(best.v[i], from[i], pack.v[i], tap);
            }
        }
        best.store(y + e);
        store_bytes(index + e, from);
    } else {
        const u32 count = elements - e < PACK ? elements - e : PACK;
        for (u32 i = 0; i < count; i++) {
            const Place at = place(e + i, c);
            const Window o = window(at.pixel, p, q);
            f32 best = lowest;
            u32 from = CENTRE;
            for (u32 tap = 0; tap < 9; tap++) {
                const u32 row = o.top + tap / 3 - 1, column = o.left + tap % 3 - 1;
                if (row < h && column < w) {
                    keep_larger(best, from, to_float(x[(u64)((o.image * h + row) * w + column) * c + at.channel]), tap);
                }
            }
            y[e + i] = from_float<S>(best);
            index[e + i] = (u8)from;
        }
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

// The outputs along one side whose windows may hold position `at`: `at` / 2, and the next where `two`.
struct Holders { u32 first; bool two; };

__device__ inline Holders holders(u32 at, u32 outputs) { return {at / 2, at % 2 == 1 && at / 2 + 1 < outputs}; }

template <class S>
__device__ inline void max_pool_backward(const S* dy, const u8* index, S* dx, u32 n, u32 h, u32 w, u32 c) {
    const u32 p = (h - 1) / 2 + 1, q = (w - 1) / 2 + 1;
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK, elements = n * h * w * c;
    if (e >= elements) return;
    const bool whole = c % PACK == 0;
    const u32 count = whole ? 1 : elements - e < PACK ? elements - e : PACK;
    for (u32 i = 0; i < count; i++) {
        const Place at = place(e + i, c);
        const u32 column = at.pixel % w, row = at.pixel / w % h, image = at.pixel / (w * h);
        const Holders down = holders(row, p), across = holders(column, q);
        Pack<S> sum;
#pragma unroll
        for (u32 k = 0; k < PACK; k++) sum.v[k] = 0.0f;
#pragma unroll
        for (u32 holder = 0; holder < 4; holder++) {
            const bool holds = (holder / 2 == 0 || down.two) && (holder % 2 == 0 || across.two);
            // The first holder, with a tap that none has, stands for one that does not exist: no branch, so that loads overlap.
            const u32 a = down.first + (holds ? holder / 2 : 0), b = across.first + (holds ? holder % 2 : 0);
            const u32 tap = holds ? (row + 1 - 2 * a) * 3 + (column + 1 - 2 * b) : NO_TAP;
            const u64 from = (u64)((image * p + a) * q + b) * c + at.channel;
            if (whole) {
                Pack<S> pack;
                u32 taps[PACK];
                pack.load(dy + from);
                load_bytes(taps, index + from);
#pragma unroll
                for (u32 k = 0; k < PACK; k++) sum.v[k] += taps[k] == tap ? pack.v[k] : 0.0f;
            } else {
                sum.v[0] += index[from] == tap ? to_float(dy[from]) : 0.0f;
            }
        }
        if (whole) sum.store(dx + e); else dx[e + i] = from_float<S>(sum.v[0]);
    }
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
