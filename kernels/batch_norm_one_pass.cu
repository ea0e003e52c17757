// Batch norm in one pass, NHWC: what is read for the sums stays on the multiprocessors until the sums are known. For channels
// that are a multiple of 32, types of 16 bits, and branches that no image skips. Launched cooperatively: blocks wait for each
// other (between_blocks.cuh). one_pass.cuh says who holds what.
//
// bn_one_pass  bn_stats, bn_finalize and bn_apply (batch_norm.cu says what the formulas are)
//              bytes: x, z and y once, elements / 8 for the mask (plain: x twice)
// floor: those, and of what the multiprocessors cannot hold a second reading, / bandwidth; one launch; a wait a column
#include "one_pass.cuh"

namespace one_pass {

template <class S> struct Forward {
    // Packs in registers, 4 each. Packs whose loads are under way together: those of the sums, which are a tree; of the output.
    static const u32 HELD = 32, CHUNK = 8, FINISH = 4;

    const S* x;
    const f32 *gamma, *beta;
    f32 *mean, *rstd, *scale, *variance;
    f32 eps;
    Pair* partials;
    u32* counters;
    const S* z;
    const f32 *z_mean, *z_scale, *z_beta;
    S* y;
    Mask mask;
    u32 relu;

    // A pack that is not there is the pivot: it adds nothing.
    __device__ void load(Stored<S> (&chunk)[CHUNK], const S* from, u32 channels, const Rows& rows, u32 p) const {
#pragma unroll
        for (u32 j = 0; j < CHUNK; j++) chunk[j].load(from + (u64)rows.of(p + j) * channels);
    }

    __device__ void add(const Stored<S> (&chunk)[CHUNK], const Pack<S>& pivot, f32 (&sum)[PACK], f32 (&square)[PACK]) const {
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            f32 d[CHUNK];
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) d[j] = element(chunk[j], i) - pivot.v[i];
            f32 squares[CHUNK / 2];
#pragma unroll
            for (u32 j = 0; j < CHUNK / 2; j++) squares[j] = fmaf(d[2 * j], d[2 * j], d[2 * j + 1] * d[2 * j + 1]);
            sum[i] += total(d);
            square[i] += total(squares);
        }
    }

    // As bn_finalize, with the partials of the group's blocks; the first block leaves what others read.
    __device__ void finalize(Scratch& scratch, const Grid& grid, u32 column, const Pair& own) const {
        const u32 channel = threadIdx.x % COLUMN, c = column * COLUMN + channel;
        Pair* from = partials + (u64)column * grid.group * COLUMN;
        const auto add = [&](Pair& sums, u32 member, const Pair& partial, const Pair& first) {
            const f32 count = (f32)grid.rows_of(member), delta = partial.a - first.a;
            sums.a = fmaf(count, delta, sums.a);
            sums.b += fmaf(count * delta, delta, partial.b);
        };
        const f32 pivot = over_group(scratch, grid, from, counters + column, own, add).a;
        if (threadIdx.x >= COLUMN) return;
        const f32 n = (f32)grid.rows, total = scratch.totals[0][channel], shift = total / n;
        const f32 m2 = positive(scratch.totals[1][channel] - total * shift), r = 1.0f / sqrtf(m2 / n + eps);
        scratch.by_channel[0][channel] = pivot + shift;
        scratch.by_channel[1][channel] = gamma[c] * r;
        scratch.by_channel[2][channel] = beta[c];
        if (grid.member()) return;
        mean[c] = pivot + shift;
        rstd[c] = r;
        scale[c] = gamma[c] * r;
        variance[c] = m2 / (grid.rows > 1 ? n - 1.0f : 1.0f);
    }

    // A pack of x and what is added to it, at element `e`.
    __device__ void apply(const Stored<S>& from, const Stored<S>& from_z, const Affine& by, u64 e, u32 channel, u8* bits_to) const {
        Pack<S> v, w;
        v.unpack(from);
        w.unpack(from_z);
        // Its parameters are read for every pack, as in bn_apply: few layers have a second batch norm.
        if (z_mean) {
            Affine other;
            other.load(z_mean, z_scale, z_beta, channel);
#pragma unroll
            for (u32 i = 0; i < PACK; i++) w.v[i] = other.of(w.v[i], i);
        }
        const u32 bits = finish_norm(v, by, 1.0f, w, z, relu);
        store_streaming(v, y + e);
        if (bits_to) *bits_to = (u8)bits;
    }

    // Packs from `p` on.
    __device__ void finish(const Stored<S> (&chunk)[FINISH], const Affine& by, const Grid& grid, const Rows& rows, u32 column, u32 p) const {
        const u32 channel = column * COLUMN + threadIdx.x % LANES * PACK;
        Stored<S> added[FINISH];
#pragma unroll
        for (u32 j = 0; j < FINISH; j++) {
            clear(added[j]);
            if (z) added[j].load(z + (u64)rows.of(p + j) * grid.channels + channel);
        }
#pragma unroll
        for (u32 j = 0; j < FINISH; j++) {
            if (!rows.has(p + j)) break;
            const u32 row = rows.of(p + j);
            u8* bits = mask.bits ? mask.bits + mask.at(grid, column, row) : nullptr;
            apply(chunk[j], added[j], by, (u64)row * grid.channels + channel, channel, bits);
        }
    }

    __device__ void column(Scratch& scratch, const Grid& grid, u32 column) const {
        const Rows rows(grid);
        const Kept<S> kept(&scratch);
        const S* from = x + column * COLUMN + threadIdx.x % LANES * PACK;
        Pack<S> pivot;
        pivot.load(from + (u64)rows.begin * grid.channels);
        f32 sum[PACK], square[PACK];
#pragma unroll
        for (u32 i = 0; i < PACK; i++) sum[i] = square[i] = 0.0f;
        Stored<S> held[HELD / FINISH][FINISH];
#pragma unroll
        for (u32 k = 0; k < HELD / CHUNK; k++) {
            if (k * CHUNK < rows.packs) {
                Stored<S> chunk[CHUNK];
                load(chunk, from, grid.channels, rows, k * CHUNK);
                add(chunk, pivot, sum, square);
#pragma unroll
                for (u32 j = 0; j < CHUNK; j++) held[(k * CHUNK + j) / FINISH][j % FINISH] = chunk[j];
            }
        }
#pragma unroll 1
        for (u32 p = HELD; p < rows.packs; p += CHUNK) {
            Stored<S> chunk[CHUNK];
            load(chunk, from, grid.channels, rows, p);
#pragma unroll
            for (u32 j = 0; j < CHUNK; j++) {
                if (p + j < HELD + grid.kept) kept.put(p + j - HELD, chunk[j]);
            }
            add(chunk, pivot, sum, square);
        }
        over_rows(scratch, sum, square);
        finalize(scratch, grid, column, partial(scratch, pivot, rows));
        __syncthreads();
        Affine by;
        load_lane(by.mean, scratch.by_channel[0]);
        load_lane(by.scale, scratch.by_channel[1]);
        load_lane(by.beta, scratch.by_channel[2]);
        // The last that was read first, while the cache has it.
#pragma unroll 1
        for (u32 p = rows.last(HELD, FINISH); p > HELD; p -= FINISH) {
            Stored<S> chunk[FINISH];
#pragma unroll
            for (u32 j = 0; j < FINISH; j++) {
                const u32 own = p - FINISH + j;
                if (own < HELD + grid.kept) chunk[j] = kept.get(own - HELD);
                else chunk[j].load(from + (u64)rows.of(own) * grid.channels);
            }
            finish(chunk, by, grid, rows, column, p - FINISH);
        }
#pragma unroll
        for (u32 k = 0; k < HELD / FINISH; k++) {
            if (k * FINISH < rows.packs) finish(held[k], by, grid, rows, column, k * FINISH);
        }
    }

    // Mean and squared deviations of the block's rows, for the threads of the first warp, one a channel.
    __device__ Pair partial(const Scratch& scratch, const Pack<S>& pivot, const Rows& rows) const {
        // A channel's pivot is with the lane that has loaded it.
        f32 of_channel = 0.0f;
        const u32 channel = threadIdx.x % COLUMN;
#pragma unroll
        for (u32 i = 0; i < PACK; i++) {
            const f32 value = __shfl_sync(0xffffffffu, pivot.v[i], channel / PACK);
            if (channel % PACK == i) of_channel = value;
        }
        if (rows.packs == 0) return {0.0f, 0.0f};
        const f32 total = scratch.totals[0][channel], shift = total / (f32)(rows.end - rows.begin);
        return {of_channel + shift, positive(scratch.totals[1][channel] - total * shift)};
    }
};

}  // namespace one_pass

// One block a multiprocessor: all of its registers and of its shared memory.
#define BN_ONE_PASS(S, suffix)                                                                                            \
    KERNEL __launch_bounds__(BLOCK, 1)                                                                                    \
    bn_one_pass_##suffix(const S* __restrict__ x, const f32* __restrict__ gamma, const f32* __restrict__ beta,            \
                         f32* __restrict__ mean, f32* __restrict__ rstd, f32* __restrict__ scale,                         \
                         f32* __restrict__ variance, f32 eps, Pair* partials, u32* counters, const S* __restrict__ z,     \
                         const f32* __restrict__ z_mean, const f32* __restrict__ z_scale, const f32* __restrict__ z_beta, \
                         S* __restrict__ y, u8* __restrict__ mask, u32 mask_in_columns, u32 relu, u32 group, u32 kept,    \
                         u32 rows, u32 channels) {                                                                        \
        const one_pass::Forward<S> work{x, gamma, beta, mean, rstd, scale, variance, eps, partials, counters, z, z_mean,  \
                                        z_scale, z_beta, y, {mask, mask_in_columns}, relu};                               \
        one_pass::run(work, {group, kept, rows, channels}, (one_pass::Scratch*)block_memory());                           \
    }                                                                                                                     \
    EXPORT(bn_one_pass_##suffix)
BN_ONE_PASS(half, f16)
BN_ONE_PASS(bf16, bf16)
#undef BN_ONE_PASS
