//! The binary `classify` from end to end, on a model that `engine` trains and exports here.

mod answers;
mod bad_input;
#[path = "../common/mod.rs"]
mod common;
mod explain;
mod stdio;

use common::{Done, data, engine, finish, lasting, path, tiny};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The binary, without what this process's environment would tell it.
pub fn classify(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_classify"));
    command.env_remove("ENGINE_ISA").args(args).stdin(Stdio::null());
    command
}

pub fn run(args: &[&str]) -> Done {
    finish(&mut classify(args))
}

/// Every line of a command's answer as JSON.
pub fn objects(done: &Done) -> Vec<Value> {
    done.out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect()
}

/// A trained checkpoint of the smallest network.
pub fn checkpoint() -> &'static Path {
    static CHECKPOINT: OnceLock<PathBuf> = OnceLock::new();
    CHECKPOINT.get_or_init(|| {
        let folder = lasting("trained");
        finish(&mut tiny(&folder)).expect(0);
        folder.join("checkpoints/last.safetensors")
    })
}

fn export(name: &str, args: &[&str]) -> PathBuf {
    let folder = lasting(name);
    fs::create_dir_all(&folder).unwrap();
    let model = folder.join("model.engine");
    let common = ["export", "--checkpoint", path(checkpoint()), "--format", "cpu", "--output", path(&model)];
    finish(engine(common).args(args)).expect(0);
    model
}

/// The model file of [`checkpoint`], with 8-bit numbers.
pub fn model() -> &'static str {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    let train = data().join("train");
    path(MODEL.get_or_init(|| export("int8", &["--int8", "--calibrate", path(&train), "--max-loss", "100"])))
}

/// The same without.
pub fn plain_model() -> &'static str {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    path(MODEL.get_or_init(|| export("plain", &[])))
}

/// A picture that the network was not trained on.
pub fn picture(class: &str) -> String {
    path(&data().join("val").join(class).join("0000.jpg")).to_owned()
}

/// Names of the classes, sorted.
pub fn classes() -> Vec<String> {
    let entries = fs::read_dir(data().join("val")).unwrap();
    let folders = entries.map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A PNG of one colour, which compresses to nearly nothing.
pub fn flat_png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let row = vec![0xff; width.div_ceil(8) as usize * height as usize];
    encoder.write_header().unwrap().write_image_data(&row).unwrap();
    bytes
}
