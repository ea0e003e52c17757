//! A kill at every stage of an upload, and of what is brought before a run.

use crate::common::{EPOCHS, contents, finish, set, temporary, tiny};
use crate::proxy::{Fault, start};
use crate::server::{Server, address, assert_same_with_lost_disks, stored, with_keys};
use engine::failpoint;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Every epoch's checkpoint is kept for good.
fn local(output: &Path) -> Command {
    let mut command = tiny(output);
    set(&mut command, &["checkpoint.keep_every_epochs=1"]);
    command
}

fn run(output: &Path, host: &str, prefix: &str) -> Command {
    let mut command = local(output);
    with_keys(&mut command, host).args(["--remote", &address(prefix)]);
    command
}

fn whole() -> &'static BTreeMap<String, Vec<u8>> {
    static WHOLE: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let folder = temporary();
        finish(&mut local(folder.path())).expect(0);
        contents(folder.path())
    })
}

#[track_caller]
fn dies(command: &mut Command, failpoint: &str) {
    let killed = finish(command.env("ENGINE_FAILPOINT", failpoint));
    assert_eq!(killed.code, None, "{failpoint}: {}", killed.err);
    assert!(
        killed.err.contains(&format!("failpoint {}", failpoint.split(':').next().unwrap())),
        "{}",
        killed.err
    );
}

/// Two epochs and some steps on this disk alone, which then begins to upload and dies.
fn dies_with_a_backlog(output: &Path, host: &str, prefix: &str, failpoint: &str) {
    dies(&mut local(output), "train.step:16");
    dies(&mut run(output, host, prefix), failpoint);
}

/// Whether the bucket has the last epoch: an empty machine then has nothing to do.
fn is_over(host: &str, prefix: &str) -> bool {
    let newest = stored(host, prefix).and_then(|manifest| manifest.checkpoints.first().cloned());
    newest.is_some_and(|step| u64::from(step.at.epoch) == EPOCHS)
}

/// The first manifest that names an epoch names those before it: whoever goes on from there makes none of them again.
#[test]
fn a_backlog_of_kept_epochs_is_named_together() {
    let Some(server) = Server::start() else { return };
    for number in 1..=4 {
        for stage in ["uploaded", "published"] {
            let prefix = format!("backlog/{stage}{number}");
            let (first, second) = (temporary(), temporary());
            let failpoint = format!("remote.{stage}:{number}");
            dies(&mut local(first.path()), "train.step:16");
            finish(run(first.path(), &server.host, &prefix).env("ENGINE_FAILPOINT", &failpoint));
            if is_over(&server.host, &prefix) {
                // Late offers went up together, and an empty machine has nothing to do.
                continue;
            }
            finish(&mut run(second.path(), &server.host, &prefix)).expect(0);
            assert_same_with_lost_disks(&server.host, &prefix, second.path(), whole());
        }
    }
}

/// The same without a kill: the bucket is away from its first manifest with checkpoints on, and the machine goes with its disk.
#[test]
fn a_bucket_that_is_away_in_the_midst_of_a_backlog() {
    let Some(server) = Server::start() else { return };
    let mut manifests = 0;
    let proxy = start(&server.host, move |seen| {
        // The claim is the first, and its answer comes; so does the second's.
        let is_manifest = seen.method == "PUT" && seen.path.contains("manifest.json");
        let is_away = manifests >= 2 && seen.method == "PUT";
        manifests += usize::from(is_manifest);
        if is_away { Fault::Status(503) } else { Fault::None }
    });
    let folder = temporary();
    dies(&mut local(folder.path()), "train.step:16");
    finish(run(folder.path(), &proxy, "away").env("ENGINE_REMOTE_PATIENCE", "1")).expect(75);
    let folder = temporary();
    finish(&mut run(folder.path(), &server.host, "away")).expect(0);
    assert_same_with_lost_disks(&server.host, "away", folder.path(), whole());
}

/// The first disk is lost, the second stays.
#[test]
fn every_stage_of_an_upload() {
    let Some(server) = Server::start() else { return };
    let mut tried = 0;
    for (name, number) in failpoint::REMOTE.iter().flat_map(|name| [1, 2, 3].map(|number| (name, number))) {
        let prefix = format!("{}{number}", name.replace('.', "/"));
        let mut killed = run(temporary().path(), &server.host, &prefix);
        finish(killed.env("ENGINE_FAILPOINT", format!("{name}:{number}")));
        if is_over(&server.host, &prefix) {
            continue;
        }
        tried += 1;
        let folder = temporary();
        finish(run(folder.path(), &server.host, &prefix).env("ENGINE_FAILPOINT", format!("{name}:1")));
        finish(&mut run(folder.path(), &server.host, &prefix)).expect(0);
        assert_same_with_lost_disks(&server.host, &prefix, folder.path(), whole());
    }
    assert!(tried > 0, "every run was over before its bucket was left");
}

/// The best checkpoint and the logs come, or nothing does.
#[test]
fn every_stage_of_what_is_brought() {
    let Some(server) = Server::start() else { return };
    let mut tried = 0;
    let stages = ["tmp_synced", "renamed"];
    for (stage, number) in stages.iter().flat_map(|stage| (1..=5).map(move |number| (stage, number))) {
        let prefix = format!("bring/{stage}{number}");
        dies_with_a_backlog(temporary().path(), &server.host, &prefix, "remote.published:2");
        if is_over(&server.host, &prefix) {
            continue;
        }
        tried += 1;
        let folder = temporary();
        dies(&mut run(folder.path(), &server.host, &prefix), &format!("fetch.{stage}:{number}"));
        finish(&mut run(folder.path(), &server.host, &prefix)).expect(0);
        assert_same_with_lost_disks(&server.host, &prefix, folder.path(), whole());
    }
    assert!(tried > 0, "every run was over before its bucket was left");
}
