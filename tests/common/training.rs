//! A short training through the library, on whatever backend a test has.

use crate::common::{data, path};
use engine::backend::Backend;
use engine::comm::alone;
use engine::config::{Config, Precision};
use engine::data::Dataset;
use engine::error::Result;
use engine::train::state::Environment;
use engine::train::stop::Stop;
use engine::train::{Resume, TrainOptions, train};
use std::fs;
use std::path::Path;

/// Two epochs of seven steps of the smallest network, with a checkpoint after every second step.
pub fn config() -> Config {
    let mut config = Config { epochs: 2, ..Config::default() };
    config.model.arch = "resnet-tiny".to_owned();
    config.data.path = path(data()).to_owned();
    config.data.resolution = 32;
    config.data.batch = 8;
    config.device.precision = Precision::Auto;
    config.checkpoint.every_steps = 2;
    config.schedule.warmup_epochs = 1.0;
    config.optim.lr = 0.5;
    config
}

/// Trains in `output`, from the newest checkpoint there.
pub fn run(config: &Config, output: &Path, backend: &mut dyn Backend) -> Result<()> {
    let dataset = Dataset::open(data())?;
    let options = TrainOptions {
        output: output.to_owned(),
        resume: Resume::Auto,
        init: None,
        stop: Stop::default(),
        ranks: alone(),
    };
    let name = |text: &str| text.to_owned();
    let environment = Environment {
        engine: name("test"),
        device: name("test"),
        isa: name("test"),
        decoder: name("test"),
        ranks: 1,
    };
    train(config, &options, &dataset, backend, environment)
}

/// The steps of metrics.jsonl, clocks left out.
pub fn steps(output: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line["kind"] == "step")
        .map(|mut line| {
            line.as_object_mut().unwrap().remove("clock");
            line
        })
        .collect()
}
