//! TensorBoard's event file: records of `u64 LE length, masked CRC-32C of it, protobuf Event, masked CRC-32C of that`
//! (tensorflow/core/lib/io/record_writer.h, tensorflow/core/util/event.proto).

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::error::{Error, Result};
use crate::files;

#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(float, tag = "2")]
    pub simple_value: f32,
}

#[derive(Clone, PartialEq, Message)]
pub struct SessionLog {
    /// 1 is START: TensorBoard drops the points of earlier files from this event's step on.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

const START: i32 = 1;

/// A file of events, open for appending.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Events {
    /// A new file in `folder`, in which training goes on after `step`.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        files::create_folder(folder)?;
        let (path, is_first) = new_name(folder);
        let file = File::create_new(&path).map_err(|source| Error::output_file(&path, "create", &source))?;
        let mut events = Self { path, out: BufWriter::new(file) };
        events.write(0, What::FileVersion("brain.Event:2".into()))?;
        // Also where a run was killed before its first checkpoint and begins again.
        if !is_first {
            events.write(step as i64 + 1, What::SessionLog(SessionLog { status: START }))?;
        }
        Ok(events)
    }

    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let value = |&(tag, value): &(&str, f64)| Value { tag: tag.to_owned(), simple_value: value as f32 };
        self.write(step as i64, What::Summary(Summary { value: scalars.iter().map(value).collect() }))
    }

    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|source| Error::output_file(&self.path, "write", &source))
    }

    fn write(&mut self, step: i64, what: What) -> Result<()> {
        let wall_time =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64());
        let event = Event { wall_time, step, what: Some(what) }.encode_to_vec();
        write_record(&mut self.out, &event).map_err(|source| Error::output_file(&self.path, "write", &source))
    }
}

/// A path, and whether it is the folder's first.
///
/// TensorBoard reads the files of a folder in the order of their names, so a resume's must come after what is there, even
/// within a second or after the clock was set back.
fn new_name(folder: &Path) -> (PathBuf, bool) {
    const BEGIN: &str = "events.out.tfevents.";
    let seconds_of = |name: String| name.strip_prefix(BEGIN)?.split('.').next()?.parse::<u64>().ok();
    let names = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let last = names.filter_map(seconds_of).max();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs());
    let seconds = last.map_or(now, |last| now.max(last.saturating_add(1)));
    (folder.join(format!("{BEGIN}{seconds:010}.engine.{}.0", std::process::id())), last.is_none())
}

fn write_record(out: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let length = (payload.len() as u64).to_le_bytes();
    out.write_all(&length)?;
    out.write_all(&masked_crc(&length).to_le_bytes())?;
    out.write_all(payload)?;
    out.write_all(&masked_crc(payload).to_le_bytes())
}

/// A CRC of data that holds CRCs is weak, so the format rotates it and adds a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let payload = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(payload).to_le_bytes());
            events.push(Event::decode(payload).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    /// The first record that TensorFlow writes: length 24, and this CRC of it.
    #[test]
    fn framing_is_tensorflows() {
        assert_eq!(masked_crc(&24u64.to_le_bytes()).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn a_resume_opens_a_later_file_that_purges() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Events::open(folder.path(), 0).unwrap();
        first.scalars(1, &[("loss/train", 2.5), ("lr", 0.1)]).unwrap();
        first.flush().unwrap();
        let second = Events::open(folder.path(), 7).unwrap();
        assert!(second.path.file_name() > first.path.file_name());
        let path = second.path.clone();
        drop(second);
        let (events, resumed) = (read(&first.path), read(&path));
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".into())));
        let Some(What::Summary(summary)) = &events[1].what else { panic!("{events:?}") };
        assert_eq!((summary.value[0].tag.as_str(), summary.value[0].simple_value), ("loss/train", 2.5));
        assert_eq!(
            (resumed[1].step, &resumed[1].what),
            (8, &Some(What::SessionLog(SessionLog { status: START })))
        );
    }
}
