//! How the ranks of a run keep in step. Rank 0 leads: it reads and writes files, decides what comes next, and says so to the
//! others, which follow ([`super::follow`]). After each optimiser step everybody tells the outcomes of its passes, and
//! whether it was asked to stop.

use super::passes::At;
use super::state::Environment;
use super::stop::Stop;
use crate::backend::{Backend, ELSEWHERE, NamedTensors, Outcome, Score};
use crate::checkpoint::{Checkpoint, Values};
use crate::comm::{Occasion, Ranks};
use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};

/// What all ranks do next.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// Take over rank 0's state.
    Begin,
    /// An optimiser step: everybody its passes, then everybody's [`Word`].
    Step(At),
    /// Wait for the outcomes that have not come, and tell them.
    Collect,
    /// Everybody its share of the validation images, then everybody's scores.
    Validate,
    /// Compare states.
    Compare,
    /// It is over, with this exit code.
    End(u8),
}

/// Bytes of an order: JSON, and spaces behind it.
const ORDER_BYTES: usize = 160;

/// Rank 0's order to all.
pub fn give(ranks: &Ranks, order: Order) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut text = serde_json::to_string(&order).expect("plain fields").into_bytes();
    assert!(text.len() <= ORDER_BYTES, "{} bytes of an order", text.len());
    text.resize(ORDER_BYTES, b' ');
    ranks.broadcast(Occasion::step("the next order"), &mut text)
}

/// The next order, at the other ranks. What rank 0 does after a step is quick, after anything else it may read or write.
pub fn next(ranks: &Ranks, after: Option<Order>) -> Result<Order> {
    let mut text = [0; ORDER_BYTES];
    let name = "the next order";
    let occasion =
        if matches!(after, Some(Order::Step(_))) { Occasion::step(name) } else { Occasion::slow(name) };
    ranks.broadcast(occasion, &mut text)?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::device(format!("rank 0 gives an order that cannot be read: {error}")))
}

/// The error of a follower whose leader ended with `code`.
pub fn ended(code: u8) -> Result<()> {
    let kind = match code {
        0 => return Ok(()),
        75 => return Err(Error::stopped("stopped with the other ranks; rank 0 says what is on disk")),
        2 => Kind::Usage,
        3 => Kind::Input,
        70 => Kind::Device,
        _ => Kind::Failed,
    };
    Err(Error { kind, message: "rank 0 ended the run; its own last line says why".to_owned() })
}

/// What a rank tells after a step.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Word {
    passes: Vec<Told>,
    stop: bool,
    checkpoint: bool,
}

/// An [`Outcome`] whose numbers keep their bits, NaN as well.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    loss: u64,
    hits: [u64; 3],
    fault: Option<String>,
    skipped: bool,
    loss_scale: u32,
}

impl From<Outcome> for Told {
    fn from(outcome: Outcome) -> Self {
        let Outcome { score: Score { loss, top1, top5, count }, fault, skipped, loss_scale } = outcome;
        Self {
            loss: loss.to_bits(),
            hits: [top1, top5, count],
            fault,
            skipped,
            loss_scale: loss_scale.to_bits(),
        }
    }
}

impl From<Told> for Outcome {
    fn from(told: Told) -> Self {
        let Told { loss, hits: [top1, top5, count], fault, skipped, loss_scale } = told;
        let score = Score { loss: f64::from_bits(loss), top1, top5, count };
        Self { score, fault, skipped, loss_scale: f32::from_bits(loss_scale) }
    }
}

/// The outcomes of all ranks' passes, in the order in which one rank would have done them.
pub struct Outcomes {
    pub ranks: Ranks,
    /// This rank's, not told yet.
    own: Vec<Outcome>,
    /// By rank, oldest first.
    heard: Vec<VecDeque<Outcome>>,
    /// Whose is next.
    next: usize,
}

impl Outcomes {
    pub fn new(ranks: Ranks) -> Self {
        let heard = (0..ranks.size()).map(|_| VecDeque::new()).collect();
        Self { ranks, own: vec![], heard, next: 0 }
    }

    /// One of this rank's own passes has ended.
    pub fn add(&mut self, outcome: Outcome) {
        match self.ranks.size() {
            1 => self.heard[0].push_back(outcome),
            _ => self.own.push(outcome),
        }
    }

    /// Everybody tells what it has. A wish to stop, or for a checkpoint, of any rank becomes that of all.
    pub fn exchange(&mut self, stop: &Stop) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        let passes = self.own.drain(..).map(Told::from).collect();
        let word = Word { passes, stop: stop.requested(), checkpoint: stop.takes_checkpoint_request() };
        let text = serde_json::to_string(&word).expect("plain fields");
        let all = self.ranks.all_gather(Occasion::step("outcomes of a step"), text.as_bytes())?;
        for (rank, text) in all.iter().enumerate() {
            let word: Word = serde_json::from_slice(text)
                .map_err(|error| Error::device(format!("what rank {rank} tells cannot be read: {error}")))?;
            self.heard[rank].extend(word.passes.into_iter().map(Outcome::from));
            if word.stop {
                stop.request();
            }
            if word.checkpoint {
                stop.ask_for_checkpoint();
            }
        }
        Ok(())
    }

    /// The next outcome, if it is here.
    pub fn take(&mut self) -> Option<Outcome> {
        let mut outcome = self.heard[self.next].pop_front()?;
        self.next = (self.next + 1) % self.heard.len();
        // The rank at fault says more than those that only learnt of it.
        if outcome.fault.as_deref() == Some(ELSEWHERE) {
            let better = |heard: &VecDeque<Outcome>| {
                heard.iter().find_map(|other| other.fault.clone().filter(|fault| fault != ELSEWHERE))
            };
            let found = self.heard.iter().enumerate().find_map(|(rank, heard)| Some((rank, better(heard)?)));
            outcome.fault = found.map(|(rank, fault)| format!("rank {rank}: {fault}")).or(outcome.fault);
        }
        Some(outcome)
    }
}

/// Makes sure that all ranks have the same recipe, data and kind of machine.
pub fn meet(ranks: &Ranks, recipe: &BTreeMap<String, String>, environment: &Environment) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let own = serde_json::to_string(&(recipe, environment)).expect("plain fields");
    let all = ranks.all_gather(Occasion::slow("recipe and machine"), own.as_bytes())?;
    let Some(rank) = all.iter().position(|other| other != &all[0]) else { return Ok(()) };
    let read = |rank: usize| serde_json::from_slice::<(BTreeMap<String, String>, Environment)>(&all[rank]);
    let (Ok((first, here)), Ok((second, there))) = (read(0), read(rank)) else {
        return Err(Error::usage(format!("rank 0 and rank {rank} are of different versions of engine")));
    };
    let keys = crate::config::differing_keys(&first, &second);
    let what = if keys.is_empty() { format!("{here:?} there, {there:?} here") } else { keys.join("; ") };
    Err(Error::usage(format!(
        "rank 0 and rank {rank} do not train the same: {what}; start all ranks with one command on machines of one kind"
    )))
}

/// Rank 0's routines and tensors become everybody's.
pub fn share_state(ranks: &Ranks, backend: &mut dyn Backend) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let leads = ranks.rank() == 0;
    let choices = if leads { serde_json::to_vec(&backend.choices()).expect("plain strings") } else { vec![] };
    let choices = ranks.all_gather(Occasion::slow("routines"), &choices)?;
    let mut state = backend.state()?;
    let names: Vec<u8> =
        state.iter().flat_map(|(name, tensor)| format!("{name} {:?};", tensor.shape).into_bytes()).collect();
    let all = ranks.all_gather(Occasion::slow("names of tensors"), &Sha256::digest(&names))?;
    if let Some(rank) = all.iter().position(|other| other != &all[0]) {
        return Err(Error::usage(format!(
            "rank 0 and rank {rank} have other tensors: of different networks"
        )));
    }
    for (name, tensor) in &mut state {
        ranks.broadcast(Occasion::slow(name), bytemuck::cast_slice_mut(&mut tensor.data))?;
    }
    if leads {
        return Ok(());
    }
    let choices: BTreeMap<String, String> = serde_json::from_slice(&choices[0])
        .map_err(|error| Error::device(format!("rank 0's routines cannot be read: {error}")))?;
    backend.set_choices(&choices);
    backend.load_state(&state)
}

/// What goes to disk at rank 0 is what every rank has.
pub fn compare_checkpoint(ranks: &Ranks, checkpoint: &Checkpoint) -> Result<()> {
    give(ranks, Order::Compare)?;
    let floats = checkpoint.tensors.iter().filter_map(|(name, tensor)| match &tensor.values {
        Values::F32(values) => Some((name, &values[..])),
        _ => None,
    });
    compare(ranks, floats)
}

/// Fails on every rank, and so ends all, where a rank's tensors are not those of rank 0 to the bit.
pub fn compare<'t>(ranks: &Ranks, tensors: impl Iterator<Item = (&'t String, &'t [f32])>) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut hash = Sha256::new();
    for (name, values) in tensors {
        hash.update(name.as_bytes());
        hash.update(bytemuck::cast_slice(values));
    }
    let all = ranks.all_gather(Occasion::slow("digests of weights"), &hash.finalize())?;
    let differing: Vec<String> =
        (1..all.len()).filter(|&rank| all[rank] != all[0]).map(|rank| rank.to_string()).collect();
    if differing.is_empty() {
        return Ok(());
    }
    Err(Error::device(format!(
        "the weights of rank {} are not those of rank 0, though all have done the same steps: memory, a link, or a library \
         that is not deterministic is at fault; nothing was saved",
        differing.join(", ")
    )))
}

/// A backend's state as [`compare`] takes it.
pub fn tensors(state: &NamedTensors) -> impl Iterator<Item = (&String, &[f32])> {
    state.iter().map(|(name, tensor)| (name, &tensor.data[..]))
}
