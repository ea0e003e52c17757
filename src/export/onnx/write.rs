//! The file around a graph.

use super::schema::{GraphProto, IR_VERSION, ModelProto, OPSET, OperatorSetIdProto, StringStringEntryProto};
use crate::error::Result;
use crate::files;
use crate::infer::file::Description;
use crate::infer::file::layout::MODEL_KEY;
use prost::Message;
use std::io::Write;
use std::path::Path;

/// The whole file. Bytes are a function of the content.
pub fn encode(graph: GraphProto, description: &Description) -> Vec<u8> {
    let Description { arch, classes, resolution, .. } = description;
    let precision = if description.int8.is_some() { "8-bit (QDQ)" } else { "f32" };
    let doc = format!(
        "{arch}, {} classes, {precision}. Input: RGB {resolution} x {resolution}, (byte / 255 - mean) / std by channel. \
         The metadata property {MODEL_KEY} has labels, preparation of pictures, recipe, scores and origin as JSON.",
        classes.len()
    );
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("engine".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        doc_string: Some(doc),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
        metadata_props: vec![StringStringEntryProto {
            key: Some(MODEL_KEY.into()),
            value: Some(description.to_json()),
        }],
    };
    model.encode_to_vec()
}

/// Writes the file and has `check` look at it before it gets its name.
pub fn export_onnx(
    graph: GraphProto,
    description: &Description,
    path: &Path,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let bytes = encode(graph, description);
    files::write_checked("export", path, |file| file.write_all(&bytes), check)
}
