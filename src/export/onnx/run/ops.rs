//! The operations of a graph, as ONNX's operator reference defines them at opset 17; what a ResNet does not need of one is
//! refused by name. Errors are reasons.

use super::value::{Data, Value};
use crate::export::cpu::network::{Layer, Machine};
use crate::export::onnx::schema::NodeProto;
use crate::infer::reference::{average_pool, max_pool};
use crate::model::graph::ConvShape;

type Result<T> = std::result::Result<T, String>;

/// A node's attributes by name.
pub struct Attributes<'a>(pub &'a NodeProto);

impl Attributes<'_> {
    fn ints(&self, name: &str) -> Option<&[i64]> {
        let found = self.0.attribute.iter().find(|attribute| attribute.name() == name);
        found.map(|attribute| attribute.ints.as_slice())
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        let found = self.0.attribute.iter().find(|attribute| attribute.name() == name);
        found.map_or(default, |attribute| attribute.i())
    }

    fn float(&self, name: &str, default: f32) -> f32 {
        let found = self.0.attribute.iter().find(|attribute| attribute.name() == name);
        found.map_or(default, |attribute| attribute.f())
    }

    /// Fails where the node has an attribute of another name.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.0.attribute.iter().find(|attribute| !known.contains(&attribute.name())) {
            Some(attribute) => Err(format!("has the attribute {}, which is not read", attribute.name())),
            None => Ok(()),
        }
    }

    /// Kernel [r, s], stride and padding, the same both ways.
    fn window(&self) -> Result<([usize; 2], usize, usize)> {
        self.only(&["kernel_shape", "strides", "pads"])?;
        let same = |name: &str, count: usize| match self.ints(name) {
            Some(&[first, ref rest @ ..]) if rest.len() + 1 == count && rest.iter().all(|v| *v == first) => {
                usize::try_from(first).map_err(|_| format!("{name} is {first}"))
            }
            other => Err(format!("{name} is {other:?}; expected {count} equal numbers")),
        };
        let kernel = match self.ints("kernel_shape") {
            Some(&[r, s]) if r > 0 && s > 0 => [r as usize, s as usize],
            other => return Err(format!("kernel_shape is {other:?}; expected two sizes")),
        };
        match same("strides", 2)? {
            0 => Err("strides are 0".into()),
            stride => Ok((kernel, stride, same("pads", 4)?)),
        }
    }
}

/// What a convolution of `x` with a weight of dims `kcrs` is.
pub fn conv_shape(x: &Value, kcrs: [usize; 4], attributes: &Attributes) -> Result<ConvShape> {
    let ([_, c, h, w], [k, c_weight, r, s]) = (x.map()?, kcrs);
    let (kernel, stride, pad) = attributes.window()?;
    if kernel != [r, s] || c != c_weight {
        return Err(format!("kernel_shape {kernel:?} and {c} channels, but a weight of {kcrs:?}"));
    }
    if h + 2 * pad < r || w + 2 * pad < s {
        return Err(format!("a kernel of {r} x {s} on a map of {h} x {w} with padding {pad}"));
    }
    Ok(ConvShape { h, w, c, k, r, s, stride, pad })
}

pub fn conv(
    machine: &mut Machine,
    x: &Value,
    kcrs: [usize; 4],
    layer: &Layer,
    node: &NodeProto,
) -> Result<Value> {
    let shape = conv_shape(x, kcrs, &Attributes(node))?;
    let n = x.shape[0];
    let y = machine.convolve(&shape, n, x.f32()?, layer);
    Ok(Value { shape: vec![n, shape.k, shape.p(), shape.q()], data: Data::F32(y) })
}

/// `transB`, without scaling.
pub fn gemm(
    machine: &mut Machine,
    x: &Value,
    dims: &[usize],
    layer: &Layer,
    node: &NodeProto,
) -> Result<Value> {
    let attributes = Attributes(node);
    attributes.only(&["transB"])?;
    let (&[n, features], &[classes, columns]) = (&x.shape[..], dims) else {
        return Err(format!("is given {:?} and {dims:?}; expected two matrices", x.shape));
    };
    if attributes.int("transB", 0) != 1 || features != columns {
        return Err(format!("multiplies {:?} with {dims:?}; expected transB = 1 and equal rows", x.shape));
    }
    let y = machine.classify(n, x.f32()?, layer);
    Ok(Value { shape: vec![n, classes], data: Data::F32(y) })
}

/// gamma (x - mean) / sqrt(var + epsilon) + beta; `norm` is gamma, beta, mean, var.
pub fn batch_norm(x: &Value, norm: [&Value; 4], node: &NodeProto) -> Result<Value> {
    let attributes = Attributes(node);
    // Momentum matters in training alone.
    attributes.only(&["epsilon", "momentum"])?;
    let epsilon = f64::from(attributes.float("epsilon", 1e-5));
    let channels = x.map()?[1];
    let [gamma, beta, mean, var] = norm;
    let [gamma, beta, mean, var] = [gamma.f32()?, beta.f32()?, mean.f32()?, var.f32()?];
    if [gamma, beta, mean, var].iter().any(|values| values.len() != channels) {
        return Err(format!("normalises {channels} channels with numbers of another count"));
    }
    let factor = |c: usize| f64::from(gamma[c]) / (f64::from(var[c]) + epsilon).sqrt();
    let lines: Vec<(f32, f32)> = (0..channels)
        .map(|c| (factor(c) as f32, (f64::from(beta[c]) - f64::from(mean[c]) * factor(c)) as f32))
        .collect();
    let pixels = x.f32()?.chunks_exact(channels);
    let line = |(x, (factor, shift)): (&f32, &(f32, f32))| x * factor + shift;
    let y = pixels.flat_map(|pixel| pixel.iter().zip(&lines).map(line)).collect();
    Ok(Value { shape: x.shape.clone(), data: Data::F32(y) })
}

pub fn relu(x: &Value) -> Result<Value> {
    let y = x.f32()?.iter().map(|x| x.max(0.0)).collect();
    Ok(Value { shape: x.shape.clone(), data: Data::F32(y) })
}

pub fn add(a: &Value, b: &Value) -> Result<Value> {
    if a.shape != b.shape {
        return Err(format!("adds {:?} and {:?}; expected one shape", a.shape, b.shape));
    }
    let sum = a.f32()?.iter().zip(b.f32()?).map(|(a, b)| a + b).collect();
    Ok(Value { shape: a.shape.clone(), data: Data::F32(sum) })
}

/// 3x3, stride 2, padding 1.
pub fn pool_largest(x: &Value, node: &NodeProto) -> Result<Value> {
    let window = Attributes(node).window()?;
    if window != ([3, 3], 2, 1) {
        return Err(format!("has the window {window:?}; a ResNet's is 3 x 3, stride 2, padding 1"));
    }
    let [n, c, h, w] = x.map()?;
    let y = max_pool([h, w, c], x.f32()?, f32::NEG_INFINITY);
    Ok(Value { shape: vec![n, c, (h - 1) / 2 + 1, (w - 1) / 2 + 1], data: Data::F32(y) })
}

pub fn pool_mean(x: &Value) -> Result<Value> {
    let [n, c, h, w] = x.map()?;
    let y = average_pool(c, c * h * w, x.f32()?);
    Ok(Value { shape: vec![n, c, 1, 1], data: Data::F32(y) })
}

/// Of maps of one pixel, whose order is the same either way.
pub fn flatten(x: &Value, node: &NodeProto) -> Result<Value> {
    let axis = Attributes(node).int("axis", 1);
    let [n, c, h, w] = x.map()?;
    match (axis, h, w) {
        (1, 1, 1) => Ok(Value { shape: vec![n, c], data: x.data.clone() }),
        _ => Err(format!("flattens {:?} at axis {axis}; expected [n, c, 1, 1] at 1", x.shape)),
    }
}

/// saturate(round_half_to_even(x / scale) + zero_point), one scale for all.
pub fn quantise(x: &Value, scale: &Value, zero: &Value) -> Result<Value> {
    let (&[scale], x_values) = (scale.f32()?, x.f32()?) else {
        return Err(format!("has a scale of shape {:?}; expected one number", scale.shape));
    };
    let level = |x: &f32, zero: f32| (x / scale).round_ties_even() + zero;
    let data = match zero.data {
        Data::U8(ref zero) if zero.len() == 1 => {
            let zero = f32::from(zero[0]);
            Data::U8(x_values.iter().map(|x| level(x, zero).clamp(0.0, 255.0) as u8).collect())
        }
        Data::I8(ref zero) if zero.len() == 1 => {
            let zero = f32::from(zero[0]);
            Data::I8(x_values.iter().map(|x| level(x, zero).clamp(-128.0, 127.0) as i8).collect())
        }
        _ => return Err("has a zero point that is not one uint8 or int8".into()),
    };
    Ok(Value { shape: x.shape.clone(), data })
}

/// (x - zero_point) scale; with several scales, by the first axis, whatever lies behind it in memory.
pub fn dequantise(x: &Value, scale: &Value, zero: Option<&Value>, node: &NodeProto) -> Result<Value> {
    let scales = scale.f32()?;
    if scales.is_empty() || !x.data.elements().is_multiple_of(scales.len()) {
        return Err(format!("has {} scales for {:?}", scales.len(), x.shape));
    }
    let is_by_axis = scales.len() > 1 || scale.shape.len() == 1;
    if is_by_axis && (Attributes(node).int("axis", 1) != 0 || x.shape.first() != Some(&scales.len())) {
        return Err(format!("has {} scales for {:?}; expected them along axis 0", scales.len(), x.shape));
    }
    let rest = x.data.elements() / scales.len();
    let zeros: Vec<f32> = match zero.map(|zero| &zero.data) {
        None => vec![0.0; scales.len()],
        Some(Data::U8(zeros)) => zeros.iter().map(|&zero| f32::from(zero)).collect(),
        Some(Data::I8(zeros)) => zeros.iter().map(|&zero| f32::from(zero)).collect(),
        Some(other) => return Err(format!("has a zero point of {}", other.type_name())),
    };
    if zeros.len() != scales.len() {
        return Err(format!("has {} scales and {} zero points", scales.len(), zeros.len()));
    }
    let y = match (&x.data, zero.map(|zero| &zero.data)) {
        (Data::U8(x), Some(Data::U8(_)) | None) => by_axis(x, rest, scales, &zeros, f32::from),
        (Data::I8(x), Some(Data::I8(_)) | None) => by_axis(x, rest, scales, &zeros, f32::from),
        (Data::I32(x), None) => by_axis(x, rest, scales, &zeros, |x| x as f32),
        (other, _) => return Err(format!("is given {} with another zero point", other.type_name())),
    };
    Ok(Value { shape: x.shape.clone(), data: Data::F32(y) })
}

fn by_axis<T: Copy>(
    x: &[T],
    rest: usize,
    scales: &[f32],
    zeros: &[f32],
    real: impl Fn(T) -> f32,
) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len());
    for ((x, scale), zero) in x.chunks_exact(rest.max(1)).zip(scales).zip(zeros) {
        y.extend(x.iter().map(|&x| (real(x) - zero) * scale));
    }
    y
}
