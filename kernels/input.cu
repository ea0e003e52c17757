// input         u8 [n][h][w][3] -> storage type [n][h][w][channels]: y = (x / 255 - mean) / std, flipped and mixed as each
//               image's Item says; the padding channels (from the fourth on) are zero. `channels` is 4 or 8.
// input_erased  the same where rectangles of images are painted over, before they are mixed or after: in a colour, or with
//               standard normal noise, which is made of draws by place
// input_blocked, input_blocked_erased
//               the same as [n][height][width][2][2][4]: 2x2 pixels of 4 channels as one of 16, with a margin of `before` of
//               these at the top and the left and zeros wherever there is no pixel, so that a convolution with stride 2 is
//               one without stride and padding (plan/stem.rs)
// Mixup is of normalised values (torchvision), or of bytes, rounded to the nearest before they are normalised (timm).
// A thread makes 4 packs of 8 elements, which are two pixels of 4 channels or one of 8: one 16-byte store for 2-byte types,
// two for f32. Neighbouring threads make neighbouring packs, so that a warp reads a contiguous piece of a row. What a byte
// becomes is computed once a block, for all 256 of them, and looked up: two divisions a value would cost as much as the
// memory does. Grid: packs / 1024, rounded up.
// Bytes: 3 a pixel in (6 where images are mixed), channels * sizeof(S) out; floor: those / bandwidth: at batch 256, 224 px and
// 4 channels of 2 bytes 141 MB, 0.16 ms at 900 GB/s.
#include "abi.cuh"

const u32 INPUT_PACKS = 4;

struct Normalise { f32 mean[3], std[3]; };

// Draw `index` of a stream: SplitMix64's finaliser, as rng.rs has it.
__device__ inline u64 nth(u64 key, u64 index) {
    u64 z = key + (index + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

// Standard normal (Box-Muller), from 48 bits of a draw, as data/batch.rs has it.
__device__ inline f32 noise(u64 key, u64 index) {
    const f32 unit = 1.0f / 16777216.0f;
    const u64 bits = nth(key, index);
    const f32 u = ((f32)(u32)(bits >> 40) + 1.0f) * unit, v = (f32)(u32)(bits >> 16 & 0xffffffull) * unit;
    return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
}

// ERASE: whether images may be erased.
template <bool ERASE> struct Images {
    const u8* bytes;
    const Item* items;
    u32 n, h, w;
    const f32 (&table)[3][256];  // what a byte becomes, by channel

    // What stands in an erased rectangle, where the pixel is in one that is painted at this time.
    __device__ bool erased(f32* to, const Item& item, u32 last, u32 row, u32 column) const {
        if (!ERASE || !item.erase || (item.erase & ERASE_LAST) != last) return false;
        if (column < item.ex0 || column >= item.ex1 || row < item.ey0 || row >= item.ey1) return false;
        const u64 key = item.fill[0] | (u64)item.fill[1] << 32, e = (u64)(row * w + column) * 3;
        const bool noisy = (item.erase & ~ERASE_LAST) == NOISE;
        for (u32 c = 0; c < 3; c++) to[c] = noisy ? noise(key, e + c) : bits_to_float(item.fill[c]);
        return true;
    }

    __device__ const u8* stored(u32 image, u32 row, u32 column) const {
        const u32 from = items[image].flip ? w - 1 - column : column;
        return bytes + (((u64)image * h + row) * w + from) * 3;
    }

    // The three values of an image, before it is mixed.
    __device__ void load(f32 (&to)[3], u32 image, u32 row, u32 column) const {
        if (erased(to, items[image], 0, row, column)) return;
        const u8* a = stored(image, row, column);
        for (u32 c = 0; c < 3; c++) to[c] = table[c][a[c]];
    }

    // Two products and their sum, each rounded, as data/batch.rs has it.
    __device__ void mixed_bytes(f32* to, const Item& item, u32 image, u32 other, u32 row, u32 column) const {
        const u8 *a = stored(image, row, column), *b = stored(other, row, column);
        const f32 rest = __fsub_rn(1.0f, item.lambda);
        for (u32 c = 0; c < 3; c++) {
            const f32 sum = __fadd_rn(__fmul_rn((f32)a[c], item.lambda), __fmul_rn((f32)b[c], rest));
            to[c] = table[c][min_u32((u32)rintf(sum), 255)];
        }
    }

    // The three values of a pixel of the batch.
    __device__ void pixel(f32* to, u32 index) const {
        const u32 column = index % w, row = index / w % h, image = index / (w * h);
        const Item& item = items[image];
        if (erased(to, item, ERASE_LAST, row, column)) return;
        const u32 partner = min_u32(item.partner, n - 1);
        if (item.mix == MIXUP_BYTES) return mixed_bytes(to, item, image, partner, row, column);
        f32 own = 1.0f;
        if (item.mix == MIXUP) own = item.lambda;
        if (item.mix == CUTMIX && column >= item.x0 && column < item.x1 && row >= item.y0 && row < item.y1) own = 0.0f;
        f32 a[3], b[3];
        load(a, image, row, column);
        if (own < 1.0f) {
            load(b, partner, row, column);
            for (u32 c = 0; c < 3; c++) a[c] = fmaf(own, a[c], (1.0f - own) * b[c]);
        }
        for (u32 c = 0; c < 3; c++) to[c] = a[c];
    }
};

template <class S, u32 CHANNELS, bool ERASE>
__device__ inline void make_packs(const Images<ERASE>& from, S* y) {
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

// Where 2x2 pixels lie as one.
struct Blocked { u32 before, height, width; };

// A pack is two neighbours of one row: one row of a block.
template <class S, bool ERASE>
__device__ inline void make_blocks(const Images<ERASE>& from, S* y, Blocked to) {
    const u32 packs = from.n * to.height * to.width * 2;
    for (u32 i = 0; i < INPUT_PACKS; i++) {
        const u32 at = (blockIdx.x * INPUT_PACKS + i) * BLOCK + threadIdx.x;
        if (at >= packs) return;
        const u32 block = at / 2, image = block / (to.width * to.height);
        // Before the first row or column these wrap around and are beyond the last.
        const u32 row = 2 * (block / to.width % to.height - to.before) + at % 2;
        const u32 column = 2 * (block % to.width - to.before);
        Pack<S> pack;
#pragma unroll
        for (u32 e = 0; e < PACK; e++) pack.v[e] = 0.0f;
#pragma unroll
        for (u32 p = 0; p < 2; p++) {
            if (row < from.h && column + p < from.w) from.pixel(pack.v + p * 4, (image * from.h + row) * from.w + column + p);
        }
        pack.store(y + (u64)at * PACK);
    }
}

template <class S, bool ERASE>
__device__ inline void input(const u8* staging, u32 slots, u64 slot_bytes, u64 items_offset, const State* state, S* y, u32 n,
                             u32 h, u32 w, u32 channels, Blocked blocked, Normalise by) {
    __shared__ f32 table[3][256];
    static_assert(BLOCK == 256, "a thread for every value of a byte");
    for (u32 c = 0; c < 3; c++) {
        // The order of operations of torchvision's ToTensor and Normalize.
        table[c][threadIdx.x] = __fdiv_rn(__fsub_rn(__fdiv_rn((f32)threadIdx.x, 255.0f), by.mean[c]), by.std[c]);
    }
    __syncthreads();
    const Images<ERASE> images = {staged<u8>(staging, slots, slot_bytes, 0, state),
                           staged<Item>(staging, slots, slot_bytes, items_offset, state), n, h, w, table};
    if (blocked.height) make_blocks<S, ERASE>(images, y, blocked);
    else if (channels == 4) make_packs<S, 4, ERASE>(images, y);
    else make_packs<S, 8, ERASE>(images, y);
}

// Arguments with commas in them, for a macro.
#define WHOLE_SHAPE u32 channels
#define WHOLE {0, 0, 0}
#define BLOCKED_SHAPE u32 before, u32 height, u32 width
#define BLOCKS {before, height, width}
#define INPUT_KERNEL(name, S, ERASE, SHAPE, CHANNELS, BLOCKED)                                                                \
    KERNEL __launch_bounds__(BLOCK)                                                                                           \
    name(const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 items_offset, const State* __restrict__ state,        \
        S* __restrict__ y, u32 n, u32 h, u32 w, SHAPE, f32 mean0, f32 mean1, f32 mean2, f32 std0, f32 std1, f32 std2) {       \
        const Normalise by = {{mean0, mean1, mean2}, {std0, std1, std2}};                                                     \
        const Blocked blocked = BLOCKED;                                                                                      \
        input<S, ERASE>(staging, slots, slot_bytes, items_offset, state, y, n, h, w, CHANNELS, blocked, by);                  \
    }                                                                                                                         \
    EXPORT(name)
#define INPUT(S, suffix)                                                                                                      \
    INPUT_KERNEL(input_##suffix, S, false, WHOLE_SHAPE, channels, WHOLE)                                                      \
    INPUT_KERNEL(input_erased_##suffix, S, true, WHOLE_SHAPE, channels, WHOLE)                                                \
    INPUT_KERNEL(input_blocked_##suffix, S, false, BLOCKED_SHAPE, 4, BLOCKS)                                                  \
    INPUT_KERNEL(input_blocked_erased_##suffix, S, true, BLOCKED_SHAPE, 4, BLOCKS)
FOR_EACH_STORAGE(INPUT)
#undef INPUT
