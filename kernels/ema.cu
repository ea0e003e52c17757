// ema_update  ema = decay ema + (1 - decay) master; nothing where the step was skipped, or the decay is 1: updates that the
//             averages are to let pass. A thread has 8 elements.
//             bytes: 12 an element; floor: those / bandwidth
// cast        f32 -> storage type, to nearest: weights from masters or averages. bytes: 4 + sizeof(S) an element
// Grid: elements / 2048, rounded up; for `cast` the number of elements is a multiple of 8.
#include "abi.cuh"

KERNEL __launch_bounds__(BLOCK)
ema_update(f32* __restrict__ ema, const f32* __restrict__ master, u32 total, const u8* __restrict__ staging, u32 slots,
           u64 slot_bytes, u64 hyper_offset, const State* __restrict__ state) {
    const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK;
    if (e >= total || state->skip) return;
    const f32 decay = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state)->ema_decay;
    if (decay == 1.0f) return;
    const u32 count = min_u32(PACK, total - e);
    Pack<f32> average, now;
    load_at(average, ema, e, count);
    load_at(now, master, e, count);
#pragma unroll
    for (u32 i = 0; i < PACK; i++) average.v[i] = fmaf(decay, average.v[i], (1.0f - decay) * now.v[i]);
    store_at(average, ema, e, count);
}
EXPORT(ema_update)

#define CAST(S, suffix)                                                                    \
    KERNEL __launch_bounds__(BLOCK)                                                        \
    cast_##suffix(const f32* __restrict__ from, S* __restrict__ to, u32 total) {           \
        const u32 e = (blockIdx.x * BLOCK + threadIdx.x) * PACK;                           \
        if (e >= total) return;                                                            \
        Pack<f32> values;                                                                  \
        values.load(from + e);                                                             \
        Pack<S> stored;                                                                    \
        for (u32 i = 0; i < PACK; i++) stored.v[i] = values.v[i];                          \
        stored.store(to + e);                                                              \
    }                                                                                      \
    EXPORT(cast_##suffix)
FOR_EACH_STORAGE(CAST)
#undef CAST
