//! Before a run: what the bucket has that this machine's folder lacks.

use super::client::{Answer, Client, DIGEST_HEADER, Failure};
use super::manifest::{Manifest, Step, place};
use super::object::{self, Content};
use super::retry::{Patience, retry};
use crate::checkpoint::{Found, Position, Store};
use crate::error::{Error, Kind, Result};
use crate::files;
use std::fs::{self, File};
use std::path::Path;

/// What was brought, and a sentence for each object that was passed over.
#[derive(Debug, Default)]
pub struct Brought {
    pub newest: Option<Position>,
    pub passed_over: Vec<String>,
}

/// Brings the newest checkpoint of `manifest` that verifies, if it is newer than the folder's own (`here`), with the best
/// one and the run's files. Each gets its name only once it is whole, the newest after all others: nothing is brought any more
/// where that one is.
pub fn bring(
    client: &Client,
    manifest: &Manifest,
    folder: &Path,
    store: &Store,
    here: Option<Position>,
    patience: &Patience,
) -> Result<Brought> {
    let mut brought = Brought::default();
    let newer = |step: &&Step| here.is_none_or(|here| step.place() > place(here));
    for step in manifest.checkpoints.iter().filter(newer) {
        let mut passed_over = vec![];
        let beside = || passed_over = others(client, manifest, step, folder, store, patience);
        let outcome = checkpoint(client, step, store, patience, beside);
        brought.passed_over.append(&mut passed_over);
        match outcome {
            Ok(()) => {
                brought.newest = Some(step.at);
                break;
            }
            Err(error) if error.is_local => return Err(error.error),
            Err(error) => brought.passed_over.push(format!("passed over {}", error.error)),
        }
    }
    Ok(brought)
}

/// The best checkpoint and the run's files, beside `newest`. A sentence for each that was passed over.
fn others(
    client: &Client,
    manifest: &Manifest,
    newest: &Step,
    folder: &Path,
    store: &Store,
    patience: &Patience,
) -> Vec<String> {
    let mut passed_over = vec![];
    let is_best = |step: &&Step| Some(step.at) == manifest.best && step.at != newest.at;
    let best = manifest.checkpoints.iter().find(is_best);
    if let Some(best) = best.filter(|best| !store.path(best.at).exists())
        && let Err(error) = checkpoint(client, best, store, patience, || ())
    {
        passed_over.push(format!("without the best checkpoint: {}", error.error));
    }
    for name in ["run.json", "metrics.jsonl", "logs.md"] {
        if let Err(reason) = run_file(client, name, folder, patience) {
            passed_over.push(format!("{}/{name} was not brought: {reason}", client.address));
        }
    }
    passed_over
}

/// Why a checkpoint was not brought. Where this machine cannot write, an older one would not help.
struct NotBrought {
    error: Error,
    is_local: bool,
}

/// `beside` comes once it is whole, and before it has its name.
fn checkpoint(
    client: &Client,
    step: &Step,
    store: &Store,
    patience: &Patience,
    beside: impl FnOnce(),
) -> Result<(), NotBrought> {
    let path = store.path(step.at);
    let key = client.address.key(&step.object);
    let mut failure = None;
    let written = files::write_checked(
        "fetch",
        &path,
        |file| match object::download(client, &key, &step.content, file, patience) {
            Ok(()) => Ok(()),
            Err(reason) => {
                failure = Some(reason);
                Err(std::io::ErrorKind::Other.into())
            }
        },
        |temporary| Found::read(temporary).map(|_| beside()),
    );
    let name = format!("{}/{}", client.address, step.object);
    match (written, failure) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(reason)) => {
            Err(NotBrought { error: Error::input(format!("{name}: {reason}")), is_local: false })
        }
        (Err(error), None) => {
            let is_local = error.kind == Kind::Failed;
            Err(NotBrought { error: error.within(name), is_local })
        }
    }
}

/// run.json is replaced: the bucket's counts the hours up to the newer checkpoint. metrics.jsonl is as well, and the old one
/// set aside: it lacks steps. logs.md stays where there is one: people write in it, and lines that it lacks are put in again.
pub fn run_file(client: &Client, name: &str, folder: &Path, patience: &Patience) -> Answer<()> {
    let (path, key) = (folder.join(name), client.address.key(name));
    if name == "logs.md" && path.exists() {
        return Ok(());
    }
    let Some(content) = content_of(client, &key, patience)? else { return Ok(()) };
    let is_here =
        File::open(&path).and_then(|file| Content::of_file(&file)).is_ok_and(|here| here == content);
    if is_here {
        return Ok(());
    }
    let on_disk = |error: Error| Failure::Lasting(error.message);
    if name == "metrics.jsonl" && path.exists() {
        let aside = folder.join(format!("{name}.aside"));
        fs::rename(&path, &aside).map_err(|source| on_disk(Error::output_file(&path, "rename", &source)))?;
    }
    let mut failure = None;
    let written = files::write_atomically("fetch", &path, |file| {
        object::download(client, &key, &content, file, patience).map_err(|reason| {
            failure = Some(reason);
            std::io::ErrorKind::Other.into()
        })
    });
    match (written, failure) {
        (Err(_), Some(reason)) => Err(reason),
        (written, _) => written.map_err(on_disk),
    }
}

/// Of an object that is replaced now and then: what lies beside it says, and not an older manifest.
fn content_of(client: &Client, key: &str, patience: &Patience) -> Answer<Option<Content>> {
    let answer = match retry(patience, || client.head(key)) {
        Err(Failure::Absent) => return Ok(None),
        answer => answer?,
    };
    let header = |name: &str| answer.headers().get(name)?.to_str().ok();
    let bytes = header("content-length").and_then(|bytes| bytes.parse().ok());
    let sha256 = header(DIGEST_HEADER).map(str::to_owned);
    match (bytes, sha256) {
        (Some(bytes), Some(sha256)) => Ok(Some(Content { bytes, sha256 })),
        _ => Err(Failure::Lasting("it has no digest beside it".to_owned())),
    }
}
