//! What lies on disk, read through the loader's own reader and decoded whole.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::ordered::in_order;
use super::{Observer, PackOptions, Progress, Source, Summary, stopped};
use crate::data::Splits;
use crate::data::decode::{Decoder, Limits, Rect, read_header};
use crate::error::{Error, Result};

#[derive(Default)]
struct Reader {
    decoder: Decoder,
    bytes: Vec<u8>,
}

/// How many pictures were read back; an error names the first one that is not what it should be.
pub(super) fn verify(
    sources: &[Source],
    summary: &Summary,
    options: &PackOptions,
    observer: &mut dyn Observer,
) -> Result<usize> {
    let packed = Splits::open(&options.output)?;
    let of = summary.splits.iter().map(|split| split.images).sum();
    let mut done = 0;
    for (source, wanted) in sources.iter().zip(&summary.splits) {
        let found = packed.splits.iter().find(|(name, _)| *name == source.name).map(|(_, split)| split);
        let split = found.filter(|split| split.len() == wanted.images).ok_or_else(|| {
            let images = found.map_or(0, |split| split.len());
            let folder = options.output.display();
            Error::failed(format!(
                "{folder}: {} has {images} pictures, {} were packed",
                source.name, wanted.images
            ))
        })?;
        let read = |reader: &mut Reader, i: usize| -> Result<(), String> {
            split.read_into(i, &mut reader.bytes).map_err(|e| e.message)?;
            let decode = AssertUnwindSafe(|| {
                let header = read_header(&reader.bytes, Limits::default())?;
                let whole = Rect::whole(header.height, header.width);
                reader.decoder.decode(&mut reader.bytes, &header, whole).map(|_| ())
            });
            let decoded = catch_unwind(decode).unwrap_or_else(|_| Err("the decoder panicked on it".into()));
            decoded.map_err(|reason| format!("{}: {reason}", split.name(i)))?;
            // The name begins with the position in the order that was packed.
            let position = split.stem(i).split('-').next().and_then(|number| number.parse::<usize>().ok());
            let label = position.and_then(|p| source.order.get(p)).map(|&s| source.split.label(s as usize));
            if label == Some(split.label(i)) {
                return Ok(());
            }
            Err(format!("{} has the class {}, its source {label:?}", split.name(i), split.label(i)))
        };
        in_order(split.len(), options.workers, read, |_, result| {
            result.map_err(|reason| {
                Error::failed(format!(
                    "what was written cannot be read back: {reason}; is the disk sound? Delete that shard and run the same \
                     command again"
                ))
            })?;
            done += 1;
            let progress = Progress { verifying: true, done, of, bytes: 0 };
            observer.progress(progress).map_err(|error| stopped(error, &options.output))
        })?;
    }
    Ok(done)
}
