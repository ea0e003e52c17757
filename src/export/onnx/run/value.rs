//! What a graph computes with.

use crate::export::onnx::schema::{TensorProto, data_type};

/// A tensor; `shape` is ONNX's. Constants lie in row-major order; feature maps, of shape [n, c, h, w], lie [n][h][w][c],
/// as the convolutions of `simd` read them.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    pub shape: Vec<usize>,
    pub data: Data,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    U8(Vec<u8>),
    I8(Vec<i8>),
    I32(Vec<i32>),
}

impl Data {
    pub fn elements(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::I32(values) => values.len(),
        }
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Self::F32(_) => "float",
            Self::U8(_) => "uint8",
            Self::I8(_) => "int8",
            Self::I32(_) => "int32",
        }
    }
}

impl Value {
    /// A constant of the file; the error is a reason.
    pub fn constant(tensor: &TensorProto) -> Result<Self, String> {
        let shape = tensor.dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| format!("has the dims {:?}", tensor.dims))?;
        let bytes =
            tensor.raw_data.as_deref().ok_or("has no raw_data, which is where engine keeps elements")?;
        let data = match tensor.data_type() {
            data_type::FLOAT => Data::F32(elements(bytes, f32::from_le_bytes)),
            data_type::UINT8 => Data::U8(bytes.to_vec()),
            data_type::INT8 => Data::I8(bytes.iter().map(|&byte| byte as i8).collect()),
            data_type::INT32 => Data::I32(elements(bytes, i32::from_le_bytes)),
            other => return Err(format!("has data_type {other}; expected float, uint8, int8 or int32")),
        };
        let width = match data {
            Data::F32(_) | Data::I32(_) => 4,
            Data::U8(_) | Data::I8(_) => 1,
        };
        let wanted = shape.iter().try_fold(width, |product: usize, &dim| product.checked_mul(dim));
        match wanted == Some(bytes.len()) {
            true => Ok(Self { shape, data }),
            false => Err(format!("has {} bytes for the dims {shape:?}", bytes.len())),
        }
    }

    pub fn f32(&self) -> Result<&[f32], String> {
        match &self.data {
            Data::F32(values) => Ok(values),
            other => Err(format!("is {}, expected float", other.type_name())),
        }
    }

    /// The shape of a feature map.
    pub fn map(&self) -> Result<[usize; 4], String> {
        self.shape[..]
            .try_into()
            .map_err(|_| format!("has the shape {:?}, expected [n, c, h, w]", self.shape))
    }
}

fn elements<T>(bytes: &[u8], read: impl Fn([u8; 4]) -> T) -> Vec<T> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| read(*bytes)).collect()
}
