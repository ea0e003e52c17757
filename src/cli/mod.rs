//! Flags -> command. One file a command; exit codes in one place (`error::Kind`).

mod args;
mod begin;
mod bench;
mod bench_infer;
#[cfg(feature = "cuda")]
mod bench_race;
#[cfg(feature = "cuda")]
mod bench_step;
#[cfg(feature = "cuda")]
mod check;
mod config;
mod data;
mod device;
mod doctor;
#[cfg(feature = "cuda")]
mod dump;
mod eval;
mod export;
mod pack;
#[cfg(feature = "cuda")]
mod plan;
mod plot;
mod predict;
mod report;
mod train;
mod weights;

use crate::error::{Error, Kind, Result};
use crate::leave::leave_silently;
use crate::terminal::message;
use args::{Cli, Command};
use clap::Parser;
use signal_hook::consts::signal::SIGXFSZ;
use signal_hook::flag;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; everything else is the user's command line: 2.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nothing is left to be told if stderr is closed.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    outlive_large_files();
    // Where the panic was, and what it said, the standard library has printed by then.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(cli.command))).unwrap_or_else(|_| {
        Err(Error::failed(
            "this is a bug in engine, not in what it was given; please report it with the lines above. A run keeps its last \
             checkpoint: the same command goes on from there",
        ))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            message(format!("engine: {error}"));
            if error.kind == Kind::Device {
                leave_silently(error.exit_code());
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// A file beyond the limit of `ulimit -f` is the error of the write that reaches it: SIGXFSZ would end the process there,
/// with half a file and no word.
fn outlive_large_files() {
    // Where it cannot be caught, it does what it always did.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Data(command) => data::run(&command),
        Command::Plot(args) => plot::run(&args),
        Command::Report(args) => report::run(&args),
        #[cfg(feature = "cuda")]
        Command::Check(args) => check::run(&args),
        #[cfg(feature = "cuda")]
        Command::Plan(args) => plan::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(command) => bench::run(&command),
    }
}
