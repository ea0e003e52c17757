//! A counter-based generator: every draw is a pure function of (seed, epoch, sample, purpose, counter).
//!
//! Nothing is carried from one sample to the next, so results depend neither on the number of workers nor on where a
//! run was interrupted. The mixing function is SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014, "Fast
//! splittable pseudorandom number generators"), applied once per key part and once per draw.

/// What a draw is for: two purposes of one sample never share a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    Init = 1,
    Shuffle = 2,
    Subset = 3,
    Crop = 4,
    Flip = 5,
    Synth = 6,
    Mix = 7,
    DropPath = 8,
    Auto = 9,
    Jitter = 10,
    Erase = 11,
    EraseNoise = 12,
}

/// A stream of draws for one key. `Clone` copies the position.
#[derive(Debug, Clone)]
pub struct Rng {
    key: u64,
    counter: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Draw `index`, from 0 on, of the stream of `key`: for draws by place, which a GPU makes in any order.
pub fn nth(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// The upper 24 bits of a draw as a number in [0, 1): exact in f32, so that every device takes the same decision.
pub fn unit24(bits: u64) -> f32 {
    (bits >> 40) as f32 * (1.0 / (1u32 << 24) as f32)
}

impl Rng {
    pub fn new(seed: u64, epoch: u64, sample: u64, purpose: Purpose) -> Self {
        let mut key = mix(seed.wrapping_add(GOLDEN));
        for part in [epoch, sample, purpose as u64] {
            key = mix(key ^ mix(part.wrapping_add(GOLDEN)).wrapping_add(GOLDEN));
        }
        Self { key, counter: 0 }
    }

    /// What [`nth`] takes: the stream by itself, without a position.
    pub fn key(&self) -> u64 {
        self.key
    }

    pub fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        nth(self.key, self.counter - 1)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform integer in 0..n, n > 0 (multiply-shift; the bias is below n / 2^64).
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Standard normal, Box-Muller.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Fisher-Yates, in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_separate_streams_and_repeat() {
        let draw = |epoch, sample, purpose| Rng::new(7, epoch, sample, purpose).next_u64();
        assert_eq!(draw(1, 2, Purpose::Crop), draw(1, 2, Purpose::Crop));
        assert_ne!(draw(1, 2, Purpose::Crop), draw(2, 1, Purpose::Crop));
        assert_ne!(draw(1, 2, Purpose::Crop), draw(1, 2, Purpose::Flip));
    }

    #[test]
    fn draws_by_place_are_the_streams() {
        let mut rng = Rng::new(3, 1, 4, Purpose::DropPath);
        let key = rng.key();
        for index in 0..5 {
            assert_eq!(nth(key, index), rng.next_u64());
        }
        assert_eq!((unit24(0), unit24(u64::MAX)), (0.0, 1.0 - 1.0 / 16_777_216.0));
    }

    #[test]
    fn moments_of_unit_and_normal() {
        let mut rng = Rng::new(0, 0, 0, Purpose::Init);
        let n = 200_000;
        let mean = (0..n).map(|_| rng.unit()).sum::<f64>() / n as f64;
        let (mut first, mut second) = (0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            first += x;
            second += x * x;
        }
        // Five standard errors: sd(unit) = 0.2887, sd(normal) = 1, sd(normal^2) = sqrt 2.
        let standard_error = 1.0 / (n as f64).sqrt();
        assert!((mean - 0.5).abs() < 5.0 * 0.2887 * standard_error, "mean of unit draws {mean}");
        assert!((first / n as f64).abs() < 5.0 * standard_error, "mean of normal draws");
        assert!((second / n as f64 - 1.0).abs() < 5.0 * 1.4143 * standard_error, "variance of normal draws");
    }

    #[test]
    fn shuffle_permutes() {
        let mut items: Vec<u32> = (0..1000).collect();
        Rng::new(3, 0, 0, Purpose::Shuffle).shuffle(&mut items);
        assert_ne!(items[..5], [0, 1, 2, 3, 4]);
        items.sort_unstable();
        assert!(items.iter().copied().eq(0..1000));
    }
}
