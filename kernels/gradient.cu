// What happens to gradients before the update, over the flat parameter space (abi.cuh), whose `total` is a multiple of 64.
//
// accumulate    sum = gradient, or sum + gradient after an optimiser step's first pass. bytes: sizeof(S) + 4 (+ 4) an element
// finite_check  marks the highest element that is not finite: backward, the layer nearest to the loss comes first, and
//               what lies below it follows from it. bytes: sizeof(S) (or 4) an element; floor: those / bandwidth
// update_scale  decides on the update, and moves the loss scale (PyTorch's GradScaler). One thread.
// end_pass      completes the pass's outcome and counts the pass. One thread.
#include "abi.cuh"

template <class S>
__device__ inline void accumulate(const PassGradient<S>& from, f32* sum, u32 total, u32 first) {
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (e >= total) return;
    Pack<f32> gradient, before;
    from.load(gradient, e, PACK);
    if (!first) {
        before.load(sum + e);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) gradient.v[i] += before.v[i];
    }
    gradient.store(sum + e);
}

__device__ inline void check(const Pack<f32>& gradient, u32 e, State* state) {
    u32 worst = 0;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        if (!finite(gradient.v[i])) worst = e + i + 1;
    }
    // The largest of all is the same in any order. Where everything is finite there is no traffic.
    if (worst) atomicMax(&state->bad, worst);
}

template <class Gradient>
__device__ inline void finite_check(const Gradient& from, u32 total, State* state) {
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (e >= total) return;
    Pack<f32> gradient;
    from.load(gradient, e, PACK);
    check(gradient, e, state);
}

#define GRADIENT(S, suffix)                                                                                             \
    KERNEL __launch_bounds__(BLOCK)                                                                                     \
    accumulate_##suffix(const S* __restrict__ matrices, const f32* __restrict__ vectors, f32* __restrict__ sum,         \
                        u32 matrix_end, u32 total, const u8* __restrict__ staging, u32 slots, u64 slot_bytes,           \
                        u64 hyper_offset, const State* __restrict__ state) {                                            \
        const u32 first = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state)->first;                        \
        accumulate<S>({matrices, vectors, matrix_end}, sum, total, first);                                              \
    }                                                                                                                   \
    EXPORT(accumulate_##suffix)                                                                                         \
    KERNEL __launch_bounds__(BLOCK)                                                                                     \
    finite_check_##suffix(const S* __restrict__ matrices, const f32* __restrict__ vectors, u32 matrix_end, u32 total,   \
                          State* __restrict__ state) {                                                                  \
        finite_check(PassGradient<S>{matrices, vectors, matrix_end}, total, state);                                     \
    }                                                                                                                   \
    EXPORT(finite_check_##suffix)
FOR_EACH_STORAGE(GRADIENT)
#undef GRADIENT

KERNEL __launch_bounds__(BLOCK)
finite_check_sum(const f32* __restrict__ sum, u32 total, State* __restrict__ state) {
    finite_check(SummedGradient{sum}, total, state);
}
EXPORT(finite_check_sum)

KERNEL update_scale(State* __restrict__ state, f32 growth, f32 backoff, u32 interval, f32 floor, f32 ceiling) {
    if (threadIdx.x || blockIdx.x) return;
    State s = *state;
    s.unscale = 1.0f / s.scale;
    s.skip = s.bad || s.loss_bad || s.halted;
    if (s.loss_bad) {
        s.halted = 1;
    } else if (s.bad && !s.halted) {
        s.clean = 0;
        if (s.scale > floor) {
            s.scale = s.scale * backoff > floor ? s.scale * backoff : floor;
            s.skipped += 1;
        } else {
            s.halted = 1;
        }
    } else if (!s.halted) {
        s.updates += 1;
        s.clean += 1;
        if (s.clean >= interval) {
            s.clean = 0;
            s.scale = s.scale * growth < ceiling ? s.scale * growth : ceiling;
        }
    }
    *state = s;
}
EXPORT(update_scale)

KERNEL end_pass(State* __restrict__ state, Outcome* __restrict__ outcomes, u32 ring, u32 finishing) {
    if (threadIdx.x || blockIdx.x) return;
    State s = *state;
    // A pass that does not finish its step stops the run as soon as its own loss is not finite.
    if (s.loss_bad) s.halted = 1;
    Outcome* outcome = outcomes + s.pass % ring;
    outcome->scale = finishing ? 1.0f / s.unscale : s.scale;
    outcome->bad = finishing ? s.bad : 0;
    outcome->flags = (finishing && s.skip ? SKIPPED : 0) | (s.halted ? HALTED : 0) | (s.loss_bad ? LOSS_NOT_FINITE : 0);
    outcome->pass = s.pass;
    s.pass += 1;
    if (finishing) s.skip = s.bad = s.loss_bad = 0;
    *state = s;
}
EXPORT(end_pass)
