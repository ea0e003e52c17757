//! Gives every buffer of a plan its place in one arena, so that two share bytes only if one is done with before the
//! other begins, in every order that the streams allow.

use super::node::{Node, NodeId};
use super::order::Order;
use super::region::{Arena, Region};

/// Every buffer begins at a multiple of this: what `cuMemAlloc` aligns to, and more than any access needs.
pub const ALIGNMENT: u64 = 256;

/// A buffer of one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    pub name: String,
    /// Where it is: `Arena::Unplaced(its index)` before, `Arena::Activations` after.
    pub region: Region,
    /// The nodes that touch it, ascending.
    pub nodes: Vec<NodeId>,
}

/// Places `buffers`, rewrites the regions of `nodes`, and returns the arena's size. With `keep`, none share bytes.
pub fn place(nodes: &mut [Node], buffers: &mut [Buffer], keep: bool) -> u64 {
    for (id, node) in nodes.iter().enumerate() {
        for (region, _) in node.call.accesses() {
            if let Arena::Unplaced(index) = region.arena
                && buffers[index].nodes.last() != Some(&id)
            {
                buffers[index].nodes.push(id);
            }
        }
    }
    let order = Order::of(nodes);
    let offsets = offsets(buffers, &order, keep);
    for node in nodes.iter_mut() {
        for region in node.call.regions_mut() {
            if let Arena::Unplaced(index) = region.arena {
                *region =
                    Region { arena: Arena::Activations, offset: offsets[index] + region.offset, ..*region };
            }
        }
    }
    let mut size = 0;
    for (buffer, offset) in buffers.iter_mut().zip(offsets) {
        buffer.region = Region { arena: Arena::Activations, offset, ..buffer.region };
        size = size.max(offset + buffer.region.bytes);
    }
    size.next_multiple_of(ALIGNMENT)
}

/// Largest first, each at the lowest offset where nothing that lives beside it lies ("greedy by size",
/// Pisarchyk and Lee, arXiv:2001.03288).
fn offsets(buffers: &[Buffer], order: &Order, keep: bool) -> Vec<u64> {
    let mut by_size: Vec<usize> = (0..buffers.len()).collect();
    by_size.sort_by_key(|&index| (std::cmp::Reverse(buffers[index].region.bytes), index));
    let mut placed: Vec<(u64, u64, usize)> = vec![];
    let mut offsets = vec![0; buffers.len()];
    for index in by_size {
        let bytes = buffers[index].region.bytes;
        let mut offset = 0;
        for &(from, to, other) in &placed {
            let beside = keep || live_together(&buffers[index], &buffers[other], order);
            if beside && from < offset + bytes && offset < to {
                offset = to.next_multiple_of(ALIGNMENT);
            }
        }
        let at = placed.partition_point(|&(from, _, _)| from <= offset);
        placed.insert(at, (offset, offset + bytes, index));
        offsets[index] = offset;
    }
    offsets
}

fn live_together(a: &Buffer, b: &Buffer, order: &Order) -> bool {
    !ends_before(a, b, order) && !ends_before(b, a, order)
}

/// Whether everything that touches `a` has ended when `b` is first touched; `b`'s other nodes follow its first.
fn ends_before(a: &Buffer, b: &Buffer, order: &Order) -> bool {
    match b.nodes.first() {
        Some(&first) => a.nodes.iter().all(|&node| order.before(node, first)),
        None => true,
    }
}
