//! Checks on real images, where they are: `$ENGINE_TEST_DATA`, or `../shared/data` beside the checkout.

use std::path::PathBuf;

use super::super::*;

/// The path of a real data file; says so on stderr and gives `None` where there is none.
pub(crate) fn real(name: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");
    let folder = std::env::var_os("ENGINE_TEST_DATA").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is not there (set ENGINE_TEST_DATA)", path.display());
    None
}

#[test]
fn tiny_imagenet_is_indexed_as_its_readme_says() {
    let Some(path) = real("tiny-imagenet-30.tar") else { return };
    let begin = std::time::Instant::now();
    let data = Dataset::open(&path).unwrap();
    eprintln!("indexed {} in {:?}", path.display(), begin.elapsed());
    assert_eq!((data.train.len(), data.val.len(), data.classes.len()), (15_000, 1_500, 30));
    assert_eq!(data.classes[0].id, "n01443537");
    assert!(data.classes.iter().all(|c| c.label != c.id), "labels come from classes.txt");
    assert!(
        data.train
            .name(0)
            .ends_with("tiny-imagenet-30.tar:tiny-imagenet-30/train/n01443537/n01443537_0.JPEG")
    );
    let mut counts = [0; 30];
    (0..data.train.len()).for_each(|i| counts[data.train.label(i) as usize] += 1);
    assert_eq!(counts, [500; 30]);
}

#[test]
fn an_undivided_tar_says_what_was_found_and_opens_for_tools() {
    let Some(path) = real("imagenet-sample-100.tar") else { return };
    let message = Dataset::open(&path).unwrap_err().message;
    assert!(message.contains("neither train nor val is in it, but 100 entries (n01484850"), "{message}");
    let all = Splits::open(&path).unwrap();
    assert_eq!((all.splits.len(), all.splits[0].1.len(), all.classes.len()), (1, 100, 100));
}

#[test]
fn every_tiny_image_decodes() {
    let Some(path) = real("tiny-imagenet-30.tar") else { return };
    let data = Dataset::open(&path).unwrap();
    let options =
        EvalOptions::new(EvalTransform { resize: 64, crop: 64, interpolation: Interpolation::Bilinear }, 100);
    let mut loader = Loader::eval(data.val.clone(), options).unwrap();
    let mut seen = Vec::new();
    for batch in loader.by_ref() {
        seen.extend(batch.unwrap().samples);
    }
    assert!(loader.bad().is_empty());
    assert!(seen.into_iter().eq(0..1500));
}

#[test]
fn a_region_of_a_real_image_equals_that_part_of_the_whole() {
    let Some(path) = real("imagenet-sample-100.tar") else { return };
    let split = Splits::open(&path).unwrap().splits.swap_remove(0).1;
    let (mut whole, mut part) = (Decoder::default(), Decoder::default());
    for i in 0..split.len() {
        let mut bytes = split.read(i).unwrap();
        let header = decode::read_header(&bytes, Limits::default()).unwrap();
        let (h, w) = (header.height, header.width);
        let all = whole.decode(&mut bytes, &header, Rect::whole(h, w)).unwrap();
        for draw in 0..8 {
            let mut rng = crate::rng::Rng::new(draw, 0, i as u64, crate::rng::Purpose::Crop);
            let rect = augment::random_resized_crop(h, w, &Crop::default(), &mut || rng.unit());
            let got = part.decode(&mut bytes, &header, rect).unwrap().to_image();
            let want = decode::Region { rect, ..all }.to_image();
            assert!(got == want, "{}: {rect:?} of {h} x {w}", split.name(i));
        }
        assert!(bytes == split.read(i).unwrap(), "the header is put back");
    }
}
