//! Every backward formula against central differences, in f64, of an independent forward pass (`exact`).
//!
//! The loss is sum(y dy), so that its gradient is what the backward pass should give for dy. With step H the central
//! difference itself is off by about H^2 from curvature and by 2^-53 |loss| / H from rounding: both near 1e-9 here, far
//! below the f32 of what is tested, from which the tolerances come.

use super::exact;
use super::formula::signed;
use super::record::widen;
use engine::backend::cpu::Cpu;
use engine::backend::cpu::batch_norm::{self, Affine, BackwardApply, Epilogue, Gate};
use engine::backend::cpu::pooling::{self, PoolShape};
use engine::backend::loss::{LossOptions, softmax_cross_entropy};
use engine::model::graph::ConvShape;
use engine::simd::conv::{self, Scratch};
use engine::simd::isa::Isa;
use engine::simd::pool::Pool;

const H: f64 = 1.0 / 65536.0;
/// Half a unit in the last place of f32.
const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

/// A sum of `terms` products in f32 after `terms_before` roundings of each: at most that many roundings of the sum of
/// magnitudes, which is taken as sqrt(terms) times the largest element of the gradient.
fn tolerance(terms: usize) -> f64 {
    (8.0 + terms as f64) * (terms as f64).sqrt() * ROUNDING + 1e-8
}

/// Every element of `gradient` against the slope of `loss` at `at`; prints and judges the worst, relative to the
/// largest slope.
fn check(what: &str, gradient: &[f32], at: &[f32], tolerance: f64, loss: impl Fn(&[f64]) -> f64) {
    assert_eq!(gradient.len(), at.len(), "{what}");
    let mut moved: Vec<f64> = widen(at).collect();
    let mut slope = |i: usize| {
        let start = moved[i];
        moved[i] = start + H;
        let above = loss(&moved);
        moved[i] = start - H;
        let below = loss(&moved);
        moved[i] = start;
        (above - below) / (2.0 * H)
    };
    let slopes: Vec<f64> = (0..at.len()).map(&mut slope).collect();
    let largest = slopes.iter().fold(0.0f64, |largest, slope| largest.max(slope.abs()));
    let error = |i: usize| (f64::from(gradient[i]) - slopes[i]).abs() / largest;
    let worst =
        (0..at.len()).max_by(|&a, &b| error(a).total_cmp(&error(b))).expect("a gradient has elements");
    let (error, got, want) = (error(worst), gradient[worst], slopes[worst]);
    println!("  {what:<28} {error:.1e} of {tolerance:.1e}, worst at {worst}: {got} against {want}");
    assert!(error <= tolerance, "{what}");
}

fn dot(y: &[f64], dy: &[f32]) -> f64 {
    y.iter().zip(widen(dy)).map(|(y, dy)| y * dy).sum()
}

fn wide(values: &[f32]) -> Vec<f64> {
    widen(values).collect()
}

fn everywhere(test: impl Fn(Cpu)) {
    let pool = Pool::new(2);
    for isa in Isa::available() {
        println!("\nfinite differences, {}: error of allowed", isa.name());
        test(Cpu { pool: &pool, isa });
    }
}

#[test]
fn convolutions_and_the_classifier() {
    let square = |h, w, c, k, r, stride, pad| ConvShape { h, w, c, k, r, s: r, stride, pad };
    let shapes = [
        ("3x3", 2, square(5, 7, 3, 5, 3, 1, 1)),
        ("3x3/2", 1, square(7, 5, 17, 3, 3, 2, 1)),
        ("7x7/2", 1, square(9, 11, 3, 5, 7, 2, 3)),
        ("1x1", 2, square(3, 5, 7, 19, 1, 1, 0)),
        ("1x1/2", 1, square(5, 7, 3, 5, 1, 2, 0)),
        ("linear", 1, square(1, 5, 13, 7, 1, 1, 0)),
    ];
    everywhere(|Cpu { pool, isa }| {
        for (name, n, shape) in &shapes {
            let x = signed("differences.x", n * shape.h * shape.w * shape.c);
            let w = signed("differences.w", shape.weights());
            let dy = signed("differences.dy", n * shape.p() * shape.q() * shape.k);
            let (mut dx, mut dw) = (vec![f32::NAN; x.len()], vec![f32::NAN; w.len()]);
            let scratch = &mut Scratch::default();
            conv::dgrad(pool, isa, shape, *n, &dy, &w, &mut dx, false, scratch);
            conv::wgrad(pool, isa, shape, *n, &x, &dy, &mut dw, false, scratch);
            let (wide_x, wide_w) = (wide(&x), wide(&w));
            let by_x = |x: &[f64]| dot(&exact::conv(shape, *n, x, &wide_w), &dy);
            let by_w = |w: &[f64]| dot(&exact::conv(shape, *n, &wide_x, w), &dy);
            check(&format!("{name} by x"), &dx, &x, tolerance(shape.r * shape.s * shape.k), by_x);
            check(&format!("{name} by w"), &dw, &w, tolerance(n * shape.p() * shape.q()), by_w);
        }
    });
}

#[test]
fn batch_norm_with_residual_and_relu() {
    const CHANNELS: usize = 5;
    let rows = 2 * 3 * 7;
    let [x, residual, dy] =
        ["x", "residual", "dy"].map(|part| signed(&format!("bn.fd.{part}"), rows * CHANNELS));
    let [gamma, beta] = ["gamma", "beta"].map(|part| signed(&format!("bn.fd.{part}"), CHANNELS));
    for residual in [&residual, &vec![0.0; x.len()]] {
        let before = exact::batch_norm(&wide(&x), &wide(&gamma), &wide(&beta), &wide(residual));
        let nearest = before.iter().fold(f64::INFINITY, |nearest, y| nearest.min(y.abs()));
        assert!(nearest > 16.0 * H, "the ReLU bends within reach of a step: {nearest}");
        let (open, all) = (before.iter().filter(|y| **y > 0.0).count(), before.len());
        assert!((all / 4..all * 3 / 4).contains(&open), "{open} of {all} open: the mask is hardly tested");
    }
    everywhere(|cpu| {
        for (name, with_residual, relu) in
            [("plain", false, false), ("ReLU", false, true), ("residual + ReLU", true, true)]
        {
            let added = if with_residual { residual.clone() } else { vec![0.0; x.len()] };
            let statistics = batch_norm::statistics(cpu, &x, CHANNELS);
            let scale: Vec<f32> = gamma.iter().zip(&statistics.rstd).map(|(g, r)| g * r).collect();
            let affine = Affine { mean: &statistics.mean, scale: &scale, shift: &beta };
            let mut y = vec![f32::NAN; x.len()];
            let epilogue = Epilogue { residual: with_residual.then_some(&added), relu };
            batch_norm::apply(cpu, affine, epilogue, &x, &mut y);
            let mut behind = dy.clone();
            // As the backend chooses it.
            let gate = match (relu, with_residual) {
                (false, _) => Gate::Open,
                (true, true) => Gate::Output(&y),
                (true, false) => Gate::Recomputed(affine),
            };
            let gradients = batch_norm::backward_reduce(cpu, &statistics, &x, gate, &mut behind);
            let apply = BackwardApply::new(&statistics, &gamma, &gradients);
            let mut dx = behind.clone();
            match gate {
                Gate::Recomputed(forward) => apply.run_gated(cpu, forward, &x, &mut dx),
                _ => apply.run(cpu, &x, &behind, &mut dx),
            }
            let wide = [&x, &gamma, &beta, &added].map(|values| wide(values));
            let loss = |part: usize, values: &[f64]| {
                let mut inputs = [0, 1, 2, 3].map(|part| wide[part].as_slice());
                inputs[part] = values;
                let [x, gamma, beta, residual] = inputs;
                let mut y = exact::batch_norm(x, gamma, beta, residual);
                if relu {
                    y.iter_mut().for_each(|y| *y = y.max(0.0));
                }
                dot(&y, &dy)
            };
            let parts =
                [("x", &dx, &x), ("gamma", &gradients.gamma, &gamma), ("beta", &gradients.beta, &beta)];
            for (part, (what, gradient, at)) in parts.into_iter().enumerate() {
                check(&format!("{name} by {what}"), gradient, at, tolerance(rows), |v| loss(part, v));
            }
            if with_residual {
                check(&format!("{name} by the residual"), &behind, &added, tolerance(1), |v| loss(3, v));
            }
        }
    });
}

#[test]
fn pools() {
    let n = 2;
    everywhere(|cpu| {
        for (h, w, c) in [(5, 7, 3), (6, 9, 5), (1, 3, 17)] {
            let shape = PoolShape { h, w, c };
            // All different, by much more than a step: i -> 101 i mod a prime permutes.
            let len = n * h * w * c;
            let x: Vec<f32> = (0..len).map(|i| (i * 101 % 547) as f32 / 64.0 - 4.0).collect();
            assert!(len <= 547, "values repeat");
            let dy = signed("pool.fd.dy", n * shape.p() * shape.q() * c);
            let (mut y, mut index, mut dx) =
                (vec![f32::NAN; dy.len()], vec![0; dy.len()], vec![f32::NAN; len]);
            pooling::max_forward(cpu, shape, &x, &mut y, &mut index);
            pooling::max_backward(cpu, shape, &dy, &index, &mut dx);
            let loss = |x: &[f64]| dot(&exact::max_pool(shape, n, x), &dy);
            check(&format!("max pool {h} x {w} x {c}"), &dx, &x, tolerance(4), loss);
            let mut dx = vec![f32::NAN; len];
            pooling::average_backward(cpu, shape, &dy[..n * c], &mut dx);
            let loss = |x: &[f64]| dot(&exact::average_pool(shape, n, x), &dy[..n * c]);
            check(&format!("average pool {h} x {w} x {c}"), &dx, &x, tolerance(1), loss);
        }
    });
}

#[test]
fn cross_entropy() {
    println!("\nfinite differences: error of allowed");
    for (n, classes, smoothing) in [(3, 7, 0.0), (3, 7, 0.125), (5, 2, 0.5)] {
        let logits: Vec<f32> = signed("xent.fd", n * classes).iter().map(|x| 4.0 * x).collect();
        let labels: Vec<u32> = (0..n).map(|i| (i * 3 % classes) as u32).collect();
        let options = LossOptions { label_smoothing: smoothing, scale: 1.0 / n as f32 };
        let mut gradient = vec![f32::NAN; logits.len()];
        softmax_cross_entropy(&logits, &labels, options, Some(&mut gradient));
        let loss = |logits: &[f64]| exact::cross_entropy(logits, &labels, f64::from(smoothing));
        check(&format!("{n} x {classes}, smoothing {smoothing}"), &gradient, &logits, tolerance(1), loss);
    }
}
