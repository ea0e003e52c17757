//! A card's part in what ranks exchange: a stream of its own, and how far it has come, for who waits.

use super::card::Card;
use super::driver::{Event, Memory, Pinned, Stream};
use super::nccl::Nccl;
use crate::backend::cuda::patience::{Patience, SystemClock};
use crate::backend::cuda::plan::Plan;
use crate::backend::cuda::plan::node::{Call, Collective, Node};
use crate::comm::{self, Ranks};
use crate::error::Result;

/// What a card needs to exchange with other ranks'.
pub(super) struct Exchanges {
    nccl: Nccl,
    pub(super) stream: Stream,
    ranks: Ranks,
    /// u32 1, 2, ...: what each exchange of a pass, when it has ended, copies to `reached`.
    numbers: Memory,
    /// One u32.
    reached: Pinned,
}

/// Exchanges of a pass that are told apart where one does not end.
const NUMBERED: usize = 512;

impl Card {
    /// From now on plans may exchange with the cards of `ranks`.
    pub fn join(&mut self, ranks: &Ranks) -> Result<()> {
        let numbers = Memory::new(&self.context, "numbers of exchanges", 4 * NUMBERED as u64)?;
        let words: Vec<u32> = (1..=NUMBERED as u32).collect();
        numbers.write(0, bytemuck::cast_slice(&words))?;
        let exchanges = Exchanges {
            nccl: Nccl::open(ranks)?,
            stream: Stream::new(&self.context)?,
            ranks: Ranks::clone(ranks),
            numbers,
            reached: Pinned::new(&self.context, 4)?,
        };
        self.exchanges = Some(exchanges);
        Ok(())
    }

    pub(super) fn stream_of(&self, node: &Node) -> &Stream {
        match self.lanes.get(node.stream) {
            Some(lane) => &lane.stream,
            None => &self.exchanges().stream,
        }
    }

    fn exchanges(&self) -> &Exchanges {
        self.exchanges.as_ref().expect("a plan of several ranks is for a card that has joined them")
    }

    /// An exchange, and behind it a mark that the host can read without asking the driver.
    pub(super) fn collect(&self, plan: &Plan, id: usize, collective: &Collective) -> Result<()> {
        let Exchanges { nccl, stream, numbers, reached, .. } = self.exchanges();
        let [from, to] = [collective.from, collective.to].map(|region| self.at(region));
        nccl.exchange(collective, from, to, stream)?;
        let number = exchange_names(plan).take_while(|(other, _)| *other != id).count();
        let number = number.min(NUMBERED - 1) as u64;
        reached.download(0, 4, numbers.at(4 * number, 4), stream)
    }

    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        let mut clock = SystemClock::default();
        let Some(exchanges) = &self.exchanges else {
            return Patience::of_a_pass().wait(&self.context.name, &mut clock, || event.has_ended());
        };
        // A pass ends when the slowest rank has had its batch.
        let limit = comm::patience().max(Patience::of_a_pass().limit);
        let patience = Patience { limit, ..Patience::of_a_pass() };
        let mut asked = 0u32;
        let ended = || {
            asked = asked.wrapping_add(1);
            // Errors of links are rare, and asking takes a lock.
            if asked.is_multiple_of(1024) {
                exchanges.nccl.check()?;
            }
            event.has_ended()
        };
        patience.wait(&self.context.name, &mut clock, ended).map_err(|error| error.within(self.whereabouts()))
    }

    /// How far the exchanges of the pass under way have come.
    fn whereabouts(&self) -> String {
        let Exchanges { reached, ranks, .. } = self.exchanges();
        let reached = reached.peek() as usize;
        let last = self.running.map(|id| &self.ready[id].plan).and_then(|plan| {
            let names: Vec<&str> = exchange_names(plan).map(|(_, name)| name).collect();
            let place = |index: Option<usize>| index.and_then(|index| names.get(index)).copied();
            Some((
                place(reached.checked_sub(1)).unwrap_or("none"),
                place(Some(reached % names.len().max(1)))?,
            ))
        });
        match last {
            Some((last, next)) => {
                format!("{ranks:?}, last exchange that ended: {last}, expected next: {next}")
            }
            None => format!("{ranks:?}"),
        }
    }
}

/// A plan's exchanges, in the order in which they run: number of the node, and its name.
fn exchange_names(plan: &Plan) -> impl Iterator<Item = (usize, &str)> {
    let is_exchange = |node: &Node| matches!(node.call, Call::Collective(_));
    plan.nodes
        .iter()
        .enumerate()
        .filter(move |(_, node)| is_exchange(node))
        .map(|(id, node)| (id, node.name.as_str()))
}
