//! Which state a run begins in.

use super::output::{Output, RunFile};
use super::state::{Environment, RunState, named_tensors};
use super::trainer::{Resume, TrainOptions};
use crate::backend::Backend;
use crate::checkpoint::{Found, Position, Store};
use crate::config::{Config, differing_keys};
use crate::error::{Error, Result};
use crate::terminal::message;

/// The state to go on from, and what the log should say about it.
pub struct Start {
    pub state: RunState,
    /// It comes from a checkpoint.
    pub resumed: bool,
    pub notes: Vec<String>,
}

/// Puts `backend` into the state that `options.resume` asks for. `fresh` is the beginning of the run that was asked for;
/// a checkpoint of another recipe is refused. Nothing in the folder is touched before everything has been read and checked.
pub fn start(
    fresh: RunState,
    options: &TrainOptions,
    store: &Store,
    backend: &mut dyn Backend,
) -> Result<Start> {
    let found = match &options.resume {
        Resume::None => None,
        Resume::From(path) => {
            same_run_in(store, &fresh)?;
            Some(Found::read(path)?)
        }
        Resume::Auto => newest(store)?,
    };
    let Some(found) = found else {
        if let Some(init) = &options.init {
            init.load(backend)?;
        }
        store.resume_at(Position::START, None)?.iter().for_each(message);
        return Ok(Start { state: fresh, resumed: false, notes: vec![] });
    };
    let name = found.path.display().to_string();
    let mut state = RunState::from_checkpoint(&name, &found.checkpoint)?;
    same_recipe(&name, &state, &fresh)?;
    if state.environment.device == fresh.environment.device {
        backend.set_choices(&state.choices);
    }
    backend.load_state(&named_tensors(found.checkpoint)).map_err(|error| error.within(&name))?;
    store.resume_at(state.position(), state.best_position())?.iter().for_each(message);
    if let Some(init) = &options.init {
        let init = init.path.display();
        message(format!("warning: going on from {name}; --init {init} is for a beginning and was not read"));
    }
    let notes = environment_note(&state.environment, &fresh.environment).into_iter().collect();
    state.environment = fresh.environment;
    Ok(Start { state, resumed: true, notes })
}

/// The newest checkpoint that verifies; `None` where there is none at all. A folder of damaged ones is no beginning.
fn newest(store: &Store) -> Result<Option<Found>> {
    let search = store.newest()?;
    search.passed_over.iter().for_each(|sentence| message(format!("warning: {sentence}")));
    match (search.found, search.passed_over.len()) {
        (None, 1..) => Err(Error::input_file(
            store.folder(),
            "none of the checkpoints in it can be used (see the warnings above); put an intact one back, or begin anew with \
             --resume none",
        )),
        (found, _) => Ok(found),
    }
}

/// A checkpoint from elsewhere may go on in a folder of the same run, or of none: another run's checkpoints would fall to
/// this one's retention.
fn same_run_in(store: &Store, fresh: &RunState) -> Result<()> {
    let Some(other) = store.newest()?.found else { return Ok(()) };
    let name = other.path.display().to_string();
    same_recipe(&name, &RunState::from_checkpoint(&name, &other.checkpoint)?, fresh)
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
    let ranks = |e: &Environment| if e.ranks == 1 { String::new() } else { format!(", {} ranks", e.ranks) };
    let list =
        |e: &Environment| format!("engine {}, {}, {}, {}{}", e.engine, e.device, e.isa, e.decoder, ranks(e));
    let note = format!(
        "resumed elsewhere ({} before, {} now): the same course, but no longer promised to the bit",
        list(there),
        list(here)
    );
    message(format!("warning: {note}"));
    Some(note)
}

/// The identity of the run that `start` belongs to: the folder's own where it is the same run, a new one otherwise. A
/// run that had checkpoints and has them no longer is over: beginning anew must not cut its lines from the logs.
pub fn run_file(config: &Config, start: &Start, resume: &Resume, output: &Output) -> Result<RunFile> {
    let same = |run: &RunFile| run.recipe == start.state.recipe && *resume != Resume::None;
    let previous = output.previous_run().filter(same);
    let lost = previous.as_ref().filter(|run| run.checkpointed && !start.resumed);
    if let Some(run) = lost {
        let folder = output.checkpoints();
        message(format!(
            "warning: run {} left no checkpoint in {}; beginning anew, in a new section of logs.md",
            run.id,
            folder.display()
        ));
    }
    let previous = if lost.is_some() { None } else { previous };
    let mut run = previous.unwrap_or_else(|| RunFile::new(config, &start.state.recipe));
    run.checkpointed |= start.resumed;
    output.write_run(&run)?;
    Ok(run)
}
