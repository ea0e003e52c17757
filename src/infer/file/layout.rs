//! The bytes of a model file: a safetensors container that checks itself.
//!
//! ```text
//! u64 LE length | {"__metadata__":{"engine.check":"<8 hex>","engine.format":"cpu-model","engine.model":"<JSON>",
//!                  "engine.version":"1","format":"pt"},"bn1.bias":{..},..} spaces | data
//! ```
//!
//! `engine.check` stands at a fixed place and is the CRC-32C of length and header with its own digits taken as '0'; the
//! JSON ([`super::Description`]) has the CRC-32C of every tensor: so every byte of the file is under a check, against
//! damage, not against malice. Later versions keep the place and the rule of `engine.check`, so that a reader can name
//! them. Data begin at a multiple of 64 bytes, and tensors that fill multiples of 64 come first: in a ResNet all weights
//! of any size, which can then be used where they lie. Bytes are a function of the content alone.

use crc32c::crc32c;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::borrow::Cow;

/// What stands before the digits of the check.
const OPENING: &[u8] = br#"{"__metadata__":{"engine.check":""#;
const DIGITS: usize = 8;
/// The length in front of the header.
const LENGTH: usize = 8;
/// Where data begin, and what tensors of such multiples are aligned to: a cache line and the widest vector.
pub const ALIGNMENT: usize = 64;
/// ResNet-152 with 22,000 named classes stays below 2 MB.
const MAX_HEADER: u64 = 64 << 20;

const FORMAT: &str = "cpu-model";
/// Raised when an older reader could not use the file.
pub const VERSION: u32 = 1;
/// Metadata key of the JSON; the same as in a checkpoint, whose description it extends.
pub const MODEL_KEY: &str = "engine.model";

const MAKE: &str = "make one with `engine export --checkpoint CHECKPOINT --format cpu --output MODEL`";

/// A tensor on its way into a file, little-endian as in memory.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub name: Cow<'a, str>,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

/// As a digest stands in a file.
pub fn digits(bytes: &[u8]) -> String {
    format!("{:08x}", crc32c(bytes))
}

/// The order of tensors in the file: whole multiples of [`ALIGNMENT`], then wider types, each by name; so that all are
/// aligned to their elements.
pub fn sort(entries: &mut [Entry]) {
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| {
            let bits = std::cmp::Reverse(entry.dtype.bitsize());
            let is_whole = entry.bytes.len().is_multiple_of(ALIGNMENT);
            (!is_whole, if is_whole { std::cmp::Reverse(0) } else { bits })
        };
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
}

/// Length and header of a file with `entries` in this order; `model` is the JSON.
pub fn encode(entries: &[Entry], model: &str) -> Vec<u8> {
    let mut json = OPENING.to_vec();
    json.extend_from_slice(&[b'0'; DIGITS]);
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let rest = format!(
        r#"","engine.format":"{FORMAT}","{MODEL_KEY}":{},"engine.version":"{VERSION}","format":"pt"}}"#,
        quoted(model)
    );
    json.extend_from_slice(rest.as_bytes());
    let mut offset = 0;
    for Entry { name, dtype, shape, bytes } in entries {
        let end = offset + bytes.len();
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let name = quoted(name);
        let entry =
            format!(r#",{name}:{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{offset},{end}]}}"#);
        json.extend_from_slice(entry.as_bytes());
        offset = end;
    }
    json.push(b'}');
    while !(json.len() + LENGTH).is_multiple_of(ALIGNMENT) {
        json.push(b' ');
    }
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.append(&mut json);
    let check = digits(&head);
    head[LENGTH + OPENING.len()..][..DIGITS].copy_from_slice(check.as_bytes());
    head
}

/// A header that checks, of a version that this program reads.
pub struct Header {
    pub tensors: Metadata,
    /// The JSON, not yet looked into.
    pub model: String,
    /// Where data begin.
    pub start: usize,
}

/// Reads the header of a whole file. The error is a reason, without the file's name.
pub fn decode(file: &[u8]) -> Result<Header, String> {
    let size = file.len();
    if size == 0 {
        return Err(format!("is empty; {MAKE}"));
    }
    let place = LENGTH + OPENING.len()..LENGTH + OPENING.len() + DIGITS;
    let Some(found) = file.get(place.clone()).filter(|_| file[LENGTH..].starts_with(OPENING)) else {
        return Err(other_kind(file));
    };
    let length = u64::from_le_bytes(file[..LENGTH].try_into().expect("eight bytes"));
    let start = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER).map(|length| LENGTH + length);
    let Some(start) = start.filter(|&start| start >= place.end && start <= size) else {
        return Err(format!(
            "a header of {length} bytes does not fit in a file of {size}: it was cut off or is damaged; copy or \
             export it again"
        ));
    };
    let mut zeroed = file[..start].to_vec();
    zeroed[place].fill(b'0');
    if digits(&zeroed).as_bytes() != found {
        return Err(
            "its header is damaged: it does not have the checksum that was written with it; copy or \
                    export it again"
                .into(),
        );
    }
    let tensors: Metadata = serde_json::from_slice(&file[LENGTH..start])
        .map_err(|error| format!("its header is no safetensors header: {error}; export it again"))?;
    let model = model_json(&tensors)?;
    match start.checked_add(tensors.data_len()) {
        Some(end) if end == size => Ok(Header { tensors, model, start }),
        Some(end) => {
            let what = if size < end { "cut off" } else { "added to" };
            Err(format!("is {size} bytes, wanted {end}: it was {what}; copy or export it again"))
        }
        None => Err("names more data than any file holds; export it again".into()),
    }
}

/// The JSON of a file of this format and version.
fn model_json(tensors: &Metadata) -> Result<String, String> {
    let metadata = tensors.metadata().as_ref();
    let text = |key: &str| metadata.and_then(|map| map.get(key)).map(String::as_str);
    if text("engine.format") != Some(FORMAT) {
        return Err(format!("is no model for the CPU; {MAKE}"));
    }
    match text("engine.version").and_then(|version| version.parse().ok()) {
        Some(VERSION) => {}
        Some(version) if version > VERSION => {
            return Err(format!(
                "has format version {version}, this program reads {VERSION}: take a newer program, or export the \
                 checkpoint again with this one"
            ));
        }
        _ => {
            return Err(format!(
                "has no format version that this program knows ({VERSION}); export it again"
            ));
        }
    }
    let model = text(MODEL_KEY).ok_or_else(|| format!("has no {MODEL_KEY}; export it again"))?;
    Ok(model.to_owned())
}

/// What a file that does not begin as a model file may be.
fn other_kind(file: &[u8]) -> String {
    let opening = &file[..file.len().min(LENGTH + OPENING.len())];
    match opening {
        [b'P', b'K', 3, 4, ..] => format!("is a .pth, not a model for the CPU; {MAKE}"),
        [_, _, _, _, _, _, _, _, rest @ ..] if rest.starts_with(b"{") && !OPENING.starts_with(rest) => {
            format!("is a checkpoint or other safetensors weights, not a model for the CPU; {MAKE}")
        }
        [_, _, _, _, _, _, _, _, rest @ ..] if OPENING.starts_with(rest) && !rest.is_empty() => {
            format!("ends after {} bytes: it was cut off; copy or export it again", file.len())
        }
        _ if file.iter().all(|&byte| byte == 0) => {
            "is all zeros: its data never reached the disk; copy or export it again".into()
        }
        _ => format!("is no model for the CPU; {MAKE}"),
    }
}
