// Stochastic depth (arXiv:1603.09382): an image skips a block's residual branch, or has it multiplied by one over the share
// that is kept (timm/layers/drop.py, scale_by_keep). The host draws, by place (backend/drop_path.rs), and sends one factor for
// each block and image; the batch norm at the end of a branch applies them (batch_norm.cu, batch_norm_backward.cu).
//
// drop_path_factors  from the pass's slot to where the pass's other kernels find them. A thread a factor.
//                    bytes: 8 a factor: 33 KB at 16 blocks and batch 256, below a launch's own cost
#include "abi.cuh"

KERNEL __launch_bounds__(BLOCK)
drop_path_factors(const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 factors_offset, const State* __restrict__ state,
                  f32* __restrict__ factors, u32 count) {
    const u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < count) factors[i] = staged<f32>(staging, slots, slot_bytes, factors_offset, state)[i];
}
EXPORT(drop_path_factors)
