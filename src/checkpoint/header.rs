//! The head of a checkpoint file: names, shapes, metadata and digests.
//!
//! ```text
//! u64 LE length | {"__metadata__":{"engine.digest":"<64 hex>", ..., "sha256.fc.bias":"<64 hex>", ...},"bn1.bias":{...}} spaces | data
//! ```
//!
//! `sha256.NAME` is the digest of a tensor's bytes. `engine.digest` stands at a fixed place and is the digest of the
//! length and the header with its own 64 digits taken as '0'; so every byte of the file is under one of the digests.
//! Keys are sorted, there is no wall clock: bytes are a function of the content alone.

use std::collections::BTreeMap;

use safetensors::tensor::Metadata;
use sha2::{Digest, Sha256};

use super::format::Tensor;
use crate::base64::hex;

/// What stands before the header digest; its place is the same in every file.
const OPENING: &str = r#"{"__metadata__":{"engine.digest":""#;
const HEX: usize = 64;
/// The length in front of the header.
pub const LENGTH: usize = 8;
/// The safetensors crate refuses longer headers.
pub const MAX_HEADER: u64 = 100_000_000;
/// Metadata keys of digests; callers cannot use them.
pub const TENSOR_DIGEST: &str = "sha256.";
pub const HEADER_DIGEST: &str = "engine.digest";

pub type Sha = [u8; 32];

pub fn sha256(bytes: &[u8]) -> Sha {
    Sha256::digest(bytes).into()
}

/// Order of the tensors in the file: wider types first, so that every tensor is aligned to its element, then by name.
/// It is also the safetensors crate's own order.
pub fn in_file_order(tensors: &BTreeMap<String, Tensor>) -> Vec<(&str, &Tensor)> {
    let mut order: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.values.element_bytes()));
    order
}

/// Length and header as they stand in the file. `digests` are those of `tensors`, in the same order.
pub fn encode(metadata: &BTreeMap<&str, &str>, tensors: &[(&str, &Tensor)], digests: &[Sha]) -> Vec<u8> {
    let mut map: BTreeMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    for ((name, _), digest) in tensors.iter().zip(digests) {
        map.insert(format!("{TENSOR_DIGEST}{name}"), hex(digest));
    }
    let mut head = assemble(format!("{OPENING}{}\"", "0".repeat(HEX)), &map, tensors);
    let digest = hex(&sha256(&head));
    head[LENGTH + OPENING.len()..][..HEX].copy_from_slice(digest.as_bytes());
    head
}

/// Length and header of a file for other programs: no digests in it.
pub fn encode_plain(metadata: &BTreeMap<String, String>, tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    assemble(r#"{"__metadata__":{"format":"pt""#.into(), metadata, tensors)
}

/// `json` has the first entry of the metadata.
fn assemble(mut json: String, metadata: &BTreeMap<String, String>, tensors: &[(&str, &Tensor)]) -> Vec<u8> {
    for (key, value) in metadata {
        json.push_str(&format!(",{}:{}", quoted(key), quoted(value)));
    }
    json.push('}');
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.values.bytes().len();
        let (kind, shape) = (tensor.values.dtype(), &tensor.shape);
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let name = quoted(name);
        json.push_str(&format!(
            r#",{name}:{{"dtype":"{kind}","shape":[{shape}],"data_offsets":[{offset},{end}]}}"#
        ));
        offset = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.extend_from_slice(json.as_bytes());
    head
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A verified header. The metadata holds neither digest.
pub struct Header {
    pub tensors: Metadata,
    pub metadata: BTreeMap<String, String>,
    pub digests: BTreeMap<String, String>,
}

/// `head` is length and header, as read. The error is a reason, without the file's name.
pub fn decode(head: &[u8]) -> Result<Header, String> {
    let place = LENGTH + OPENING.len()..LENGTH + OPENING.len() + HEX;
    if head.get(LENGTH..place.start) != Some(OPENING.as_bytes()) || head.len() < place.end {
        return Err("has no engine.digest: not a checkpoint of this program, or its header is damaged \
                    (weights from elsewhere go to --init)"
            .into());
    }
    let mut zeroed = head.to_vec();
    zeroed[place.clone()].fill(b'0');
    if hex(&sha256(&zeroed)).as_bytes() != &head[place] {
        return Err(
            "the header does not have the digest that was written with it: the file is damaged".into()
        );
    }
    let tensors: Metadata = serde_json::from_slice(&head[LENGTH..])
        .map_err(|source| format!("the header is not a safetensors header: {source}"))?;
    let (mut metadata, mut digests) = (BTreeMap::new(), BTreeMap::new());
    for (key, value) in tensors.metadata().iter().flatten() {
        match key.strip_prefix(TENSOR_DIGEST) {
            Some(name) => digests.insert(name.to_owned(), value.clone()),
            None if key == HEADER_DIGEST => None,
            None => metadata.insert(key.clone(), value.clone()),
        };
    }
    Ok(Header { tensors, metadata, digests })
}
