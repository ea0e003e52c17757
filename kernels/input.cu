// input  u8 [n][h][w][3] -> storage type [n][h][w][channels]: y = (x / 255 - mean) / std, flipped and mixed as each
//        image's Item says; the padding channels (from the fourth on) are zero. `channels` is 4 or 8.
// A thread makes 4 packs of 8 elements, which are two pixels of 4 channels or one of 8: one 16-byte store for 2-byte types,
// two for f32. Neighbouring threads make neighbouring packs, so that a warp reads a contiguous piece of a row. What a byte
// becomes is computed once a block, for all 256 of them, and looked up: two divisions a value would cost as much as the
// memory does. Grid: packs / 1024, rounded up.
// Bytes: 3 a pixel in (6 where images are mixed), channels * sizeof(S) out; floor: those / bandwidth: at batch 256, 224 px and
// 4 channels of 2 bytes 141 MB, 0.16 ms at 900 GB/s.
#include "abi.cuh"

const u32 INPUT_PACKS = 4;

struct Normalise { f32 mean[3], std[3]; };

struct Images {
    const u8* bytes;
    const Item* items;
    u32 n, h, w;
    const f32 (&table)[3][256];  // what a byte becomes, by channel

    __device__ const u8* at(u32 image, u32 row, u32 column) const {
        const u32 from = items[image].flip ? w - 1 - column : column;
        return bytes + (((u64)image * h + row) * w + from) * 3;
    }

    // The three values of a pixel of the batch.
    __device__ void pixel(f32* to, u32 index) const {
        const u32 column = index % w, row = index / w % h, image = index / (w * h);
        const Item& item = items[image];
        f32 own = 1.0f;
        if (item.mix == MIXUP) own = item.lambda;
        if (item.mix == CUTMIX && column >= item.x0 && column < item.x1 && row >= item.y0 && row < item.y1) own = 0.0f;
        const u8* a = at(image, row, column);
        for (u32 c = 0; c < 3; c++) to[c] = table[c][a[c]];
        if (own < 1.0f) {
            const u8* b = at(min_u32(item.partner, n - 1), row, column);
            for (u32 c = 0; c < 3; c++) to[c] = fmaf(own, to[c], (1.0f - own) * table[c][b[c]]);
        }
    }
};

template <class S, u32 CHANNELS>
__device__ inline void make_packs(const Images& from, S* y) {
    const u32 pixels = from.n * from.h * from.w;
    for (u32 i = 0; i < INPUT_PACKS; i++) {
        const u32 first = ((blockIdx.x * INPUT_PACKS + i) * BLOCK + threadIdx.x) * (PACK / CHANNELS);
        if (first >= pixels) return;
        Pack<S> pack;
#pragma unroll
        for (u32 e = 0; e < PACK; e++) pack.v[e] = 0.0f;
        // The batch may end with the first pixel of a pack.
        const u32 count = min_u32(PACK / CHANNELS, pixels - first);
#pragma unroll
        for (u32 p = 0; p < PACK / CHANNELS; p++) {
            if (p < count) from.pixel(pack.v + p * CHANNELS, first + p);
        }
        S* to = y + (u64)first * CHANNELS;
        if (count == PACK / CHANNELS) pack.store(to);
        else store_some(pack, to, count * CHANNELS);
    }
}

template <class S>
__device__ inline void input(const u8* staging, u32 slots, u64 slot_bytes, u64 items_offset, const State* state, S* y, u32 n,
                             u32 h, u32 w, u32 channels, Normalise by) {
    __shared__ f32 table[3][256];
    static_assert(BLOCK == 256, "a thread for every value of a byte");
    for (u32 c = 0; c < 3; c++) {
        // The order of operations of torchvision's ToTensor and Normalize.
        table[c][threadIdx.x] = __fdiv_rn(__fsub_rn(__fdiv_rn((f32)threadIdx.x, 255.0f), by.mean[c]), by.std[c]);
    }
    __syncthreads();
    const Images images = {staged<u8>(staging, slots, slot_bytes, 0, state),
                           staged<Item>(staging, slots, slot_bytes, items_offset, state), n, h, w, table};
    if (channels == 4) make_packs<S, 4>(images, y);
    else make_packs<S, 8>(images, y);
}

#define INPUT(S, suffix)                                                                                               \
    KERNEL __launch_bounds__(BLOCK)                                                                                    \
    input_##suffix(const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 items_offset,                        \
                   const State* __restrict__ state, S* __restrict__ y, u32 n, u32 h, u32 w, u32 channels, f32 mean0,   \
                   f32 mean1, f32 mean2, f32 std0, f32 std1, f32 std2) {                                               \
        const Normalise by = {{mean0, mean1, mean2}, {std0, std1, std2}};                                              \
        input<S>(staging, slots, slot_bytes, items_offset, state, y, n, h, w, channels, by);                           \
    }                                                                                                                  \
    EXPORT(input_##suffix)
FOR_EACH_STORAGE(INPUT)
#undef INPUT
