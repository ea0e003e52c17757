//! Repeated augmentation: each rank's share of an epoch is the originals'.

use super::super::record;
use engine::data::augment::repeat::Repeat;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    repeats: Vec<Repeated>,
}

#[derive(Deserialize)]
struct Repeated {
    images: usize,
    times: usize,
    ranks: usize,
    /// What each rank sees of 0..images, in order.
    order: Vec<Vec<u32>>,
}

#[test]
fn ranks_see_what_the_samplers_deal() {
    let recorded: Recorded = record::read("augment");
    for Repeated { images, times, ranks, order } in &recorded.repeats {
        for share in [1, 2, 5] {
            let repeat = Repeat { times: *times, ranks: *ranks, batch: ranks * share };
            let (got, copies) = repeat.order((0..*images as u32).collect());
            assert_eq!((got.len(), copies.len()), (repeat.epoch_len(*images), got.len()));
            let mut seen = std::collections::BTreeSet::new();
            for (i, (sample, copy)) in got.iter().zip(&copies).enumerate() {
                let (step, rank) = (i / repeat.batch, i % repeat.batch / share);
                let want = order[rank][step * share + i % share];
                assert_eq!(*sample, want, "{images} x {times} on {ranks}, {share} each: position {i}");
                assert!(usize::from(*copy) < *times);
                // A list that is filled up from its beginning shows a copy again.
                assert!(
                    seen.insert((sample, copy)) || i >= images * times,
                    "{sample} copy {copy} came twice"
                );
            }
            let whole = order[0].len() / share * share;
            assert_eq!(got.len(), whole * ranks, "whole batches of the ranks' shares");
        }
    }
}
