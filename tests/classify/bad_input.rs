//! Bad pictures, bad models, bad command lines: one sentence and the exit code that scripts branch on.

use crate::common::{Done, finish, path, temporary};
use crate::{classes, classify, flat_png, model, objects, picture, plain_model, run};
use engine::simd::isa::{Isa, Set};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The one sentence of a run that failed.
#[track_caller]
fn sentence(done: &Done, code: i32) -> &str {
    assert_eq!(done.code, Some(code), "stdout:\n{}\nstderr:\n{}", done.out, done.err);
    let sentences: Vec<&str> = done.err.lines().collect();
    assert_eq!(sentences.len(), 1, "one sentence: {}", done.err);
    sentences[0].strip_prefix("classify: ").unwrap_or_else(|| panic!("{}", done.err))
}

#[track_caller]
fn refused(name: &str, bytes: &[u8], words: &[&str]) {
    let folder = temporary();
    let file = folder.path().join(name);
    fs::write(&file, bytes).unwrap();
    // The pictures before and behind it are answered.
    let (first, last) = (picture(&classes()[0]), picture(&classes()[1]));
    let done = run(&["--model", model(), "--json", &first, path(&file), &last]);
    let message = sentence(&done, 3);
    assert!(message.starts_with(&format!("{}: ", path(&file))), "{message}");
    for word in words {
        assert!(message.contains(word), "{name}: {word} in {message}");
    }
    let answered: Vec<String> =
        objects(&done).iter().map(|answer| answer["file"].as_str().unwrap().to_owned()).collect();
    assert_eq!(answered, [first, last], "{name}");
}

#[test]
fn what_is_no_picture_is_called_by_its_name() {
    refused("a.jpg", b"", &["has no bytes"]);
    refused("b.svg", b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", &["an SVG drawing"]);
    refused("c.gif", b"GIF89a\x01\0\x01\0", &["a GIF image"]);
    refused("d.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", &["a HEIC photograph"]);
    refused("e.txt", b"hello", &["not an image"]);
    let whole = fs::read(picture(&classes()[0])).unwrap();
    refused("f.jpg", &whole[..whole.len() / 2], &["cut short"]);
    refused("g.jpg", &whole[..30], &["cut short"]);
    let png = flat_png(40, 30);
    refused("h.png", &png[..png.len() - 20], &["the PNG is damaged or cut short"]);
    // 65,535 x 65,535 by its header.
    let mut huge = whole.clone();
    let at = huge.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 5;
    huge[at..at + 4].fill(0xff);
    refused("i.jpg", &huge, &["4294836225 pixels", "make it smaller"]);
    // A strip whose short side would be enlarged to the network's.
    refused("j.png", &flat_png(1_000_000, 1), &["crop it"]);
}

/// Of the file, and of what it would become for the network.
#[test]
fn a_limit_of_pixels_is_kept() {
    let folder = temporary();
    let (square, strip) = (folder.path().join("square.png"), folder.path().join("strip.png"));
    fs::write(&square, flat_png(100, 100)).unwrap();
    fs::write(&strip, flat_png(3000, 1)).unwrap();
    let ask = |limit: &str, file: &Path| run(&["--model", model(), "--max-pixels", limit, path(file)]);
    ask("10000", &square).expect(0);
    let done = ask("9999", &square);
    assert!(sentence(&done, 3).contains("100 x 100 is 10000 pixels, more than the 9999"), "{}", done.err);
    let done = ask("10000", &strip);
    assert!(sentence(&done, 3).contains("3000 x 1 would become"), "{}", done.err);
}

#[test]
fn pictures_of_any_layout_and_size_are_answered() {
    let folder = temporary();
    let write = |name: &str, bytes: &[u8]| {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        path(&file).to_owned()
    };
    let layout = |color: png::ColorType, depth: png::BitDepth, bytes: usize| {
        let mut file = vec![];
        let mut encoder = png::Encoder::new(&mut file, 5, 4);
        encoder.set_color(color);
        encoder.set_depth(depth);
        encoder.write_header().unwrap().write_image_data(&vec![90; 20 * bytes]).unwrap();
        file
    };
    let cmyk = |color| {
        let mut file = vec![];
        jpeg_encoder::Encoder::new(&mut file, 90).encode(&[60; 16 * 16 * 4], 16, 16, color).unwrap();
        file
    };
    use png::{BitDepth, ColorType};
    let files = [
        write("pixel.png", &flat_png(1, 1)),
        // 100 million pixels, a few kilobytes of file.
        write("large.png", &flat_png(10_000, 10_000)),
        write("grey.png", &layout(ColorType::Grayscale, BitDepth::Eight, 1)),
        write("grey16.png", &layout(ColorType::Grayscale, BitDepth::Sixteen, 2)),
        write("alpha.png", &layout(ColorType::Rgba, BitDepth::Eight, 4)),
        write("alpha16.png", &layout(ColorType::Rgba, BitDepth::Sixteen, 8)),
        write("cmyk.jpg", &cmyk(jpeg_encoder::ColorType::Cmyk)),
        write("ycck.jpg", &cmyk(jpeg_encoder::ColorType::CmykAsYcck)),
    ];
    let args = ["--model", model(), "--json"];
    let done = finish(classify(&args).args(&files)).expect(0);
    assert_eq!(objects(&done).len(), files.len(), "{}", done.err);
}

#[test]
fn folders_and_forbidden_and_missing_files() {
    let folder = temporary();
    let done = run(&["--model", model(), path(folder.path())]);
    assert!(sentence(&done, 3).contains("is a folder"), "{}", done.err);
    let done = run(&["--model", model(), "absent.jpg"]);
    assert!(sentence(&done, 3).starts_with("absent.jpg: cannot read it"), "{}", done.err);
    // Several are named one by one, and the last line sums up.
    let done = run(&["--model", model(), "absent.jpg", "gone.jpg"]).expect(3);
    let lines: Vec<&str> = done.err.lines().collect();
    assert_eq!(lines.len(), 3, "{}", done.err);
    assert!(lines[0].contains("absent.jpg") && lines[1].contains("gone.jpg"), "{}", done.err);
    assert!(lines[2].contains("2 of 2 pictures"), "{}", done.err);
    // Root may read everything.
    let secret = folder.path().join("secret.jpg");
    fs::copy(picture(&classes()[0]), &secret).unwrap();
    let mode = Command::new("chmod").args(["000", path(&secret)]).status().unwrap();
    if mode.success() && fs::read(&secret).is_err() {
        let done = run(&["--model", model(), path(&secret)]);
        assert!(sentence(&done, 3).contains("secret.jpg: cannot read it"), "{}", done.err);
    }
}

#[test]
fn a_model_that_cannot_be_used_is_exit_code_3() {
    let folder = temporary();
    let picture = picture(&classes()[0]);
    let whole = fs::read(plain_model()).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    // Another version in a header whose checksum is not made anew: refused as damaged.
    let key = b"\"engine.version\":\"";
    let version = whole.windows(key.len()).position(|part| part == key).unwrap();
    let mut later = whole.clone();
    later[version + key.len()] = b'9';
    for (name, bytes, words) in [
        ("empty", &b""[..], "is empty"),
        ("picture", &fs::read(&picture).unwrap(), "is no model"),
        ("checkpoint", &fs::read(crate::checkpoint()).unwrap(), "is a checkpoint"),
        ("cut", &whole[..whole.len() / 3], "cut off"),
        ("damaged", &damaged, "checksum"),
        ("later", &later, "damaged"),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, bytes).unwrap();
        for more in [&["--precision=fp32", picture.as_str()][..], &["--precision=fp32", "--stdio"]] {
            let done = finish(classify(&["--model", path(&file)]).args(more));
            let message = sentence(&done, 3);
            assert!(message.contains(name) && message.contains(words), "{name}: {message}");
        }
    }
    let done = run(&["--model", "absent.engine", &picture]);
    assert!(sentence(&done, 3).starts_with("absent.engine: "), "{}", done.err);
    let done = run(&["--model", plain_model(), "--precision", "int8", &picture]);
    assert!(sentence(&done, 3).contains("--int8 --calibrate"), "{}", done.err);
}

#[test]
fn a_command_line_that_cannot_be_followed_is_exit_code_2() {
    let picture = picture(&classes()[0]);
    for (args, words) in [
        (&["--model", model()][..], "no IMAGE"),
        (&[&picture], "--model is missing"),
        (&["--model", model(), "--top", "none", &picture], "--top"),
        (&["--model", model(), "--colour", &picture], "--colour"),
        (&["--model", model(), "--isa", "mmx", &picture], "expected auto, avx512, avx2, neon or portable"),
    ] {
        let done = run(args);
        let message = sentence(&done, 2);
        assert!(message.contains(words) && message.contains("classify --help"), "{message}");
    }
    // An instruction set that this machine lacks: no x86 has NEON, no ARM has AVX2.
    let lacking = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    let done = run(&["--model", model(), "--isa", lacking, &picture]);
    assert!(sentence(&done, 2).contains(&format!("this machine has no {lacking}")), "{}", done.err);
    if Isa::available().iter().any(|isa| isa.set() == Set::Avx2) {
        let done = run(&["--model", model(), "--isa=avx2", "--precision=bf16", &picture]);
        assert!(sentence(&done, 2).contains("bf16"), "{}", done.err);
    }
}

/// 100 million pixels where the process may have 256 MB: one picture fails, the next is answered.
#[cfg(target_os = "linux")]
#[test]
fn no_memory_is_a_sentence() {
    let folder = temporary();
    let large = folder.path().join("large.png");
    fs::write(&large, flat_png(10_000, 10_000)).unwrap();
    let small = picture(&classes()[0]);
    let script = "ulimit -v 262144; exec \"$0\" \"$@\"";
    let args = ["--model", model(), "--json", "--threads=1", path(&large), &small];
    let binary = Path::new(env!("CARGO_BIN_EXE_classify"));
    let done = finish(Command::new("sh").args(["-c", script, path(binary)]).args(args));
    let message = sentence(&done, 3);
    assert!(message.contains("large.png") && message.contains("no memory for"), "{message}");
    assert_eq!(objects(&done).len(), 1);
}

/// Where the address space ends before the network is packed.
#[cfg(target_os = "linux")]
#[test]
fn no_memory_for_the_network_is_exit_code_1() {
    let binary = env!("CARGO_BIN_EXE_classify");
    for more in [picture(&classes()[0]).as_str(), "--stdio"] {
        let args = ["--model", model(), "--threads=1", "--precision=fp32", more];
        // As little as the program itself needs to begin; more until the network is refused in a sentence.
        let refused = (12..40).map(|megabytes| {
            let script = format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes << 10);
            Command::new("sh").args(["-c", &script, binary]).args(args).output().unwrap()
        });
        let refused = refused.map(|output| (output.status.code(), String::from_utf8(output.stderr).unwrap()));
        let found = refused.into_iter().find(|(_, message)| message.contains("no memory for the network"));
        let (code, message) = found.expect("somewhere below 40 MB");
        assert_eq!((code, message.lines().count()), (Some(1), 1), "{message}");
    }
}
