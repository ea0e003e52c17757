//! Flags -> command. One file a command; exit codes in one place (`error::Kind`).

mod args;
mod bench;
mod bench_infer;
#[cfg(feature = "cuda")]
mod check;
mod data;
mod device;
mod doctor;
mod eval;
mod export;
mod plot;
mod predict;
mod train;

use crate::error::Result;
use crate::terminal::message;
use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

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
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            message(format!("engine: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Data(command) => data::run(&command),
        Command::Plot(args) => plot::run(&args),
        #[cfg(feature = "cuda")]
        Command::Check(args) => check::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(command) => bench::run(&command),
    }
}
