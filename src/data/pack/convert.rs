//! One sample -> the bytes that are packed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::PackOptions;
use crate::data::decode::{Decoder, Format, Header, Limits, Rect, read_header};
use crate::data::preprocess::resized_size;
use crate::data::resize::Resizer;
use crate::data::split::Split;

/// A sample as it goes into a shard.
pub(super) struct Packed {
    pub extension: &'static str,
    pub bytes: Vec<u8>,
}

/// Decoder and buffers of one worker.
#[derive(Default)]
pub(super) struct Converter {
    decoder: Decoder,
    resizer: Resizer,
    bytes: Vec<u8>,
    resized: Vec<u8>,
    grey: Vec<u8>,
}

impl Converter {
    /// The error is the sentence that says why the file cannot be used; it begins with its name.
    pub fn convert(&mut self, split: &Split, sample: usize, options: &PackOptions) -> Result<Packed, String> {
        split.read_into(sample, &mut self.bytes).map_err(|error| error.message)?;
        let made = catch_unwind(AssertUnwindSafe(|| self.make(options))).unwrap_or_else(|_| {
            *self = Self::default();
            Err("the decoder panicked on it; move the file away, and report it".into())
        });
        made.map_err(|reason| format!("{}: {reason}", split.name(sample)))
    }

    fn make(&mut self, options: &PackOptions) -> Result<Packed, String> {
        let header = read_header(&self.bytes, Limits::default())?;
        let whole = Rect::whole(header.height, header.width);
        // Also where the bytes are copied: what cannot be decoded is not worth a place.
        let region = self.decoder.decode(&mut self.bytes, &header, whole)?;
        let side = options.shorter_side.filter(|&side| header.height.min(header.width) > side);
        let Some(side) = side else {
            let extension = match header.format {
                Format::Jpeg => "jpg",
                Format::Png => "png",
                Format::WebP => "webp",
            };
            return Ok(Packed { extension, bytes: self.bytes.clone() });
        };
        let (height, width) = resized_size(header.height, header.width, side);
        self.resized.resize(height * width * 3, 0);
        self.resizer.resize(region, options.interpolation, height, width, &mut self.resized)?;
        Ok(Packed { extension: "jpg", bytes: self.encode(&header, (height, width), options.quality)? })
    }

    /// Baseline JPEG, 4:2:0, Huffman tables of its own; a grey picture stays grey.
    fn encode(
        &mut self,
        header: &Header,
        (height, width): (usize, usize),
        quality: u8,
    ) -> Result<Vec<u8>, String> {
        let size = |len: usize| {
            u16::try_from(len).map_err(|_| format!("{width} x {height} is too large for a JPEG"))
        };
        let (width, height) = (size(width)?, size(height)?);
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality);
        encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
        encoder.set_optimized_huffman_tables(true);
        let encoded = if header.channels <= 2 {
            self.grey.clear();
            self.grey.extend(self.resized.iter().step_by(3));
            encoder.encode(&self.grey, width, height, jpeg_encoder::ColorType::Luma)
        } else {
            encoder.encode(&self.resized, width, height, jpeg_encoder::ColorType::Rgb)
        };
        encoded.map_err(|error| format!("cannot be encoded: {error}"))?;
        Ok(bytes)
    }
}
