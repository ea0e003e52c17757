//! The leaves of the devkit's `meta.mat`, as far as a MATLAB level-5 file has to be understood for it: numbers, strings,
//! one array of structures, zlib compression ("MAT-File Format", The MathWorks, chapter 1).

use super::Synset;
use std::io::Read;

/// Element types.
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
/// Array classes.
const STRUCT: u8 = 2;
const CHAR: u8 = 4;

struct Element<'a> {
    kind: u32,
    data: &'a [u8],
}

enum Value {
    Numbers(Vec<f64>),
    Text(String),
    /// Rows of fields.
    Structs(Vec<String>, Vec<Value>),
    Other,
}

/// Classes without children, by ILSVRC id.
pub(super) fn synsets(file: &[u8]) -> Result<Vec<Synset>, String> {
    match file.get(126..128) {
        Some(b"IM") => {}
        Some(b"MI") => return Err("it is big-endian, and the devkit's is little-endian".into()),
        _ => return Err("it is not a MATLAB level-5 file".into()),
    }
    for element in elements(&file[128..])? {
        let unpacked = match element.kind {
            COMPRESSED => Some(inflate(element.data)?),
            _ => None,
        };
        let inner = unpacked.as_deref().map(elements).transpose()?;
        let element = inner.into_iter().flatten().next().unwrap_or(element);
        if element.kind == MATRIX
            && let (name, Value::Structs(fields, values)) = matrix(element.data)?
            && name == "synsets"
        {
            return leaves(&fields, &values);
        }
    }
    Err("it holds no variable 'synsets'".into())
}

fn leaves(fields: &[String], values: &[Value]) -> Result<Vec<Synset>, String> {
    let place = |name: &str| {
        fields
            .iter()
            .position(|field| field == name)
            .ok_or_else(|| format!("its synsets have no field {name}"))
    };
    let (id, wnid, words, children) =
        (place("ILSVRC2012_ID")?, place("WNID")?, place("words")?, place("num_children")?);
    let mut found = Vec::new();
    for row in values.chunks_exact(fields.len()) {
        match (&row[id], &row[wnid], &row[words], &row[children]) {
            (Value::Numbers(id), Value::Text(wnid), Value::Text(words), Value::Numbers(children)) => {
                if children.iter().all(|&count| count == 0.0) {
                    let id = *id.first().ok_or("a synset has no ILSVRC2012_ID")? as usize;
                    found.push(Synset { id, wnid: wnid.clone(), words: words.clone() });
                }
            }
            _ => return Err("a field of its synsets has another type than the devkit's".into()),
        }
    }
    found.sort_by_key(|synset| synset.id);
    Ok(found)
}

fn inflate(data: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = flate2::read::ZlibDecoder::new(data).read_to_end(&mut bytes);
    read.map_err(|e| format!("an element cannot be unpacked: {e}"))?;
    Ok(bytes)
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// The elements one after another; a short one keeps its bytes inside the tag.
fn elements(data: &[u8]) -> Result<Vec<Element<'_>>, String> {
    let mut found = Vec::new();
    let mut at = 0;
    while let (Some(tag), Some(second)) = (word(data, at), word(data, at + 4)) {
        let (kind, size, begin) = match tag >> 16 {
            0 => (tag, second as usize, at + 8),
            size => (tag & 0xffff, size as usize, at + 4),
        };
        let bytes = data.get(begin..begin.saturating_add(size)).ok_or("it is cut short")?;
        found.push(Element { kind, data: bytes });
        at = match (begin - at, kind) {
            (4, _) => at + 8,
            // Compressed elements are not padded.
            (_, COMPRESSED) => begin + size,
            _ => begin + size.next_multiple_of(8),
        };
    }
    Ok(found)
}

/// Numbers of any type as f64: ids and counts are small.
fn numbers(element: &Element<'_>) -> Result<Vec<f64>, String> {
    fn each<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        data.chunks_exact(N).map(|bytes| read(bytes.try_into().expect("N bytes"))).collect()
    }
    let data = element.data;
    Ok(match element.kind {
        1 => each(data, |b| f64::from(i8::from_le_bytes(b))),
        2 | 16 => each(data, |b: [u8; 1]| f64::from(b[0])),
        3 => each(data, |b| f64::from(i16::from_le_bytes(b))),
        4 | 17 => each(data, |b| f64::from(u16::from_le_bytes(b))),
        5 => each(data, |b| f64::from(i32::from_le_bytes(b))),
        6 => each(data, |b| f64::from(u32::from_le_bytes(b))),
        7 => each(data, |b| f64::from(f32::from_le_bytes(b))),
        9 => each(data, f64::from_le_bytes),
        12 => each(data, |b| i64::from_le_bytes(b) as f64),
        13 => each(data, |b| u64::from_le_bytes(b) as f64),
        kind => return Err(format!("an element has the type {kind}")),
    })
}

/// Name and value of a matrix: flags, dimensions, name, then what its class has.
fn matrix(data: &[u8]) -> Result<(String, Value), String> {
    let parts = elements(data)?;
    let [flags, _, name, rest @ ..] = &parts[..] else { return Ok((String::new(), Value::Other)) };
    let class = *flags.data.first().ok_or("a matrix has no flags")?;
    let name = String::from_utf8_lossy(name.data).into_owned();
    let value = match (class, rest) {
        (STRUCT, [width, names, values @ ..]) => {
            let width = numbers(width)?.first().map_or(0, |&width| width as usize);
            if width == 0 {
                return Err("a structure has field names without a width".into());
            }
            let field = |name: &[u8]| {
                String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or(&[])).into_owned()
            };
            let fields: Vec<String> = names.data.chunks_exact(width).map(field).collect();
            if fields.is_empty() {
                return Err("a structure has no fields".into());
            }
            let values =
                values.iter().map(|value| Ok(matrix(value.data)?.1)).collect::<Result<_, String>>()?;
            Value::Structs(fields, values)
        }
        (CHAR, [text, ..]) => Value::Text(match text.kind {
            1 | 2 | 16 => String::from_utf8_lossy(text.data).into_owned(),
            _ => numbers(text)?.iter().filter_map(|&code| char::from_u32(code as u32)).collect(),
        }),
        // Double to 64-bit integers.
        (6..=15, [values, ..]) => Value::Numbers(numbers(values)?),
        _ => Value::Other,
    };
    Ok((name, value))
}
