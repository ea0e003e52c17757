//! The folder's checkpoints and logs go up while training goes on.

use super::client::{Answer, Client, Failure};
use super::manifest::{self, CHECKPOINTS, FILES, Manifest, Over, Owner, Step, Stored, place};
use super::object::{self, Content};
use super::retry::{Patience, retry};
use crate::checkpoint::{Position, Store};
use crate::failpoint;
use crate::terminal::message;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How long one checkpoint is tried before the next is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is to be mirrored where, and for which run.
#[derive(Debug, Clone)]
pub struct Job {
    pub client: Arc<Client>,
    pub owner: Owner,
    /// Where the run stands at its beginning.
    pub from: Position,
    pub folder: PathBuf,
    pub store: Store,
}

/// A prefix that is this process's to write.
#[derive(Debug)]
pub struct Claim {
    client: Arc<Client>,
    stored: Stored,
    /// In the bucket whole, and not yet named by its manifest.
    uploaded: Vec<Step>,
    folder: PathBuf,
    store: Store,
}

impl Claim {
    /// Takes the prefix for a run: [`Failure::Taken`] where it is another's. Checkpoints of its own beyond its beginning belong to
    /// a future that is given up, and go; so do objects that no manifest names.
    pub fn take(job: &Job, patience: &Patience) -> Answer<Self> {
        let Job { client, owner, folder, store, .. } = job.clone();
        let now = humantime::format_rfc3339_nanos(SystemTime::now());
        let writer = format!("{now}-{}", std::process::id());
        let stored = loop {
            let written = match manifest::read(&client, patience)? {
                None if !is_empty(&client, patience)? => return Err(Failure::Taken),
                None => {
                    manifest::write(&client, &Manifest::new(owner.clone(), &writer), Over::Nothing, patience)
                }
                Some(there) if !there.manifest.is_free_for(&owner) => return Err(Failure::Taken),
                Some(there) => {
                    let mut ours = there.manifest.clone();
                    (ours.owner, ours.writer) = (owner.clone(), writer.clone());
                    ours.checkpoints.retain(|step| step.place() <= place(job.from));
                    ours.best = ours.best.filter(|best| place(*best) <= place(job.from));
                    manifest::write(&client, &ours, Over::This(&there), patience)
                }
            };
            match written {
                // Somebody wrote it in between: look again.
                Err(Failure::Taken) if !patience.is_over() => {}
                written => break written?,
            }
        };
        let claim = Self { client, stored, uploaded: vec![], folder, store };
        claim.sweep(patience)?;
        Ok(claim)
    }

    /// Removes objects of this run's that its manifest does not name: what a kill left between object and manifest.
    fn sweep(&self, patience: &Patience) -> Answer<()> {
        let address = &self.client.address;
        for key in object::list(&self.client, &address.key(CHECKPOINTS), patience)? {
            let is_named =
                |name: &str| self.stored.manifest.checkpoints.iter().any(|step| step.object == name);
            if address.name(&key).is_some_and(|name| Step::is_name(name) && !is_named(name)) {
                retry(patience, || self.client.delete(&key))?;
            }
        }
        Ok(())
    }

    /// Makes the bucket hold what the folder does. What is kept for good goes first and is named together: a machine that goes on
    /// from a later checkpoint would make none of it again. Then the newest, then the rest, each named once it is there.
    fn mirror(&mut self, offer: Offer, patience: &Patience) -> Answer<()> {
        self.is_still_ours(patience)?;
        let local = self.store.present().map_err(|error| Failure::Lasting(error.message))?;
        let is_new = |at: (u32, u64)| (at.1, at.0) <= place(offer.at) && !self.stored.manifest.has(at);
        let new = local.into_iter().filter(|(at, _)| is_new(*at));
        let (for_good, others): (Vec<_>, Vec<_>) =
            new.partition(|(at, path)| self.is_for_good(*at, path, offer.best));
        for (_, path) in for_good {
            self.upload_checkpoint(&path, patience)?;
        }
        if !self.uploaded.is_empty() || others.is_empty() {
            self.publish(offer, patience)?;
        }
        for (_, path) in others {
            self.upload_checkpoint(&path, patience)?;
            self.publish(offer, patience)?;
        }
        Ok(())
    }

    fn is_for_good(&self, at: (u32, u64), path: &Path, best: Option<Position>) -> bool {
        let is_epoch_end = || self.store.position(path).is_ok_and(|position| position.epoch_end);
        self.store.keeps(usize::MAX, at, best, is_epoch_end)
    }

    fn is_still_ours(&mut self, patience: &Patience) -> Answer<()> {
        let there = manifest::read(&self.client, patience)?;
        match there.filter(|there| there.manifest.writer == self.stored.manifest.writer) {
            Some(there) => {
                self.stored = there;
                Ok(())
            }
            None => Err(Failure::Lasting(
                "another process goes on with this run there; this one uploads nothing more".into(),
            )),
        }
    }

    /// Nothing where it is there already, or where retention has removed it meanwhile.
    fn upload_checkpoint(&mut self, path: &Path, patience: &Patience) -> Answer<()> {
        let local =
            |reason: &dyn std::fmt::Display| Failure::Lasting(format!("{}: {reason}", path.display()));
        // Open, it can be read to its end, also where it is removed meanwhile.
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            file => file.map_err(|error| local(&error))?,
        };
        let at = self.store.position(path).map_err(|error| Failure::Lasting(error.message))?;
        if self.uploaded.iter().any(|step| step.at == at) {
            return Ok(());
        }
        let step = Step::new(at, Content::of_file(&file).map_err(|error| local(&error))?);
        object::upload(&self.client, &self.client.address.key(&step.object), &file, &step.content, patience)?;
        self.uploaded.push(step);
        failpoint::hit("remote", "uploaded");
        Ok(())
    }

    /// The run's files, the manifest, and only then the removal of what it names no longer.
    fn publish(&mut self, offer: Offer, patience: &Patience) -> Answer<()> {
        let mut next = self.stored.manifest.clone();
        self.uploaded.iter().cloned().for_each(|step| next.add(step));
        if next.checkpoints.is_empty() {
            // Logs alone are nothing to go on from, and would keep the run that begins anew out of its prefix.
            return Ok(());
        }
        next.files = self.upload_files(patience)?;
        // One that is not here yet takes no other's place.
        next.best = offer.best.filter(|best| next.has((best.epoch, best.step))).or(next.best);
        let (kept, dropped) = self.retention(&next.checkpoints, next.best);
        next.checkpoints = kept;
        if next != self.stored.manifest {
            self.stored = manifest::write(&self.client, &next, Over::This(&self.stored), patience)?;
            failpoint::hit("remote", "published");
        }
        self.uploaded.clear();
        for step in dropped {
            // What cannot be removed now goes at the run's next beginning.
            let _ = retry(patience, || self.client.delete(&self.client.address.key(&step.object)));
            failpoint::hit("remote", "removed");
        }
        Ok(())
    }

    /// The rule of the folder, on what the bucket has.
    fn retention(&self, checkpoints: &[Step], best: Option<Position>) -> (Vec<Step>, Vec<Step>) {
        let mut newer = 0;
        checkpoints.iter().cloned().partition(|step| {
            newer += 1;
            self.store.keeps(newer, (step.at.epoch, step.at.step), best, || step.at.epoch_end)
        })
    }

    fn upload_files(&self, patience: &Patience) -> Answer<BTreeMap<String, Content>> {
        let mut there = self.stored.manifest.files.clone();
        for name in FILES {
            let Ok(file) = File::open(self.folder.join(name)) else { continue };
            let content =
                Content::of_file(&file).map_err(|error| Failure::Lasting(format!("{name}: {error}")))?;
            if there.get(name) != Some(&content) {
                object::upload(&self.client, &self.client.address.key(name), &file, &content, patience)?;
                there.insert(name.to_owned(), content);
            }
        }
        Ok(there)
    }
}

/// Whether nothing lies where a run's objects would.
fn is_empty(client: &Client, patience: &Patience) -> Answer<bool> {
    let below = object::list(client, &client.address.key(CHECKPOINTS), patience)?;
    let beside = object::list(client, &client.address.key(""), patience)?;
    let is_ours = |key: &String| client.address.name(key).is_some_and(|name| FILES.contains(&name));
    Ok(below.is_empty() && !beside.iter().any(is_ours))
}

/// Where the folder stands.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    pub at: Position,
    pub best: Option<Position>,
}

#[derive(Default)]
struct State {
    /// Offers so far, and the one that is to be in the bucket.
    offers: u64,
    offer: Option<Offer>,
    /// The last offer that is, whole.
    done: u64,
    /// Why the last try came to nothing.
    failure: Option<String>,
    /// Nothing comes after this offer, and it is tried until then.
    until: Option<Instant>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the process is about to leave without the rest.
    fn is_past(&self) -> bool {
        self.state().until.is_some_and(|until| Instant::now() >= until)
    }
}

/// Uploads on a thread of its own; of several offers that come meanwhile, the newest.
pub struct Uploader {
    shared: Arc<Shared>,
    /// For messages.
    address: String,
}

impl Uploader {
    /// `claim` is none where the bucket could not be reached yet.
    pub fn begin(job: Job, claim: Option<Claim>) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let address = job.client.address.to_string();
        let theirs = Arc::clone(&shared);
        // Without a thread nothing goes up, and `finish` says so.
        let _ = thread::Builder::new().name("upload".into()).spawn(move || follow(&job, claim, &theirs));
        Self { shared, address }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// There is something new in the folder, whole and durable.
    pub fn offer(&self, offer: Offer) {
        let mut state = self.shared.state();
        state.offers += 1;
        state.offer = Some(offer);
        self.shared.changed.notify_all();
    }

    /// Waits until a last offer is in the bucket, `time` at most. The error is a reason.
    pub fn finish(self, offer: Offer, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        self.shared.state().until = Some(until);
        self.offer(offer);
        let mut state = self.shared.state();
        while state.done < state.offers {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                let reason = state.failure.clone().unwrap_or_else(|| "it was still under way".to_owned());
                return Err(format!("not within {} s: {reason}", time.as_secs()));
            };
            if state.failure.is_some() && state.offer.is_none() {
                return Err(state.failure.clone().unwrap_or_default());
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// The thread: takes the newest offer, mirrors it, says what went wrong.
fn follow(job: &Job, mut claim: Option<Claim>, shared: &Shared) {
    let mut said = None;
    loop {
        let (number, offer) = next(shared);
        let is_past = || shared.is_past();
        let failure = mirror(job, &mut claim, offer, &Patience::new(PATIENCE, &is_past)).err();
        if let Some(reason) = failure.as_ref().filter(|reason| said.as_ref() != Some(*reason)) {
            let (step, address) = (offer.at.step, &job.client.address);
            message(format!("warning: step {step} is not in {address}: {reason}; training goes on"));
        }
        said.clone_from(&failure);
        let mut state = shared.state();
        if failure.is_none() {
            state.done = number;
        }
        state.failure = failure;
        shared.changed.notify_all();
    }
}

/// The prefix is claimed here where it could not be at the beginning.
fn mirror(job: &Job, claim: &mut Option<Claim>, offer: Offer, patience: &Patience) -> Result<(), String> {
    let taken = || format!("{} holds what another run wrote", job.client.address);
    let told = |failure: Failure| if failure == Failure::Taken { taken() } else { failure.to_string() };
    if claim.is_none() {
        *claim = Some(Claim::take(job, patience).map_err(told)?);
    }
    claim.as_mut().expect("claimed above").mirror(offer, patience).map_err(told)
}

/// Waits for an offer and takes it.
fn next(shared: &Shared) -> (u64, Offer) {
    let mut state = shared.state();
    loop {
        if let Some(offer) = state.offer.take() {
            state.failure = None;
            return (state.offers, offer);
        }
        state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}
