//! Weights to 8 bits.

use crate::infer::weights::{Folded, Normalisation, Quantised};
use crate::simd::direct::quads;
use crate::simd::isa::Isa;
use crate::simd::pool::Pool;

/// The largest magnitude of a weight.
const LEVELS: f32 = 127.0;
/// Scales that are tried for a channel: of 127 levels for its range, from 60 % of it, by steps of 1/32, to the four times
/// at which no quad of weights is too large.
const LEAST: f32 = 0.6;
const STEP: f32 = 33.0 / 32.0;
const CANDIDATES: usize = 63;

/// What the weights of an output channel are multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct Inputs {
    pub channels: usize,
    /// Weights of a filter row, [s][c], whose [`quads`] are to hold; `None` for the classifier, which multiplies f32.
    pub row: Option<usize>,
}

/// Each output channel of `folded` [k][..] to i8, symmetric, by the scale with the least mean square error.
pub fn quantise(pool: &Pool, folded: &Folded, inputs: Inputs) -> Quantised {
    let k = folded.bias.len();
    let filters: Vec<&[f32]> = folded.weight.chunks_exact(folded.weight.len() / k).collect();
    let rounded = pool.map(filters, |filter| best(filter, inputs.row));
    let (scale, weight): (Vec<f32>, Vec<Vec<i8>>) = rounded.into_iter().unzip();
    Quantised { weight: weight.concat(), scale, bias: folded.bias.clone(), padding: vec![0; inputs.channels] }
}

/// The stem on the image's bytes: w (byte / 255 - mean) / std = w / (255 std) (byte - 255 mean). What the second factor
/// takes off goes into the bias, with the weights as they are rounded; the byte nearest to 255 mean stands for 0 outside
/// the image. `folded` is [k][r][s][3] on the normalised image, `row` the weights of a filter row, [s][3].
pub fn quantise_stem(pool: &Pool, folded: &Folded, row: usize, normalisation: &Normalisation) -> Quantised {
    let Normalisation { mean, std } = normalisation;
    let on_bytes = folded.weight.iter().enumerate();
    let weight = on_bytes.map(|(at, weight)| weight / (255.0 * std[at % 3])).collect();
    let inputs = Inputs { channels: 3, row: Some(row) };
    let mut quantised = quantise(pool, &Folded { weight, bias: folded.bias.clone() }, inputs);
    let taken = 0..quantised.scale.len();
    let filter = quantised.weight.len() / quantised.scale.len();
    for k in taken {
        let weights = quantised.weight[k * filter..(k + 1) * filter].iter().enumerate();
        let sum: f64 = weights.map(|(at, w)| f64::from(*w) * 255.0 * f64::from(mean[at % 3])).sum();
        quantised.bias[k] -= (f64::from(quantised.scale[k]) * sum) as f32;
    }
    quantised.padding = mean.iter().map(|mean| (255.0 * mean).round() as u8).collect();
    quantised
}

fn level(weight: f32, scale: f32) -> f32 {
    (weight / scale).round_ties_even().clamp(-LEVELS, LEVELS)
}

/// The scale with the least mean square error, and the levels.
fn best(filter: &[f32], row: Option<usize>) -> (f32, Vec<i8>) {
    let max = filter.iter().fold(0.0f32, |max, weight| max.max(weight.abs()));
    // A filter of zeros has a scale too; a smaller one has no inverse.
    if max < f32::MIN_POSITIVE * LEVELS {
        return (1.0, vec![0; filter.len()]);
    }
    let mut best = (f64::INFINITY, 1.0, vec![]);
    for i in 0..CANDIDATES {
        let scale = max / LEVELS * LEAST * STEP.powi(i as i32);
        let square = |weight: f32, level: f32| f64::from(weight - level * scale).powi(2);
        // Without the quads, which only add to it. Where nothing is clamped it grows with the scale.
        let least: f64 = filter.iter().map(|&weight| square(weight, level(weight, scale))).sum();
        if least >= best.0 && scale > max / LEVELS {
            break;
        }
        if least >= best.0 {
            continue;
        }
        let levels = levels(filter, scale, row);
        let error =
            filter.iter().zip(&levels).map(|(&weight, &level)| square(weight, f32::from(level))).sum();
        if error < best.0 {
            best = (error, scale, levels);
        }
    }
    (best.1, best.2)
}

fn levels(filter: &[f32], scale: f32, row: Option<usize>) -> Vec<i8> {
    let Some(row) = row else {
        return filter.iter().map(|weight| level(*weight, scale) as i8).collect();
    };
    let real: Vec<f32> = filter.iter().map(|weight| weight / scale).collect();
    let mut levels = vec![0; filter.len()];
    real.chunks(row).zip(levels.chunks_mut(row)).for_each(|(real, levels)| quads::round(real, levels));
    debug_assert!(quads::hold(Isa::PORTABLE, &levels, row));
    levels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_within_half_a_step_or_better_in_the_mean() {
        let pool = Pool::new(1);
        let weight: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        let mut with_zeros = weight.clone();
        with_zeros[500..].fill(0.0);
        let folded = Folded { weight: with_zeros.clone(), bias: vec![0.5, 0.25] };
        let quantised = quantise(&pool, &folded, Inputs { channels: 1, row: None });
        assert_eq!((&quantised.bias[..], &quantised.padding[..]), (&[0.5, 0.25][..], &[0][..]));
        let error: f64 = with_zeros[..500]
            .iter()
            .zip(&quantised.weight)
            .map(|(w, q)| f64::from(w - quantised.scale[0] * f32::from(*q)).powi(2))
            .sum();
        // A uniform error of one step's width has a variance of 1/12.
        let bound = 500.0 / 12.0 * (1.0f64 / 127.0).powi(2) * 1.1;
        assert!(error < bound, "{error} {bound}");
        assert!(quantised.weight[500..].iter().all(|&q| q == 0) && quantised.scale[1] > 0.0);
    }

    /// A filter of equal weights fills its quads; the scale that fits them loses nothing.
    #[test]
    fn quads_hold_and_cost_a_scale_at_most() {
        let folded = Folded { weight: vec![0.5; 48], bias: vec![0.0] };
        let quantised = quantise(&Pool::new(1), &folded, Inputs { channels: 16, row: Some(16) });
        assert!(quads::hold(Isa::PORTABLE, &quantised.weight, 16));
        for level in &quantised.weight {
            let error = (f32::from(*level) * quantised.scale[0] - 0.5).abs();
            // Scales are a 32nd apart, and levels about 30: at worst half of the one or of the other.
            assert!(error <= 0.5 / 32.0, "{level} at {}", quantised.scale[0]);
        }
    }

    /// On bytes, the stem gives what it gives on the normalised image, up to the rounding of its weights.
    #[test]
    fn the_stem_on_bytes_is_the_stem_on_the_normalised_image() {
        let normalisation = Normalisation::IMAGENET;
        let weight: Vec<f32> = (0..2 * 49 * 3).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
        let folded = Folded { weight, bias: vec![0.25, -3.0] };
        let quantised = quantise_stem(&Pool::new(1), &folded, 7 * 3, &normalisation);
        assert_eq!(quantised.padding, [124, 116, 104]);
        let bytes: Vec<u8> = (0..49 * 3).map(|i| ((i * 53) % 256) as u8).collect();
        let x = crate::infer::reference::normalise(&bytes, &normalisation);
        for k in 0..2 {
            let filter = k * 147..(k + 1) * 147;
            let want: f32 = x.iter().zip(&folded.weight[filter.clone()]).map(|(x, w)| x * w).sum();
            let products = bytes.iter().zip(&quantised.weight[filter]);
            let sum: i32 = products.map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
            let got = quantised.scale[k] * sum as f32 + quantised.bias[k];
            // 147 roundings of up to half a step of about 1/127 of a weight, on values of up to 2.6; their sum as a
            // random walk: 0.29 / 127 * 1.5 * sqrt(147), four times.
            let bound = 4.0 * 0.29 / 127.0 * 1.5 * 147f32.sqrt();
            assert!((got - want - folded.bias[k]).abs() < bound, "{k}: {got} {}", want + folded.bias[k]);
        }
    }
}
