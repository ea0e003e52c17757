//! A night on spot instances: notices and kills at random, disks that go with their machine, a bucket that fails now and then.
//! The run that comes through it has the bytes of one that nobody disturbed.
//!
//! `cargo test --release --test bucket -- --ignored --nocapture` runs the long night and times a notice with ResNet-50's state.

use crate::common::{contents, data, engine, finish, path, set, temporary, tiny};
use crate::proxy::{Fault, now_and_then, start};
use crate::server::{Server, address, assert_same_with_lost_disks, stored, with_keys};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The instance's metadata: two minutes' notice once it is given.
struct Metadata {
    host: String,
    goes: Arc<Mutex<Option<SystemTime>>>,
    /// Somebody was told.
    told: Arc<AtomicBool>,
}

impl Metadata {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (goes, told) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let (theirs, telling) = (Arc::clone(&goes), Arc::clone(&told));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let asked = lines.next().unwrap_or_default();
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let goes: Option<SystemTime> = *theirs.lock().unwrap();
                let answer = match goes {
                    _ if asked.starts_with("PUT /latest/api/token") => Some("token".to_owned()),
                    Some(goes) if asked.contains("spot/instance-action") => {
                        telling.store(true, Ordering::Relaxed);
                        let time = humantime::format_rfc3339_seconds(goes);
                        Some(format!(r#"{{"action": "terminate", "time": "{time}"}}"#))
                    }
                    _ => None,
                };
                let (status, text) = answer.map_or((404, String::new()), |text| (200, text));
                let length = text.len();
                // Whoever asked may be dead by now.
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
                );
            }
        });
        Self { host, goes, told }
    }

    fn give_notice(&self) {
        *self.goes.lock().unwrap() = Some(SystemTime::now() + Duration::from_secs(120));
    }

    /// Another instance, which nobody takes yet.
    fn renew(&self) {
        *self.goes.lock().unwrap() = None;
        self.told.store(false, Ordering::Relaxed);
    }
}

/// splitmix64, so that a night can be had again.
struct Random(u64);

impl Random {
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The recipe, with a checkpoint after every fifth step.
fn recipe(output: &Path, epochs: usize) -> Command {
    let mut command = tiny(output);
    set(&mut command, &[&format!("epochs={epochs}"), "checkpoint.every_steps=5"]);
    command
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn err_of(child: &mut Child) -> String {
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    err
}

/// Without [`Fault::ChangedRequest`]: s3s-fs refuses such bytes and keeps them all the same, in place of what was there, until the
/// same client tries again. A kill in between leaves what S3 would not.
const FAULTS: &[Fault] = &[
    Fault::Refused,
    Fault::Slow(Duration::from_millis(700)),
    Fault::CutRequest,
    Fault::CutAnswer,
    Fault::Status(500),
    Fault::Status(503),
    Fault::ChangedAnswer,
];

/// What happened to the instances of a night.
#[derive(Debug, Default)]
struct Night {
    kills: usize,
    notices: usize,
    disks_lost: usize,
    /// Of each notice, from the moment it stands in the metadata to the end of the process.
    seconds: Vec<f64>,
}

/// A run of so many epochs, interrupted that often; `pace` is how long an instance lives on average.
fn night(server: &Server, epochs: usize, interruptions: usize, pace: Duration, with_notices: bool) -> Night {
    let whole = temporary();
    finish(&mut recipe(whole.path(), epochs)).expect(0);
    let proxy = start(&server.host, now_and_then(6, FAULTS));
    let metadata = Metadata::start();
    let (mut night, mut random) = (Night::default(), Random(20_261_129));
    let mut folder = temporary();
    let instance = |folder: &Path| {
        let mut command = recipe(folder, epochs);
        with_keys(&mut command, &proxy).args(["--remote", &address("night")]);
        command.env("AWS_EC2_METADATA_DISABLED", "false");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", metadata.host));
        command
    };
    for number in 1..=interruptions {
        metadata.renew();
        let mut child = spawn(&mut instance(folder.path()));
        thread::sleep(pace.mul_f64(2.0 * random.share()));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}: {}", err_of(&mut child));
            break;
        }
        if with_notices && random.share() < 0.5 {
            metadata.give_notice();
            let began = Instant::now();
            let err = err_of(&mut child);
            assert_eq!(child.wait().unwrap().code(), Some(75), "{err}");
            let took = began.elapsed().as_secs_f64();
            assert!(took < 120.0, "{took} s: {err}");
            let last = err.lines().last().unwrap_or_default();
            println!("{number}: notice, left after {took:.1} s: {last}");
            night.notices += 1;
            night.seconds.push(took);
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
            println!("{number}: killed");
            night.kills += 1;
        }
        if random.share() < 0.5 {
            folder = temporary();
            println!("{number}: the disk is lost");
            night.disks_lost += 1;
        }
    }
    metadata.renew();
    let done = finish(&mut instance(folder.path())).expect(0);
    assert!(done.err.contains(&format!("finished: {epochs} epochs")), "{}", done.err);
    assert_same_with_lost_disks(&server.host, "night", folder.path(), &contents(whole.path()));
    night
}

#[test]
fn a_short_night() {
    let Some(server) = Server::start() else { return };
    let night = night(&server, 60, 3, Duration::from_millis(700), false);
    assert!(night.kills > 0, "it ended before it was interrupted");
}

#[test]
#[ignore = "some minutes: a rehearsal, run by hand"]
fn a_long_night() {
    let Some(server) = Server::start() else { return };
    let epochs = std::env::var("NIGHT_EPOCHS").map_or(1000, |text| text.parse().unwrap());
    let began = Instant::now();
    let night = night(&server, epochs, 10, Duration::from_secs(6), true);
    println!("{night:?}, {:.0} s in all", began.elapsed().as_secs_f64());
    assert_eq!(night.notices + night.kills, 10, "it ended too soon: give NIGHT_EPOCHS");
    assert!(night.notices > 0 && night.kills > 0 && night.disks_lost > 0, "{night:?}");
}

/// From the moment that a notice stands in the metadata to the end of the process, with the state of ResNet-50 for 1,000 classes:
/// 25.6 million weights and as many momenta.
#[test]
#[ignore = "a measurement, run by hand"]
fn a_notice_with_the_state_of_resnet50() {
    let Some(server) = Server::start() else { return };
    let metadata = Metadata::start();
    let folder = tempfile::tempdir().unwrap();
    let classes = folder.path().join("data");
    thousand_classes(&classes);
    for round in 0..3 {
        metadata.renew();
        let output = folder.path().join(format!("run{round}"));
        let mut command = engine(["train", "--data", path(&classes), "--output", path(&output)]);
        set(
            &mut command,
            &["model.arch=resnet50", "data.resolution=32", "data.batch=4", "epochs=2", "data.bad_share=0.5"],
        );
        with_keys(&mut command, &server.host).args(["--remote", &address(&format!("notice{round}"))]);
        command.env("AWS_EC2_METADATA_DISABLED", "false");
        command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{}", metadata.host));
        let mut child = spawn(&mut command);
        thread::sleep(Duration::from_secs(8 + round));
        metadata.give_notice();
        let began = Instant::now();
        while !metadata.told.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        let seen = began.elapsed().as_secs_f64();
        let err = err_of(&mut child);
        assert_eq!(child.wait().unwrap().code(), Some(75), "{err}");
        let step = &stored(&server.host, &format!("notice{round}")).unwrap().checkpoints[0];
        println!(
            "notice to exit {:.2} s: seen after {seen:.2} s (asked every 5 s), then step, save, upload {:.2} s; {} of {} bytes: {}",
            began.elapsed().as_secs_f64(),
            began.elapsed().as_secs_f64() - seen,
            step.object,
            step.content.bytes,
            err.lines().last().unwrap_or_default()
        );
    }
}

/// Two pictures in each of 1,000 class folders, linked from a drawn set of ten.
fn thousand_classes(folder: &Path) {
    for split in ["train", "val"] {
        let mut pictures = vec![];
        for class in fs::read_dir(data().join(split)).unwrap() {
            pictures.extend(fs::read_dir(class.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
        }
        pictures.sort();
        for class in 0..1000 {
            let to = folder.join(split).join(format!("c{class:04}"));
            fs::create_dir_all(&to).unwrap();
            fs::copy(&pictures[class % pictures.len()], to.join("0.jpg")).unwrap();
        }
    }
}
