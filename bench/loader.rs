//! `cargo bench --bench loader [-- PATH [SECONDS [RESOLUTION]]]`: images a second of the training loader, with one
//! worker and with one a CPU, in turns.

use std::path::PathBuf;
use std::process::ExitCode;

use engine::data::{Splits, TrainTransform, available_workers, bench};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/imagenet-sample-100.tar");
    let path = PathBuf::from(arguments.next().unwrap_or_else(|| default.into()));
    let mut number = |default: f64| arguments.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (seconds, resolution) = (number(5.0), number(224.0) as usize);
    if !path.exists() {
        println!("{} is not there; give the path of a data set", path.display());
        return ExitCode::SUCCESS;
    }
    let run = || {
        let split = Splits::open(&path)?.splits.swap_remove(0).1;
        for _ in 0..3 {
            for workers in [1, available_workers()] {
                println!("{}", bench::loader(&split, TrainTransform::new(resolution), workers, seconds)?);
            }
        }
        Ok(())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error: engine::error::Error = error;
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
