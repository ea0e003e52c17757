//! Forward operations in f64, in plain loops from their definitions; they share no code with the backend. Tensors as
//! there: NHWC, weights RSCK.

use engine::backend::cpu::pooling::PoolShape;
use engine::model::graph::ConvShape;

pub fn conv(shape: &ConvShape, n: usize, x: &[f64], weight: &[f64]) -> Vec<f64> {
    let ConvShape { h, w, c, k, r, s, stride, pad } = *shape;
    let (rows, columns) = (shape.p(), shape.q());
    let mut y = vec![0.0; n * rows * columns * k];
    for (pixel, y) in y.chunks_exact_mut(k).enumerate() {
        let (image, p, q) = (pixel / (rows * columns), pixel / columns % rows, pixel % columns);
        for tap in 0..r * s {
            let (row, column) = (p * stride + tap / s, q * stride + tap % s);
            if !(pad..h + pad).contains(&row) || !(pad..w + pad).contains(&column) {
                continue;
            }
            let x = &x[((image * h + row - pad) * w + column - pad) * c..][..c];
            for (channel, x) in x.iter().enumerate() {
                for (filter, y) in y.iter_mut().enumerate() {
                    *y += x * weight[(tap * c + channel) * k + filter];
                }
            }
        }
    }
    y
}

/// gamma (x - mean) / sqrt(var + 1e-5) + beta + residual, before any ReLU; the batch's own statistics.
pub fn batch_norm(x: &[f64], gamma: &[f64], beta: &[f64], residual: &[f64]) -> Vec<f64> {
    let channels = gamma.len();
    let rows = (x.len() / channels) as f64;
    let column = |c: usize| x.iter().skip(c).step_by(channels);
    let mut y = residual.to_vec();
    for c in 0..channels {
        let mean = column(c).sum::<f64>() / rows;
        let var = column(c).map(|x| (x - mean).powi(2)).sum::<f64>() / rows;
        for (y, x) in y.iter_mut().skip(c).step_by(channels).zip(column(c)) {
            *y += gamma[c] * (x - mean) / (var + 1e-5).sqrt() + beta[c];
        }
    }
    y
}

/// 3x3, stride 2, padding 1.
pub fn max_pool(shape: PoolShape, n: usize, x: &[f64]) -> Vec<f64> {
    let PoolShape { h, w, c } = shape;
    let mut y = vec![f64::NEG_INFINITY; n * shape.p() * shape.q() * c];
    for (i, &x) in x.iter().enumerate() {
        let (image, row, column, channel) = (i / (h * w * c), i / (w * c) % h, i / c % w, i % c);
        // Pixel `row` lies in the windows around 2 p with |row - 2 p| <= 1.
        for p in (row / 2..=row.div_ceil(2)).filter(|&p| p < shape.p()) {
            for q in (column / 2..=column.div_ceil(2)).filter(|&q| q < shape.q()) {
                let y = &mut y[((image * shape.p() + p) * shape.q() + q) * c + channel];
                *y = y.max(x);
            }
        }
    }
    y
}

pub fn average_pool(shape: PoolShape, n: usize, x: &[f64]) -> Vec<f64> {
    let pixels = shape.h * shape.w;
    let mean = |image: usize, channel: usize| {
        let pixel = |i: usize| x[(image * pixels + i) * shape.c + channel];
        (0..pixels).map(pixel).sum::<f64>() / pixels as f64
    };
    (0..n * shape.c).map(|i| mean(i / shape.c, i % shape.c)).collect()
}

/// The mean over the rows of -sum_k t_k log softmax_k, t = (1 - e) onehot + e / classes.
pub fn cross_entropy(logits: &[f64], labels: &[u32], smoothing: f64) -> f64 {
    let classes = logits.len() / labels.len();
    let row = |(row, &label): (&[f64], &u32)| {
        let log_sum = row.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let target =
            |k: usize| smoothing / classes as f64 + if k == label as usize { 1.0 - smoothing } else { 0.0 };
        row.iter().enumerate().map(|(k, logit)| -target(k) * (logit - log_sum)).sum::<f64>()
    };
    logits.chunks_exact(classes).zip(labels).map(row).sum::<f64>() / labels.len() as f64
}
