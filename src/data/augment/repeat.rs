//! Repeated augmentation (arXiv:1901.09335): several copies of a picture in an epoch, each augmented for itself.
//!
//! torchvision's `RASampler` and timm's `RepeatAugSampler` write each picture of the shuffled set down `times` in a row, deal
//! the list out to the GPUs one by one, and cut each GPU's share so that an epoch has as many pictures as the set has, in
//! whole 256s. So the copies of a picture are on different GPUs in the same step, and an epoch sees `1 / times` of the
//! set. Here the ranks' batches follow each other: rank after rank, `batch / ranks` pictures each.

/// How a picture is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// Copies of a picture, 1 for none.
    pub times: usize,
    /// GPUs that the order is that of; divides the pictures of an optimiser step.
    pub ranks: usize,
    /// Pictures in an optimiser step.
    pub batch: usize,
}

impl Repeat {
    /// Every picture once.
    pub const OFF: Self = Self { times: 1, ranks: 1, batch: 1 };

    /// Pictures of each rank in an epoch over `images`, whole batches alone.
    fn per_rank(&self, images: usize) -> usize {
        let whole = if images >= 256 { images / 256 * 256 / self.ranks } else { images.div_ceil(self.ranks) };
        let share = self.batch / self.ranks;
        whole.min((images * self.times).div_ceil(self.ranks)) / share * share
    }

    /// Pictures in an epoch over a set of `images`.
    pub fn epoch_len(&self, images: usize) -> usize {
        if self.times == 1 { images } else { self.per_rank(images) * self.ranks }
    }

    /// The epoch over `shuffled`, and which copy of its picture each position is. Without repeats the same pictures, and
    /// no copies.
    pub fn order(&self, shuffled: Vec<u32>) -> (Vec<u32>, Vec<u8>) {
        if self.times == 1 {
            return (shuffled, Vec::new());
        }
        let share = self.batch / self.ranks;
        // What does not divide evenly is filled up from the beginning.
        let listed = shuffled.len() * self.times;
        let positions = (0..self.per_rank(shuffled.len()) / share).flat_map(|step| {
            (0..self.ranks).flat_map(move |rank| {
                (step * share..(step + 1) * share).map(move |i| (rank + i * self.ranks) % listed)
            })
        });
        positions.map(|p| (shuffled[p / self.times], (p % self.times) as u8)).unzip()
    }
}
