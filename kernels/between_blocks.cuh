// What blocks of one launch leave each other, and how they wait: for kernels whose blocks add up what others have summed.
#pragma once
#include "abi.cuh"

// Values that another block has written during this launch: past the first-level cache.
__device__ inline Pair load_fresh(const Pair* from) {
#ifdef CUDA_ON_CPU
    return *from;
#else
    Pair pair;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(pair.a), "=f"(pair.b) : "l"(from) : "memory");
    return pair;
#endif
}

// A pack that is not read again soon.
template <class S> __device__ inline void store_streaming(const Pack<S>& pack, S* to) {
#ifdef CUDA_ON_CPU
    pack.store(to);
#else
    Stored<S> stored;
    pack.store((S*)stored.words);
#pragma unroll
    for (u32 i = 0; i < sizeof(S) / 2; i++) {
        const Words w = stored.words[i];
        // No clobber of memory: nobody reads it in this launch, and the next rows' loads may go before.
        asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"((Words*)to + i), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w));
    }
#endif
}

// Shared memory of the block, as much as the launch gives it. On the host a block's own, where blocks run beside each other and
// a `__shared__` would be everyone's.
#ifndef CUDA_ON_CPU
extern __shared__ Words launched_memory[];
#endif
__device__ inline Words* block_memory() {
#ifdef CUDA_ON_CPU
    return (Words*)cuda_on_cpu::block_memory();
#else
    return launched_memory;
#endif
}

// Waits until a counter that other blocks raise has reached `count`.
__device__ inline void await(const u32* counter, u32 count) {
#ifdef CUDA_ON_CPU
    cuda_on_cpu::await(counter, count, __LINE__);
#else
    u32 seen;
    do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (seen < count);
#endif
}

// A barrier of `count` blocks: what any of them wrote before it is seen by all behind it. The counter is zero before and after:
// all count themselves in, all wait for `count`, all count themselves out, and who is the last to go clears it when nobody
// looks at it any longer. So it serves once a launch. All threads of a block call it.
//
// It ends only if all `count` blocks run at once. That is what a cooperative launch promises, and refuses where it cannot keep
// it: blocks that wait keep their multiprocessors, and one that has found none would be waited for without end. Other work of
// the card cannot be in the way for ever: a kernel that holds multiprocessors when this one begins (weight gradients on the
// second stream) waits for nobody and ends; an exchange between ranks waits for other cards, whose exchange is in the same
// place of the same order and waits for what came before it, never for this launch. Two launches with barriers, each with half
// of its blocks in, would wait for each other: plans have all of theirs on one stream.
__device__ inline void meet(u32* counter, u32 count) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(counter, 1u);
        await(counter, count);
        __threadfence();
        if (atomicAdd(counter, 1u) + 1 == 2 * count) *counter = 0;
    }
    __syncthreads();
}
