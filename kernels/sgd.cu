// sgd  d = g + weight_decay w; v = momentum v + d; w -= lr (d + momentum v) with nesterov, lr v without (torch.optim.SGD);
//      then the weights' copy in the storage type. Where `corrections` are given, g is divided by their clip (clip.cu). One launch over the whole flat parameter space (abi.cuh).
//      Weight decay holds for the first `decay_end` elements. Nothing happens where the step is to be skipped.
// A thread has 8 elements. Grid: total / 2048, rounded up.
// Bytes: weights and velocities in and out (16), gradient in and copy out (2 sizeof(S)) an element; floor: those / bandwidth:
// 20 bytes x 25.6 M = 511 MB, 0.57 ms at 900 GB/s.
// Multiplications and additions are rounded one by one, as the oracle's (optim/sgd.rs): same bits in f32.
#include "abi.cuh"

struct Arenas { f32* master; f32* momentum; };

template <class S>
__device__ inline void sgd_step(Arenas to, S* weights, const Pack<f32>& gradient, u32 e, u32 decay_end, const Hyper* hyper, f32 unscale,
                                const Corrections* corrections) {
    const f32 lr = hyper->lr, momentum = hyper->momentum, decay = hyper->weight_decay;
    Pack<f32> w, v;
    w.load(to.master + e);
    v.load(to.momentum + e);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        f32 d = __fmul_rn(gradient.v[i], unscale);
        if (corrections) d = __fdiv_rn(d, corrections->clip);
        if (e + i < decay_end) d = __fadd_rn(d, __fmul_rn(decay, w.v[i]));
        v.v[i] = __fadd_rn(__fmul_rn(momentum, v.v[i]), d);
        const f32 direction = hyper->nesterov ? __fadd_rn(d, __fmul_rn(momentum, v.v[i])) : v.v[i];
        w.v[i] = __fsub_rn(w.v[i], __fmul_rn(lr, direction));
    }
    w.store(to.master + e);
    v.store(to.momentum + e);
    Pack<S> copy;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) copy.v[i] = w.v[i];
    copy.store(weights + e);
}

template <class S, class Gradient>
__device__ inline void sgd(Arenas to, S* weights, const Gradient& from, u32 total, u32 decay_end, const Corrections* corrections,
                           const Hyper* hyper, const State* state) {
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (e >= total || state->skip) return;
    Pack<f32> gradient;
    from.load(gradient, e, PACK);
    sgd_step<S>(to, weights, gradient, e, decay_end, hyper, state->unscale, corrections);
}

#define SGD(S, suffix)                                                                                                    \
    KERNEL __launch_bounds__(BLOCK)                                                                                       \
    sgd_##suffix(f32* __restrict__ master, f32* __restrict__ momentum, S* __restrict__ weights, const S* __restrict__ matrices, \
                 const f32* __restrict__ vectors, u32 matrix_end, u32 total, u32 decay_end,                               \
                 const Corrections* __restrict__ corrections, const u8* __restrict__ staging, u32 slots, u64 slot_bytes,  \
                 u64 hyper_offset, const State* __restrict__ state) {                                                     \
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);                              \
        const PassGradient<S> gradient = {matrices, vectors, matrix_end};                                                 \
        sgd<S>({master, momentum}, weights, gradient, total, decay_end, corrections, hyper, state);                       \
    }                                                                                                                     \
    EXPORT(sgd_##suffix)                                                                                                  \
    KERNEL __launch_bounds__(BLOCK)                                                                                       \
    sgd_sum_##suffix(f32* __restrict__ master, f32* __restrict__ momentum, S* __restrict__ weights,                       \
                     const f32* __restrict__ sum, u32 total, u32 decay_end, const Corrections* __restrict__ corrections,  \
                     const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 hyper_offset,                         \
                     const State* __restrict__ state) {                                                                   \
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);                              \
        sgd<S>({master, momentum}, weights, SummedGradient{sum}, total, decay_end, corrections, hyper, state);            \
    }                                                                                                                     \
    EXPORT(sgd_sum_##suffix)
FOR_EACH_STORAGE(SGD)
#undef SGD
