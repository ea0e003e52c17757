use std::fs;

use png::{BitDepth, ColorType as PngColor};
use safetensors::SafeTensors;

use super::super::check::{Oddity, check, info};
use super::super::*;
use super::{class_folders, encode, jpeg, picture, png};

#[test]
fn check_lists_what_is_odd_by_path() {
    let dir = tempfile::tempdir().unwrap();
    class_folders(dir.path(), 4, 1);
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join("train").join(name), bytes).unwrap();
    let rgb = picture(8, 8, 0);
    let color = |color, pixels: &[u8], size| encode(pixels, size, size, color, |_| {});
    write("cat/cmyk.jpg", &color(jpeg_encoder::ColorType::Cmyk, &rgb[..4 * 4 * 4], 4));
    write("cat/grey.jpg", &color(jpeg_encoder::ColorType::Luma, &rgb[..64], 8));
    write("cat/deep.png", &png(4, 1, PngColor::Rgb, BitDepth::Sixteen, None, &rgb[..24]));
    write("dog/really_png.jpg", &png(8, 8, PngColor::Rgb, BitDepth::Eight, None, &rgb));
    write("dog/text.jpg", b"not found");
    let whole = jpeg(32, 32, 1);
    write("owl/cut.jpg", &whole[..whole.len() - 40]);
    write("owl/empty.jpg", b"");
    write("owl/large.jpg", &jpeg(2049, 2050, 1));
    let data = Splits::open(dir.path()).unwrap();
    let report = check(&data.splits[0].1, 2);
    let text = report.to_string();
    let path = |name: &str| dir.path().join("train").join(name).display().to_string();
    for (odd, name) in [
        (Oddity::Unusable, "dog/text.jpg"),
        (Oddity::Unusable, "owl/cut.jpg"),
        (Oddity::Unusable, "owl/empty.jpg"),
        (Oddity::Misnamed, "dog/really_png.jpg"),
        (Oddity::Cmyk, "cat/cmyk.jpg"),
        (Oddity::SixteenBit, "cat/deep.png"),
        (Oddity::Huge, "owl/large.jpg"),
    ] {
        let line = format!("{}: {}: ", odd.name(), path(name));
        assert!(text.lines().any(|l| l.starts_with(&line)), "no line {line} in\n{text}");
    }
    assert_eq!((report.findings.len(), report.grey, report.images), (7, 1, 20));
    assert!(text.ends_with(
        "20 images, 3 cannot be used, 1 misnamed, 1 CMYK, 1 16-bit, 1 huge, 1 grey, 0 progressive"
    ));
    assert_eq!(check(&data.splits[0].1, 1), report);

    let info = info(&data).unwrap();
    let train = &info.splits[0];
    assert_eq!((train.images, train.unreadable, &train.per_class[..]), (20, 2, &[7, 6, 7][..]));
    assert_eq!((train.width.min, train.width.max, train.height.max), (4, 2050, 2049));
    assert!(info.to_string().contains("3 classes: cat, dog, owl\nJPEG decoder: "), "{info}");
}

#[test]
fn batches_file_says_how_images_are_mixed() {
    let folder = tempfile::tempdir().unwrap();
    class_folders(folder.path(), 4, 1);
    let data = Dataset::open(folder.path()).unwrap();
    let path = folder.path().join("batches.safetensors");
    let mix = MixOptions { form: MixForm::Timm, mixup: 0.2, cutmix: 1.0, probability: 1.0, switch: 0.5 };
    let options = TrainOptions { mix: Some(mix), ..TrainOptions::new(TrainTransform::new(16), 4) };
    batches::write(&data.train, options.clone(), 3, &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (partners, lambdas) = (file.tensor("partners").unwrap(), file.tensor("lambdas").unwrap());
    assert_eq!(file.tensor("regions").unwrap().shape(), [3, 4, 4]);
    for (number, batch) in Loader::train(data.train, options).unwrap().enumerate() {
        for (i, mix) in batch.unwrap().mixes.iter().enumerate() {
            let at = number * 4 + i;
            let partner: [u8; 8] = partners.data()[8 * at..][..8].try_into().unwrap();
            let lambda: [u8; 4] = lambdas.data()[4 * at..][..4].try_into().unwrap();
            let got = (i64::from_le_bytes(partner), f32::from_le_bytes(lambda));
            assert_eq!(got, (i64::from(mix.partner), mix.lambda));
        }
    }
}

#[test]
fn batches_file_holds_the_loaders_batches() {
    let dir = tempfile::tempdir().unwrap();
    class_folders(dir.path(), 4, 1);
    let data = Dataset::open(dir.path()).unwrap();
    let options = TrainOptions { start_batch: 1, ..TrainOptions::new(TrainTransform::new(16), 3) };
    let path = dir.path().join("b.safetensors");
    batches::write(&data.train, options.clone(), 2, &path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let want: Vec<Batch> =
        Loader::train(data.train.clone(), options.clone()).unwrap().map(Result::unwrap).collect();
    let images = file.tensor("images").unwrap();
    assert_eq!(images.shape(), [2, 3, 16, 16, 3]);
    assert!(images.data() == [&want[0].images[..], &want[1].images[..]].concat());
    for (name, values) in
        [("labels", [&want[0].labels, &want[1].labels]), ("samples", [&want[0].samples, &want[1].samples])]
    {
        let tensor = file.tensor(name).unwrap();
        let want: Vec<u8> = values.into_iter().flatten().flat_map(|&v| i64::from(v).to_le_bytes()).collect();
        assert!(tensor.shape() == [2, 3] && tensor.data() == want, "{name}");
    }
    let error = batches::write(&data.train, options, 4, &path).unwrap_err();
    assert!(error.message.contains("from batch 1 on the epoch has 3 of 3 images"), "{error}");
}

#[test]
fn the_benchmark_counts() {
    let dir = tempfile::tempdir().unwrap();
    class_folders(dir.path(), 4, 1);
    let data = Dataset::open(dir.path()).unwrap();
    let speed = bench::loader(&data.train, TrainTransform::new(16), 2, 0.05).unwrap();
    assert!(speed.images > 0 && speed.bad == 0 && speed.images_per_second() > 0.0);
    assert!(speed.to_string().starts_with("2 workers: "), "{speed}");
}
