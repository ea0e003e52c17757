//! Where a feature map lies and what its elements are.

/// An element of a feature map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    /// f32 whose channels lie in the order of the panels' lanes ([`super::pack::Packed::order`]): what one layer of int8
    /// leaves for the next to add.
    F32InLanes,
    Bf16,
    /// 0..=255, zero at 0.
    U8,
}

impl Format {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 | Self::F32InLanes => 4,
            Self::Bf16 => 2,
            Self::U8 => 1,
        }
    }
}

/// A batch of feature maps, NHWC, each within a border of `border` pixels on all sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub border: usize,
    pub format: Format,
}

/// Bytes after a map that a filter row may read past its end, rounded up to units of 4.
pub const TAIL: usize = 64;

impl Map {
    /// Bytes of a pixel.
    pub fn pixel(&self) -> usize {
        self.c * self.format.bytes()
    }

    /// Bytes of a row, its border included.
    pub fn row(&self) -> usize {
        (self.w + 2 * self.border) * self.pixel()
    }

    /// Bytes of an image, its border included.
    pub fn image(&self) -> usize {
        (self.h + 2 * self.border) * self.row()
    }

    /// Bytes of the batch.
    pub fn bytes(&self) -> usize {
        self.n * self.image() + TAIL
    }

    /// Offset in bytes of a pixel; `y` and `x` count from the first pixel within the border.
    pub fn at(&self, image: usize, y: usize, x: usize) -> usize {
        image * self.image() + (y + self.border) * self.row() + (x + self.border) * self.pixel()
    }
}

/// A map in memory that outlives its use; several threads write disjoint parts of it.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub map: Map,
    /// Of `map.bytes()` bytes.
    pub base: *mut u8,
}

// SAFETY: an address and its shape. Whoever reads or writes through it states why that is sound.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Writes zeros to the border beside rows `rows` of an image, and above the first and below the last row where these
    /// are among them.
    ///
    /// # Safety
    /// `base` has `map.bytes()` bytes; no other thread touches the border of these rows.
    pub unsafe fn clear_border(&self, image: usize, rows: std::ops::Range<usize>) {
        let Map { h, w, border, .. } = self.map;
        if border == 0 {
            return;
        }
        let (row, side) = (self.map.row(), border * self.map.pixel());
        let start = image * self.map.image();
        let zero = |from: usize, bytes: usize| {
            // SAFETY: whole rows or borders of an image within the batch: see `Map::at`.
            unsafe { self.base.add(from).write_bytes(0, bytes) }
        };
        if rows.start == 0 {
            zero(start, border * row);
        }
        for y in rows.clone() {
            let from = start + (y + border) * row;
            zero(from, side);
            zero(from + side + w * self.map.pixel(), side);
        }
        if rows.end == h {
            zero(start + (h + border) * row, border * row);
        }
    }
}
