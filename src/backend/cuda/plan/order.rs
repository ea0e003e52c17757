//! Which node happens before which, and the edges between streams that data demand.

use super::node::{Node, NodeId, STREAMS, Stream};
use super::region::{Access, Region};

/// For each node and stream, how many of the stream's nodes (by position in the plan, plus one) have ended when the
/// node begins; its own stream counts the node itself.
#[derive(Debug, Clone)]
pub struct Order {
    clocks: Vec<[usize; STREAMS]>,
    streams: Vec<Stream>,
}

impl Order {
    /// The order that streams and `waits` of a finished list give.
    pub fn of(nodes: &[Node]) -> Self {
        let mut order = Self { clocks: vec![], streams: vec![] };
        let mut last = [[0; STREAMS]; STREAMS];
        for (id, node) in nodes.iter().enumerate() {
            let mut clock = last[node.stream];
            for &wait in &node.waits {
                merge(&mut clock, &order.clocks[wait]);
            }
            clock[node.stream] = id + 1;
            last[node.stream] = clock;
            order.clocks.push(clock);
            order.streams.push(node.stream);
        }
        order
    }

    /// Whether `a` has ended when `b` begins, in every run.
    pub fn before(&self, a: NodeId, b: NodeId) -> bool {
        a != b && self.clocks[b][self.streams[a]] > a
    }
}

fn merge(clock: &mut [usize; STREAMS], other: &[usize; STREAMS]) {
    clock.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

/// Gives every node, beside the waits that it has, those that its data need and that streams and other waits do not imply
/// already.
pub fn connect(nodes: &mut [Node]) {
    let accesses: Vec<_> = nodes.iter().map(|node| node.call.accesses()).collect();
    let mut clocks: Vec<[usize; STREAMS]> = vec![];
    let mut last = [[0; STREAMS]; STREAMS];
    for id in 0..nodes.len() {
        let stream = nodes[id].stream;
        let mut clock = last[stream];
        let mut waits = std::mem::take(&mut nodes[id].waits);
        waits.iter().for_each(|&wait| merge(&mut clock, &clocks[wait]));
        // The latest first: what it waited for need not be waited for again.
        for earlier in (0..id).rev() {
            let known = clock[nodes[earlier].stream] > earlier;
            if !known && conflict(&accesses[earlier], &accesses[id]) {
                waits.push(earlier);
                merge(&mut clock, &clocks[earlier]);
            }
        }
        clock[stream] = id + 1;
        last[stream] = clock;
        clocks.push(clock);
        nodes[id].waits = waits;
    }
}

/// Whether the order of two calls matters.
fn conflict(a: &[(Region, Access)], b: &[(Region, Access)]) -> bool {
    a.iter().any(|(left, one)| {
        b.iter().any(|(right, two)| (one.writes() || two.writes()) && left.overlaps(right))
    })
}

/// Every pair of nodes that touch the same bytes, at least one of them writing, in an order that nothing fixes.
pub fn races(nodes: &[Node]) -> Vec<(NodeId, NodeId)> {
    let order = Order::of(nodes);
    let accesses: Vec<_> = nodes.iter().map(|node| node.call.accesses()).collect();
    let mut races = vec![];
    for b in 0..nodes.len() {
        races.extend(
            (0..b).filter(|&a| !order.before(a, b) && conflict(&accesses[a], &accesses[b])).map(|a| (a, b)),
        );
    }
    races
}
