// input  u8 [n][h][w][3] -> storage type [n][h][w][channels]: y = (x / 255 - mean) / std, flipped and mixed as each
//        image's Item says; the padding channels (from the fourth on) are zero.
// A thread has one pixel. Grid: n h w / 256, rounded up.
// Bytes: 3 a pixel in (6 where images are mixed), channels * sizeof(S) out; floor: those / bandwidth.
#include "abi.cuh"

struct Normalise { f32 mean[3], std[3]; };

template <class S>
__device__ inline void input(const u8* staging, u32 slots, u64 slot_bytes, u64 items_offset, const State* state, S* y, u32 n,
                             u32 h, u32 w, u32 channels, Normalise by) {
    const u32 pixel = blockIdx.x * BLOCK + threadIdx.x;
    if (pixel >= n * h * w) return;
    const u8* images = staged<u8>(staging, slots, slot_bytes, 0, state);
    const Item* items = staged<Item>(staging, slots, slot_bytes, items_offset, state);
    const u32 column = pixel % w, row = pixel / w % h, image = pixel / (w * h);
    const Item item = items[image];
    f32 own = 1.0f;
    if (item.mix == MIXUP) own = item.lambda;
    if (item.mix == CUTMIX && column >= item.x0 && column < item.x1 && row >= item.y0 && row < item.y1) own = 0.0f;
    const u32 from = item.flip ? w - 1 - column : column;
    const u8* a = images + (((u64)image * h + row) * w + from) * 3;
    const u8* b = a;
    if (own < 1.0f) {
        const u32 partner = min_u32(item.partner, n - 1);
        const u32 partner_from = items[partner].flip ? w - 1 - column : column;
        b = images + (((u64)partner * h + row) * w + partner_from) * 3;
    }
    for (u32 c = 0; c < channels; c++) {
        f32 value = 0.0f;
        if (c < 3) {
            // The order of operations of torchvision's ToTensor and Normalize.
            value = __fdiv_rn(__fsub_rn(__fdiv_rn((f32)a[c], 255.0f), by.mean[c]), by.std[c]);
            if (own < 1.0f) {
                const f32 other = __fdiv_rn(__fsub_rn(__fdiv_rn((f32)b[c], 255.0f), by.mean[c]), by.std[c]);
                value = fmaf(own, value, (1.0f - own) * other);
            }
        }
        y[(u64)pixel * channels + c] = from_float<S>(value);
    }
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
