//! Tables of operations and magnitudes, and whole policies with the originals' random source replaced by ours.

use super::super::record;
use super::operations::sampling;
use super::{digest, picture};
use engine::data::Rect;
use engine::data::augment::erase::Erasing;
use engine::data::augment::ops::Ops;
use engine::data::augment::torchvision::{
    AUTO_AUGMENT, IMAGENET, Kind, OPERATIONS, RAND_AUGMENT, TRIVIAL_AUGMENT,
};
use engine::data::augment::{Auto, Jitter, Key, timm};
use engine::rng::Purpose;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    spaces: Vec<Table>,
    timm: Vec<TimmTable>,
    imagenet: Vec<[(String, f64, Option<usize>); 2]>,
    policies: Vec<Policy>,
    jitters: Vec<Jittered>,
    erasings: Vec<Erased>,
}

#[derive(Deserialize)]
struct Table {
    policy: String,
    height: usize,
    width: usize,
    /// Name, whether signed, magnitudes.
    ops: Vec<(String, bool, Vec<f64>)>,
}

#[derive(Deserialize)]
struct TimmTable {
    increasing: u8,
    levels: Vec<f64>,
    /// Name, arguments of each level where the coin leaves the sign, and where it turns it.
    ops: Vec<(String, Vec<f64>, Vec<f64>)>,
}

#[derive(Deserialize)]
struct Policy {
    auto: String,
    sampling: String,
    height: usize,
    width: usize,
    digests: Vec<String>,
}

#[derive(Deserialize)]
struct Jittered {
    strength: [f64; 4],
    height: usize,
    width: usize,
    digests: Vec<String>,
}

#[derive(Deserialize)]
struct Erased {
    form: String,
    area: (f64, f64),
    ratio: (f64, f64),
    height: usize,
    width: usize,
    rects: Vec<Option<[usize; 4]>>,
}

fn key(sample: usize) -> Key {
    Key { seed: 7, epoch: 1, sample: sample as u32, copy: 0 }
}

#[test]
fn tables_are_torchvisions() {
    let recorded: Recorded = record::read("augment");
    for Table { policy, height, width, ops } in &recorded.spaces {
        let (space, kinds) = match policy.as_str() {
            "randaugment" => (RAND_AUGMENT, OPERATIONS.to_vec()),
            "trivialaugment" => (TRIVIAL_AUGMENT, OPERATIONS.to_vec()),
            // Its operations are named and not numbered.
            _ => (AUTO_AUGMENT, [&OPERATIONS[1..], &[Kind::Invert]].concat()),
        };
        assert_eq!(kinds.len(), ops.len(), "{policy}");
        for (kind, (name, signed, magnitudes)) in kinds.into_iter().zip(ops) {
            assert_eq!((&format!("{kind:?}"), kind.signed()), (name, *signed), "{policy}");
            assert_eq!(kind.graded(), !magnitudes.is_empty(), "{policy}: {name}");
            let bins = 0..magnitudes.len();
            let got: Vec<f64> = bins.map(|bin| space.magnitude(kind, bin, *height, *width)).collect();
            assert_eq!(&got, magnitudes, "{policy} at {height} x {width}: {name}");
        }
    }
    let named = |(kind, probability, bin): (Kind, f64, usize)| {
        (format!("{kind:?}"), probability, kind.graded().then_some(bin))
    };
    assert_eq!(IMAGENET.map(|steps| steps.map(named)).to_vec(), recorded.imagenet);
}

#[test]
fn tables_are_timms() {
    let recorded: Recorded = record::read("augment");
    for TimmTable { increasing, levels, ops } in &recorded.timm {
        assert_eq!(timm::OPERATIONS.len(), ops.len());
        for (kind, (name, kept, negated)) in timm::OPERATIONS.iter().zip(ops) {
            let short = name.replace("Increasing", "").replace("Rel", "");
            assert_eq!(format!("{kind:?}"), short);
            for (i, &level) in levels.iter().enumerate() {
                let argument =
                    |sign: f64| timm::argument(*kind, level, *increasing == 1, &mut |value| sign * value);
                assert_eq!((argument(1.0), argument(-1.0)), (kept[i], negated[i]), "{name} at level {level}");
            }
        }
    }
}

#[test]
fn whole_policies_are_the_originals() {
    let recorded: Recorded = record::read("augment");
    let mut ops = Ops::default();
    for Policy { auto, sampling: name, height, width, digests } in &recorded.policies {
        let (policy, source) = (auto.parse::<Auto>().unwrap(), picture(&(*height, *width, "full".into())));
        for (sample, want) in digests.iter().enumerate() {
            let mut pixels = source.clone();
            let mut drawn = vec![];
            policy.draw(*height, *width, sampling(name), &mut key(sample).draws(Purpose::Auto), &mut |op| {
                ops.apply(&op, *height, *width, &mut pixels);
                drawn.push(op);
            });
            assert_eq!(&digest(&pixels), want, "{auto}, {name}, sample {sample}: {drawn:?}");
        }
    }
    for Jittered { strength, height, width, digests } in &recorded.jitters {
        let [brightness, contrast, saturation, hue] = *strength;
        let jitter = Jitter { brightness, contrast, saturation, hue };
        let source = picture(&(*height, *width, "full".into()));
        for (sample, want) in digests.iter().enumerate() {
            let mut pixels = source.clone();
            let mut drawn = vec![];
            jitter.draw(&mut key(sample).draws(Purpose::Jitter), &mut |op| {
                ops.apply(&op, *height, *width, &mut pixels);
                drawn.push(op);
            });
            assert_eq!(&digest(&pixels), want, "{jitter:?}, sample {sample}: {drawn:?}");
        }
    }
}

#[test]
fn erased_rectangles_are_the_originals() {
    let recorded: Recorded = record::read("augment");
    for Erased { form, area, ratio, height, width, rects } in &recorded.erasings {
        let erasing = Erasing { probability: 0.6, area: *area, ratio: *ratio, ..Erasing::default() };
        for (sample, want) in rects.iter().enumerate() {
            let got = erasing.rect(*height, *width, &mut key(sample).draws(Purpose::Erase));
            let want = want.filter(|[.., height, width]| height * width > 0);
            let want = want.map(|[top, left, height, width]| Rect { top, left, height, width });
            assert_eq!(got, want, "{form} on {height} x {width}, sample {sample}");
        }
    }
}
