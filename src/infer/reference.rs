//! The graph run as it stands, one operation after another, nothing folded or fused: what compiled programs and training
//! backends are compared with. Slow and clear: f32 between operations, every sum in f64.

use super::fold::{krsc_from_kcrs, rsck_from_krsc};
use super::weights::Normalisation;
use crate::error::{Error, Result};
use crate::model::graph::{ConvShape, EPS, Graph, Op, TensorId};
use crate::model::params::Role;
use crate::simd::dispatch::multiversion;
use crate::simd::isa::Isa;
use crate::tensor::HostTensor;

/// A network with its unfused weights.
pub struct Reference {
    graph: Graph,
    /// By parameter; convolution weights [r][s][c][k], the rest as in the state dict.
    params: Vec<Vec<f32>>,
    /// By buffer.
    running: Vec<Vec<f32>>,
    normalisation: Normalisation,
}

/// Every tensor that a run made.
pub struct Activations<'a> {
    graph: &'a Graph,
    images: usize,
    values: Vec<Vec<f32>>,
}

impl Reference {
    /// `read` gives the state dict's tensors by name, such as [`super::file::ModelFile::f32`].
    pub fn new(
        graph: &Graph,
        normalisation: Normalisation,
        read: impl Fn(&str) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let read = |name: &str, elements: usize| {
            let values = read(name)?;
            if values.len() == elements {
                return Ok(values);
            }
            let got = values.len();
            Err(Error::input(format!("{name} has {got} elements, {} wants {elements}", graph.spec.name)))
        };
        let mut params = vec![];
        for param in &graph.params {
            params.push(read(&param.name, param.elements())?);
        }
        for op in &graph.ops {
            if let Op::Conv { weight, shape, .. } = op {
                debug_assert_eq!(graph.params[*weight].role, Role::ConvWeight);
                let krsc = krsc_from_kcrs(shape, &params[*weight]);
                params[*weight] = rsck_from_krsc(shape.k, &krsc);
            }
        }
        let running = graph.buffers.iter().map(|buffer| read(&buffer.name, buffer.channels));
        let running = running.collect::<Result<_>>()?;
        Ok(Self { graph: graph.clone(), params, running, normalisation })
    }

    /// Runs u8 images [n, resolution, resolution, 3].
    pub fn run(&self, images: &[u8]) -> Result<Activations<'_>> {
        let graph = &self.graph;
        let pixels = graph.tensors[graph.input].elements();
        if images.is_empty() || !images.len().is_multiple_of(pixels) {
            let (got, side) = (images.len(), graph.resolution);
            return Err(Error::failed(format!("images have {got} bytes, wanted n x {side} x {side} x 3")));
        }
        let n = images.len() / pixels;
        let mut values: Vec<Vec<f32>> = vec![vec![]; graph.tensors.len()];
        values[graph.input] = normalise(images, &self.normalisation);
        for op in &graph.ops {
            if let Some((y, result)) = self.operation(op, n, &values) {
                values[y] = result;
            }
        }
        Ok(Activations { graph, images: n, values })
    }

    /// The tensor that `op` makes, of `n` images.
    fn operation(&self, op: &Op, n: usize, values: &[Vec<f32>]) -> Option<(TensorId, Vec<f32>)> {
        let info = |tensor: TensorId| &self.graph.tensors[tensor];
        Some(match *op {
            Op::Conv { x, y, weight, ref shape } => (y, convolve(shape, n, &values[x], &self.params[weight])),
            Op::BatchNorm { x, y, gamma, beta, mean, var } => {
                let norm = [&self.params[gamma], &self.params[beta], &self.running[mean], &self.running[var]];
                (y, batch_norm(&values[x], norm))
            }
            Op::Relu { x, y } => (y, values[x].iter().map(|x| x.max(0.0)).collect()),
            Op::Add { a, b, y } => (y, values[a].iter().zip(&values[b]).map(|(a, b)| a + b).collect()),
            Op::MaxPool { x, y } => {
                (y, max_pool([info(x).h, info(x).w, info(x).c], &values[x], f32::NEG_INFINITY))
            }
            Op::GlobalAvgPool { x, y } => (y, average_pool(info(x).c, info(x).elements(), &values[x])),
            Op::Linear { x, y, weight, bias } => {
                (y, linear(&values[x], &self.params[weight], &self.params[bias]))
            }
            Op::SoftmaxXent { .. } => return None,
        })
    }
}

impl Activations<'_> {
    /// By the graph's name, NHWC: `layer1.0.add`.
    pub fn read(&self, name: &str) -> Option<HostTensor> {
        let tensor = self.graph.tensors.iter().position(|tensor| tensor.name == name)?;
        let info = &self.graph.tensors[tensor];
        let shape = vec![self.images, info.h, info.w, info.c];
        Some(HostTensor { shape, data: self.values[tensor].clone() })
    }

    pub fn tensor(&self, tensor: TensorId) -> &[f32] {
        &self.values[tensor]
    }

    /// [n, classes].
    pub fn logits(&self) -> &[f32] {
        &self.values[self.graph.logits]
    }
}

/// u8 [..][3] -> f32 of the same shape.
pub fn normalise(images: &[u8], normalisation: &Normalisation) -> Vec<f32> {
    let Normalisation { mean, std } = normalisation.to_owned();
    let value = |byte: u8, c: usize| (f64::from(byte) / 255.0 - f64::from(mean[c])) / f64::from(std[c]);
    let pixels = images.as_chunks::<3>().0.iter();
    pixels.flat_map(|pixel| [0, 1, 2].map(|c| value(pixel[c], c) as f32)).collect()
}

/// Calls `visit(tap, input pixel)` for the taps of output pixel (p, q) that lie inside the feature map; a tap counts
/// rows of the filter first.
pub fn taps(shape: &ConvShape, p: usize, q: usize, mut visit: impl FnMut(usize, usize)) {
    let inside = |at: usize, size: usize| (shape.pad..size + shape.pad).contains(&at).then(|| at - shape.pad);
    for r in 0..shape.r {
        let Some(row) = inside(p * shape.stride + r, shape.h) else { continue };
        for s in 0..shape.s {
            if let Some(column) = inside(q * shape.stride + s, shape.w) {
                visit(r * shape.s + s, row * shape.w + column);
            }
        }
    }
}

/// x [n,h,w,c], w [r,s,c,k] -> [n,p,q,k].
fn convolve(shape: &ConvShape, n: usize, x: &[f32], w: &[f32]) -> Vec<f32> {
    let (isa, c, k) = (Isa::current(), shape.c, shape.k);
    let mut y = Vec::with_capacity(n * shape.p() * shape.q() * k);
    let mut sums = vec![0.0f64; k];
    for x in x.chunks_exact(shape.h * shape.w * c) {
        for (p, q) in (0..shape.p()).flat_map(|p| (0..shape.q()).map(move |q| (p, q))) {
            sums.fill(0.0);
            taps(shape, p, q, |tap, pixel| {
                let x = &x[pixel * c..(pixel + 1) * c];
                add_products(isa, x, &w[tap * c * k..(tap + 1) * c * k], &mut sums);
            });
            y.extend(sums.iter().map(|&sum| sum as f32));
        }
    }
    y
}

multiversion! {
    /// sums [k] += x [c] w [c][k].
    fn add_products(x: &[f32], w: &[f32], sums: &mut [f64]) {
        for (x, w) in x.iter().zip(w.chunks_exact(sums.len())) {
            let x = f64::from(*x);
            sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += x * f64::from(*w));
        }
    }
}

/// gamma (x - mean) / sqrt(var + eps) + beta by channel; `norm` is gamma, beta, mean, var.
fn batch_norm(x: &[f32], norm: [&Vec<f32>; 4]) -> Vec<f32> {
    let [gamma, beta, mean, var] = norm;
    let factor: Vec<f64> =
        gamma.iter().zip(var).map(|(g, v)| f64::from(*g) / (f64::from(*v) + EPS).sqrt()).collect();
    let channels = gamma.len();
    let value = |(at, x): (usize, &f32)| {
        let c = at % channels;
        ((f64::from(*x) - f64::from(mean[c])) * factor[c] + f64::from(beta[c])) as f32
    };
    x.iter().enumerate().map(value).collect()
}

/// 3x3, stride 2, padding 1: x [n,h,w,c] -> [n,p,q,c]; `lowest` is below every element.
pub fn max_pool<T: PartialOrd + Copy>([h, w, c]: [usize; 3], x: &[T], lowest: T) -> Vec<T> {
    let window = ConvShape { h, w, c, k: c, r: 3, s: 3, stride: 2, pad: 1 };
    let mut y = vec![];
    for x in x.chunks_exact(h * w * c) {
        for (p, q) in (0..window.p()).flat_map(|p| (0..window.q()).map(move |q| (p, q))) {
            let mut largest = vec![lowest; c];
            taps(&window, p, q, |_, pixel| {
                let x = &x[pixel * c..(pixel + 1) * c];
                largest.iter_mut().zip(x).for_each(|(y, x)| *y = if *x > *y { *x } else { *y });
            });
            y.extend(largest);
        }
    }
    y
}

/// x [n,h,w,c] of `elements` an image -> [n,c], the mean over the pixels.
pub fn average_pool(channels: usize, elements: usize, x: &[f32]) -> Vec<f32> {
    let pixels = (elements / channels) as f64;
    let mean = |x: &[f32], c: usize| {
        let sum: f64 = x[c..].iter().step_by(channels).map(|&x| f64::from(x)).sum();
        (sum / pixels) as f32
    };
    x.chunks_exact(elements).flat_map(|x| (0..channels).map(move |c| mean(x, c))).collect()
}

/// x [n][features], w [classes][features] -> x w^T + bias.
fn linear(x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f32> {
    let features = w.len() / bias.len();
    let dot =
        |x: &[f32], w: &[f32]| -> f64 { x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum() };
    let row = |x: &[f32]| -> Vec<f32> {
        let outputs = w.chunks_exact(features).zip(bias);
        outputs.map(|(w, bias)| (dot(x, w) + f64::from(*bias)) as f32).collect()
    };
    x.chunks_exact(features).flat_map(row).collect()
}
