//! Trying again: waits that double, with jitter, until patience ends.

use super::client::Failure;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::thread;
use std::time::{Duration, Instant};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How quickly a wait notices that patience has ended.
const TICK: Duration = Duration::from_millis(100);

/// How long something is tried, and who may end that sooner.
#[derive(Clone, Copy)]
pub struct Patience<'a> {
    until: Instant,
    is_over: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Patience<'a> {
    pub fn new(time: Duration, is_over: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self { until: Instant::now() + time, is_over }
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.until || (self.is_over)()
    }

    /// False: patience ended first.
    fn waits(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.is_over() {
            match end.checked_duration_since(Instant::now()) {
                Some(left) => thread::sleep(left.min(TICK)),
                None => return true,
            }
        }
        false
    }
}

/// Calls `attempt` until it succeeds, fails for good, or patience ends; then its last failure is the answer.
pub fn retry<T>(patience: &Patience, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    for tries in 0.. {
        match attempt() {
            Err(Failure::Passing(reason)) => {
                if !patience.waits(wait_after(tries, random())) {
                    return Err(Failure::Passing(reason));
                }
            }
            outcome => return outcome,
        }
    }
    unreachable!("attempts are not counted out")
}

/// Half of the doubled wait, and a random share of the other half: those who failed together do not come back together.
fn wait_after(tries: u32, random: u64) -> Duration {
    let doubled = FIRST_WAIT.saturating_mul(1 << tries.min(16)).min(LONGEST_WAIT);
    doubled / 2 + (doubled / 2).mul_f64(random as f64 / u64::MAX as f64)
}

/// The standard library seeds every such state anew.
fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_limit_and_differ() {
        for (tries, longest) in [(0, 200), (1, 400), (3, 1600), (7, 15_000), (40, 15_000)] {
            let longest = Duration::from_millis(longest);
            assert_eq!(wait_after(tries, 0), longest / 2);
            assert_eq!(wait_after(tries, u64::MAX), longest);
        }
        assert_ne!(random(), random());
    }

    #[test]
    fn what_passes_is_tried_again_and_what_lasts_is_not() {
        let never = || false;
        let patience = Patience::new(Duration::from_secs(60), &never);
        let mut tries = 0;
        let outcome = retry(&patience, || {
            tries += 1;
            if tries < 3 { Err(Failure::Passing("busy".into())) } else { Ok(tries) }
        });
        assert_eq!(outcome, Ok(3));
        let mut tries = 0;
        let outcome: Result<(), _> = retry(&patience, || {
            tries += 1;
            Err(Failure::Lasting("no permission".into()))
        });
        assert_eq!((outcome, tries), (Err(Failure::Lasting("no permission".into())), 1));
    }

    #[test]
    fn patience_ends() {
        let always = || true;
        let began = Instant::now();
        for patience in
            [Patience::new(Duration::ZERO, &|| false), Patience::new(Duration::from_secs(60), &always)]
        {
            let outcome: Result<(), _> = retry(&patience, || Err(Failure::Passing("busy".into())));
            assert_eq!(outcome, Err(Failure::Passing("busy".into())));
        }
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}
