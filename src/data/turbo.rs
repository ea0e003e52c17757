//! JPEG by libjpeg-turbo, decoding no more than a region (feature `turbojpeg`).
//!
//! The result equals the same part of a full decode to the byte: the region is widened by two pixels, since the
//! chroma of a pixel is interpolated from its neighbours, and its left edge goes back to a unit's, as the library
//! demands. Of a single-scan frame only the rows down to the region are decoded, by the header's height (see
//! [`jpeg::with_height`]).

use std::ffi::CStr;

use turbojpeg_sys as tj;

use super::decode::{Rect, grow};
use super::jpeg::{self, JpegHeader};

/// A scan takes about as long as a baseline image; files of a few bytes can hold thousands.
const MAX_SCANS: i32 = 500;

/// What interpolation of chroma reads beyond a pixel.
const MARGIN: usize = 2;

struct Handle(tj::tjhandle);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle comes from tj3Init and is destroyed once.
        unsafe { tj::tj3Destroy(self.0) }
    }
}

/// One decompressor: of one worker.
#[derive(Default)]
pub(crate) struct Turbo {
    handle: Option<Handle>,
}

/// Grey and three components; zune-jpeg turns CMYK into RGB, libjpeg does not.
pub(crate) fn takes(header: &JpegHeader) -> bool {
    matches!(header.components, 1 | 3)
}

/// The buffer's height and width, and where the region lies in it.
pub(crate) type Placed = (usize, usize, Rect);

impl Turbo {
    fn handle(&mut self) -> Result<tj::tjhandle, String> {
        if self.handle.is_none() {
            // SAFETY: no arguments that could be wrong; a null result is looked at.
            let new = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as i32) };
            if new.is_null() {
                return Err("libjpeg-turbo cannot allocate a decompressor".into());
            }
            let new = Handle(new);
            // SAFETY: `new` is a decompressor.
            unsafe { tj::tj3Set(new.0, tj::TJPARAM_TJPARAM_SCANLIMIT as i32, MAX_SCANS) };
            self.handle = Some(new);
        }
        self.handle.as_ref().map(|h| h.0).ok_or_else(String::new)
    }

    pub fn decode(
        &mut self,
        bytes: &mut [u8],
        header: &JpegHeader,
        rect: Rect,
        pixels: &mut Vec<u8>,
    ) -> Result<Placed, String> {
        let handle = self.handle()?;
        let rows = (rect.top + rect.height + MARGIN).min(header.height);
        jpeg::with_height(bytes, header, rows, |bytes, height| {
            decode_part(handle, bytes, (height, header.width), rect, pixels)
        })
    }
}

/// `bytes` say that the image is `height` x `width`, and `rect` lies inside.
fn decode_part(
    handle: tj::tjhandle,
    bytes: &[u8],
    (height, width): (usize, usize),
    rect: Rect,
    pixels: &mut Vec<u8>,
) -> Result<Placed, String> {
    let whole = tj::tjregion { x: 0, y: 0, w: 0, h: 0 };
    // SAFETY: the handle lives, and the pointer is readable for the length given; the region of an earlier image is
    // taken back before this one's header is read.
    let read = unsafe {
        tj::tj3SetCroppingRegion(handle, whole);
        tj::tj3DecompressHeader(handle, bytes.as_ptr(), bytes.len() as tj::size_t)
    };
    check(handle, read)?;
    // SAFETY: reading parameters of a living handle.
    let (got, subsampling) = unsafe {
        let get = |parameter: u32| tj::tj3Get(handle, parameter as i32);
        let size = (get(tj::TJPARAM_TJPARAM_JPEGHEIGHT), get(tj::TJPARAM_TJPARAM_JPEGWIDTH));
        (size, get(tj::TJPARAM_TJPARAM_SUBSAMP))
    };
    // The buffer below is sized by this.
    if got != (height as i32, width as i32) {
        return Err(format!("the JPEG has more than one frame header: {got:?}"));
    }
    let Some(unit) = unit_width(subsampling) else {
        decompress(handle, bytes, height * width * 3, pixels)?;
        return Ok((height, width, rect));
    };
    let top = rect.top.saturating_sub(MARGIN);
    let left = rect.left.saturating_sub(MARGIN) / unit * unit;
    let h = (rect.top + rect.height + MARGIN).min(height) - top;
    let w = (rect.left + rect.width + MARGIN).min(width) - left;
    let region = tj::tjregion { x: left as i32, y: top as i32, w: w as i32, h: h as i32 };
    // SAFETY: plain values, checked by the library against the header that it has read.
    check(handle, unsafe { tj::tj3SetCroppingRegion(handle, region) })?;
    decompress(handle, bytes, h * w * 3, pixels)?;
    Ok((h, w, Rect { top: rect.top - top, left: rect.left - left, ..rect }))
}

/// Decompresses what has been set up, `len` bytes of RGB.
fn decompress(handle: tj::tjhandle, bytes: &[u8], len: usize, pixels: &mut Vec<u8>) -> Result<(), String> {
    grow(pixels, len)?;
    // SAFETY: `pixels` has room for the region's height times its width times 3 bytes, which is what a pitch of 0
    // means; the size of the frame was compared with the header's.
    let result = unsafe {
        let (data, size) = (bytes.as_ptr(), bytes.len() as tj::size_t);
        tj::tj3Decompress8(handle, data, size, pixels.as_mut_ptr(), 0, tj::TJPF_TJPF_RGB)
    };
    check(handle, result)
}

/// Width in pixels of a minimum coded unit (`tjMCUWidth`).
fn unit_width(subsampling: i32) -> Option<usize> {
    Some(match subsampling {
        tj::TJSAMP_TJSAMP_444 | tj::TJSAMP_TJSAMP_GRAY | tj::TJSAMP_TJSAMP_440 | tj::TJSAMP_TJSAMP_441 => 8,
        tj::TJSAMP_TJSAMP_422 | tj::TJSAMP_TJSAMP_420 => 16,
        tj::TJSAMP_TJSAMP_411 => 32,
        _ => return None,
    })
}

/// Warnings (stray bytes between segments, say) are let pass, as by Pillow.
fn check(handle: tj::tjhandle, result: i32) -> Result<(), String> {
    // SAFETY: the handle lives; the string is valid until the next call and is copied.
    unsafe {
        if result == 0 || tj::tj3GetErrorCode(handle) == tj::TJERR_TJERR_WARNING as i32 {
            return Ok(());
        }
        let text = CStr::from_ptr(tj::tj3GetErrorStr(handle)).to_string_lossy();
        Err(format!("the JPEG is damaged: {text}"))
    }
}
