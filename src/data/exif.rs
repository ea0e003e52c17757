//! EXIF orientation: which way up a camera was held. Nothing else of EXIF is read.

/// How the stored rows become what the photographer saw: the stored picture is transposed first where `transposed`,
/// then mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orientation {
    /// Rows of the result are columns of the file.
    pub transposed: bool,
    /// The file's rows, from the last to the first.
    pub rows_reversed: bool,
    /// The file's columns, from the last to the first.
    pub columns_reversed: bool,
}

impl Orientation {
    /// Of an EXIF value: which sides of the picture the file's first row and first column are (CIPA DC-008, 4.6.4 A,
    /// tag 0x0112). A value outside 1 to 8 means nothing and turns nothing.
    pub fn from_exif(value: u16) -> Self {
        let (transposed, rows_reversed, columns_reversed) = match value {
            2 => (false, false, true),
            3 => (false, true, true),
            4 => (false, true, false),
            5 => (true, false, false),
            6 => (true, true, false),
            7 => (true, true, true),
            8 => (true, false, true),
            _ => (false, false, false),
        };
        Self { transposed, rows_reversed, columns_reversed }
    }
}

/// The orientation tag of an EXIF block, 1 to 8. A block is a TIFF header and a first directory of entries of 12 bytes
/// (TIFF 6.0, section 2); some writers of PNG and WebP keep JPEG's `Exif\0\0` in front of it.
pub(crate) fn orientation(block: &[u8]) -> Option<u16> {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let little = match tiff.get(..2)? {
        b"II" => true,
        b"MM" => false,
        _ => return None,
    };
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = tiff.get(at..at.checked_add(len)?)?;
        let fold = |n: usize, b: &u8| n << 8 | usize::from(*b);
        Some(if little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) })
    };
    let directory = number(4, 4)?;
    let entries = number(directory, 2)?;
    let at = (0..entries).map(|i| directory + 2 + 12 * i).find(|&at| number(at, 2) == Some(0x0112))?;
    let value = number(at + 8, 2)? as u16;
    (1..=8).contains(&value).then_some(value)
}

/// The orientation in a PNG's `eXIf` chunk, wherever it stands (PNG 3rd edition, 11.3.4.4).
pub(crate) fn of_png(bytes: &[u8]) -> Option<u16> {
    let mut rest = bytes.get(8..)?;
    loop {
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        let data = rest.get(8..8usize.checked_add(length)?)?;
        if &rest[4..8] == b"eXIf" {
            return orientation(data);
        }
        // The chunk's checksum has four bytes.
        rest = rest.get(8 + length + 4..)?;
    }
}

/// The orientation in a WebP's `EXIF` chunk (RFC 9649, section 2.7.1.5).
pub(crate) fn of_webp(bytes: &[u8]) -> Option<u16> {
    let mut rest = bytes.get(12..)?;
    loop {
        let length = u32::from_le_bytes(*rest.get(4..)?.first_chunk()?) as usize;
        let data = rest.get(8..8usize.checked_add(length)?)?;
        if &rest[..4] == b"EXIF" {
            return orientation(data);
        }
        // Chunks are padded to an even length.
        rest = rest.get(8 + length.next_multiple_of(2)..)?;
    }
}
