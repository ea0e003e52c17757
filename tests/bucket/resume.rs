//! What arrives, and runs that go on from it on an empty machine.

use crate::common::{assert_same, checkpoints, contents, finish, path, set, temporary, tiny, tiny_whole};
use crate::server::{Server, assert_mirrors, client, doctor, patience, run, stored};
use engine::remote::object::put;
use std::fs;

#[test]
fn a_run_leaves_its_checkpoints_and_logs_in_the_bucket() {
    let Some(server) = Server::start() else { return };
    let folder = temporary();
    let done = finish(&mut run(folder.path(), &server.host, "runs/a")).expect(0);
    assert!(!done.err.contains("warning"), "{}", done.err);
    let mut got = contents(folder.path());
    got.insert("config.toml".into(), tiny_whole()["config.toml"].clone());
    assert_same(&got, tiny_whole(), "with a bucket");
    assert_mirrors(&server.host, "runs/a", folder.path());
    // Once more changes nothing.
    let before = stored(&server.host, "runs/a").unwrap();
    finish(&mut run(folder.path(), &server.host, "runs/a")).expect(0);
    let after = stored(&server.host, "runs/a").unwrap();
    assert_eq!((before.checkpoints, before.best), (after.checkpoints, after.best));
}

#[test]
fn an_empty_machine_goes_on_with_the_same_bytes() {
    let Some(server) = Server::start() else { return };
    for (number, failpoint) in
        ["train.step:1", "train.step:6", "train.step:20", "checkpoint.before_links:6"].iter().enumerate()
    {
        let prefix = format!("empty/{number}");
        let first = temporary();
        let killed = finish(run(first.path(), &server.host, &prefix).env("ENGINE_FAILPOINT", failpoint));
        assert_eq!(killed.code, None, "{}", killed.err);
        drop(first);
        let second = temporary();
        let done = finish(&mut run(second.path(), &server.host, &prefix)).expect(0);
        let mut got = contents(second.path());
        got.insert("config.toml".into(), tiny_whole()["config.toml"].clone());
        assert_same(&got, tiny_whole(), &format!("{failpoint}: {}", done.err));
        assert_mirrors(&server.host, &prefix, second.path());
    }
}

#[test]
fn a_finished_run_is_brought_to_an_empty_machine() {
    let Some(server) = Server::start() else { return };
    let (first, second) = (temporary(), temporary());
    finish(&mut run(first.path(), &server.host, "done")).expect(0);
    let done = finish(&mut run(second.path(), &server.host, "done")).expect(0);
    assert!(done.err.contains("brought e0004") && done.err.contains("finished: 4 epochs"), "{}", done.err);
    for name in ["checkpoints/last.safetensors", "checkpoints/best.safetensors", "logs.md", "metrics.jsonl"] {
        let read = |folder: &tempfile::TempDir| fs::read(folder.path().join(name)).unwrap();
        assert!(read(&first) == read(&second), "{name}");
    }
    let id = |folder: &tempfile::TempDir| fs::read_to_string(folder.path().join("run.json")).unwrap();
    assert_eq!(id(&first), id(&second));
}

/// A disk from before, and a bucket that another machine has written since.
#[test]
fn the_newer_of_both_is_taken() {
    let Some(server) = Server::start() else { return };
    let (old, new) = (temporary(), temporary());
    // Ends after two epochs, with everything uploaded.
    finish(set(&mut run(old.path(), &server.host, "both"), &["stop.top1=0.1"])).expect(0);
    finish(run(new.path(), &server.host, "both").env("ENGINE_FAILPOINT", "train.step:12"));
    let newest = stored(&server.host, "both").unwrap().checkpoints[0].at.step;
    let done = finish(&mut run(old.path(), &server.host, "both")).expect(0);
    let brought = done.err.contains("brought e");
    let local = checkpoints(old.path());
    assert!(brought || newest <= 14, "the bucket had step {newest}: {}, {local:?}", done.err);
    // Its log has the note that it ended before.
    let last = fs::read(old.path().join("checkpoints/last.safetensors")).unwrap();
    assert!(last == tiny_whole()["last.safetensors"]);
    assert_mirrors(&server.host, "both", old.path());
}

fn assert_same_but_config(folder: &std::path::Path) {
    let mut got = contents(folder);
    got.insert("config.toml".into(), tiny_whole()["config.toml"].clone());
    assert_same(&got, tiny_whole(), path(folder));
}

#[test]
fn a_damaged_object_is_passed_over_and_replaced() {
    let Some(server) = Server::start() else { return };
    let first = temporary();
    finish(&mut run(first.path(), &server.host, "hurt")).expect(0);
    let manifest = stored(&server.host, "hurt").unwrap();
    let client = client(&server.host, "hurt");
    // Whole, with a good digest of its own beside it, and not what the manifest says.
    put(&client, &client.address.key(&manifest.checkpoints[0].object), b"torn", &vec![], &patience())
        .unwrap();
    let second = temporary();
    let done = finish(&mut run(second.path(), &server.host, "hurt")).expect(0);
    assert!(done.err.contains("warning: passed over s3://") && done.err.contains("4 bytes"), "{}", done.err);
    assert!(done.err.contains("going on from"), "{}", done.err);
    assert_same_but_config(second.path());
    assert_mirrors(&server.host, "hurt", second.path());
    // All of them: no beginning, and nothing is touched.
    for step in &stored(&server.host, "hurt").unwrap().checkpoints {
        put(&client, &client.address.key(&step.object), b"torn", &vec![], &patience()).unwrap();
    }
    let third = temporary();
    finish(&mut run(third.path(), &server.host, "hurt")).fails(3, &["none of the checkpoints in s3://"]);
}

#[test]
fn a_local_run_takes_a_bucket_later() {
    let Some(server) = Server::start() else { return };
    let folder = temporary();
    finish(tiny(folder.path()).env("ENGINE_FAILPOINT", "train.step:16"));
    finish(&mut run(folder.path(), &server.host, "later")).expect(0);
    assert_mirrors(&server.host, "later", folder.path());
}

#[test]
fn the_doctor_tries_the_bucket() {
    let Some(server) = Server::start() else { return };
    let said = finish(&mut doctor(&server.host, "x")).expect(0).out;
    assert!(said.contains("ok       bucket") && said.contains("keys from the environment"), "{said}");
    assert!(crate::server::objects(&server.host, "x").is_empty());
    let said = finish(doctor(&server.host, "x").env("AWS_ENDPOINT_URL", "http://127.0.0.1:9")).expect(0).out;
    assert!(said.contains("missing  bucket") && said.contains("cannot write"), "{said}");
}
