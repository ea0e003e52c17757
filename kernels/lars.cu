// LARS (You et al., arXiv:1708.03888) as timm has it (huggingface/pytorch-image-models, timm/optim/lars.py, without trust_clip):
//
//     g = gradient / clip (clip.cu)
//     d = r (g + weight_decay w), where r = trust ||w|| / (||g|| + weight_decay ||w|| + epsilon) of the parameter;
//                                 1 where weight decay does not apply or a norm is 0
//     v = momentum v + d;  w -= lr (d + momentum v) with nesterov, lr v without
//
// Three launches over the chunks of the flat parameter space, each of one parameter (abi.cuh).
//
// lars_norms   squares of w and of the gradient without the loss scale, added up by chunk
// lars_ratios  those -> r. A block a parameter.
// lars_update  v, w, and its copy in the storage type
//
// A block of 256 has a chunk of up to 4096 elements, a thread 8 elements twice. Sums are added in a fixed tree, across
// chunks in f64. Where the step is to be skipped, nothing lasting is written.
// Bytes: gradient and w twice in, v in, w, v and copy out: 3 sizeof(S) + 20 an element; floor: those / bandwidth:
// 26 bytes x 25.6 M = 665 MB, 0.74 ms at 900 GB/s.
// Elementwise operations are rounded one by one, as the oracle's (optim/lars.rs): same bits in f32 for the same clip and ratio.
#include "abi.cuh"

// ---- lars_norms -----------------------------------------------------------------------------------------------------

template <class Gradient>
__device__ inline void lars_norms(const Gradient& from, const f32* master, const Chunk* chunks, Pair* partials, const State* state) {
    __shared__ f32 shared[BLOCK];
    const Chunk chunk = chunks[blockIdx.x];
    const u32 elements = state->skip ? 0 : chunk.count;
    const f32 unscale = state->unscale;
    f32 weights = 0.0f, gradients = 0.0f;
    for (u32 i = threadIdx.x * PACK; i < elements; i += BLOCK * PACK) {
        const u32 e = chunk.first + i, count = min_u32(PACK, elements - i);
        Pack<f32> g, w;
        from.load(g, e, count);
        load_at(w, master, e, count);
#pragma unroll
        for (u32 k = 0; k < PACK; k++) {
            const f32 gradient = __fmul_rn(g.v[k], unscale);
            weights = fmaf(w.v[k], w.v[k], weights);
            gradients = fmaf(gradient, gradient, gradients);
        }
    }
    weights = over_block<Add>(shared, weights);
    gradients = over_block<Add>(shared, gradients);
    if (threadIdx.x == 0) partials[blockIdx.x] = {weights, gradients};
}

// ---- lars_ratios ----------------------------------------------------------------------------------------------------

KERNEL __launch_bounds__(BLOCK)
lars_ratios(const Pair* __restrict__ partials, const Chunk* __restrict__ chunks, const ChunkRange* __restrict__ parameters,
            const Corrections* __restrict__ corrections, f32* __restrict__ ratios, const u8* __restrict__ staging, u32 slots,
            u64 slot_bytes, u64 hyper_offset, const State* __restrict__ state) {
    __shared__ f64 shared[2][BLOCK];
    const ChunkRange range = parameters[blockIdx.x];
    add_chunks(shared, partials, range);
    if (threadIdx.x == 0) {
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);
        const f32 clip = corrections ? corrections->clip : 1.0f, decay = chunks[range.first].decays ? hyper->weight_decay : 0.0f;
        const f32 w = (f32)sqrt(shared[0][0]), g = __fdiv_rn((f32)sqrt(shared[1][0]), clip);
        const f32 length = __fadd_rn(__fadd_rn(g, __fmul_rn(w, decay)), hyper->epsilon);
        ratios[blockIdx.x] = decay != 0.0f && w > 0.0f && g > 0.0f ? __fdiv_rn(__fmul_rn(hyper->trust, w), length) : 1.0f;
    }
}
EXPORT(lars_ratios)

// ---- lars_update ----------------------------------------------------------------------------------------------------

// What a step moves.
template <class S> struct Moved { f32* master; f32* momentum; S* weights; };

template <class S, class Gradient>
__device__ inline void lars_update(const Gradient& from, Moved<S> to, const Chunk* chunks, const Corrections* corrections,
                              const f32* ratios, const Hyper* hyper, const State* state) {
    if (state->skip) return;
    const Chunk chunk = chunks[blockIdx.x];
    const f32 unscale = state->unscale, clip = corrections ? corrections->clip : 1.0f, ratio = ratios[chunk.parameter];
    const f32 lr = hyper->lr, momentum = hyper->momentum, decay = chunk.decays ? hyper->weight_decay : 0.0f;
    for (u32 i = threadIdx.x * PACK; i < chunk.count; i += BLOCK * PACK) {
        const u32 e = chunk.first + i, count = min_u32(PACK, chunk.count - i);
        Pack<f32> g, w, v;
        from.load(g, e, count);
        load_at(w, (const f32*)to.master, e, count);
        load_at(v, (const f32*)to.momentum, e, count);
        Pack<S> copy;
#pragma unroll
        for (u32 k = 0; k < PACK; k++) {
            const f32 gradient = __fdiv_rn(__fmul_rn(g.v[k], unscale), clip);
            const f32 d = __fmul_rn(__fadd_rn(gradient, __fmul_rn(decay, w.v[k])), ratio);
            v.v[k] = __fadd_rn(__fmul_rn(momentum, v.v[k]), d);
            const f32 direction = hyper->nesterov ? __fadd_rn(d, __fmul_rn(momentum, v.v[k])) : v.v[k];
            w.v[k] = __fsub_rn(w.v[k], __fmul_rn(lr, direction));
            copy.v[k] = w.v[k];
        }
        store_at(w, to.master, e, count);
        store_at(v, to.momentum, e, count);
        store_at(copy, to.weights, e, count);
    }
}

#define LARS(S, suffix)                                                                                                    \
    KERNEL __launch_bounds__(BLOCK)                                                                                        \
    lars_norms_##suffix(const S* __restrict__ matrices, const f32* __restrict__ vectors, u32 matrix_end,                   \
                        const f32* __restrict__ master, const Chunk* __restrict__ chunks, Pair* __restrict__ partials,     \
                        const State* __restrict__ state) {                                                                 \
        lars_norms(PassGradient<S>{matrices, vectors, matrix_end}, master, chunks, partials, state);                            \
    }                                                                                                                      \
    EXPORT(lars_norms_##suffix)                                                                                            \
    KERNEL __launch_bounds__(BLOCK)                                                                                        \
    lars_update_##suffix(const S* __restrict__ matrices, const f32* __restrict__ vectors, u32 matrix_end,                  \
                         f32* __restrict__ master, f32* __restrict__ momentum, S* __restrict__ weights,                    \
                         const Chunk* __restrict__ chunks, const Corrections* __restrict__ corrections,                    \
                         const f32* __restrict__ ratios, const u8* __restrict__ staging, u32 slots, u64 slot_bytes,        \
                         u64 hyper_offset, const State* __restrict__ state) {                                              \
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);                               \
        const PassGradient<S> gradient = {matrices, vectors, matrix_end};                                                  \
        lars_update<S>(gradient, {master, momentum, weights}, chunks, corrections, ratios, hyper, state);                       \
    }                                                                                                                      \
    EXPORT(lars_update_##suffix)                                                                                           \
    KERNEL __launch_bounds__(BLOCK)                                                                                        \
    lars_update_sum_##suffix(const f32* __restrict__ sum, f32* __restrict__ master, f32* __restrict__ momentum,            \
                             S* __restrict__ weights, const Chunk* __restrict__ chunks,                                    \
                             const Corrections* __restrict__ corrections, const f32* __restrict__ ratios,                  \
                             const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 hyper_offset,                  \
                             const State* __restrict__ state) {                                                            \
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);                               \
        lars_update<S>(SummedGradient{sum}, {master, momentum, weights}, chunks, corrections, ratios, hyper, state);            \
    }                                                                                                                      \
    EXPORT(lars_update_sum_##suffix)
FOR_EACH_STORAGE(LARS)
#undef LARS

KERNEL __launch_bounds__(BLOCK)
lars_norms_sum(const f32* __restrict__ sum, const f32* __restrict__ master, const Chunk* __restrict__ chunks,
               Pair* __restrict__ partials, const State* __restrict__ state) {
    lars_norms(SummedGradient{sum}, master, chunks, partials, state);
}
EXPORT(lars_norms_sum)
