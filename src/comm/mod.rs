//! Ranks that train together: who they are, and how they talk.
//!
//! | file | says |
//! |---|---|
//! | [`world`] | which rank this is, from a launcher's variables |
//! | [`tcp`], `meeting` | small things between hosts: rank 0 listens, the others call it |
//! | `mpi` | everything, through MPI (feature `mpi`) |
//! | [`loopback`] | ranks that are threads of one process |
//!
//! A call is collective: every rank makes the same calls in the same order. It ends within its limit, with a device error
//! where a rank is gone or silent: the process then has to end, and the launcher starts all of them again.

pub mod loopback;
mod meeting;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod tcp;
pub mod world;

pub use world::World;

use crate::error::{Error, Result};
use crate::terminal::message;
use half::{bf16, f16};
use sha2::{Digest, Sha256};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

/// Environment variable: seconds that a rank may keep the others waiting within a step.
const SECONDS: &str = "ENGINE_RANK_PATIENCE";

/// Within a step; a rank that loads its first images from a cold disk takes seconds.
const WITHIN_A_STEP: Duration = Duration::from_secs(120);

/// What may take this many times as long: opening a card, reading and writing checkpoints.
const SLOW: u32 = 5;

/// How long a rank may keep the others waiting within a step.
pub fn patience() -> Duration {
    static LIMIT: OnceLock<Duration> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let Ok(text) = std::env::var(SECONDS) else { return WITHIN_A_STEP };
        let seconds = text.trim().parse::<f64>().ok().filter(|&seconds| seconds > 0.0);
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_else(|| {
            message(format!("warning: {SECONDS}={text:?} is no number of seconds; a rank has 120"));
            WITHIN_A_STEP
        })
    })
}

/// What a call is for: the same words on every rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occasion<'a> {
    pub name: &'a str,
    pub limit: Duration,
}

impl<'a> Occasion<'a> {
    /// Within a step.
    pub fn step(name: &'a str) -> Self {
        Self { name, limit: patience() }
    }

    /// Around what takes its time.
    pub fn slow(name: &'a str) -> Self {
        Self { name, limit: patience() * SLOW }
    }
}

/// What is added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    F16,
    Bf16,
    F32,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// `sum` += `term`, each element rounded to its own type.
    pub fn add(self, sum: &mut [u8], term: &[u8]) {
        macro_rules! add {
            ($size:literal, $read:expr) => {
                for (sum, term) in sum.as_chunks_mut::<$size>().0.iter_mut().zip(term.as_chunks::<$size>().0)
                {
                    *sum = $read(*sum, *term);
                }
            };
        }
        let (half, brain) = (f16::from_le_bytes, bf16::from_le_bytes);
        match self {
            Self::F16 => add!(2, |a, b| f16::from_f32(half(a).to_f32() + half(b).to_f32()).to_le_bytes()),
            Self::Bf16 => add!(2, |a, b| bf16::from_f32(brain(a).to_f32() + brain(b).to_f32()).to_le_bytes()),
            Self::F32 => add!(4, |a, b| (f32::from_le_bytes(a) + f32::from_le_bytes(b)).to_le_bytes()),
        }
    }
}

/// How the ranks of a run talk.
pub trait Communicator {
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    /// What every rank gives, in the order of ranks. Lengths may differ.
    fn all_gather(&self, occasion: Occasion, bytes: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Rank 0's bytes for all. The length is the same everywhere.
    fn broadcast(&self, occasion: Occasion, bytes: &mut [u8]) -> Result<()>;

    /// The sum over ranks, added in their order, so that it has the same bits on every rank and in every run.
    fn all_reduce(&self, occasion: Occasion, element: Element, bytes: &mut [u8]) -> Result<()> {
        let all = self.all_gather(occasion, bytes)?;
        let mut terms = all.iter();
        bytes.copy_from_slice(terms.next().expect("there is a rank 0"));
        terms.for_each(|term| element.add(bytes, term));
        Ok(())
    }

    /// Returns when all ranks have come.
    fn barrier(&self, occasion: Occasion) -> Result<()> {
        self.all_gather(occasion, &[]).map(drop)
    }
}

impl std::fmt::Debug for dyn Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

/// A communicator that trainer and backend share.
pub type Ranks = Rc<dyn Communicator>;

/// The only rank.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Communicator for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, _: Occasion, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![bytes.to_vec()])
    }

    fn broadcast(&self, _: Occasion, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn all_reduce(&self, _: Occasion, _: Element, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
}

pub fn alone() -> Ranks {
    Rc::new(Alone)
}

/// The communicator of `world`: none where the process is alone, MPI where that started it and is built in, TCP elsewhere.
pub fn open(world: &World) -> Result<Ranks> {
    if world.is_alone() {
        return Ok(alone());
    }
    #[cfg(feature = "mpi")]
    if std::env::var_os("OMPI_COMM_WORLD_SIZE").is_some() {
        return Ok(Rc::new(mpi::Mpi::open(world)?));
    }
    Ok(Rc::new(tcp::Star::open(world)?))
}

/// What two ranks compare instead of a text.
fn digest(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// A rank that cannot be waited for any longer.
pub(crate) fn silent(who: &str, occasion: Occasion) -> Error {
    Error::device(format!(
        "{who} has not answered for {:.0} s, at \"{}\"",
        occasion.limit.as_secs_f64(),
        occasion.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_rounded_to_their_type() {
        let bytes = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
        };
        let mut sum = bytes(&[1.0, 2048.0, 65504.0]);
        Element::F16.add(&mut sum, &bytes(&[0.5, 1.0, 65504.0]));
        assert_eq!(sum, bytes(&[1.5, 2048.0, f32::INFINITY]));
        let mut sum = 1.5f32.to_le_bytes();
        Element::F32.add(&mut sum, &2.25f32.to_le_bytes());
        assert_eq!(f32::from_le_bytes(sum), 3.75);
    }
}
