//! Which batches of an epoch are made here, and which elsewhere.

/// Which of an epoch's batches a loader makes: every `of`-th, from `index` on. The others are other ranks'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub index: usize,
    pub of: usize,
}

impl Share {
    pub const ALL: Self = Self { index: 0, of: 1 };

    /// What belongs to this share of a list of items, batch by batch.
    pub(super) fn take<T: Copy>(self, items: Vec<T>, batch: usize) -> Vec<T> {
        if self == Self::ALL {
            return items;
        }
        items.chunks(batch).skip(self.index).step_by(self.of).flatten().copied().collect()
    }

    /// The number in the epoch of this share's batch `number`.
    pub(super) fn number(self, number: usize) -> usize {
        number * self.of + self.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_the_whole() {
        let all: Vec<u32> = (0..23).collect();
        assert_eq!(Share::ALL.take(all.clone(), 4), all);
        let of = |index| Share { index, of: 3 }.take(all.clone(), 4);
        assert_eq!(of(0), [0, 1, 2, 3, 12, 13, 14, 15]);
        assert_eq!(of(2), [8, 9, 10, 11, 20, 21, 22], "the last batch is smaller");
        assert_eq!([0, 1, 2].map(|index| of(index).len()).iter().sum::<usize>(), all.len());
        assert_eq!(Share { index: 1, of: 3 }.number(2), 7);
    }
}
