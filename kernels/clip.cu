// The norm of the gradient of all parameters together, and what follows from it for every rule: gradients are divided by
// max(1, norm / max_norm) (timm's LAMB, timm/optim/lamb.py; torch.nn.utils.clip_grad_norm_ differs by its 1e-6).
//
// gradient_squares  squares of the gradient without the loss scale, added up by block. A block of 256 has 4096 elements of
//                   the flat space (abi.cuh), a thread 8 elements twice; in f32, in a fixed tree.
//                   bytes: sizeof(S) (or 4) an element; floor: those / bandwidth
// clip_gradients    those, in f64 -> the divisor, and LAMB's bias corrections. One block.
// Where the step is to be skipped the gradients are not looked at: the norm is 0.
#include "abi.cuh"

template <class Gradient>
__device__ inline void gradient_squares(const Gradient& from, f32* partials, u32 total, const State* state) {
    __shared__ f32 shared[BLOCK];
    const u32 end = state->skip ? 0 : min_u32(total, (blockIdx.x + 1) * (2 * BLOCK * PACK));
    const f32 unscale = state->unscale;
    f32 sum = 0.0f;
    for (u32 e = blockIdx.x * (2 * BLOCK * PACK) + threadIdx.x * PACK; e < end; e += BLOCK * PACK) {
        Pack<f32> gradient;
        from.load(gradient, e, PACK);
#pragma unroll
        for (u32 k = 0; k < PACK; k++) {
            const f32 g = __fmul_rn(gradient.v[k], unscale);
            sum = fmaf(g, g, sum);
        }
    }
    sum = over_block<Add>(shared, sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

#define GRADIENT_SQUARES(S, suffix)                                                                                  \
    KERNEL __launch_bounds__(BLOCK)                                                                                  \
    gradient_squares_##suffix(const S* __restrict__ matrices, const f32* __restrict__ vectors, u32 matrix_end,       \
                              f32* __restrict__ partials, u32 total, const State* __restrict__ state) {              \
        gradient_squares(PassGradient<S>{matrices, vectors, matrix_end}, partials, total, state);                    \
    }                                                                                                                \
    EXPORT(gradient_squares_##suffix)
FOR_EACH_STORAGE(GRADIENT_SQUARES)
#undef GRADIENT_SQUARES

KERNEL __launch_bounds__(BLOCK)
gradient_squares_sum(const f32* __restrict__ sum, f32* __restrict__ partials, u32 total, const State* __restrict__ state) {
    gradient_squares(SummedGradient{sum}, partials, total, state);
}
EXPORT(gradient_squares_sum)

// base^exponent by squaring: the same operations on every machine.
__device__ inline f64 power(f64 base, u32 exponent) {
    f64 result = 1.0;
    for (; exponent; exponent >>= 1) {
        if (exponent & 1u) result *= base;
        base *= base;
    }
    return result;
}

KERNEL __launch_bounds__(BLOCK)
clip_gradients(const f32* __restrict__ partials, u32 blocks, Corrections* __restrict__ corrections, const u8* __restrict__ staging,
               u32 slots, u64 slot_bytes, u64 hyper_offset, const State* __restrict__ state) {
    __shared__ f64 shared[2][BLOCK];
    f64 sum = 0.0;
    for (u32 i = threadIdx.x; i < blocks; i += BLOCK) sum += (f64)partials[i];
    add_wide(shared, sum, 0.0);
    if (threadIdx.x == 0) {
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);
        const f32 norm = (f32)sqrt(shared[0][0]), share = __fdiv_rn(norm, hyper->max_norm);
        // The update at hand has been counted already.
        const f64 bias1 = 1.0 - power(hyper->beta1, state->updates), bias2 = 1.0 - power(hyper->beta2, state->updates);
        const f32 clip = hyper->max_norm > 0.0f && share > 1.0f ? share : 1.0f;
        *corrections = {clip, (f32)bias1, (f32)sqrt(bias2), 0.0f};
    }
}
EXPORT(clip_gradients)
