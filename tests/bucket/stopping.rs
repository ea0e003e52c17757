//! SIGTERM, and a bucket that does not answer: the process ends in time, and says what is where.

use crate::common::{finish, signal, temporary, tiny};
use crate::proxy::{Fault, start};
use crate::server::{Server, assert_mirrors, long, run, stored, with_keys};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Runs until the first epoch is logged, sends SIGTERM; exit code, stderr, and how long it took to leave.
fn stopped(command: &mut Command) -> (Option<i32>, String, Duration) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let began = Instant::now();
    signal(&child, "TERM");
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let code = child.wait().unwrap().code();
    (code, err, began.elapsed())
}

#[test]
fn a_stop_uploads_before_it_leaves() {
    let Some(server) = Server::start() else { return };
    let folder = temporary();
    let (code, err, _) = stopped(&mut long(folder.path(), &server.host, "stop"));
    assert_eq!(code, Some(75), "{err}");
    let last = err.lines().last().unwrap();
    assert!(last.contains("is on disk") && last.contains("s3://engine-tests/stop has it as well"), "{err}");
    assert_mirrors(&server.host, "stop", folder.path());
    let newest = stored(&server.host, "stop").unwrap().checkpoints[0].at;
    assert!(folder.path().join("checkpoints").join(newest.file_name()).exists());
    // Where it stopped is where an empty machine goes on.
    let empty = temporary();
    let (code, err, _) = stopped(&mut long(empty.path(), &server.host, "stop"));
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains(&format!("brought {}", newest.file_name())), "{err}");
}

#[test]
fn a_stop_leaves_in_time_where_the_bucket_hangs() {
    let Some(server) = Server::start() else { return };
    let hangs = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&hangs);
    let proxy = start(&server.host, move |seen| {
        // The claim goes through, uploads do not.
        now.fetch_or(seen.path.contains("/checkpoints/"), Ordering::Relaxed);
        if now.load(Ordering::Relaxed) && seen.method == "PUT" {
            Fault::Slow(Duration::from_secs(3600))
        } else {
            Fault::None
        }
    });
    let folder = temporary();
    let mut command = long(folder.path(), &proxy, "hangs");
    let (code, err, took) = stopped(command.args(["--set", "checkpoint.grace_seconds=2"]));
    assert_eq!(code, Some(75), "{err}");
    assert!(
        err.contains("is on disk") && err.contains("it is not in s3://engine-tests/hangs: not within"),
        "{err}"
    );
    assert!(took < Duration::from_secs(20), "{took:?}");
    // The disk has it: the same command takes it up.
    let (code, err, _) = stopped(&mut long(folder.path(), &server.host, "hangs"));
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains("going on from"), "{err}");
    assert_mirrors(&server.host, "hangs", folder.path());
}

#[test]
fn a_bucket_that_is_away_at_the_beginning() {
    let Some(server) = Server::start() else { return };
    let folder = temporary();
    let away = "127.0.0.1:9";
    // Only it could say where to go on.
    finish(run(folder.path(), away, "away").env("ENGINE_REMOTE_PATIENCE", "1"))
        .fails(75, &["s3://engine-tests/away does not answer", "nothing was begun"]);
    // A machine with a checkpoint of its own goes on, and says at the end what is missing where.
    finish(tiny(folder.path()).env("ENGINE_FAILPOINT", "train.step:9"));
    let done = finish(run(folder.path(), away, "away").env("ENGINE_REMOTE_PATIENCE", "1")).expect(75);
    assert!(done.err.contains("going on from what is on this machine"), "{}", done.err);
    assert!(
        done.err.contains("not in s3://engine-tests/away") && done.err.contains("upload the rest"),
        "{}",
        done.err
    );
    let done = finish(&mut run(folder.path(), &server.host, "away")).expect(0);
    assert!(done.err.contains("finished: 4 epochs"), "{}", done.err);
    assert_mirrors(&server.host, "away", folder.path());
}

/// Away from the first upload on, back before the end: training does not wait, and the end has everything.
#[test]
fn a_bucket_that_comes_back() {
    let Some(server) = Server::start() else { return };
    let mut puts = 0;
    let proxy = start(&server.host, move |seen| {
        puts += usize::from(seen.method == "PUT");
        if (2..8).contains(&puts) { Fault::Status(503) } else { Fault::None }
    });
    let folder = temporary();
    finish(with_keys(&mut run(folder.path(), &proxy, "back"), &proxy)).expect(0);
    assert_mirrors(&server.host, "back", folder.path());
}
