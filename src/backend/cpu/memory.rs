//! Buffers that are used again from step to step.

/// A slice of f32 that goes back to [`Buffers`] after use. Its first contents are whatever it held before.
#[derive(Debug)]
pub struct Buffer {
    storage: Vec<f32>,
    len: usize,
}

impl std::ops::Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.storage[..self.len]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.storage[..self.len]
    }
}

/// The free list. A step asks for the same sizes in the same order, so after the first one nothing is allocated.
#[derive(Debug, Default)]
pub struct Buffers {
    free: Vec<Vec<f32>>,
}

impl Buffers {
    /// The smallest free buffer that fits and is at most twice as large, or a new one.
    pub fn take(&mut self, len: usize) -> Buffer {
        let fits = |storage: &&(usize, usize)| (len..=2 * len).contains(&storage.1);
        let sizes: Vec<(usize, usize)> = self.free.iter().map(Vec::len).enumerate().collect();
        let found = sizes.iter().filter(fits).min_by_key(|(_, size)| *size);
        let storage = found.map_or_else(|| vec![0.0; len], |&(index, _)| self.free.swap_remove(index));
        Buffer { storage, len }
    }

    pub fn give(&mut self, buffer: Buffer) {
        self.free.push(buffer.storage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_fit_is_used_again() {
        let mut buffers = Buffers::default();
        let (large, small) = (buffers.take(150), buffers.take(100));
        let address = small.as_ptr();
        buffers.give(large);
        buffers.give(small);
        let again = buffers.take(90);
        assert_eq!((again.len(), again.as_ptr()), (90, address));
        assert_eq!(buffers.take(10).storage.len(), 10, "a buffer much too large is left for a better use");
    }
}
