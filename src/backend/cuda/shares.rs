//! Which share of its floor each kind of launch reaches: measured by `engine bench step --profile --json`, or, until a card has
//! been measured, assumed.
//!
//! How a share goes from one card to another. Our own kernels are the same code on every card and bound by bytes, so that the
//! share of a copy's rate that they reach is taken as it was measured. Convolutions and products are other code on every
//! generation of cards: for them the measured share stands beside what the fastest published trainings reach ([`SHARE`]), and
//! the prediction runs from the less to the more of the two. What a step as one graph takes less or more than its launches
//! one after another (streams beside each other, gaps between launches) is one factor for all. Left out: launches that are too
//! short to be bound by anything, which weigh less on a slower card, and clocks that fall under load (a T4 has 70 W).

use super::profile::{Kind, Sum};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Of the floor of their own level of fusion: what the fastest published trainings reach, from the least to the best
/// (MXNet on V100 and A100, MLPerf v4.0 on H100 and H200; PyTorch on V100 reaches the upper end of a higher floor).
pub const SHARE: [f64; 2] = [0.64, 0.75];

/// From the slow to the fast end of what is expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    /// Card that they were measured on, and what; none where they are assumed.
    pub measured_on: Option<String>,
    /// Of the floor; kinds that are not there have [`SHARE`].
    by_kind: BTreeMap<Kind, [f64; 2]>,
    /// A step as one graph, for its launches one after another.
    whole: f64,
}

/// What is read of a profile.
#[derive(Deserialize)]
struct Profiled {
    what: String,
    device: String,
    mark_microseconds: f64,
    step_milliseconds: f64,
    kinds: Vec<Sum>,
}

impl Shares {
    pub fn assumed() -> Self {
        Self { measured_on: None, by_kind: BTreeMap::new(), whole: 1.0 }
    }

    /// Of a file whose last line that is an object is a profile's.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).map_err(|error| Error::unreadable(path, &error, "a profile of a step"))?;
        let line = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or(&text);
        let advice = "engine bench step --profile --json writes one";
        let profiled: Profiled = serde_json::from_str(line)
            .map_err(|error| Error::input_file(path, format!("no profile of a step: {error}; {advice}")))?;
        Self::of(&profiled).ok_or_else(|| {
            Error::input_file(path, format!("a profile without times, of a step that was not run; {advice}"))
        })
    }

    fn of(profiled: &Profiled) -> Option<Self> {
        // Each time has that between two marks in it.
        let net = |sum: &Sum| sum.milliseconds - sum.launches as f64 * profiled.mark_microseconds / 1e3;
        let all: f64 = profiled.kinds.iter().map(net).sum();
        let share = |sum: &Sum| {
            let share = sum.floor_milliseconds / net(sum);
            let is_share = share.is_finite() && share > 0.0;
            is_share.then_some((sum.kind, if is_library(sum.kind) { [share.min(SHARE[0]), share.max(SHARE[1])] } else { [share; 2] }))
        };
        let by_kind = profiled.kinds.iter().map(share).collect::<Option<BTreeMap<_, _>>>()?;
        let whole = profiled.step_milliseconds / all;
        let is_whole = whole.is_finite() && whole > 0.0 && !by_kind.is_empty();
        let measured_on = Some(format!("{}, {}", profiled.device, profiled.what));
        is_whole.then_some(Self { measured_on, by_kind, whole })
    }

    /// What the floors of launches of `kind` are divided by, slow and fast.
    pub fn get(&self, kind: Kind) -> [f64; 2] {
        self.by_kind.get(&kind).unwrap_or(&SHARE).map(|share| share / self.whole)
    }
}

/// Whether another library's code runs on every generation of cards.
fn is_library(kind: Kind) -> bool {
    matches!(kind, Kind::ConvForward | Kind::ConvDgrad | Kind::ConvWgrad | Kind::Loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = r#"{"what": "resnet50", "device": "A Card", "mark_microseconds": 2.0, "step_milliseconds": 8.1,
        "sum_milliseconds": 9.4, "launches": [], "kinds": [
        {"kind": "conv-forward", "launches": 100, "milliseconds": 5.2, "floor_milliseconds": 4.0, "megabytes": 1.0},
        {"kind": "norm-forward", "launches": 100, "milliseconds": 4.2, "floor_milliseconds": 3.6, "megabytes": 1.0}]}"#;

    fn read(text: &str) -> Result<Shares> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.txt");
        fs::write(&path, text.replace('\n', " ")).unwrap();
        Shares::read(&path)
    }

    /// 5.2 and 4.2 ms less 0.2 of marks are 9 in all, of which the graph takes nine tenths.
    #[test]
    fn shares_are_net_of_marks_and_give_the_measured_step_back() {
        let shares = read(PROFILE).unwrap();
        assert_eq!(shares.measured_on.as_deref(), Some("A Card, resnet50"));
        let close = |got: [f64; 2], want: [f64; 2]| got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(shares.get(Kind::ConvForward), [0.64 / 0.9, 0.8 / 0.9]), "{shares:?}");
        assert!(close(shares.get(Kind::NormForward), [0.9 / 0.9; 2]), "{shares:?}");
        let again = 4.0 / shares.get(Kind::ConvForward)[1] + 3.6 / shares.get(Kind::NormForward)[1];
        assert!((again - 8.1).abs() < 1e-9, "{again}");
        assert_eq!(Shares::assumed().get(Kind::ConvDgrad), SHARE);
    }

    #[test]
    fn what_is_no_profile_is_refused_with_what_writes_one() {
        for text in ["", "no json", "{}", &PROFILE.replace("8.1", "0.0"), &PROFILE.replace("5.2", "0.0")] {
            let message = read(text).unwrap_err().message;
            assert!(message.contains("engine bench step --profile --json"), "{message}");
        }
    }
}
