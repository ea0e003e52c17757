//! The clock of the benchmarks of the CPU.

use engine::cpu_time::thread_time;
use engine::simd::pool::Pool;
use std::time::Instant;

/// Seconds: of this thread's CPU time when it works alone, else of the wall clock.
pub fn clock(pool: &Pool) -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    if pool.threads() == 1 {
        return thread_time().as_secs_f64();
    }
    START.elapsed().as_secs_f64()
}
