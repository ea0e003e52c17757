// Kernels that are wrong on purpose: what the harness must notice.
#include "cuda_on_cpu.h"

#include "../../kernels/between_blocks.cuh"

// Sums its block's values; between writing and reading stands no barrier.
KERNEL without_barrier(const f32* x, f32* sum) {
    __shared__ f32 shared[64];
    shared[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x == 0) {
        f32 total = 0.0f;
        for (u32 i = 0; i < 64; i++) total += shared[i];
        *sum = total;
        for (u32 i = 0; i < 64; i++) shared[i] = 0.0f;
    }
}
EXPORT(without_barrier)

KERNEL with_barrier(const f32* x, f32* sum) {
    __shared__ f32 shared[64];
    shared[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
        f32 total = 0.0f;
        for (u32 i = 0; i < 64; i++) total += shared[i];
        *sum = total;
    }
}
EXPORT(with_barrier)

// Right only where the block before has ended already.
KERNEL relies_on_the_block_before(u32* counts) {
    counts[blockIdx.x + 1] = counts[blockIdx.x] + 1;
}
EXPORT(relies_on_the_block_before)

// Adds up what all blocks leave. Right: whoever comes last does; wrong: the block with the highest number.
template <class Last> __device__ inline void leave_and_add(u32* left, u32* sum, Last last) {
    left[blockIdx.x] = blockIdx.x + 1;
    __threadfence();
    if (!last()) return;
    u32 total = 0;
    for (u32 i = 0; i < gridDim.x; i++) total += left[i];
    *sum = total;
}

KERNEL added_by_the_last_to_come(u32* left, u32* sum, u32* counter) {
    leave_and_add(left, sum, [=] {
        const bool last = atomicAdd(counter, 1u) + 1 == gridDim.x;
        if (last) *counter = 0;
        return last;
    });
}
EXPORT(added_by_the_last_to_come)

KERNEL added_by_the_highest(u32* left, u32* sum) {
    leave_and_add(left, sum, [] { return blockIdx.x + 1 == gridDim.x; });
}
EXPORT(added_by_the_highest)

// Every block adds up what all leave, having met them; without meeting; and where the counter is not cleared, so that whoever comes
// to the next launch finds it raised.
template <class Meet> __device__ inline void leave_meet_and_add(u32* left, u32* sums, Meet meet_all) {
    if (threadIdx.x == 0) left[blockIdx.x] = blockIdx.x + 1;
    meet_all();
    u32 total = 0;
    for (u32 i = 0; i < gridDim.x; i++) total += left[i];
    sums[blockIdx.x] = total;
}

KERNEL added_by_all_that_met(u32* left, u32* sums, u32* counter) {
    leave_meet_and_add(left, sums, [=] { meet(counter, gridDim.x); });
}
EXPORT(added_by_all_that_met)

KERNEL added_by_all_without_meeting(u32* left, u32* sums, u32*) {
    leave_meet_and_add(left, sums, [] { __syncthreads(); });
}
EXPORT(added_by_all_without_meeting)

KERNEL met_and_not_cleared(u32* left, u32* sums, u32* counter) {
    leave_meet_and_add(left, sums, [=] {
        if (threadIdx.x == 0) {
            atomicAdd(counter, 1u);
            await(counter, gridDim.x);
        }
        __syncthreads();
    });
}
EXPORT(met_and_not_cleared)

// One more than there are.
KERNEL waits_for_nobody(u32*, u32*, u32* counter) { meet(counter, gridDim.x + 1); }
EXPORT(waits_for_nobody)

// Batch norm in one pass, whose blocks do not wait for each other's sums.
namespace forgetful {
__device__ inline void meet(u32*, u32) { __syncthreads(); }
}
#define meet forgetful::meet
#include "../../kernels/batch_norm_one_pass.cu"
#undef meet

// Half of the block never comes.
KERNEL divergent_barrier(f32* x) {
    if (threadIdx.x < 32) __syncthreads();
    x[threadIdx.x] = 1.0f;
}
EXPORT(divergent_barrier)

// The last thread writes behind the end.
KERNEL off_by_one(f32* x, u32 n) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = 1.0f;
}
EXPORT(off_by_one)

KERNEL warp_sum(const f32* x, f32* sum) {
    f32 value = x[threadIdx.x];
    for (u32 step = 16; step; step >>= 1) value += __shfl_down_sync(0xffffffffu, value, step);
    if (threadIdx.x % 32 == 0) sum[threadIdx.x / 32] = value;
}
EXPORT(warp_sum)

// Rounds to half and to bf16.
KERNEL round_trip(const f32* x, u16* as_half, u16* as_bf16, f32* from_half, u32 n) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    as_half[i] = from_float<half>(x[i]).bits;
    as_bf16[i] = from_float<bf16>(x[i]).bits;
    from_half[i] = to_float(from_float<half>(x[i]));
}
EXPORT(round_trip)

#include "launch.h"

#ifdef PLANTED_MAIN
// Under the address sanitizer: this must not end well.
int main() {
    std::vector<f32> x(100);
    f32* data = x.data();
    u32 n = 100;
    void* args[] = {&data, &n};
    const unsigned grid[] = {2, 1, 1}, block[] = {64, 1, 1};
    char message[64];
    return engine_launch("off_by_one", grid, block, args, 0, 0, message, sizeof message);
}
#endif
