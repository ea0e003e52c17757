//! The clock of the benchmarks of the CPU.

use engine::simd::pool::Pool;
use std::time::Instant;

/// Seconds: of this thread's CPU time when it works alone, else of the wall clock.
pub fn clock(pool: &Pool) -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    #[cfg(target_os = "linux")]
    if pool.threads() == 1 {
        return thread_seconds();
    }
    START.elapsed().as_secs_f64()
}

#[cfg(target_os = "linux")]
fn thread_seconds() -> f64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = [0; 2];
    // SAFETY: the C library's function; a timespec is two 64-bit integers on 64-bit Linux.
    let status = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "no CPU time of a thread");
    time[0] as f64 + time[1] as f64 * 1e-9
}
