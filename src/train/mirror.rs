//! The bucket beside the output folder: what it has that the folder lacks comes first, what the folder has goes up after
//! every checkpoint.

use super::output::{Output, RunFile};
use super::state::RunState;
use super::stop::Stop;
use super::trainer::Resume;
use crate::checkpoint::{Position, Store};
use crate::config::{CheckpointPolicy, differing_keys};
use crate::error::{Error, Kind, Result};
use crate::log::timestamp;
use crate::remote::{
    Address, Claim, Client, Failure, Job, Manifest, Offer, Owner, Patience, Uploader, fetch, manifest,
};
use crate::terminal::message;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Seconds that a run waits for its bucket before it begins, and for its last upload once it is over. The variable has
/// another number for both.
const AT_BEGINNING: u64 = 120;
const AT_END: u64 = 600;
const PATIENCE_VARIABLE: &str = "ENGINE_REMOTE_PATIENCE";

/// Nothing at all where `checkpoint.remote` is empty.
pub struct Mirror {
    client: Option<Arc<Client>>,
    uploader: Option<Uploader>,
    grace: Duration,
    /// The bucket did not answer, and the run goes on from this machine's own checkpoint.
    is_away: bool,
}

impl Mirror {
    pub fn open(policy: &CheckpointPolicy) -> Result<Self> {
        let client = match policy.remote.as_str() {
            "" => None,
            remote => Some(Arc::new(Client::open(Address::parse(remote)?)?)),
        };
        let grace = Duration::from_secs_f64(policy.grace_seconds);
        Ok(Self { client, uploader: None, grace, is_away: false })
    }

    /// With `--resume auto`: brings the bucket's newest checkpoint where it is newer than the folder's.
    pub fn bring(&mut self, resume: &Resume, output: &Output, store: &Store, fresh: &RunState) -> Result<()> {
        let Some(client) = self.client.clone().filter(|_| *resume == Resume::Auto) else { return Ok(()) };
        let never = || false;
        let patience = Patience::new(patience(AT_BEGINNING), &never);
        let here = store.newest()?.found.map(|found| found.at);
        let stored = match manifest::read(&client, &patience) {
            Err(Failure::Passing(reason)) if here.is_some() => {
                self.is_away = true;
                let address = &client.address;
                message(format!(
                    "warning: {address} does not answer ({reason}): going on from what is on this machine"
                ));
                return Ok(());
            }
            read => read.map_err(|failure| refused(&client, &failure))?,
        };
        let Some(there) = stored.map(|stored| stored.manifest) else { return Ok(()) };
        let run = output.previous_run();
        if let Some(run) = run.as_ref().filter(|run| here.is_some() && run.id != there.owner.run) {
            return Err(another_run(
                &client,
                &there,
                &format!("{} that of run {}", output.folder.display(), run.id),
            ));
        }
        same_recipe(&client, &there, fresh)?;
        let brought = fetch::bring(&client, &there, &output.folder, store, here, &patience)?;
        brought.passed_over.iter().for_each(|sentence| message(format!("warning: {sentence}")));
        if let Some(at) = brought.newest {
            message(format!("brought {} from {}", at.file_name(), client.address));
            if output.previous_run().is_none() {
                output.write_run(&run_of(&there))?;
            }
        } else if here.is_none() && !there.checkpoints.is_empty() {
            return Err(Error::input(format!(
                "none of the checkpoints in {} can be used (see the warnings above); put an intact one back, or begin anew in \
                 another --remote",
                client.address
            )));
        } else if here.is_none() || run.is_none() {
            // A run without a checkpoint, or without its file, is still that run.
            fetch::run_file(&client, "run.json", &output.folder, &patience)
                .map_err(|failure| refused(&client, &failure))?;
        }
        Ok(())
    }

    /// Makes the prefix this run's and begins to upload. Another run's is refused.
    pub fn claim(&mut self, run: &RunFile, state: &RunState, output: &Output, store: &Store) -> Result<()> {
        let Some(client) = &self.client else { return Ok(()) };
        let owner = Owner { run: run.id.clone(), name: run.name.clone(), recipe: run.recipe.clone() };
        let (folder, store) = (output.folder.clone(), store.clone());
        // Nobody has looked at what is there: it may be later than this, and then it stays.
        let from = if self.is_away { Position::LAST } else { state.position() };
        let job = Job { client: Arc::clone(client), owner, from, folder, store };
        let never = || false;
        let claim = if self.is_away {
            None
        } else {
            Some(Claim::take(&job, &Patience::new(patience(AT_BEGINNING), &never)))
        };
        let claim = match claim.transpose() {
            Err(Failure::Taken) => {
                let address = &client.address;
                return Err(Error::usage(format!(
                    "{address} holds what another run wrote, and this is run {}: nothing was written there; choose another \
                     --remote",
                    run.id
                )));
            }
            Err(Failure::Passing(reason)) if state.total_steps > 0 => {
                message(format!(
                    "warning: {} does not answer ({reason}): trying again with every checkpoint",
                    client.address
                ));
                None
            }
            claim => claim.map_err(|failure| refused(client, &failure))?,
        };
        self.uploader = Some(Uploader::begin(job, claim));
        Ok(())
    }

    /// A checkpoint is whole and durable in the folder.
    pub fn offer(&self, offer: Offer) {
        if let Some(uploader) = &self.uploader {
            uploader.offer(offer);
        }
    }

    /// Waits for the last upload as long as there is time, and puts what became of it into the run's outcome.
    pub fn close(&mut self, state: &RunState, stop: &Stop, outcome: Result<()>) -> Result<()> {
        let Some(uploader) = self.uploader.take() else { return outcome };
        let address = uploader.address().to_owned();
        let time = if stop.requested() { stop.time_left(self.grace) } else { patience(AT_END) };
        if stop.requested() {
            message(format!("uploading to {address}, for {} s at most", time.as_secs()));
        }
        let offer = Offer { at: state.position(), best: state.best_position() };
        let uploaded = uploader.finish(offer, time);
        match (outcome, uploaded) {
            (Err(error), Ok(())) if error.kind == Kind::Stopped => {
                Err(Error::stopped(format!("{}; {address} has it as well", error.message)))
            }
            (Err(error), Err(reason)) if error.kind == Kind::Stopped => {
                Err(Error::stopped(format!("{}; it is not in {address}: {reason}", error.message)))
            }
            (Err(error), Err(reason)) => {
                message(format!("warning: the last of it is not in {address}: {reason}"));
                Err(error)
            }
            (Ok(()), Err(reason)) => Err(Error::stopped(format!(
                "the run is over and whole on this machine, but not in {address}: {reason}; run the same command again to \
                 upload the rest"
            ))),
            (outcome, Ok(())) => outcome,
        }
    }
}

fn patience(seconds: u64) -> Duration {
    let others = std::env::var(PATIENCE_VARIABLE).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(others.unwrap_or(seconds))
}

/// Before a run begins: what passes is for the launcher to try again, anything else for a person.
fn refused(client: &Client, failure: &Failure) -> Error {
    let address = &client.address;
    match failure {
        Failure::Passing(reason) => Error::stopped(format!(
            "{address} does not answer ({reason}), and only it could say where to go on; nothing was begun, run the same \
             command again"
        )),
        Failure::Absent | Failure::Taken | Failure::Lasting(_) => {
            Error::usage(format!("{address}: {failure}"))
        }
    }
}

fn another_run(client: &Client, there: &Manifest, here: &str) -> Error {
    let (address, Owner { run, name, .. }) = (&client.address, &there.owner);
    Error::usage(format!("{address} holds run {run} ({name}), {here}; choose another --remote or --output"))
}

/// Where run.json could not be brought: under another id the run would be refused its own prefix.
fn run_of(there: &Manifest) -> RunFile {
    let Owner { run, name, recipe } = there.owner.clone();
    let started = timestamp(SystemTime::now());
    RunFile { id: run, name, started, hours: 0.0, checkpointed: true, recipe }
}

fn same_recipe(client: &Client, there: &Manifest, fresh: &RunState) -> Result<()> {
    let differing = differing_keys(&there.owner.recipe, &fresh.recipe);
    if differing.is_empty() || there.checkpoints.is_empty() && there.files.is_empty() {
        return Ok(());
    }
    let here = format!("which was made by another recipe ({})", differing.join("; "));
    Err(another_run(client, there, &here))
}
