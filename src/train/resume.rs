//! Which state a run begins in.

use super::model_file::Model;
use super::output::{Output, RunFile};
use super::state::{Environment, RunState, named_tensors};
use super::trainer::{Resume, TrainOptions};
use crate::backend::{Backend, MOMENTUM_PREFIX};
use crate::checkpoint::{Found, Position, Store};
use crate::config::{Config, differing_keys};
use crate::error::{Error, Result};

/// The state to go on from, and what the log should say about it.
pub struct Start {
    pub state: RunState,
    pub notes: Vec<String>,
}

/// Puts `backend` into the state that `options.resume` asks for. `fresh` is the beginning of the run that was asked for;
/// a checkpoint of another recipe is refused.
pub fn start(
    fresh: RunState,
    options: &TrainOptions,
    store: &Store,
    backend: &mut dyn Backend,
) -> Result<Start> {
    let found = match &options.resume {
        Resume::None => None,
        Resume::From(path) => Some(Found::read(path)?),
        Resume::Auto => {
            let search = store.newest()?;
            search.passed_over.iter().for_each(|sentence| eprintln!("warning: {sentence}"));
            search.found
        }
    };
    let Some(found) = found else {
        if let Some(init) = &options.init {
            initialise(init, backend)?;
        }
        store.resume_at(Position::START, None)?.iter().for_each(|note| eprintln!("{note}"));
        return Ok(Start { state: fresh, notes: vec![] });
    };
    let name = found.path.display().to_string();
    let mut state = RunState::from_checkpoint(&name, &found.checkpoint)?;
    same_recipe(&name, &state, &fresh)?;
    backend.load_state(&named_tensors(found.checkpoint)).map_err(|error| error.within(&name))?;
    store.resume_at(state.position(), state.best_position())?.iter().for_each(|note| eprintln!("{note}"));
    let notes = environment_note(&state.environment, &fresh.environment).into_iter().collect();
    state.environment = fresh.environment;
    Ok(Start { state, notes })
}

fn same_recipe(name: &str, there: &RunState, here: &RunState) -> Result<()> {
    let differing = differing_keys(&there.recipe, &here.recipe);
    if differing.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{name} was made by another recipe ({}); go on with the old one, choose another --output, or begin anew with \
         --resume none",
        differing.join("; ")
    )))
}

fn environment_note(there: &Environment, here: &Environment) -> Option<String> {
    if there == here {
        return None;
    }
    let list = |e: &Environment| format!("engine {}, {}, {}, {}", e.engine, e.device, e.isa, e.decoder);
    let note = format!(
        "resumed elsewhere ({} before, {} now): the same course, but no longer promised to the bit",
        list(there),
        list(here)
    );
    eprintln!("warning: {note}");
    Some(note)
}

/// First weights from a file; velocities start at zero.
fn initialise(path: &std::path::Path, backend: &mut dyn Backend) -> Result<()> {
    let mut tensors = Model::read(path)?.tensors;
    tensors.retain(|name, _| !name.starts_with(MOMENTUM_PREFIX));
    backend.load_state(&tensors).map_err(|error| error.within(path.display()))
}

/// The identity of the run that `state` belongs to: the folder's own where it is the same run, a new one otherwise.
pub fn run_file(config: &Config, state: &RunState, resume: &Resume, output: &Output) -> Result<RunFile> {
    let previous = output.previous_run().filter(|run| run.recipe == state.recipe && *resume != Resume::None);
    let run = previous.unwrap_or_else(|| RunFile::new(config, &state.recipe));
    output.write_run(&run)?;
    Ok(run)
}
