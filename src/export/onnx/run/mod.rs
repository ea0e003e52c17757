//! A written file, run operation by operation in f32 and exactly as its nodes say: names, order, attributes and constants
//! are the file's, and nothing of the network is known here. It checks what was written; that other runtimes read it the
//! same way is for them to say (tests/interop).

pub mod ops;
pub mod value;

use super::schema::{GraphProto, ModelProto, NodeProto, OPSET};
use crate::error::{Error, Result};
use crate::export::cpu::network::{Layer, Machine};
use crate::infer::fold::krsc_from_kcrs;
use crate::infer::weights::Folded;
use crate::model::graph::ConvShape;
use ops::Attributes;
use prost::Message;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use value::{Data, Value};

/// A file that is ready to run.
pub struct Session {
    graph: GraphProto,
    /// The file's, and what nodes make of them alone.
    constants: HashMap<String, Value>,
    /// Weights and biases of convolutions and matrix products by their node's place, as [`Machine`] takes them.
    layers: HashMap<usize, Layer>,
    /// The last node that reads a value.
    last_reader: HashMap<String, usize>,
    machine: Machine,
    metadata: HashMap<String, String>,
}

impl Session {
    pub fn open(path: &Path, threads: usize) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::unreadable(path, &error, "an ONNX file"))?;
        Self::decode(&bytes, threads).map_err(|reason| Error::input_file(path, reason))
    }

    /// The error is a reason, without the file's name.
    pub fn decode(bytes: &[u8], threads: usize) -> std::result::Result<Self, String> {
        let model =
            ModelProto::decode(bytes).map_err(|error| format!("is not a whole ONNX file: {error}"))?;
        let is_known = |version: Option<i64>| version == Some(OPSET);
        if !model.opset_import.iter().any(|set| set.domain().is_empty() && is_known(set.version)) {
            return Err(format!("is not of opset {OPSET}: {:?}", model.opset_import));
        }
        let entries = model.metadata_props.iter();
        let metadata = entries.map(|entry| (entry.key().to_owned(), entry.value().to_owned())).collect();
        let graph = model.graph.ok_or("has no graph")?;
        let mut constants = HashMap::new();
        for tensor in &graph.initializer {
            let value = Value::constant(tensor).map_err(|reason| format!("{} {reason}", tensor.name()))?;
            if constants.insert(tensor.name().to_owned(), value).is_some() {
                return Err(format!("has two constants named {}", tensor.name()));
            }
        }
        let mut session = Self {
            graph,
            constants,
            layers: HashMap::new(),
            last_reader: HashMap::new(),
            machine: Machine::new(threads),
            metadata,
        };
        session.prepare()?;
        Ok(session)
    }

    /// A metadata property.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub fn graph(&self) -> &GraphProto {
        &self.graph
    }

    /// Checks that every value is made once, before it is read; runs what depends on constants alone; brings weights into
    /// their order in memory.
    fn prepare(&mut self) -> std::result::Result<(), String> {
        let nodes = std::mem::take(&mut self.graph.node);
        let mut made: HashSet<String> =
            self.graph.input.iter().map(|input| input.name().to_owned()).collect();
        for (index, node) in nodes.iter().enumerate() {
            let context = |reason: String| format!("node {} ({}) {reason}", node.name(), node.op_type());
            for input in &node.input {
                if !self.constants.contains_key(input) && !made.contains(input) {
                    return Err(context(format!("reads {input}, which nothing before it makes")));
                }
                self.last_reader.insert(input.clone(), index);
            }
            let [output] = &node.output[..] else {
                return Err(context(format!("has {} outputs, expected one", node.output.len())));
            };
            if self.constants.contains_key(output) || made.contains(output) {
                return Err(context(format!("makes {output}, which is there already")));
            }
            if node.input.iter().all(|input| self.constants.contains_key(input)) {
                let value = self.compute(index, node, &HashMap::new()).map_err(context)?;
                self.constants.insert(output.clone(), value);
                continue;
            }
            made.insert(output.clone());
            if matches!(node.op_type(), "Conv" | "Gemm") {
                let layer = self.layer(node).map_err(context)?;
                self.layers.insert(index, layer);
            }
        }
        for output in &self.graph.output {
            if !made.contains(output.name()) {
                return Err(format!("has the output {}, which no node makes", output.name()));
            }
        }
        self.graph.node = nodes;
        Ok(())
    }

    fn layer(&self, node: &NodeProto) -> std::result::Result<Layer, String> {
        let constant = |at: usize| {
            let name = node.input.get(at)?;
            Some(self.constants.get(name).ok_or_else(|| format!("reads {name}, which is no constant")))
        };
        let weight = constant(1).ok_or("has no weight")??;
        let rows = *weight.shape.first().ok_or("has a weight without dims")?;
        let bias = match constant(2) {
            Some(bias) => bias?.f32()?.to_vec(),
            None => vec![0.0; rows],
        };
        if bias.len() != rows || rows == 0 {
            return Err(format!("has a weight of {:?} and {} biases", weight.shape, bias.len()));
        }
        let weight = match weight.shape[..] {
            [k, c, r, s] => {
                let shape = ConvShape { h: r, w: s, c, k, r, s, stride: 1, pad: 0 };
                krsc_from_kcrs(&shape, weight.f32()?)
            }
            _ => weight.f32()?.to_vec(),
        };
        Ok(Layer::new(&Folded { weight, bias }))
    }

    /// `images` f32 [n][side][side][3], normalised -> the graph's one output, f32 [n][classes].
    pub fn run(&mut self, images: Vec<f32>, side: usize) -> Result<Vec<f32>> {
        self.values(images, side).map_err(Error::failed)
    }

    fn values(&mut self, images: Vec<f32>, side: usize) -> std::result::Result<Vec<f32>, String> {
        let ([input], [output]) = (&self.graph.input[..], &self.graph.output[..]) else {
            return Err("has not one input and one output".into());
        };
        let output = output.name().to_owned();
        let n = images.len() / (side * side * 3);
        let images = Value { shape: vec![n, 3, side, side], data: Data::F32(images) };
        let mut values = HashMap::from([(input.name().to_owned(), images)]);
        let nodes = std::mem::take(&mut self.graph.node);
        let result = nodes.iter().enumerate().try_for_each(|(index, node)| {
            if self.constants.contains_key(&node.output[0]) {
                return Ok(());
            }
            let value = self.compute(index, node, &values);
            let value =
                value.map_err(|reason| format!("node {} ({}) {reason}", node.name(), node.op_type()))?;
            values.insert(node.output[0].clone(), value);
            for input in &node.input {
                if self.last_reader.get(input) == Some(&index) && *input != output {
                    values.remove(input);
                }
            }
            Ok::<_, String>(())
        });
        self.graph.node = nodes;
        result?;
        let logits = values.remove(&output).ok_or_else(|| format!("made no {output}"))?;
        match logits.data {
            Data::F32(logits) => Ok(logits),
            other => Err(format!("{output} is {}, expected float", other.type_name())),
        }
    }

    fn compute(
        &mut self,
        index: usize,
        node: &NodeProto,
        values: &HashMap<String, Value>,
    ) -> std::result::Result<Value, String> {
        let constants = &self.constants;
        let optional = |at: usize| {
            let name = node.input.get(at).filter(|name| !name.is_empty())?;
            values.get(name).or_else(|| constants.get(name))
        };
        let input = |at: usize| optional(at).ok_or_else(|| format!("lacks its input number {at}"));
        let attributes = Attributes(node);
        match node.op_type() {
            "Conv" => {
                let weight = input(1)?.map()?;
                let layer = self.layers.get(&index).ok_or("has constant inputs alone")?;
                ops::conv(&mut self.machine, input(0)?, weight, layer, node)
            }
            "Gemm" => {
                let layer = self.layers.get(&index).ok_or("has constant inputs alone")?;
                ops::gemm(&mut self.machine, input(0)?, &input(1)?.shape, layer, node)
            }
            "BatchNormalization" => {
                ops::batch_norm(input(0)?, [input(1)?, input(2)?, input(3)?, input(4)?], node)
            }
            "MaxPool" => ops::pool_largest(input(0)?, node),
            "Flatten" => ops::flatten(input(0)?, node),
            "DequantizeLinear" => ops::dequantise(input(0)?, input(1)?, optional(2), node),
            "Relu" => attributes.only(&[]).and_then(|()| ops::relu(input(0)?)),
            "Add" => attributes.only(&[]).and_then(|()| ops::add(input(0)?, input(1)?)),
            "GlobalAveragePool" => attributes.only(&[]).and_then(|()| ops::pool_mean(input(0)?)),
            "QuantizeLinear" => {
                attributes.only(&[]).and_then(|()| ops::quantise(input(0)?, input(1)?, input(2)?))
            }
            other => Err(format!("is of the kind {other}, which no export writes")),
        }
    }
}
