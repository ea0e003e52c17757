// The classifier's bias, the loss, and how often the label is among the best.
//
// softmax_loss   z = logits + bias; t = (1 - e) (lambda onehot(label) + (1 - lambda) onehot(partner's label)) + e / classes;
//                loss = -sum t log softmax(z); dlogits = (softmax(z) - t) * gradient_scale * loss scale
// bce_loss       the same targets on sigmoids, mean or sum over classes (timm's BinaryCrossEntropy); with a threshold, targets
//                above it become 1 and others 0: loss = mean(max(z, 0) - z t + log(1 + exp(-|z|)));
//                dlogits = (sigmoid(z) - t) / classes * ...
//                A block a row of logits, so that each is read from cache after the first time.
//                bytes: 4 a logit in, sizeof(S) out: 1.5 MB at batch 256, below a launch's own cost.
// loss_finalize  sums over the batch in f64, in a fixed order. One block.
// bias_add       evaluation: logits += bias
// bias_gradient  sums of dlogits over the batch: a block has 32 classes by 8 parts of the rows
#include "abi.cuh"

// What every thread of a row's block computes with.
struct Row {
    const f32* logits;
    const f32* bias;
    u32 classes;
    u32 label, second;
    f32 first_share, second_share;  // of the targets, smoothing taken off
    f32 everywhere;
    f32 threshold;  // 0: none
    f32 over;       // what binary cross-entropy is divided by: classes, or 1

    __device__ f32 z(u32 k) const { return logits[k] + bias[k]; }
    __device__ f32 target(u32 k) const {
        return everywhere + (k == label ? first_share : 0.0f) + (k == second ? second_share : 0.0f);
    }
    // Of a sigmoid.
    __device__ f32 binary_target(u32 k) const {
        const f32 t = target(k);
        return threshold > 0.0f ? (t > threshold ? 1.0f : 0.0f) : t;
    }
    // The label that counts as right: that of the larger share.
    __device__ u32 counted() const { return first_share >= second_share ? label : second; }
};

struct Larger { static __device__ f32 of(f32 a, f32 b) { return a > b || a != a ? a : b; } };

__device__ inline Row make_row(const f32* logits, const f32* bias, const Item* items, const Hyper* hyper, u32 row, u32 classes) {
    const Item item = items[row];
    const f32 smoothing = hyper->label_smoothing, lambda = item.mix == NO_MIX ? 1.0f : item.lambda;
    Row r;
    r.logits = logits + (u64)row * classes;
    r.bias = bias;
    r.classes = classes;
    r.label = item.label;
    r.second = item.mix == NO_MIX ? item.label : items[item.partner].label;
    r.first_share = (1.0f - smoothing) * lambda;
    r.second_share = (1.0f - smoothing) * (1.0f - lambda);
    r.everywhere = smoothing / (f32)classes;
    r.threshold = hyper->threshold;
    r.over = hyper->sum_classes ? 1.0f : (f32)classes;
    return r;
}

// How many classes stand before the label: larger ones, equal ones of a smaller index, and NaN (backend/loss.rs).
__device__ inline f32 rank(const Row& r, f32 (&shared)[BLOCK]) {
    const u32 label = r.counted();
    const f32 own = r.z(label);
    f32 before = 0.0f;
    for (u32 k = threadIdx.x; k < r.classes; k += BLOCK) {
        const f32 z = r.z(k);
        if (k != label && (z > own || z != z || (z == own && k < label))) before += 1.0f;
    }
    before = over_block<Add>(shared, before);
    return own == own ? before : (f32)r.classes;
}

struct Softmax {
    // Returns the row's loss; writes dlogits.
    template <class S>
    static __device__ f32 row(const Row& r, S* dlogits, f32 factor, f32 (&shared)[BLOCK]) {
        f32 largest = -bits_to_float(0x7f800000u), sum = 0.0f, loss = 0.0f;
        for (u32 k = threadIdx.x; k < r.classes; k += BLOCK) largest = Larger::of(r.z(k), largest);
        largest = over_block<Larger>(shared, largest);
        for (u32 k = threadIdx.x; k < r.classes; k += BLOCK) sum += expf(r.z(k) - largest);
        sum = over_block<Add>(shared, sum);
        const f32 log_sum = logf(sum);
        for (u32 k = threadIdx.x; k < r.classes; k += BLOCK) {
            const f32 z = r.z(k) - largest, t = r.target(k);
            loss += t * (log_sum - z);
            dlogits[k] = from_float<S>((expf(z) / sum - t) * factor);
        }
        return over_block<Add>(shared, loss);
    }
};

struct BinaryCrossEntropy {
    template <class S>
    static __device__ f32 row(const Row& r, S* dlogits, f32 factor, f32 (&shared)[BLOCK]) {
        f32 loss = 0.0f;
        for (u32 k = threadIdx.x; k < r.classes; k += BLOCK) {
            const f32 z = r.z(k), t = r.binary_target(k), small = expf(-fabsf(z));
            loss += (z > 0.0f ? z : 0.0f) - z * t + log1pf(small);
            const f32 sigmoid = z >= 0.0f ? 1.0f / (1.0f + small) : small / (1.0f + small);
            dlogits[k] = from_float<S>((sigmoid - t) / r.over * factor);
        }
        return over_block<Add>(shared, loss) / r.over;
    }
};

template <class Loss, class S>
__device__ inline void loss(const f32* logits, const f32* bias, const u8* staging, u32 slots, u64 slot_bytes, u64 items_offset,
                            u64 hyper_offset, const State* state, S* dlogits, RowScore* rows, u32 classes) {
    __shared__ f32 shared[BLOCK];
    const Item* items = staged<Item>(staging, slots, slot_bytes, items_offset, state);
    const Hyper* hyper = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state);
    const u32 row = blockIdx.x;
    S* out = dlogits + (u64)row * classes;
    RowScore score = {0.0f, 0, 0};
    if (row < hyper->images) {
        const Row r = make_row(logits, bias, items, hyper, row, classes);
        score.loss = Loss::template row<S>(r, out, hyper->gradient_scale * state->scale, shared);
        const f32 before = rank(r, shared);
        score.top1 = before < 1.0f;
        score.top5 = before < 5.0f;
    } else {
        for (u32 k = threadIdx.x; k < classes; k += BLOCK) out[k] = from_float<S>(0.0f);
    }
    if (threadIdx.x == 0) rows[row] = score;
}

#define LOSS(S, suffix)                                                                                                    \
    KERNEL __launch_bounds__(BLOCK)                                                                                        \
    softmax_loss_##suffix(const f32* __restrict__ logits, const f32* __restrict__ bias, const u8* __restrict__ staging,    \
                          u32 slots, u64 slot_bytes, u64 items_offset, u64 hyper_offset, const State* __restrict__ state,  \
                          S* __restrict__ dlogits, RowScore* __restrict__ rows, u32 n, u32 classes) {                      \
        loss<Softmax, S>(logits, bias, staging, slots, slot_bytes, items_offset, hyper_offset, state, dlogits, rows, classes); \
    }                                                                                                                      \
    EXPORT(softmax_loss_##suffix)                                                                                          \
    KERNEL __launch_bounds__(BLOCK)                                                                                        \
    bce_loss_##suffix(const f32* __restrict__ logits, const f32* __restrict__ bias, const u8* __restrict__ staging,        \
                      u32 slots, u64 slot_bytes, u64 items_offset, u64 hyper_offset, const State* __restrict__ state,      \
                      S* __restrict__ dlogits, RowScore* __restrict__ rows, u32 n, u32 classes) {                          \
        loss<BinaryCrossEntropy, S>(logits, bias, staging, slots, slot_bytes, items_offset, hyper_offset, state, dlogits,  \
                                    rows, classes);                                                                        \
    }                                                                                                                      \
    EXPORT(bce_loss_##suffix)
FOR_EACH_STORAGE(LOSS)
#undef LOSS

KERNEL __launch_bounds__(BLOCK)
loss_finalize(const RowScore* __restrict__ rows, const u8* __restrict__ staging, u32 slots, u64 slot_bytes, u64 hyper_offset,
              State* __restrict__ state, Outcome* __restrict__ outcomes, u32 ring, u32 n) {
    __shared__ f64 sums[BLOCK];
    __shared__ u32 hits[2][BLOCK];
    f64 sum = 0.0;
    u32 top1 = 0, top5 = 0;
    for (u32 row = threadIdx.x; row < n; row += BLOCK) {
        sum += (f64)rows[row].loss;
        top1 += rows[row].top1;
        top5 += rows[row].top5;
    }
    sums[threadIdx.x] = sum;
    hits[0][threadIdx.x] = top1;
    hits[1][threadIdx.x] = top5;
    for (u32 half_way = BLOCK / 2; half_way; half_way >>= 1) {
        __syncthreads();
        if (threadIdx.x < half_way) {
            sums[threadIdx.x] += sums[threadIdx.x + half_way];
            hits[0][threadIdx.x] += hits[0][threadIdx.x + half_way];
            hits[1][threadIdx.x] += hits[1][threadIdx.x + half_way];
        }
    }
    if (threadIdx.x == 0) {
        Outcome* outcome = outcomes + state->pass % ring;
        outcome->loss = sums[0];
        outcome->top1 = hits[0][0];
        outcome->top5 = hits[1][0];
        outcome->count = staged<Hyper>(staging, slots, slot_bytes, hyper_offset, state)->images;
        if (!finite((f32)sums[0])) state->loss_bad = 1;
    }
}
EXPORT(loss_finalize)

KERNEL __launch_bounds__(BLOCK)
bias_add(f32* __restrict__ logits, const f32* __restrict__ bias, u32 n, u32 classes) {
    const u32 i = blockIdx.x * BLOCK + threadIdx.x;
    if (i < n * classes) logits[i] += bias[i % classes];
}
EXPORT(bias_add)

template <class S>
__device__ inline void bias_gradient(const S* dlogits, f32* db, u32 n, u32 classes) {
    __shared__ f32 shared[BLOCK];
    const u32 k = blockIdx.x * WARP + threadIdx.x % WARP, part = threadIdx.x / WARP, parts = BLOCK / WARP;
    f32 sum = 0.0f;
    if (k < classes) {
        for (u32 row = part; row < n; row += parts) sum += to_float(dlogits[(u64)row * classes + k]);
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (part == 0 && k < classes) {
        for (u32 other = 1; other < parts; other++) sum += shared[other * WARP + threadIdx.x];
        db[k] = sum;
    }
}

#define BIAS_GRADIENT(S, suffix)                                                                             \
    KERNEL __launch_bounds__(BLOCK)                                                                          \
    bias_gradient_##suffix(const S* __restrict__ dlogits, f32* __restrict__ db, u32 n, u32 classes) {        \
        bias_gradient<S>(dlogits, db, n, classes);                                                           \
    }                                                                                                        \
    EXPORT(bias_gradient_##suffix)
FOR_EACH_STORAGE(BIAS_GRADIENT)
#undef BIAS_GRADIENT
