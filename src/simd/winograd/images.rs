//! Feature maps inside larger buffers: an arena's tensors, with or without a border.

/// Where a batch of NHWC maps lies in a buffer: pixel (y, x) of image i starts at element
/// `first + i * image + y * row + x * c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub first: usize,
    /// Elements from one row of pixels to the next.
    pub row: usize,
    /// Elements from one image to the next.
    pub image: usize,
}

/// Height, width and channels of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub h: usize,
    pub w: usize,
    pub c: usize,
}

impl Layout {
    /// [n,h,w,c] without gaps.
    pub fn dense(size: Size) -> Self {
        Self::bordered(size, 0)
    }

    /// The middle of [n,h + 2 border,w + 2 border,c].
    pub fn bordered(Size { h, w, c }: Size, border: usize) -> Self {
        let row = (w + 2 * border) * c;
        Self { first: border * (row + c), row, image: (h + 2 * border) * row }
    }

    /// Panics unless a batch of maps lies within `len` elements and, with `is_apart`, no two rows of it overlap.
    fn check(&self, name: &str, batch: usize, size: Size, len: usize, is_apart: bool) {
        let Size { h, w, c } = size;
        // What overflows is beyond every buffer.
        let image = (h - 1).saturating_mul(self.row).saturating_add(w * c);
        let end = (batch - 1).saturating_mul(self.image).saturating_add(image).saturating_add(self.first);
        assert!(end <= len, "{name}: {batch} of {size:?} at {self:?} end at element {end} of {len}");
        let rows = h == 1 || self.row >= w * c;
        let images = batch == 1 || self.image >= image;
        assert!(!is_apart || (rows && images), "{name}: rows or images of {size:?} overlap at {self:?}");
    }
}

/// Maps that are read. What lies around them is not: pixels outside of a map count as zero.
#[derive(Debug, Clone, Copy)]
pub struct Images<'a, E = f32> {
    pub data: &'a [E],
    pub layout: Layout,
}

/// Maps that are written, and nothing around them.
#[derive(Debug)]
pub struct ImagesMut<'a, E = f32> {
    pub data: &'a mut [E],
    pub layout: Layout,
}

impl<E> Images<'_, E> {
    pub(super) fn check(&self, name: &str, batch: usize, size: Size) {
        self.layout.check(name, batch, size, self.data.len(), false);
    }
}

impl<E> ImagesMut<'_, E> {
    pub(super) fn check(&self, name: &str, batch: usize, size: Size) {
        self.layout.check(name, batch, size, self.data.len(), true);
    }
}
