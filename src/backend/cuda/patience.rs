//! Waiting for a card, but not for ever.

use crate::error::{Error, Result};
use crate::terminal::message;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What time is measured with; tests have one of their own.
pub trait Clock {
    /// Since some moment.
    fn now(&self) -> Duration;

    fn sleep(&mut self, time: Duration);
}

/// The system's.
pub struct SystemClock {
    began: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { began: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn sleep(&mut self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Environment variable: seconds that a card may take to answer.
const SECONDS: &str = "ENGINE_DEVICE_PATIENCE";

fn seconds(text: &str) -> Option<Duration> {
    let seconds = text.trim().parse::<f64>().ok().filter(|&seconds| seconds > 0.0)?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// How long to wait for what a card does, and how often to ask.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub limit: Duration,
    pub pause: Duration,
}

impl Patience {
    /// For one pass, which takes a second at the most: with what follows a run ends within a minute of losing its card.
    pub const PASS: Self = Self { limit: Duration::from_secs(50), pause: Duration::from_micros(50) };

    /// The same with the limit that the environment gives: under a sanitizer, or in a debugger, a pass takes minutes.
    pub fn of_a_pass() -> Self {
        static LIMIT: OnceLock<Duration> = OnceLock::new();
        let limit = *LIMIT.get_or_init(|| match std::env::var(SECONDS) {
            Err(_) => Self::PASS.limit,
            Ok(text) => seconds(&text).unwrap_or_else(|| {
                message(format!("warning: {SECONDS}={text:?} is no number of seconds; a card has 50"));
                Self::PASS.limit
            }),
        });
        Self { limit, ..Self::PASS }
    }

    /// Asks `has_ended` until it is true; beyond the limit it is a device error that names `who`.
    pub fn wait(
        &self,
        who: &str,
        clock: &mut dyn Clock,
        mut has_ended: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let began = clock.now();
        while !has_ended()? {
            if clock.now() - began > self.limit {
                return Err(Error::device(format!(
                    "{who} has not answered for {:.0} s",
                    self.limit.as_secs_f64()
                )));
            }
            clock.sleep(self.pause);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    /// Moves only when somebody sleeps.
    struct Sleeper(Duration);

    impl Clock for Sleeper {
        fn now(&self) -> Duration {
            self.0
        }

        fn sleep(&mut self, time: Duration) {
            self.0 += time;
        }
    }

    const PATIENCE: Patience = Patience { limit: Duration::from_secs(50), pause: Duration::from_secs(1) };

    #[test]
    fn what_ends_is_waited_for() {
        for passes in [0, 1, 49] {
            let mut asked = 0;
            let mut clock = Sleeper(Duration::from_secs(1000));
            let ended = || {
                asked += 1;
                Ok(asked > passes)
            };
            PATIENCE.wait("the card", &mut clock, ended).unwrap();
            assert_eq!((asked, clock.0), (passes + 1, Duration::from_secs(1000 + passes)));
        }
    }

    #[test]
    fn what_never_ends_is_a_lost_card_within_a_minute() {
        let mut clock = Sleeper(Duration::ZERO);
        let error = PATIENCE.wait("Tesla V100", &mut clock, || Ok(false)).unwrap_err();
        assert_eq!((error.kind, error.exit_code()), (Kind::Device, 70));
        assert_eq!(error.message, "Tesla V100 has not answered for 50 s");
        assert!(clock.0 < Duration::from_secs(60), "{:?}", clock.0);
        assert!(Patience::PASS.limit <= Duration::from_secs(50));
    }

    #[test]
    fn seconds_are_read() {
        assert_eq!(seconds(" 0.5"), Some(Duration::from_millis(500)));
        for bad in ["", "x", "-1", "0", "nan", "inf", "1e300"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_fails_is_not_asked_again() {
        let mut asked = 0;
        let fails = || {
            asked += 1;
            Err(Error::device("the card failed at a training step"))
        };
        let error = PATIENCE.wait("the card", &mut Sleeper(Duration::ZERO), fails).unwrap_err();
        assert_eq!((asked, error.message.as_str()), (1, "the card failed at a training step"));
    }
}
