// Batch norm backward in one pass, NHWC, with the ReLU behind it and the block's sum: as batch_norm_one_pass.cu, for the same
// layers.
//
// bn_backward_one_pass  bn_backward_reduce, bn_backward_finalize and bn_backward_apply (batch_norm_backward.cu)
//                       bytes: dy, x (and a bit an element), dx (and dz) once (plain: dy, x and the mask twice)
// floor: those, and of what the multiprocessors cannot hold a second reading, / bandwidth; one launch; a wait a column
#include "one_pass.cuh"

namespace one_pass {

template <class S> struct Backward {
    // As forward, of pairs.
    static const u32 HELD = 16, CHUNK = 4;

    const S *dy, *x;
    Mask mask;
    const f32 *mean, *scale, *beta, *rstd;
    f32 *dgamma, *dbeta, *b, *c;
    Pair* partials;
    u32* counters;
    S *dx, *dz;
    u32 gate;

    // dy where the gate lets it through, and x. A pack that is not there has no gradient.
    __device__ void load(Stored<S>& d, Stored<S>& v, const Grid& grid, u32 column, const Rows& rows, u32 p) const {
        const u32 channel = column * COLUMN + threadIdx.x % LANES * PACK;
        const u64 e = (u64)rows.of(p) * grid.channels + channel;
        d.load(dy + e);
        v.load(x + e);
        u32 bits = gate == GATE_MASK ? mask.bits[mask.at(grid, column, rows.of(p))] : 255u;
        if (gate == GATE_RECOMPUTED) {
            Affine by;
            Pack<S> values;
            by.load(mean, scale, beta, channel);
            values.unpack(v);
            bits = gate_bits(GATE_RECOMPUTED, (const u8*)nullptr, values, by, 0);
        }
        if (!rows.has(p)) bits = 0;
        close(d, bits);
    }

    // Zero where a bit is.
    static __device__ void close(Stored<S>& d, u32 bits) {
#pragma unroll
        for (u32 i = 0; i < sizeof(S) / 2; i++) {
            u32* words = &d.words[i].x;
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 word = i * 4 + j;
                if (sizeof(S) == 4) {
                    if (!(bits >> word & 1u)) words[j] = 0;
                } else {
                    const u32 two = bits >> (2 * word) & 3u;
                    words[j] &= (two & 1u ? 0xffffu : 0u) | (two & 2u ? 0xffff0000u : 0u);
                }
            }
        }
    }

    __device__ void add(const Stored<S> (&d)[CHUNK], const Stored<S> (&v)[CHUNK], const Pack<f32>& centre, f32 (&sum)[PACK], f32 (&product)[PACK]) const {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            f32 g[CHUNK], t[CHUNK];
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) {
                g[j] = element(d[j], i);
                t[j] = element(v[j], i) - centre.v[i];
            }
            f32 products[CHUNK / 2];
#pragma unroll
            for (u32 j = 0; j < CHUNK / 2; j++) products[j] = fmaf(g[2 * j], t[2 * j], g[2 * j + 1] * t[2 * j + 1]);
            sum[i] += total(g);
            product[i] += total(products);
        }
    }

    // As bn_backward_finalize.
    __device__ void finalize(Scratch& scratch, const Grid& grid, u32 column) const {
        const u32 channel = threadIdx.x % COLUMN, k = column * COLUMN + channel;
        Pair* from = partials + (u64)column * grid.group * COLUMN;
        const Pair own = {scratch.totals[0][channel], scratch.totals[1][channel]};
        over_group(scratch, grid, from, counters + column, own, [](Pair& sums, u32, const Pair& partial, const Pair&) {
            sums.a += partial.a;
            sums.b += partial.b;
        });
        if (threadIdx.x >= COLUMN) return;
        const f32 beta_gradient = scratch.totals[0][channel], gamma_gradient = rstd[k] * scratch.totals[1][channel];
        const f32 slope = -scale[k] * rstd[k] * (gamma_gradient / (f32)grid.rows), constant = -scale[k] * (beta_gradient / (f32)grid.rows);
        scratch.by_channel[0][channel] = scale[k];
        scratch.by_channel[1][channel] = slope;
        scratch.by_channel[2][channel] = constant;
        if (grid.member()) return;
        dgamma[k] = gamma_gradient;
        dbeta[k] = beta_gradient;
        b[k] = slope;
        c[k] = constant;
    }

    // What dx is made with, of eight channels.
    struct Factors { Pack<f32> mean, scale, b, c; };

    __device__ void apply(const Stored<S>& d, const Stored<S>& v, const Factors& by, u64 e) const {
        Pack<S> gradient, result;
        gradient.unpack(d);
        result.unpack(v);
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            result.v[i] = input_gradient(gradient.v[i], result.v[i], by.mean.v[i], by.scale.v[i], by.b.v[i], by.c.v[i]);
        }
        if (dz) store_streaming(gradient, dz + e);
        store_streaming(result, dx + e);
    }

    // Packs from `p` on.
    __device__ void finish(const Stored<S> (&d)[CHUNK], const Stored<S> (&v)[CHUNK], const Factors& by, const Grid& grid, const Rows& rows, u32 channel, u32 p) const {
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) {
            if (!rows.has(p + j)) break;
            apply(d[j], v[j], by, (u64)rows.of(p + j) * grid.channels + channel);
        }
    }

    __device__ void column(Scratch& scratch, const Grid& grid, u32 column) const {
        const Rows rows(grid);
        const Kept<S> kept(&scratch);
        const u32 channel = column * COLUMN + threadIdx.x % LANES * PACK;
        Factors by;
        by.mean.load(mean + channel);
        f32 sum[PACK], product[PACK];
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sum[i] = product[i] = 0.0f;
        Stored<S> held_d[HELD / CHUNK][CHUNK], held_x[HELD / CHUNK][CHUNK];
#pragma unroll
        for (u32 k = 0; k < HELD / CHUNK; k++) {
            if (k * CHUNK < rows.packs) {
#pragma unroll
                for (u32 j = 0; j < CHUNK; j++) load(held_d[k][j], held_x[k][j], grid, column, rows, k * CHUNK + j);
                add(held_d[k], held_x[k], by.mean, sum, product);
            }
        }
#pragma unroll 1
        for (u32 p = HELD; p < rows.packs; p += CHUNK) {
            Stored<S> d[CHUNK], v[CHUNK];
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) {
                load(d[j], v[j], grid, column, rows, p + j);
                if (p + j < HELD + grid.kept) {
                    kept.put(2 * (p + j - HELD), d[j]);
                    kept.put(2 * (p + j - HELD) + 1, v[j]);
                }
            }
            add(d, v, by.mean, sum, product);
        }
        over_rows(scratch, sum, product);
        finalize(scratch, grid, column);
        __syncthreads();
        load_lane(by.scale, scratch.by_channel[0]);
        load_lane(by.b, scratch.by_channel[1]);
        load_lane(by.c, scratch.by_channel[2]);
#pragma unroll 1
        for (u32 p = rows.last(HELD, CHUNK); p > HELD; p -= CHUNK) {
            Stored<S> d[CHUNK], v[CHUNK];
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) {
                const u32 own = p - CHUNK + j;
                if (own < HELD + grid.kept) {
                    d[j] = kept.get(2 * (own - HELD));
                    v[j] = kept.get(2 * (own - HELD) + 1);
                } else {
                    load(d[j], v[j], grid, column, rows, own);
                }
            }
            finish(d, v, by, grid, rows, channel, p - CHUNK);
        }
#pragma unroll
        for (u32 k = 0; k < HELD / CHUNK; k++) {
            if (k * CHUNK < rows.packs) finish(held_d[k], held_x[k], by, grid, rows, channel, k * CHUNK);
        }
    }
};

}  // namespace one_pass

// As bn_one_pass.
#define BN_BACKWARD_ONE_PASS(S, suffix)                                                                                      \
    KERNEL __launch_bounds__(BLOCK, 1)                                                                                       \
    bn_backward_one_pass_##suffix(const S* __restrict__ dy, const S* __restrict__ x, const u8* __restrict__ mask,            \
                                  const f32* __restrict__ mean, const f32* __restrict__ scale, const f32* __restrict__ beta, \
                                  const f32* __restrict__ rstd, f32* __restrict__ dgamma, f32* __restrict__ dbeta,           \
                                  f32* __restrict__ b, f32* __restrict__ c, Pair* partials, u32* counters,                   \
                                  S* __restrict__ dx, S* __restrict__ dz, u32 gate, u32 mask_in_columns, u32 group,          \
                                  u32 kept, u32 rows, u32 channels) {                                                        \
        const one_pass::Backward<S> work{dy, x, {(u8*)mask, mask_in_columns}, mean, scale, beta, rstd, dgamma, dbeta, b, c,  \
                                         partials, counters, dx, dz, gate};                                                  \
        one_pass::run(work, {group, kept, rows, channels}, (one_pass::Scratch*)block_memory());                              \
    }                                                                                                                        \
    EXPORT(bn_backward_one_pass_##suffix)
BN_BACKWARD_ONE_PASS(half, f16)
BN_BACKWARD_ONE_PASS(bf16, bf16)
#undef BN_BACKWARD_ONE_PASS
