//! What becomes of a batch's bytes, against timm's `FastCollateMixup` and `PrefetchLoader` (tests/golden/mixing.py).

use super::formula::images_u8;
use super::record;
use engine::backend::cpu::{Cpu, input};
use engine::config::MixForm;
use engine::data::mix::cut;
use engine::data::{Batch, Erase, Fill, Mix, Rect};
use engine::simd::isa::Isa;
use engine::simd::pool::Pool;
use serde::Deserialize;

#[derive(Deserialize)]
struct Recorded {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    n: usize,
    side: usize,
    drawn: f64,
    cut: Option<[usize; 2]>,
    erased: Option<usize>,
    rect: [usize; 4],
    bytes: String,
    values: Vec<f32>,
}

impl Case {
    fn batch(&self) -> Batch {
        let region = self.cut.map(|[row, column]| cut(MixForm::Timm, self.side, self.drawn, row, column));
        let [top, left, height, width] = self.rect;
        let erase = Erase { rect: Rect { top, left, height, width }, fill: Fill::ZERO };
        let mix = |i: usize| Mix { partner: (self.n - 1 - i) as u32, lambda: self.drawn as f32, region };
        let erased = |at: usize| (0..self.n).map(|i| (i == at).then_some(erase)).collect();
        Batch {
            images: images_u8(&format!("{}.images", self.name), self.n, self.side),
            labels: vec![0; self.n],
            resolution: self.side,
            mixes: (0..self.n).map(mix).collect(),
            erased: self.erased.map_or(vec![], erased),
            blend: MixForm::Timm.blend(),
            ..Batch::default()
        }
    }
}

#[test]
fn bytes_are_timms_and_values_nearly() {
    let pool = Pool::new(2);
    let cpu = Cpu { pool: &pool, isa: Isa::current() };
    for case in record::read::<Recorded>("mixing").cases {
        let batch = case.batch();
        let hex = |text: &str| u8::from_str_radix(text, 16).unwrap();
        let want: Vec<u8> = (0..case.bytes.len() / 2).map(|i| hex(&case.bytes[2 * i..2 * i + 2])).collect();
        let got = input::mixed_bytes(cpu, &batch);
        let worst = got.iter().zip(&want).enumerate().max_by_key(|(_, (a, b))| a.abs_diff(**b));
        assert!(got == want, "{}: {worst:?}", case.name);
        let mut x = vec![0.0; got.len()];
        assert!(input::load(cpu, &batch, &mut x, || unreachable!("bytes are mixed")).is_none());
        let sampled: Vec<f32> = x.iter().copied().step_by(23).collect();
        let apart = |(a, b): (&f32, &f32)| (a - b).abs();
        let worst = sampled.iter().zip(&case.values).map(apart).fold(0.0, f32::max);
        println!("{}: at most {worst:.1e} from timm's (x - 255 mean) / (255 std)", case.name);
        assert_eq!(sampled.len(), case.values.len());
        // torchvision's (x / 255 - mean) / std and timm's order round five operations differently: of values below 1, over std.
        assert!(worst <= 6.0 * f32::EPSILON / 0.224, "{}: {worst:e}", case.name);
    }
}
