//! A graph under construction: nodes in the order in which they run, constants under their names.

use super::schema::{
    AttributeProto, Dimension, GraphProto, NodeProto, Size, TensorProto, TensorShapeProto, TensorType,
    TypeProto, ValueInfoProto, attribute_type, data_type,
};
use crate::model::graph::ConvShape;

/// An element type of constants.
pub trait Element: bytemuck::Pod {
    const TYPE: i32;
}

impl Element for f32 {
    const TYPE: i32 = data_type::FLOAT;
}

impl Element for u8 {
    const TYPE: i32 = data_type::UINT8;
}

impl Element for i8 {
    const TYPE: i32 = data_type::INT8;
}

impl Element for i32 {
    const TYPE: i32 = data_type::INT32;
}

#[cfg(target_endian = "big")]
compile_error!("raw_data is little-endian and is written as it lies");

/// Values are known by name; every method that makes one gives its name back.
#[derive(Debug, Default)]
pub struct Builder {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Builder {
    /// `values` in row-major order; a scalar has no dims.
    pub fn constant<T: Element>(&mut self, name: impl Into<String>, dims: &[usize], values: &[T]) -> String {
        let name = name.into();
        assert_eq!(values.len(), dims.iter().product::<usize>(), "elements of {name}, {dims:?}");
        self.constants.push(TensorProto {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: Some(T::TYPE),
            name: Some(name.clone()),
            raw_data: Some(bytemuck::cast_slice(values).to_vec()),
        });
        name
    }

    /// A node of `name` that makes the one value `output`.
    pub fn node(
        &mut self,
        op_type: &str,
        name: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<AttributeProto>,
    ) -> String {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![output.to_owned()],
            name: Some(name.to_owned()),
            op_type: Some(op_type.to_owned()),
            attribute: attributes,
            domain: None,
        });
        output.to_owned()
    }

    /// One input, one output, no attributes; the node has its output's name.
    pub fn simple(&mut self, op_type: &str, inputs: &[&str], output: &str) -> String {
        self.node(op_type, output, inputs, output, vec![])
    }

    /// `inputs` are x, weight and, where there is one, bias.
    pub fn conv(&mut self, name: &str, inputs: &[&str], output: &str, shape: &ConvShape) -> String {
        let attributes = window([shape.r, shape.s], shape.stride, shape.pad);
        self.node("Conv", name, inputs, output, attributes)
    }

    /// 3x3, stride 2, padding 1.
    pub fn max_pool(&mut self, x: &str, output: &str) -> String {
        self.node("MaxPool", output, &[x], output, window([3, 3], 2, 1))
    }

    /// x [n, c, h, w] -> logits [n, classes].
    pub fn classifier(&mut self, x: &str, weight: &str, bias: &str) {
        let pooled = self.simple("GlobalAveragePool", &[x], "avgpool");
        let features = self.node("Flatten", "flatten", &[&pooled], "flatten", vec![int("axis", 1)]);
        self.node("Gemm", "fc", &[&features, weight, bias], super::OUTPUT, vec![int("transB", 1)]);
    }

    /// The graph from images f32 [batch, 3, side, side] to f32 [batch, classes].
    pub fn finish(self, name: &str, side: usize, classes: usize) -> GraphProto {
        let side = Size::Value(side as i64);
        GraphProto {
            node: self.nodes,
            name: Some(name.to_owned()),
            initializer: self.constants,
            input: vec![value(super::INPUT, vec![Size::Value(3), side.clone(), side])],
            output: vec![value(super::OUTPUT, vec![Size::Value(classes as i64)])],
        }
    }
}

/// An f32 value of any batch.
fn value(name: &str, sizes: Vec<Size>) -> ValueInfoProto {
    let sizes = std::iter::once(Size::Param(super::BATCH.to_owned())).chain(sizes);
    let dim = sizes.map(|size| Dimension { value: Some(size) }).collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor_type = Some(TensorType { elem_type: Some(data_type::FLOAT), shape });
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type }) }
}

fn window(kernel: [usize; 2], stride: usize, pad: usize) -> Vec<AttributeProto> {
    let attribute = |name: &str, values: &[usize]| AttributeProto {
        name: Some(name.to_owned()),
        ints: values.iter().map(|&value| value as i64).collect(),
        r#type: Some(attribute_type::INTS),
        ..AttributeProto::default()
    };
    vec![attribute("kernel_shape", &kernel), attribute("pads", &[pad; 4]), attribute("strides", &[stride; 2])]
}

pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(attribute_type::INT),
        ..AttributeProto::default()
    }
}

pub fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        f: Some(value),
        r#type: Some(attribute_type::FLOAT),
        ..AttributeProto::default()
    }
}
