// What host and card exchange; the same structs stand in src/backend/cuda/abi.rs.
#pragma once
#include "common.cuh"

// How one image enters a batch, and its targets.
struct Item {
    u32 label;
    u32 partner;    // another image of the batch
    f32 lambda;     // the share of the image's own label
    u32 mix;        // NO_MIX, MIXUP (arXiv:1710.09412), CUTMIX (arXiv:1905.04899), MIXUP_BYTES: of bytes, to the nearest
    u32 flip;       // mirror the image, before it is mixed
    u16 x0, y0, x1, y1;  // cutmix: columns x0..x1 and rows y0..y1 are the partner's
    u16 ex0, ey0, ex1, ey1;  // random erasing (arXiv:1708.04896): likewise, painted over before images are mixed, or after
    u32 erase;      // NO_ERASE, COLOUR, NOISE; ERASE_LAST beside them: after images are mixed
    u32 fill[3];    // the bits of three f32, one a channel; or a stream's key, lower half first
};
const u32 NO_MIX = 0, MIXUP = 1, CUTMIX = 2, MIXUP_BYTES = 3;
const u32 NO_ERASE = 0, COLOUR = 1, NOISE = 2, ERASE_LAST = 4;

// Constants of one pass.
struct Hyper {
    f32 lr, momentum, weight_decay, label_smoothing;
    f32 gradient_scale;  // one over the images of the optimiser step
    u32 nesterov;
    u32 images;          // rows that count
    u32 first;           // the first pass of its optimiser step
    f32 ema_decay, beta1, beta2, epsilon;
    f32 max_norm;        // of the gradient of all parameters; 0: no limit
    f32 trust;           // LARS: the trust ratio's coefficient
    f32 threshold;       // binary cross-entropy: targets above it become 1, others 0; 0: as they are
    u32 sum_classes;     // binary cross-entropy: the sum over classes, not their mean
};

// What steps hand to each other without the host.
struct State {
    u32 pass;      // passes done
    u32 clean;     // optimiser steps since the scale changed
    f32 scale;     // factor on the loss
    f32 unscale;   // one over the scale of the gradients at hand
    u32 skip;      // the update at hand must not happen
    u32 bad;       // 0, or 1 + the highest index of a gradient that is not finite
    u32 halted;    // no update will happen any more
    u32 updates;   // updates done
    u32 skipped;   // updates dropped
    u32 loss_bad;  // a loss of the optimiser step at hand is not finite
    u32 reserved[6];
};

// What a pass tells the host.
struct Outcome {
    f64 loss;  // summed over images
    u32 top1, top5, count;
    f32 scale;
    u32 bad;
    u32 flags;
    u32 pass;
    u32 reserved[7];
};
const u32 SKIPPED = 1, HALTED = 2, LOSS_NOT_FINITE = 4;

// The loss of one image, and whether its label is the best, among the best five.
struct RowScore { f32 loss; u32 top1; u32 top5; };

// A piece of one parameter, for kernels that need sums by parameter: elements `first` to `first + count` of the flat space.
struct Chunk {
    u32 first, count;
    u32 parameter;
    u32 decays;  // whether weight decay applies
};

// The chunks of one parameter.
struct ChunkRange { u32 first, count; };

// Sums over the chunks of one parameter, in f64; `add_wide` says where they are.
__device__ inline void add_chunks(f64 (&shared)[2][BLOCK], const Pair* partials, ChunkRange range) {
    f64 a = 0.0, b = 0.0;
    for (u32 i = threadIdx.x; i < range.count; i += BLOCK) {
        const Pair from = partials[range.first + i];
        a += (f64)from.a;
        b += (f64)from.b;
    }
    add_wide(shared, a, b);
}

static_assert(sizeof(Item) == 52 && sizeof(Hyper) == 64 && sizeof(State) == 64 && sizeof(Outcome) == 64, "as in abi.rs");
static_assert(sizeof(RowScore) == 12 && sizeof(Chunk) == 16 && sizeof(ChunkRange) == 8, "as in abi.rs");

// What the host has put at `offset` of the current pass's slot.
template <class T>
__device__ inline const T* staged(const u8* staging, u32 slots, u64 slot_bytes, u64 offset, const State* state) {
    return (const T*)(staging + (u64)(state->pass % slots) * slot_bytes + offset);
}

// The gradients of one pass over the flat parameter space: `matrix_end` elements of the storage type, then f32. Both parts
// begin at multiples of 64 elements, so that no pack of eight is of both.
template <class S> struct PassGradient {
    const S* matrices;
    const f32* vectors;
    u32 matrix_end;

    __device__ void load(Pack<f32>& to, u32 e, u32 count) const {
        if (e < matrix_end) {
            Pack<S> pack;
            load_at(pack, matrices, e, count);
            widen(to, pack);
        } else {
            load_at(to, vectors, e - matrix_end, count);
        }
    }
};

// What all parameters of one update share.
struct Corrections {
    f32 clip;        // what gradients are divided by: 1 or more
    f32 bias1, bias2_root;  // LAMB: 1 - beta1^t, sqrt(1 - beta2^t)
    f32 reserved;
};

// Gradients summed over passes.
struct SummedGradient {
    const f32* sum;

    __device__ void load(Pack<f32>& to, u32 e, u32 count) const { load_at(to, sum, e, count); }
};
