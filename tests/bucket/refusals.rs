//! What another run wrote stays as it is.

use crate::common::{finish, set, temporary, tiny};
use crate::server::{Server, address, client, objects, patience, run, stored, with_keys};
use engine::remote::object::{put, read};

#[test]
fn another_run_does_not_get_the_prefix() {
    let Some(server) = Server::start() else { return };
    let (first, second) = (temporary(), temporary());
    finish(&mut run(first.path(), &server.host, "mine")).expect(0);
    let before = (stored(&server.host, "mine"), objects(&server.host, "mine"));
    let other = |extra: &[&str]| {
        let mut command = run(second.path(), &server.host, "mine");
        set(&mut command, extra);
        command
    };
    finish(&mut other(&["seed=1"]))
        .fails(2, &["s3://engine-tests/mine", "seed: 0 there, 1 here", "--remote"]);
    finish(other(&[]).args(["--resume", "none"])).fails(2, &["holds what another run wrote", "--remote"]);
    // A folder with a run of its own, of the same recipe.
    finish(run(second.path(), &server.host, "other").env("ENGINE_FAILPOINT", "train.step:8"));
    finish(&mut other(&[])).fails(2, &["s3://engine-tests/mine holds run", "--output"]);
    assert_eq!((stored(&server.host, "mine"), objects(&server.host, "mine")), before);
}

#[test]
fn a_prefix_with_other_things_in_it_is_refused() {
    let Some(server) = Server::start() else { return };
    let client = client(&server.host, "full");
    let key = client.address.key("logs.md");
    put(&client, &key, b"somebody's", &vec![], &patience()).unwrap();
    let folder = temporary();
    finish(&mut run(folder.path(), &server.host, "full")).fails(2, &["holds what another run wrote"]);
    assert_eq!(read(&client, &key, &patience()).unwrap().0, "somebody's");
    assert_eq!(objects(&server.host, "full"), ["logs.md"]);
    // What has no name of ours is in nobody's way.
    put(&client, &client.address.key("x/notes.txt"), b"mine", &vec![], &patience()).unwrap();
    finish(&mut run(folder.path(), &server.host, "full/x")).expect(0);
    let client = crate::server::client(&server.host, "full/x");
    assert_eq!(read(&client, &client.address.key("notes.txt"), &patience()).unwrap().0, "mine");
}

#[test]
fn a_manifest_that_is_none_is_refused() {
    let Some(server) = Server::start() else { return };
    let client = client(&server.host, "odd");
    for text in ["", "{", r#"{"format": 9}"#, "[1, 2, 3]"] {
        put(&client, &client.address.key("manifest.json"), text.as_bytes(), &vec![], &patience()).unwrap();
        let folder = temporary();
        finish(&mut run(folder.path(), &server.host, "odd"))
            .fails(2, &["manifest.json", "choose another prefix"]);
        assert!(!folder.path().join("run.json").exists(), "nothing was begun");
    }
}

#[test]
fn keys_buckets_and_addresses_that_are_wrong_are_named() {
    let Some(server) = Server::start() else { return };
    let folder = temporary();
    let go = || run(folder.path(), &server.host, "x");
    let to = |remote: &str| {
        let mut command = tiny(folder.path());
        with_keys(&mut command, &server.host).args(["--remote", remote]);
        command
    };
    finish(go().env_remove("AWS_ACCESS_KEY_ID").env("HOME", "/nonexistent"))
        .fails(2, &["no credentials", "configs/cloud/README.md"]);
    finish(go().env("AWS_SECRET_ACCESS_KEY", "wrong")).fails(2, &["403", "the environment"]);
    finish(go().env("AWS_ACCESS_KEY_ID", "NOBODY")).fails(2, &["403"]);
    finish(&mut to("s3://no-such-bucket/x")).fails(2, &["no bucket no-such-bucket"]);
    finish(&mut to("bucket/x")).fails(2, &["bucket/x", "s3://BUCKET"]);
    finish(go().env("AWS_ENDPOINT_URL", "minio:9000")).fails(2, &["AWS_ENDPOINT_URL", "https://"]);
    assert!(!folder.path().join("checkpoints/last.safetensors").exists());
    assert_eq!(address("x"), "s3://engine-tests/x");
}
