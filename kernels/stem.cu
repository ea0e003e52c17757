// The stem as a convolution of 2x2 pixels at a time (plan/stem.rs): its filters [k][r][s][4] of stride 2 as filters
// [k][taps][taps][2][2][4] without stride, and their gradient back. Tap (i, j) of what the optimiser knows is at
// (i + shift, j + shift) of the 2 taps x 2 taps places; the places that no tap has are zero.
//
// stem_block_filters     w -> blocked, zeros where no tap is
// stem_unblock_gradient  dblocked -> dw: what the convolution has made for places without a tap is left behind
// A thread an element of the result. Bytes: 2 * sizeof(S) an element: 64 KB of filters, below a launch's own cost.
// Grid: elements of the result / 256, rounded up.
#include "common.cuh"

struct Taps {
    u32 r, s, taps, shift;

    // The element of [k][taps][taps][2][2][4] that holds a tap's.
    __device__ u32 blocked(u32 k, u32 row, u32 column, u32 c) const {
        const u32 i = row + shift, j = column + shift;
        return ((((k * taps + i / 2) * taps + j / 2) * 2 + i % 2) * 2 + j % 2) * 4 + c;
    }
};

template <class S> __device__ inline void block_filters(const S* w, S* blocked, u32 k, Taps of) {
    const u32 e = blockIdx.x * BLOCK + threadIdx.x;
    if (e >= k * of.taps * of.taps * 16) return;
    const u32 c = e % 4, filter = e / (of.taps * of.taps * 16);
    const u32 row = 2 * (e / (of.taps * 16) % of.taps) + e / 8 % 2 - of.shift, column = 2 * (e / 16 % of.taps) + e / 4 % 2 - of.shift;
    const bool tap = row < of.r && column < of.s;
    blocked[e] = tap ? w[((filter * of.r + row) * of.s + column) * 4 + c] : from_float<S>(0.0f);
}

template <class S> __device__ inline void unblock_gradient(const S* blocked, S* dw, u32 k, Taps of) {
    const u32 e = blockIdx.x * BLOCK + threadIdx.x;
    if (e >= k * of.r * of.s * 4) return;
    dw[e] = blocked[of.blocked(e / (of.r * of.s * 4), e / (of.s * 4) % of.r, e / 4 % of.s, e % 4)];
}

#define STEM(S, suffix)                                                                                              \
    KERNEL __launch_bounds__(BLOCK)                                                                                  \
    stem_block_filters_##suffix(const S* __restrict__ w, S* __restrict__ blocked, u32 k, u32 r, u32 s, u32 taps,     \
                                u32 shift) {                                                                         \
        block_filters(w, blocked, k, Taps{r, s, taps, shift});                                                       \
    }                                                                                                                \
    EXPORT(stem_block_filters_##suffix)                                                                              \
    KERNEL __launch_bounds__(BLOCK)                                                                                  \
    stem_unblock_gradient_##suffix(const S* __restrict__ blocked, S* __restrict__ dw, u32 k, u32 r, u32 s, u32 taps, \
                                   u32 shift) {                                                                      \
        unblock_gradient(blocked, dw, k, Taps{r, s, taps, shift});                                                   \
    }                                                                                                                \
    EXPORT(stem_unblock_gradient_##suffix)
FOR_EACH_STORAGE(STEM)
#undef STEM
