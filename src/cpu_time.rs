//! What a thread or the process had of the cores so far: the clock of measurements on machines that others use too.

use std::time::Duration;

/// CPU time of this thread so far. A call costs a fifth of a microsecond.
#[cfg(feature = "train")]
pub fn thread_time() -> Duration {
    read(rustix::time::ClockId::ThreadCPUTime)
}

/// CPU time of this process so far.
#[cfg(feature = "train")]
pub fn process_time() -> Duration {
    read(rustix::time::ClockId::ProcessCPUTime)
}

#[cfg(feature = "train")]
fn read(clock: rustix::time::ClockId) -> Duration {
    let time = rustix::time::clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// `classify` measures nothing by it.
#[cfg(not(feature = "train"))]
pub fn thread_time() -> Duration {
    Duration::ZERO
}
