// What every kernel shares: storage types, packs of eight elements, exports.
//
// No header of CUDA's is needed: NVRTC compiles this alone, and g++ compiles it against host/cuda_on_cpu.h.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

static_assert(sizeof(u32) == 4 && sizeof(u64) == 8, "sizes that the Rust side relies on");

#ifdef CUDA_ON_CPU
// The harness learns of a kernel when the library is loaded.
#define EXPORT(name) static const cuda_on_cpu::Registration register_##name(#name, cuda_on_cpu::thunk<decltype(&name), &name>);
#else
#define EXPORT(name)
#endif

#define KERNEL extern "C" __global__ void

// Threads of a block, where a file does not say otherwise.
const u32 BLOCK = 256;
const u32 WARP = 32;

// 16-bit floating point as it lies in memory.
struct half { u16 bits; };
struct bf16 { u16 bits; };

// ---- conversions: to nearest, ties to even; NaN stays NaN -----------------------------------------------------------

#ifdef CUDA_ON_CPU
__device__ inline f32 bits_to_float(u32 bits) { f32 value; __builtin_memcpy(&value, &bits, 4); return value; }
__device__ inline u32 float_to_bits(f32 value) { u32 bits; __builtin_memcpy(&bits, &value, 4); return bits; }

__device__ inline f32 to_float(half h) {
    const u32 sign = (u32)(h.bits & 0x8000u) << 16, exponent = (h.bits >> 10) & 31u, mantissa = h.bits & 1023u;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return bits_to_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const f32 subnormal = (f32)mantissa * bits_to_float(0x33800000u);  // 2^-24
    return sign ? -subnormal : subnormal;
}

__device__ inline u16 half_bits(f32 value) {
    const u32 bits = float_to_bits(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (u16)(sign | 0x7fffu);
    if (magnitude >= 0x477ff000u) return (u16)(sign | 0x7c00u);  // 65520 and above round to infinity
    if (magnitude >= 0x38800000u) {                               // normal: 2^-14 and above
        const u32 rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
        return (u16)(sign | (rounded - 0x38000000u) >> 13);
    }
    // Subnormal: adding 0.5 puts the unit 2^-24 at the last bit of the sum, which the addition rounds.
    return (u16)(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u));
}
#else
__device__ inline f32 bits_to_float(u32 bits) { return __uint_as_float(bits); }
__device__ inline u32 float_to_bits(f32 value) { return __float_as_uint(value); }

__device__ inline f32 to_float(half h) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(h.bits));
    return value;
}

__device__ inline u16 half_bits(f32 value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ inline f32 to_float(bf16 b) { return bits_to_float((u32)b.bits << 16); }
__device__ inline f32 to_float(f32 value) { return value; }

// In integers, because compute_70 has no instruction for it.
__device__ inline u16 bf16_bits(f32 value) {
    const u32 bits = float_to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)(bits >> 16 | 0x40u);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

template <class S> struct From;
template <> struct From<half> { static __device__ half of(f32 value) { half h; h.bits = half_bits(value); return h; } };
template <> struct From<bf16> { static __device__ bf16 of(f32 value) { bf16 b; b.bits = bf16_bits(value); return b; } };
template <> struct From<f32> { static __device__ f32 of(f32 value) { return value; } };

// Rounds to the storage type.
template <class S> __device__ inline S from_float(f32 value) { return From<S>::of(value); }

// Rounds and reads back: what a later kernel will see.
template <class S> __device__ inline f32 rounded(f32 value) { return to_float(from_float<S>(value)); }

// ---- eight elements ---------------------------------------------------------------------------------------------

const u32 PACK = 8;

struct alignas(16) Words { u32 x, y, z, w; };

// Eight consecutive elements as they lie in memory: one 16-byte access for 2-byte types, two for f32. Addresses are
// multiples of 16.
template <class S> struct Stored {
    Words words[sizeof(S) / 2];

    __device__ void load(const S* from) {
#pragma unroll
        for (u32 i = 0; i < sizeof(S) / 2; i++) words[i] = ((const Words*)from)[i];
    }
};

// Eight consecutive elements as numbers.
template <class S> struct Pack {
    f32 v[PACK];

    __device__ void load(const S* from) {
        Stored<S> stored;
        stored.load(from);
        unpack(stored);
    }

    __device__ void unpack(const Stored<S>& stored) {
        const Words a = stored.words[0], b = stored.words[sizeof(S) / 2 - 1];
        if (sizeof(S) == 4) {
            const u32 words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (u32 i = 0; i < PACK; i++) v[i] = bits_to_float(words[i]);
        } else {
            const u32 words[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                v[2 * i] = from_bits((u16)words[i]);
                v[2 * i + 1] = from_bits((u16)(words[i] >> 16));
            }
        }
    }

    __device__ void store(S* to) const {
        if (sizeof(S) == 4) {
            Words a, b;
            a.x = float_to_bits(v[0]); a.y = float_to_bits(v[1]); a.z = float_to_bits(v[2]); a.w = float_to_bits(v[3]);
            b.x = float_to_bits(v[4]); b.y = float_to_bits(v[5]); b.z = float_to_bits(v[6]); b.w = float_to_bits(v[7]);
            ((Words*)to)[0] = a;
            ((Words*)to)[1] = b;
        } else {
            Words a;
            a.x = two(v[0], v[1]); a.y = two(v[2], v[3]); a.z = two(v[4], v[5]); a.w = two(v[6], v[7]);
            *(Words*)to = a;
        }
    }

  private:
    static __device__ f32 from_bits(u16 bits);
    static __device__ u32 two(f32 low, f32 high);
};

template <> __device__ inline f32 Pack<half>::from_bits(u16 bits) { half h; h.bits = bits; return to_float(h); }
template <> __device__ inline f32 Pack<bf16>::from_bits(u16 bits) { bf16 b; b.bits = bits; return to_float(b); }
template <> __device__ inline f32 Pack<f32>::from_bits(u16) { return 0.0f; }
template <> __device__ inline u32 Pack<half>::two(f32 low, f32 high) { return half_bits(low) | (u32)half_bits(high) << 16; }
template <> __device__ inline u32 Pack<bf16>::two(f32 low, f32 high) { return bf16_bits(low) | (u32)bf16_bits(high) << 16; }
template <> __device__ inline u32 Pack<f32>::two(f32, f32) { return 0; }

// As many of the eight as there are; the others are `fill`. Aligned or not.
template <class S> __device__ inline void load_some(Pack<S>& pack, const S* from, u32 count, f32 fill) {
#pragma unroll
    for (u32 i = 0; i < PACK; i++) pack.v[i] = i < count ? to_float(from[i]) : fill;
}

template <class S> __device__ inline void store_some(const Pack<S>& pack, S* to, u32 count) {
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        if (i < count) to[i] = from_float<S>(pack.v[i]);
    }
}

// Eight f32 parameters from channel `c` on; wraps around at `channels` where that is no multiple of eight.
__device__ inline void load_channels(f32 (&v)[PACK], const f32* __restrict__ from, u32 c, u32 channels) {
    if (channels % PACK == 0) {
        Pack<f32> pack;
        pack.load(from + c);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) v[i] = pack.v[i];
    } else {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            v[i] = from[c];
            c = c + 1 == channels ? 0 : c + 1;
        }
    }
}

// Up to eight elements from element `e` of an array on; 16-byte accesses where they are eight and aligned.
template <class S> __device__ inline void load_at(Pack<S>& pack, const S* from, u32 e, u32 count) {
    if (count == PACK && e % PACK == 0) pack.load(from + e);
    else load_some(pack, from + e, count, 0.0f);
}

template <class S> __device__ inline void store_at(const Pack<S>& pack, S* to, u32 e, u32 count) {
    if (count == PACK && e % PACK == 0) pack.store(to + e);
    else store_some(pack, to + e, count);
}

template <class S> __device__ inline void widen(Pack<f32>& to, const Pack<S>& from) {
#pragma unroll
    for (u32 i = 0; i < PACK; i++) to.v[i] = from.v[i];
}

// NaN and infinities have all exponent bits set.
__device__ inline bool finite(f32 value) { return (float_to_bits(value) & 0x7f800000u) != 0x7f800000u; }

// The three forms of a kernel template: NAME_f16, NAME_bf16, NAME_f32.
#define FOR_EACH_STORAGE(INSTANTIATE) INSTANTIATE(half, f16) INSTANTIATE(bf16, bf16) INSTANTIATE(f32, f32)

__device__ inline u32 min_u32(u32 a, u32 b) { return a < b ? a : b; }

// Not less than 0; NaN stays NaN.
__device__ inline f32 positive(f32 value) { return value < 0.0f ? 0.0f : value; }

// A batch norm's output. One expression for all who compute it, so that the backward pass opens the very gates of the
// forward pass.
__device__ inline f32 normalised(f32 x, f32 mean, f32 scale, f32 beta) { return fmaf(x - mean, scale, beta); }

// y = (x - mean) scale + beta of eight channels.
struct Affine {
    Pack<f32> mean, scale, beta;

    __device__ void load(const f32* from_mean, const f32* from_scale, const f32* from_beta, u32 c) {
        mean.load(from_mean + c);
        scale.load(from_scale + c);
        beta.load(from_beta + c);
    }

    __device__ f32 of(f32 x, u32 i) const { return normalised(x, mean.v[i], scale.v[i], beta.v[i]); }
};

// A pack behind its batch norm, times `factor`, plus `other` where `adds`, behind a ReLU where `relu`. A bit an element: whether
// what the ReLU sees is positive.
template <class S> __device__ inline u32 finish_norm(Pack<S>& v, const Affine& by, f32 factor, const Pack<S>& other, bool adds, bool relu) {
    u32 bits = 0;
#pragma unroll
    for (u32 i = 0; i < PACK; i++) {
        v.v[i] = by.of(v.v[i], i) * factor;
        if (adds) v.v[i] += other.v[i];
        bits |= (u32)(v.v[i] > 0.0f) << i;
        if (relu) v.v[i] = positive(v.v[i]);
    }
    return bits;
}

// What of the gradient of a batch norm's output reaches the batch norm.
enum : u32 {
    GATE_OPEN = 0,        // no ReLU
    GATE_RECOMPUTED = 1,  // the ReLU's input is computed again, by the very expression of bn_apply
    GATE_MASK = 2,        // bn_apply left a bit an element
};

// The gate of eight elements from `e` on, a bit each; `x`: the batch norm's input there.
template <class S> __device__ inline u32 gate_bits(u32 gate, const u8* mask, const Pack<S>& x, const Affine& by, u64 e) {
    u32 bits = gate == GATE_MASK ? mask[e / PACK] : 255u;
    if (gate == GATE_RECOMPUTED) {
        bits = 0;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) bits |= (u32)(by.of(x.v[i], i) > 0.0f) << i;
    }
    return bits;
}

// The gradient of a batch norm's input: scale d + b (x - mean) + c, with b and c from the sums over the batch.
__device__ inline f32 input_gradient(f32 d, f32 x, f32 mean, f32 scale, f32 b, f32 c) {
    return fmaf(b, x - mean, scale * d) + c;
}

// ---- sums over a block ----------------------------------------------------------------------------------------------

struct Add { static __device__ f32 of(f32 a, f32 b) { return a + b; } };

// Combines a value of every thread in a fixed tree; all threads get the result.
template <class Op> __device__ inline f32 over_block(f32 (&shared)[BLOCK], f32 value) {
    shared[threadIdx.x] = value;
    for (u32 half_way = BLOCK / 2; half_way; half_way >>= 1) {
        __syncthreads();
        if (threadIdx.x < half_way) shared[threadIdx.x] = Op::of(shared[threadIdx.x], shared[threadIdx.x + half_way]);
    }
    __syncthreads();
    const f32 result = shared[0];
    __syncthreads();
    return result;
}

// The same with two values in f64; the sums are in shared[.][0], for thread 0.
__device__ inline void add_wide(f64 (&shared)[2][BLOCK], f64 a, f64 b) {
    shared[0][threadIdx.x] = a;
    shared[1][threadIdx.x] = b;
    for (u32 half_way = BLOCK / 2; half_way; half_way >>= 1) {
        __syncthreads();
        if (threadIdx.x < half_way) {
            shared[0][threadIdx.x] += shared[0][threadIdx.x + half_way];
            shared[1][threadIdx.x] += shared[1][threadIdx.x + half_way];
        }
    }
}

// ---- elementwise by channel: bn_apply, bn_backward_apply ------------------------------------------------------------

// Packs of a thread.
const u32 APPLY_PACKS = 4;

// Threads of a block that work: a multiple of the groups of eight channels, so that all packs of a thread, which lie that
// many apart, are of the same channels. Where a block has fewer threads than there are groups, they are not.
__device__ inline u32 apply_threads(u32 channels) {
    const u32 groups = channels % PACK == 0 ? channels / PACK : 1;
    return groups <= BLOCK ? BLOCK / groups * groups : BLOCK;
}

// What a branch is multiplied by, image by image (drop_path.cu).
struct DropPath {
    const f32* factors;
    u32 size;  // rows, or elements, of an image

    __device__ f32 of(u64 at) const { return factors[(u32)at / size]; }
};

// ---- partial sums by channel ----------------------------------------------------------------------------------------

// What a block of rows leaves of one channel: one 8-byte access.
struct alignas(8) Pair { f32 a, b; };

// ---- sums by channel over many partials: a block of 16 channels by 64 parts -----------------------------------------

const u32 FINALIZE_CHANNELS = 16, FINALIZE_PARTS = 64;

// Adds two values of every part in a fixed tree; the sums are in part 0. All threads of the block call it.
__device__ inline void add_parts(f32 (&shared)[2][FINALIZE_PARTS][FINALIZE_CHANNELS], f32 a, f32 b, u32 part, u32 column) {
    shared[0][part][column] = a;
    shared[1][part][column] = b;
    for (u32 half_way = FINALIZE_PARTS / 2; half_way; half_way >>= 1) {
        __syncthreads();
        if (part < half_way) {
            shared[0][part][column] += shared[0][part + half_way][column];
            shared[1][part][column] += shared[1][part + half_way][column];
        }
    }
}
