// Batch norm's statistics from what a library's convolution leaves of its output.
//
// bn_finalize_sums  sum and sum of squares of all rows, by channel -> mean, rstd, scale and unbiased variance as bn_finalize makes
//                   them; and, where the next convolution of the library applies the batch norm, map [2][channels] of halves:
//                   scale, and bias = beta - mean scale, so that x scale + bias is what bn_apply computes up to their roundings.
//
// The squares' sum is not of deviations: of a variance v with mean m it keeps f32's 24 bits less those of (m^2 + v) / v, which a
// convolution behind a batch norm keeps small. What cancels beyond that is cut at zero.
// A thread a channel. bytes: 24 a channel, with the map 28
#include "abi.cuh"

KERNEL __launch_bounds__(BLOCK)
bn_finalize_sums(const f32* __restrict__ sums, const f32* __restrict__ gamma, const f32* __restrict__ beta, f32* __restrict__ mean,
                 f32* __restrict__ rstd, f32* __restrict__ scale, f32* __restrict__ variance, half* __restrict__ map, u32 rows, u32 channels,
                 f32 eps) {
    const u32 c = blockIdx.x * BLOCK + threadIdx.x;
    if (c >= channels) return;
    const f32 n = (f32)rows, m = sums[c] / n;
    const f32 m2 = positive(fmaf(-sums[c], m, sums[channels + c]));
    const f32 r = 1.0f / sqrtf(m2 / n + eps), s = gamma[c] * r;
    mean[c] = m;
    rstd[c] = r;
    scale[c] = s;
    variance[c] = m2 / (rows > 1 ? n - 1.0f : 1.0f);
    if (map) {
        map[c] = from_float<half>(s);
        map[channels + c] = from_float<half>(fmaf(-m, s, beta[c]));
    }
}
EXPORT(bn_finalize_sums)
