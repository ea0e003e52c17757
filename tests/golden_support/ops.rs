//! Single operations in full, on every instruction set.

use super::formula::{bits, labels, signed};
use super::record::{self, relative, widen};
use engine::backend::Loss;
use engine::backend::cpu::Cpu;
use engine::backend::cpu::batch_norm::{self, Affine, BackwardApply, Epilogue, Gate, Statistics};
use engine::backend::cpu::pooling::{self, PoolShape};
use engine::backend::loss::Target;
use engine::model::graph::ConvShape;
use engine::optim::sgd::Sgd;
use engine::simd::conv::{self, Scratch, kcrs_from_rsck, rsck_from_kcrs};
use engine::simd::isa::Isa;
use engine::simd::pool::Pool;
use serde::Deserialize;
use std::collections::BTreeMap;

type Named<T> = BTreeMap<String, T>;

#[derive(Deserialize)]
struct Ops {
    conv: Named<Conv>,
    batch_norm: Named<BatchNorm>,
    max_pool: Named<Pooling>,
    avg_pool: Named<Pooling>,
    linear: Named<Linear>,
    cross_entropy: Named<CrossEntropy>,
    sgd: Named<SgdSteps>,
}

#[derive(Deserialize)]
struct Conv {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    k: usize,
    r: usize,
    s: usize,
    stride: usize,
    pad: usize,
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
}

#[derive(Deserialize)]
struct BatchNorm {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    offset: f32,
    y: Vec<f64>,
    running_mean: Vec<f64>,
    running_var: Vec<f64>,
    y_eval: Vec<f64>,
    dx: Vec<f64>,
    dgamma: Vec<f64>,
    dbeta: Vec<f64>,
}

#[derive(Deserialize)]
struct Pooling {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    y: Vec<f64>,
    dx: Vec<f64>,
}

#[derive(Deserialize)]
struct Linear {
    n: usize,
    features: usize,
    classes: usize,
    y: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    db: Vec<f64>,
}

#[derive(Deserialize)]
struct CrossEntropy {
    n: usize,
    classes: usize,
    scale: f32,
    label_smoothing: f32,
    mix: Option<f32>,
    labels: Vec<u32>,
    loss: f64,
    dlogits: Vec<f64>,
}

#[derive(Deserialize)]
struct SgdSteps {
    n: usize,
    momentum: f32,
    nesterov: bool,
    weight_decay: f32,
    lr: Vec<f32>,
    after: Vec<AfterStep>,
}

#[derive(Deserialize)]
struct AfterStep {
    p: Vec<f64>,
    momentum: Vec<f64>,
}

/// Prints and judges max|got - want| / max|want|.
pub fn check(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    let error = relative(widen(got), want);
    println!("  {what:<34} {error:.1e} of {tolerance:.1e}");
    assert!(error <= tolerance, "{what}: {error:.2e} above {tolerance:.2e}");
}

/// 2^-24, half a unit in the last place.
pub const ROUNDING: f64 = 1.0 / (1u64 << 24) as f64;

/// 4 K 2^-24 rms(x) rms(w), relative to the largest result, which is above rms(x) rms(w) in every case here. In 32,000
/// random dots of 64 to 4608 terms the worst sequential f32 sum used 1.4 of the 4.
fn sum_tolerance(terms: usize) -> f64 {
    4.0 * terms as f64 * ROUNDING
}

fn everywhere(test: impl Fn(Cpu)) {
    let pool = Pool::new(2);
    for isa in Isa::available() {
        println!("\nops, {}: error of allowed", isa.name());
        test(Cpu { pool: &pool, isa });
    }
}

#[test]
fn convolutions() {
    let ops: Ops = record::read("ops");
    everywhere(|Cpu { pool, isa }| {
        for (name, case) in &ops.conv {
            let Conv { n, h, w, c, k, r, s, stride, pad, .. } = *case;
            let shape = ConvShape { h, w, c, k, r, s, stride, pad };
            let x = signed(&format!("{name}.x"), n * h * w * c);
            let dy = signed(&format!("{name}.dy"), n * shape.p() * shape.q() * k);
            let mut weight = vec![0.0; shape.weights()];
            rsck_from_kcrs(&shape, &signed(&format!("{name}.w"), shape.weights()), &mut weight);
            let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
            let (mut dw, mut kcrs) = (vec![f32::NAN; weight.len()], vec![f32::NAN; weight.len()]);
            let scratch = &mut Scratch::default();
            conv::forward(pool, isa, &shape, n, &x, &weight, &mut y, scratch);
            conv::dgrad(pool, isa, &shape, n, &dy, &weight, &mut dx, false, scratch);
            conv::wgrad(pool, isa, &shape, n, &x, &dy, &mut dw, false, scratch);
            kcrs_from_rsck(&shape, &dw, &mut kcrs);
            check(&format!("{name} forward"), &y, &case.y, sum_tolerance(c * r * s));
            check(&format!("{name} dgrad"), &dx, &case.dx, sum_tolerance(k * r * s));
            check(&format!("{name} wgrad"), &kcrs, &case.dw, sum_tolerance(n * shape.p() * shape.q()));
        }
    });
}

#[test]
fn batch_norms() {
    let ops: Ops = record::read("ops");
    everywhere(|cpu| {
        for (name, case) in &ops.batch_norm {
            let BatchNorm { n, h, w, c, offset, .. } = *case;
            let mut x = signed(&format!("{name}.x"), n * h * w * c);
            x.iter_mut().for_each(|x| *x += offset);
            let [gamma, beta] = ["gamma", "beta"].map(|part| signed(&format!("{name}.{part}"), c));
            let mut dy = signed(&format!("{name}.dy"), x.len());
            let normalise = |statistics: &Statistics| {
                let scale: Vec<f32> =
                    gamma.iter().zip(&statistics.rstd).map(|(gamma, rstd)| gamma * rstd).collect();
                let affine = Affine { mean: &statistics.mean, scale: &scale, shift: &beta };
                let mut y = vec![f32::NAN; x.len()];
                batch_norm::apply(cpu, affine, Epilogue { residual: None, relu: false }, &x, &mut y);
                y
            };
            let statistics = batch_norm::statistics(cpu, &x, c);
            let y = normalise(&statistics);
            let (mut mean, mut var) = (vec![0.0; c], vec![1.0; c]);
            batch_norm::update_running(&statistics, &mut mean, &mut var);
            let y_eval = normalise(&Statistics::running(&mean, &var));
            let gradients = batch_norm::backward_reduce(cpu, &statistics, &x, Gate::Open, &mut dy);
            let mut dx = vec![f32::NAN; x.len()];
            BackwardApply::new(&statistics, &gamma, &gradients).run(cpu, &x, &dy, &mut dx);
            // A mean of up to `offset` in f32 is off by offset 2^-24, against values of about 1; a sum of a
            // channel's values in f32 meets that error `rows` times.
            let mean_error = f64::from(offset).max(1.0) * ROUNDING;
            let tolerance = sum_tolerance(n * h * w) + 4.0 * mean_error;
            check(&format!("{name} forward"), &y, &case.y, tolerance);
            check(&format!("{name} running mean"), &mean, &case.running_mean, 4.0 * ROUNDING);
            check(&format!("{name} running variance"), &var, &case.running_var, tolerance);
            check(&format!("{name} evaluation"), &y_eval, &case.y_eval, tolerance);
            check(&format!("{name} dx"), &dx, &case.dx, tolerance);
            check(&format!("{name} dgamma"), &gradients.gamma, &case.dgamma, tolerance);
            check(&format!("{name} dbeta"), &gradients.beta, &case.dbeta, tolerance);
        }
    });
}

#[test]
fn pools() {
    let ops: Ops = record::read("ops");
    everywhere(|cpu| {
        for (name, case) in &ops.max_pool {
            let Pooling { n, h, w, c, .. } = *case;
            let shape = PoolShape { h, w, c };
            let level = |bits: u64| (bits >> 62) as f32 - 3.0;
            let x: Vec<f32> = bits(&format!("{name}.x")).map(level).take(n * h * w * c).collect();
            let len = n * shape.p() * shape.q() * c;
            let (mut y, mut index, mut dx) = (vec![f32::NAN; len], vec![0; len], vec![f32::NAN; x.len()]);
            pooling::max_forward(cpu, shape, &x, &mut y, &mut index);
            let dy = signed(&format!("{name}.dy"), len);
            pooling::max_backward(cpu, shape, &dy, &index, &mut dx);
            check(&format!("{name} forward"), &y, &case.y, 0.0);
            // Up to four windows meet in a pixel.
            check(&format!("{name} backward"), &dx, &case.dx, sum_tolerance(4));
        }
        for (name, case) in &ops.avg_pool {
            let Pooling { n, h, w, c, .. } = *case;
            let shape = PoolShape { h, w, c };
            let x = signed(&format!("{name}.x"), n * h * w * c);
            let (mut y, mut dx) = (vec![f32::NAN; n * c], vec![f32::NAN; x.len()]);
            pooling::average_forward(cpu, shape, &x, &mut y);
            pooling::average_backward(cpu, shape, &signed(&format!("{name}.dy"), n * c), &mut dx);
            check(&format!("{name} forward"), &y, &case.y, sum_tolerance(h * w));
            check(&format!("{name} backward"), &dx, &case.dx, 2.0 * ROUNDING);
        }
    });
}

/// The classifier, as the backend runs it: a 1x1 convolution over a row of n pixels.
#[test]
fn linear_layers() {
    let ops: Ops = record::read("ops");
    everywhere(|Cpu { pool, isa }| {
        for (name, case) in &ops.linear {
            let Linear { n, features: c, classes: k, .. } = *case;
            let shape = ConvShape { h: 1, w: n, c, k, r: 1, s: 1, stride: 1, pad: 0 };
            let [x, w, bias, dy] = [("x", n * c), ("w", k * c), ("b", k), ("dy", n * k)]
                .map(|(part, len)| signed(&format!("{name}.{part}"), len));
            let mut weight = vec![0.0; w.len()];
            rsck_from_kcrs(&shape, &w, &mut weight);
            let (mut y, mut dx) = (vec![f32::NAN; n * k], vec![f32::NAN; n * c]);
            let (mut dw, mut kcrs) = (vec![f32::NAN; k * c], vec![f32::NAN; k * c]);
            let scratch = &mut Scratch::default();
            conv::forward(pool, isa, &shape, 1, &x, &weight, &mut y, scratch);
            y.chunks_exact_mut(k).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
            conv::dgrad(pool, isa, &shape, 1, &dy, &weight, &mut dx, false, scratch);
            conv::wgrad(pool, isa, &shape, 1, &x, &dy, &mut dw, false, scratch);
            kcrs_from_rsck(&shape, &dw, &mut kcrs);
            let db: Vec<f32> = (0..k).map(|k_| dy.iter().skip(k_).step_by(k).sum()).collect();
            check(&format!("{name} forward"), &y, &case.y, sum_tolerance(c + 1));
            check(&format!("{name} dx"), &dx, &case.dx, sum_tolerance(k));
            check(&format!("{name} dw"), &kcrs, &case.dw, sum_tolerance(n));
            check(&format!("{name} db"), &db, &case.db, sum_tolerance(n));
        }
    });
}

#[test]
fn cross_entropies() {
    let ops: Ops = record::read("ops");
    println!("\ncross entropy: error of allowed");
    for (name, case) in &ops.cross_entropy {
        let CrossEntropy { n, classes, scale, label_smoothing, .. } = *case;
        let logits: Vec<f32> =
            signed(&format!("{name}.logits"), n * classes).iter().map(|x| x * scale).collect();
        assert_eq!(labels(&format!("{name}.labels"), n, classes), case.labels);
        let target = |i: usize| match case.mix {
            None => Target::of(case.labels[i]),
            Some(lambda) => Target { label: case.labels[i], partner: case.labels[(i + n - 1) % n], lambda },
        };
        let targets: Vec<Target> = (0..n).map(target).collect();
        let loss = Loss { label_smoothing, ..Loss::default() };
        let mut gradient = vec![f32::NAN; logits.len()];
        let score = loss.of(&logits, &targets, 1.0 / n as f32, Some(&mut gradient));
        // f64 but for the smoothing and the scale, which are f32, and the result's own rounding. The smoothing's
        // rounding is multiplied by the span of the logits, relative to a loss that holds a tenth of it.
        check(&format!("{name} loss"), &[(score.loss / n as f64) as f32], &[case.loss], 4.0 * ROUNDING);
        check(&format!("{name} dlogits"), &gradient, &case.dlogits, 4.0 * ROUNDING);
    }
}

#[test]
fn sgd_steps() {
    let ops: Ops = record::read("ops");
    println!("\nSGD: error of allowed");
    for (name, case) in &ops.sgd {
        let SgdSteps { n, momentum, nesterov, weight_decay, .. } = *case;
        let (mut p, mut v) = (signed(&format!("{name}.p"), n), vec![0.0; n]);
        for (t, (&lr, after)) in case.lr.iter().zip(&case.after).enumerate() {
            let rule = Sgd { lr, momentum, nesterov, weight_decay };
            rule.step(&mut p, &mut v, &signed(&format!("{name}.g{t}"), n));
            // Six operations and three rounded constants a step.
            let tolerance = 9.0 * (t + 1) as f64 * ROUNDING;
            check(&format!("{name} {t} weights"), &p, &after.p, tolerance);
            check(&format!("{name} {t} momentum"), &v, &after.momentum, tolerance);
        }
    }
}
