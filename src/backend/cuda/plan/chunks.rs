//! The parameter space in pieces of one parameter each: what sums by parameter are made of.

use super::params::ParamLayout;
use super::region::{Arena, Region};
use crate::backend::cuda::abi::{Chunk, ChunkRange};
use crate::config::Decay;
use std::ops::Range;

/// Elements of a chunk, at most: two packs of eight for each thread of a block.
pub const CHUNK: usize = 4096;

/// The table that LAMB's kernels read, in [`Arena::Chunks`]: chunks, then the range of each parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    pub chunks: Vec<Chunk>,
    /// Of the parameters that are trained, in the order of [`crate::model::graph::ParamId`].
    pub parameters: Vec<ChunkRange>,
}

impl Chunks {
    pub fn new(layout: &ParamLayout, decay: Decay) -> Self {
        let decay_end = layout.decay_end(decay);
        let trained = layout.slots.iter().filter(|slot| layout.is_trained(slot));
        Self::cut(trained.map(|slot| {
            let elements = slot.offset..slot.offset + slot.elements();
            (elements, slot.offset < decay_end)
        }))
    }

    /// From the elements of every parameter, and whether weight decay applies to it.
    pub fn cut(of: impl IntoIterator<Item = (Range<usize>, bool)>) -> Self {
        let (mut chunks, mut parameters) = (vec![], vec![]);
        for (parameter, (elements, decays)) in of.into_iter().enumerate() {
            let (first, end) = (chunks.len(), elements.end);
            chunks.extend(elements.step_by(CHUNK).map(|first| Chunk {
                first: first as u32,
                count: (end - first).min(CHUNK) as u32,
                parameter: parameter as u32,
                decays: u32::from(decays),
            }));
            parameters.push(ChunkRange { first: first as u32, count: (chunks.len() - first) as u32 });
        }
        Self { chunks, parameters }
    }

    pub fn bytes(&self) -> Vec<u8> {
        [bytemuck::cast_slice(&self.chunks), bytemuck::cast_slice::<_, u8>(&self.parameters)].concat()
    }

    /// Where the chunks lie, and where the ranges do.
    pub fn regions(&self) -> [Region; 2] {
        let chunks = size_of_val(&self.chunks[..]) as u64;
        let ranges = size_of_val(&self.parameters[..]) as u64;
        [Region::new(Arena::Chunks, 0, chunks), Region::new(Arena::Chunks, chunks, ranges)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::freeze::Freeze;
    use crate::model::graph::lower;
    use crate::model::spec::{RESNET_TINY, RESNET50};

    #[test]
    fn every_element_is_in_one_chunk_of_its_parameter() {
        for spec in [RESNET_TINY, RESNET50] {
            let graph = lower(&spec, 64).unwrap();
            let layout = ParamLayout::new(&graph, 4, Freeze::NONE);
            for decay in [Decay::Weights, Decay::Unnormalised, Decay::All] {
                let Chunks { chunks, parameters } = Chunks::new(&layout, decay);
                assert_eq!(parameters.len(), graph.params.len());
                assert_eq!(
                    parameters.last().map(|range| range.first + range.count),
                    Some(chunks.len() as u32)
                );
                for (parameter, (range, slot)) in parameters.iter().zip(&layout.slots).enumerate() {
                    let mut next = slot.offset;
                    let own = &chunks[range.first as usize..][..range.count as usize];
                    for chunk in own {
                        assert_eq!((chunk.first as usize, chunk.parameter as usize), (next, parameter));
                        assert!(chunk.count > 0 && chunk.count as usize <= CHUNK);
                        let decays = decay.applies_to(graph.params[parameter].role);
                        assert_eq!(chunk.decays == 1, decays, "{decay:?} {}", graph.params[parameter].name);
                        next += chunk.count as usize;
                    }
                    assert_eq!(next, slot.offset + slot.elements());
                }
            }
        }
    }
}
