//! Policies that draw operations: torchvision's RandAugment, TrivialAugmentWide and AutoAugment, and timm's RandAugment.

use std::fmt;
use std::str::FromStr;

use super::ops::Op;
use super::ops::affine::Sampling;
use super::timm;
use super::torchvision::{self, AUTO_AUGMENT, IMAGENET, OPERATIONS, RAND_AUGMENT, Space, TRIVIAL_AUGMENT};
use crate::rng::Rng;
use serde::{Deserialize, Serialize};

/// A policy, as `augment.auto` names it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Auto {
    /// `none`.
    #[default]
    None,
    /// `randaugment-n2-m9`: torchvision's, `ops` operations of bin `magnitude`.
    RandAugment { ops: usize, magnitude: usize },
    /// `trivialaugment`: torchvision's TrivialAugmentWide, one operation of any bin.
    TrivialAugment,
    /// `autoaugment`: torchvision's, with the policy for ImageNet.
    AutoAugment,
    /// `rand-m7-mstd0.5-inc1`: timm's.
    Timm(Timm),
}

/// The parts of timm's configuration string.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timm {
    /// `m`, 0 to 10.
    pub magnitude: usize,
    /// `mstd`: standard deviation of the magnitude; above 100 it is infinite, and the magnitude uniform from 0.
    pub deviation: f64,
    /// `n`: operations drawn.
    pub layers: usize,
    /// `p`: probability that a drawn one is applied.
    pub probability: f64,
    /// `inc`: every operation grows stronger with its magnitude.
    pub increasing: bool,
}

impl Default for Timm {
    fn default() -> Self {
        Self { magnitude: 10, deviation: 0.0, layers: 2, probability: 0.5, increasing: false }
    }
}

/// Most operations that a policy draws for a picture.
const MAX_OPS: usize = 16;

const FORMS: &str = "\"none\", \"randaugment-n2-m9\" (torchvision's), \"trivialaugment\", \"autoaugment\" or \
                     \"rand-m7-mstd0.5-inc1\" (timm's)";

impl Auto {
    /// The operations for one picture of [height, width], in order.
    pub fn draw(
        &self,
        height: usize,
        width: usize,
        sampling: Sampling,
        draws: &mut Rng,
        apply: &mut dyn FnMut(Op),
    ) {
        let mut torchvision = |space: &Space, kind, bin, negative: bool| {
            let magnitude = space.magnitude(kind, bin, height, width);
            let magnitude = if negative { -magnitude } else { magnitude };
            torchvision::operation(kind, magnitude, height, width, sampling)
                .into_iter()
                .for_each(&mut *apply);
        };
        match *self {
            Self::None => {}
            Self::RandAugment { ops, magnitude } => {
                for _ in 0..ops {
                    let kind = OPERATIONS[draws.below(OPERATIONS.len() as u64) as usize];
                    let negative = kind.signed() && draws.below(2) == 1;
                    torchvision(&RAND_AUGMENT, kind, magnitude, negative);
                }
            }
            Self::TrivialAugment => {
                let kind = OPERATIONS[draws.below(OPERATIONS.len() as u64) as usize];
                let bin = if kind.graded() { draws.below(TRIVIAL_AUGMENT.bins as u64) as usize } else { 0 };
                let negative = kind.signed() && draws.below(2) == 1;
                torchvision(&TRIVIAL_AUGMENT, kind, bin, negative);
            }
            Self::AutoAugment => {
                let steps = &IMAGENET[draws.below(IMAGENET.len() as u64) as usize];
                let chances = [draws.unit(), draws.unit()];
                let signs = [draws.below(2), draws.below(2)];
                for (i, &(kind, probability, bin)) in steps.iter().enumerate() {
                    if chances[i] <= probability {
                        torchvision(&AUTO_AUGMENT, kind, bin, kind.signed() && signs[i] == 0);
                    }
                }
            }
            Self::Timm(timm) => timm.draw(height, width, sampling, draws, apply),
        }
    }
}

impl Timm {
    fn draw(
        &self,
        height: usize,
        width: usize,
        sampling: Sampling,
        draws: &mut Rng,
        apply: &mut dyn FnMut(Op),
    ) {
        let mut kinds = [timm::Kind::AutoContrast; MAX_OPS];
        let kinds = &mut kinds[..self.layers.min(MAX_OPS)];
        kinds.fill_with(|| timm::OPERATIONS[draws.below(timm::OPERATIONS.len() as u64) as usize]);
        for &kind in kinds.iter() {
            if self.probability < 1.0 && draws.unit() > self.probability {
                continue;
            }
            let mean = self.magnitude as f64;
            let level = if self.deviation.is_infinite() {
                draws.range(0.0, mean)
            } else if self.deviation > 0.0 {
                mean + self.deviation * draws.normal()
            } else {
                mean
            };
            let level = level.clamp(0.0, timm::LEVELS);
            let mut negate = |value: f64| if draws.unit() > 0.5 { -value } else { value };
            let argument = timm::argument(kind, level, self.increasing, &mut negate);
            apply(timm::operation(kind, argument, height, width, sampling));
        }
    }
}

/// Letters and number of one part between dashes.
fn part(part: &str) -> (&str, &str) {
    part.split_at(part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len()))
}

/// A number that lies in `range`.
fn number<T: FromStr + PartialOrd + fmt::Display>(
    text: &str,
    part: &str,
    range: [T; 2],
) -> Result<T, String> {
    let [low, high] = range;
    let value = text.parse::<T>();
    let fraction = value.is_err() && text.parse::<f64>().is_ok();
    value.ok().filter(|value| *value >= low && *value <= high).ok_or_else(|| {
        let whole = if fraction { "a whole number " } else { "" };
        format!("{part} is out of range, expected {whole}from {low} to {high}")
    })
}

impl FromStr for Auto {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |reason: String| format!("\"{text}\": {reason}");
        let mut parts = text.split('-');
        match parts.next().unwrap_or_default() {
            "none" | "trivialaugment" | "autoaugment" if text.contains('-') => {
                Err(named("this policy has no parts".into()))
            }
            "none" => Ok(Self::None),
            "trivialaugment" => Ok(Self::TrivialAugment),
            "autoaugment" => Ok(Self::AutoAugment),
            "randaugment" => {
                let (mut ops, mut magnitude) = (2, 9);
                for whole in parts {
                    match part(whole) {
                        ("n", value) => ops = number(value, whole, [1, MAX_OPS]).map_err(named)?,
                        ("m", value) => {
                            magnitude = number(value, whole, [0, RAND_AUGMENT.bins - 1]).map_err(named)?;
                        }
                        _ => {
                            return Err(named(format!(
                                "{whole} is no part of it, expected n or m and a number"
                            )));
                        }
                    }
                }
                Ok(Self::RandAugment { ops, magnitude })
            }
            "rand" => parts.try_fold(Timm::default(), Timm::with).map(Self::Timm).map_err(named),
            _ => Err(format!("there is no policy \"{text}\", expected {FORMS}")),
        }
    }
}

impl Timm {
    fn with(mut self, whole: &str) -> Result<Self, String> {
        match part(whole) {
            ("m", value) => self.magnitude = number(value, whole, [0, timm::LEVELS as usize])?,
            ("n", value) => self.layers = number(value, whole, [1, MAX_OPS])?,
            ("p", value) => self.probability = number(value, whole, [0.0, 1.0])?,
            ("mstd", value) => {
                let deviation: f64 = number(value, whole, [0.0, f64::MAX])?;
                self.deviation = if deviation > 100.0 { f64::INFINITY } else { deviation };
            }
            ("inc", value) => self.increasing = number(value, whole, [0, 1])? == 1,
            _ => {
                return Err(format!("{whole} is no part of it, expected m, mstd, n, p or inc and a number"));
            }
        }
        Ok(self)
    }
}

impl fmt::Display for Auto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "none"),
            Self::RandAugment { ops, magnitude } => write!(f, "randaugment-n{ops}-m{magnitude}"),
            Self::TrivialAugment => write!(f, "trivialaugment"),
            Self::AutoAugment => write!(f, "autoaugment"),
            Self::Timm(Timm { magnitude, deviation, layers, probability, increasing }) => {
                let deviation = if deviation.is_infinite() { 101.0 } else { *deviation };
                let increasing = u8::from(*increasing);
                write!(f, "rand-m{magnitude}-n{layers}-p{probability}-mstd{deviation}-inc{increasing}")
            }
        }
    }
}

impl TryFrom<String> for Auto {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Auto> for String {
    fn from(auto: Auto) -> Self {
        auto.to_string()
    }
}
