//! The standalone binary `classify`: pictures -> answers, one after another.
//!
//! | file | gives |
//! |---|---|
//! | [`args`] | the command line and its help |
//! | [`classifier`] | a model file, its programs, and pictures through both |
//! | `describe` | what is said of a model and the machine |
//! | [`stdio`] | requests and answers as lines of JSON |

pub mod args;
pub mod classifier;
mod describe;
pub mod stdio;

use crate::data::Limits;
use crate::data::picture::read_picture;
use crate::error::{Error, Result};
use crate::infer::Precision;
use crate::infer::file::ModelFile;
use crate::infer::profile::Profiler;
use crate::infer::top::Prediction;
use crate::terminal::{answer, message};
use args::{Args, HELP, Parsed};
use classifier::{Classifier, Question};
use std::io;
use std::path::Path;
use std::process::ExitCode;

/// Runs that a profile takes the fastest of.
const PROFILE_RUNS: usize = 20;

/// Parses the process's arguments, classifies, and says how it went.
pub fn main() -> ExitCode {
    let done = match args::parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Help) => answer(HELP.trim_end()),
        Ok(Parsed::Version) => answer(concat!("classify ", env!("CARGO_PKG_VERSION"))),
        Ok(Parsed::Run(args)) => run(&args),
        Err(reason) => Err(Error::usage(format!("{reason}; `classify --help` says what there is"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            message(format!("classify: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let limits = Limits { pixels: args.max_pixels };
    let mut classifier = Classifier::new(ModelFile::open(&args.model)?, limits, args.isa, args.threads);
    let precision = args.precision.unwrap_or_else(|| classifier.fastest());
    classifier.program(precision)?;
    if args.stdio {
        let defaults = stdio::Defaults { top: args.top, precision };
        return stdio::serve(&mut classifier, defaults, &mut io::stdin().lock(), &mut io::stdout().lock());
    }
    let done = classify_all(&mut classifier, args, precision);
    if args.profile {
        profile(&mut classifier, precision)?;
    }
    done
}

/// One bad picture does not keep the others from their answer.
fn classify_all(classifier: &mut Classifier, args: &Args, precision: Precision) -> Result<()> {
    let mut failures = vec![];
    let question = Question { precision, top: args.top, explain: false };
    for path in &args.images {
        match read_picture(path) {
            Err(error) => failures.push(error),
            Ok(mut bytes) => match classifier.classify(&mut bytes, question) {
                Err(error) => failures.push(error.within(path.display())),
                Ok(found) => print(path, &found.predictions, args.json)?,
            },
        }
    }
    one_of(failures, args.images.len())
}

/// What `images` pictures, some of which failed, amount to: each failure is named, and the exit code is theirs.
pub fn one_of(mut failures: Vec<Error>, images: usize) -> Result<()> {
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        count => {
            failures.iter().for_each(|error| message(format!("warning: {error}")));
            let kind = failures[0].kind;
            let message =
                format!("{count} of {images} pictures could not be classified; they are named above");
            Err(Error { kind, message })
        }
    }
}

/// The answer to one picture: an object in one line, or lines for a person.
pub fn print(path: &Path, predictions: &[Prediction], json: bool) -> Result<()> {
    let file = path.display().to_string();
    if json {
        return answer(serde_json::json!({ "file": file, "predictions": predictions }));
    }
    answer(file)?;
    predictions.iter().try_for_each(|Prediction { index, label, probability }| {
        answer(format!("  {:6.2}%  {label} ({index})", 100.0 * probability))
    })
}

fn profile(classifier: &mut Classifier, precision: Precision) -> Result<()> {
    let isa = classifier.isa();
    let mut profiler = Profiler::new(isa, classifier.program(precision)?);
    for _ in 0..PROFILE_RUNS {
        profiler.measure_peak();
        profiler.add(classifier.again(precision)?);
    }
    message(profiler.finish());
    Ok(())
}
