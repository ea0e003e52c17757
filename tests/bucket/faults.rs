//! Networks and servers that fail: the bytes are the same, and nothing half lies in the bucket.

use crate::common::{assert_same, contents, finish, temporary, tiny_whole};
use crate::proxy::{Fault, now_and_then, start};
use crate::server::{Server, assert_mirrors, run};
use std::time::Duration;

const SLOW: &[Fault] = &[Fault::Slow(Duration::from_millis(300))];

const ALL: &[Fault] = &[
    Fault::Refused,
    Fault::Slow(Duration::from_millis(200)),
    Fault::CutRequest,
    Fault::CutAnswer,
    Fault::Status(500),
    Fault::Status(503),
    Fault::ChangedRequest,
    Fault::ChangedAnswer,
];

/// Two kills, each on a new machine, through a proxy that fails one request in three.
fn survives(prefix: &str, faults: &'static [Fault]) {
    let Some(server) = Server::start() else { return };
    let proxy = start(&server.host, now_and_then(3, faults));
    for failpoint in ["train.step:9", "train.step:11"] {
        let folder = temporary();
        let killed = finish(run(folder.path(), &proxy, prefix).env("ENGINE_FAILPOINT", failpoint));
        assert_eq!(killed.code, None, "{}", killed.err);
    }
    let folder = temporary();
    let done = finish(&mut run(folder.path(), &proxy, prefix)).expect(0);
    let mut got = contents(folder.path());
    got.insert("config.toml".into(), tiny_whole()["config.toml"].clone());
    assert_same(&got, tiny_whole(), &format!("{faults:?}: {}", done.err));
    assert_mirrors(&server.host, prefix, folder.path());
}

#[test]
fn refused() {
    survives("refused", &[Fault::Refused]);
}

#[test]
fn slow() {
    survives("slow", SLOW);
}

#[test]
fn cut_off() {
    survives("cut", &[Fault::CutRequest, Fault::CutAnswer]);
}

#[test]
fn busy() {
    survives("busy", &[Fault::Status(500), Fault::Status(503), Fault::Status(429)]);
}

#[test]
fn changed() {
    survives("changed", &[Fault::ChangedRequest, Fault::ChangedAnswer]);
}

#[test]
fn all_of_it() {
    survives("all", ALL);
}
