// LAMB (You et al., arXiv:1904.00962) as timm has it (huggingface/pytorch-image-models, timm/optim/lamb.py), update number t:
//
//     g = gradient / max(1, ||all gradients|| / max_norm) (clip.cu)
//     m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g g
//     u = (m / (1 - beta1^t)) / (sqrt(v) / sqrt(1 - beta2^t) + epsilon) + weight_decay w
//     w -= lr r u, where r = ||w|| / ||u|| of the parameter; 1 where weight decay does not apply or a norm is 0
//
// Three launches, after the two of clip.cu. The flat parameter space (abi.cuh) is cut into chunks, each of one parameter; a
// table names them.
//
// lamb_moments  m and v; squares of w and u, added up by chunk
// lamb_ratios   those -> r. A block a parameter.
// lamb_update   w, and its copy in the storage type; u is computed again, which costs no more bytes than to keep it
//
// A block of 256 has a chunk of up to 4096 elements, a thread 8 elements twice. Sums are added in a fixed tree, across
// chunks in f64. Where the step is to be skipped, nothing lasting is written.
// Bytes: gradient, w, m and v twice in, each once out, copy out: 2 sizeof(S) + 36 an element; floor: those / bandwidth:
// 40 bytes x 25.6 M = 1.02 GB, 1.14 ms at 900 GB/s.
// Multiplications, additions, divisions and roots are rounded one by one, as the oracle's (optim/lamb.rs): same bits in f32
// for the same clip and ratio.
#include "abi.cuh"

struct Moments { const f32* master; f32* first; f32* second; };

__device__ inline f32 direction(f32 w, f32 m, f32 v, Corrections by, f32 epsilon, f32 decay) {
    const f32 root = __fadd_rn(__fdiv_rn(__fsqrt_rn(v), by.bias2_root), epsilon);
    return __fadd_rn(__fdiv_rn(__fdiv_rn(m, by.bias1), root), __fmul_rn(decay, w));
}

// ---- lamb_moments ---------------------------------------------------------------------------------------------------

template <class Gradient>
__device__ inline void moments(const Gradient& from, Moments of, const Chunk* chunks, const Corrections* corrections,
                               Pair* partials, const Hyper* hyper, const State* state) {
    __shared__ f32 shared[BLOCK];
    const Chunk chunk = chunks[blockIdx.x];
    const Corrections by = *corrections;
    const u32 elements = state->skip ? 0 : chunk.count;
    const f32 unscale = state->unscale, beta1 = hyper->beta1, beta2 = hyper->beta2, epsilon = hyper->epsilon;
    const f32 fresh1 = __fsub_rn(1.0f, beta1), fresh2 = __fsub_rn(1.0f, beta2);
    const f32 decay = chunk.decays ? hyper->weight_decay : 0.0f;
    f32 weights = 0.0f, directions = 0.0f;
    for (u32 i = threadIdx.x * PACK; i < elements; i += BLOCK * PACK) {
        const u32 e = chunk.first + i, count = min_u32(PACK, elements - i);
        Pack<f32> g, w, m, v;
        from.load(g, e, count);
        load_at(w, of.master, e, count);
        load_at(m, (const f32*)of.first, e, count);
        load_at(v, (const f32*)of.second, e, count);
#pragma unroll
        for (u32 k = 0; k < PACK; k++) {
            const f32 gradient = __fdiv_rn(__fmul_rn(g.v[k], unscale), by.clip);
            m.v[k] = __fadd_rn(__fmul_rn(beta1, m.v[k]), __fmul_rn(fresh1, gradient));
            v.v[k] = __fadd_rn(__fmul_rn(beta2, v.v[k]), __fmul_rn(fresh2, __fmul_rn(gradient, gradient)));
            const f32 u = direction(w.v[k], m.v[k], v.v[k], by, epsilon, decay);
            weights = fmaf(w.v[k], w.v[k], weights);
            directions = fmaf(u, u, directions);
        }
        store_at(m, of.first, e, count);
        store_at(v, of.second, e, count);
    }
    weights = over_block<Add>(shared, weights);
    directions = over_block<Add>(shared, directions);
    if (threadIdx.x == 0) partials[blockIdx.x] = {weights, directions};
}

#define LAMB_GRADIENT(S, suffix)                                                                                         \
    KERNEL __launch_bounds__(BLOCK)                                                                                      \
    lamb_moments_##suffix(const S* __restrict__ matrices, const f32* __restrict__ vectors, u32 matrix_end,               \
                          const f32* __restrict__ master, f32* __restrict__ first, f32* __restrict__ second,             \
                          const Chunk* __restrict__ chunks, const Corrections* __restrict__ corrections,                 \
                          Pair* __restrict__ partials, const u8* __restrict__ staging, u32 slots, u64 slot_bytes,        \
                          u64 hyper_offset, const State* __restrict__ state) {                                           \
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);                             \
        const PassGradient<S> gradient = {matrices, vectors, matrix_end};                                                \
        moments(gradient, {master, first, second}, chunks, corrections, partials, hyper, state);                         \
    }                                                                                                                    \
    EXPORT(lamb_moments_##suffix)
FOR_EACH_STORAGE(LAMB_GRADIENT)
#undef LAMB_GRADIENT

KERNEL __launch_bounds__(BLOCK)
lamb_moments_sum(const f32* __restrict__ sum, const f32* __restrict__ master, f32* __restrict__ first, f32* __restrict__ second,
                 const Chunk* __restrict__ chunks, const Corrections* __restrict__ corrections, Pair* __restrict__ partials,
                 const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 hyper_offset, const State* __restrict__ state) {
    const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);
    moments(SummedGradient{sum}, {master, first, second}, chunks, corrections, partials, hyper, state);
}
EXPORT(lamb_moments_sum)

// ---- lamb_ratios ----------------------------------------------------------------------------------------------------

KERNEL __launch_bounds__(BLOCK)
lamb_ratios(const Pair* __restrict__ partials, const Chunk* __restrict__ chunks, const ChunkRange* __restrict__ parameters,
            f32* __restrict__ ratios, const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 hyper_offset,
            const State* __restrict__ state) {
    __shared__ f64 shared[2][BLOCK];
    const ChunkRange range = parameters[blockIdx.x];
    add_chunks(shared, partials, range);
    if (threadIdx.x == 0) {
        const f32 w = (f32)sqrt(shared[0][0]), u = (f32)sqrt(shared[1][0]);
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);
        const bool decays = chunks[range.first].decays && hyper->weight_decay != 0.0f;
        ratios[blockIdx.x] = decays && w > 0.0f && u > 0.0f ? __fdiv_rn(w, u) : 1.0f;
    }
}
EXPORT(lamb_ratios)

// ---- lamb_update ----------------------------------------------------------------------------------------------------

template <class S>
__device__ inline void update(f32* master, S* weights, const f32* first, const f32* second, const Chunk* chunks,
                              const Corrections* corrections, const f32* ratios, const Hyper* hyper, const State* state) {
    if (state->skip) return;
    const Chunk chunk = chunks[blockIdx.x];
    const Corrections by = *corrections;
    const f32 lr = hyper->lr, epsilon = hyper->epsilon, decay = chunk.decays ? hyper->weight_decay : 0.0f;
    const f32 ratio = ratios[chunk.parameter];
    for (u32 i = threadIdx.x * PACK; i < chunk.count; i += BLOCK * PACK) {
        const u32 e = chunk.first + i, count = min_u32(PACK, chunk.count - i);
        Pack<f32> w, m, v;
        load_at(w, (const f32*)master, e, count);
        load_at(m, first, e, count);
        load_at(v, second, e, count);
        Pack<S> copy;
#pragma unroll
        for (u32 k = 0; k < PACK; k++) {
            const f32 u = direction(w.v[k], m.v[k], v.v[k], by, epsilon, decay);
            w.v[k] = __fsub_rn(w.v[k], __fmul_rn(lr, __fmul_rn(ratio, u)));
            copy.v[k] = w.v[k];
        }
        store_at(w, master, e, count);
        store_at(copy, weights, e, count);
    }
}

#define LAMB_UPDATE(S, suffix)                                                                                            \
    KERNEL __launch_bounds__(BLOCK)                                                                                       \
    lamb_update_##suffix(f32* __restrict__ master, S* __restrict__ weights, const f32* __restrict__ first,                \
                         const f32* __restrict__ second, const Chunk* __restrict__ chunks,                                \
                         const Corrections* __restrict__ corrections, const f32* __restrict__ ratios,                     \
                         const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 hyper_offset,                     \
                         const State* __restrict__ state) {                                                               \
        const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);                              \
        update<S>(master, weights, first, second, chunks, corrections, ratios, hyper, state);                             \
    }                                                                                                                     \
    EXPORT(lamb_update_##suffix)
FOR_EACH_STORAGE(LAMB_UPDATE)
#undef LAMB_UPDATE
