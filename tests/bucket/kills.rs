//! A kill at every stage of an upload, and of what is brought before a run.

use crate::common::{contents, finish, set, temporary, tiny};
use crate::server::{Server, address, assert_same_with_lost_disks, with_keys};
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

/// Three epochs and some steps on this disk alone, which then begins to upload and dies.
fn dies_with_a_backlog(output: &Path, host: &str, prefix: &str, failpoint: &str) {
    dies(&mut local(output), "train.step:26");
    dies(&mut run(output, host, prefix), failpoint);
}

/// The first manifest that names an epoch names those before it: whoever goes on from there makes none of them again.
#[test]
fn a_backlog_of_kept_epochs_is_named_together() {
    let Some(server) = Server::start() else { return };
    for number in 1..=7 {
        for stage in ["uploaded", "published"] {
            let prefix = format!("backlog/{stage}{number}");
            let (first, second) = (temporary(), temporary());
            let failpoint = format!("remote.{stage}:{number}");
            dies(&mut local(first.path()), "train.step:26");
            let begun = finish(run(first.path(), &server.host, &prefix).env("ENGINE_FAILPOINT", &failpoint));
            assert!(begun.code.is_none() || number > 4, "{failpoint}: {}", begun.err);
            finish(&mut run(second.path(), &server.host, &prefix)).expect(0);
            assert_same_with_lost_disks(&server.host, &prefix, second.path(), whole());
        }
    }
}

/// Twice, and both disks are lost; then once more on a disk that stays.
#[test]
fn every_stage_of_an_upload() {
    let Some(server) = Server::start() else { return };
    for name in failpoint::REMOTE {
        let prefix = name.replace('.', "/");
        for number in [1, 3] {
            dies(&mut run(temporary().path(), &server.host, &prefix), &format!("{name}:{number}"));
        }
        let folder = temporary();
        dies(&mut run(folder.path(), &server.host, &prefix), &format!("{name}:2"));
        finish(&mut run(folder.path(), &server.host, &prefix)).expect(0);
        assert_same_with_lost_disks(&server.host, &prefix, folder.path(), whole());
    }
}

/// The best checkpoint and the logs come, or nothing does.
#[test]
fn every_stage_of_what_is_brought() {
    let Some(server) = Server::start() else { return };
    let stages = ["tmp_half_written", "tmp_synced", "renamed"];
    for (stage, number) in stages.iter().flat_map(|stage| (1..=5).map(move |number| (stage, number))) {
        let prefix = format!("bring/{stage}{number}");
        dies_with_a_backlog(temporary().path(), &server.host, &prefix, "remote.published:2");
        let folder = temporary();
        dies(&mut run(folder.path(), &server.host, &prefix), &format!("fetch.{stage}:{number}"));
        finish(&mut run(folder.path(), &server.host, &prefix)).expect(0);
        assert_same_with_lost_disks(&server.host, &prefix, folder.path(), whole());
    }
}
