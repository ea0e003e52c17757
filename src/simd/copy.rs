//! The bandwidth of main memory, which benchmarks give shares of.

use super::pool::Pool;
use std::hint::black_box;
use std::time::Instant;

/// Bytes that the threads copy together: far more than caches hold.
const BYTES: usize = 256 << 20;
/// Copies, of which the fastest counts.
const REPEATS: usize = 5;

/// Bytes a second, read and written together, of all the pool's threads together.
pub fn measure(pool: &Pool) -> f64 {
    let chunk = BYTES / pool.threads();
    // Written first, so that no page is made while the clock runs.
    let mut pieces: Vec<_> = (0..pool.threads()).map(|_| (vec![1u8; chunk], vec![2u8; chunk])).collect();
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let start = Instant::now();
        pool.for_each(pieces.iter_mut().collect(), |(from, to)| to.copy_from_slice(black_box(from)));
        best = best.min(start.elapsed().as_secs_f64());
    }
    black_box(&pieces);
    (2 * chunk * pool.threads()) as f64 / best
}
