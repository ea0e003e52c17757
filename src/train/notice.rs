//! EC2's notice that a spot instance goes: asked for in the background, answered by a checkpoint.
//!
//! The instance metadata service, version 2 (AWS, "Spot Instance interruption notices" and "EC2 instance rebalance
//! recommendations"): a token by PUT, then `spot/instance-action`, which is 404 until two minutes before the end. AWS advises
//! to look every 5 seconds. Where there is no such service, nothing is said and nothing is asked again.

use super::stop::Stop;
use crate::remote::metadata::{Answer, Metadata};
use crate::terminal::message;
use serde::Deserialize;
use std::thread;
use std::time::{Duration, SystemTime};

const EVERY: Duration = Duration::from_secs(5);

/// A run that leaves by itself is gone this long before its machine is.
const MARGIN: Duration = Duration::from_secs(5);

const ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";

/// What `spot/instance-action` says: `{"action": "terminate", "time": "2026-11-01T08:22:00Z"}`.
#[derive(Debug, Deserialize)]
struct Action {
    action: String,
    time: String,
}

/// Watches until the process ends or there is no such service. A notice asks `stop` to save and stop; a recommendation to
/// leave asks it for a checkpoint, once.
pub fn watch(stop: &Stop) {
    let Some(service) = Metadata::here() else { return };
    let stop = stop.clone();
    // Without the thread, SIGTERM is what tells.
    let _ = thread::Builder::new().name("spot notice".into()).spawn(move || follow(&service, &stop));
}

fn follow(service: &Metadata, stop: &Stop) {
    let Some(mut token) = service.token() else { return };
    let mut is_advised = false;
    while !stop.requested() {
        match service.ask(ACTION, &token) {
            Answer::Says(text) => {
                message(format!("{}: saving and stopping", describe(&text)));
                match time_left(&text, SystemTime::now()) {
                    Some(time) => stop.request_within(time),
                    None => stop.request(),
                }
                return;
            }
            Answer::NoToken => match service.token() {
                Some(new) => {
                    token = new;
                    continue;
                }
                None => return,
            },
            Answer::Nothing | Answer::Silence => {}
        }
        if !is_advised && let Answer::Says(_) = service.ask(REBALANCE, &token) {
            message("EC2 expects to take this spot instance before long: saving a checkpoint and going on");
            is_advised = true;
            stop.ask_for_checkpoint();
        }
        thread::sleep(EVERY);
    }
}

fn describe(text: &str) -> String {
    match serde_json::from_str::<Action>(text) {
        Ok(Action { action, time }) => format!("EC2 will {action} this spot instance at {time}"),
        Err(_) => "EC2 takes this spot instance back".to_owned(),
    }
}

/// What is left before the time of a notice, less [`MARGIN`]; None where it has none.
fn time_left(text: &str, now: SystemTime) -> Option<Duration> {
    let Action { time, .. } = serde_json::from_str(text).ok()?;
    let time = humantime::parse_rfc3339_weak(&time).ok()?;
    Some(time.duration_since(now).unwrap_or_default().saturating_sub(MARGIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// A metadata service that gives `answers` by method and path; anything else is 404. What it was asked, in order.
    fn service(answers: &'static [(&'static str, u16, &'static str)]) -> (Metadata, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let record = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let line = lines.next().unwrap_or_default();
                let has_token = lines.take_while(|line| !line.is_empty()).any(|line| line.contains("token"));
                let asked = line.rsplit_once(' ').map_or(line.as_str(), |(asked, _)| asked).to_owned();
                let known = answers.iter().find(|(wanted, ..)| *wanted == asked && has_token);
                let (status, text) = known.map_or((404, ""), |(_, status, text)| (*status, *text));
                record.lock().unwrap().push(asked);
                let length = text.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
                );
            }
        });
        (Metadata::at(address), asked)
    }

    const TOKEN: (&str, u16, &str) = ("PUT /latest/api/token", 200, "secret");
    const GOES: (&str, u16, &str) = (
        "GET /latest/meta-data/spot/instance-action",
        200,
        r#"{"action": "terminate", "time": "2026-11-01T08:22:00Z"}"#,
    );
    const ADVICE: (&str, u16, &str) = (
        "GET /latest/meta-data/events/recommendations/rebalance",
        200,
        r#"{"noticeTime": "2026-11-01T08:00:00Z"}"#,
    );

    #[test]
    fn a_notice_asks_to_stop() {
        let (service, _) = service(&[TOKEN, GOES]);
        let stop = Stop::default();
        follow(&service, &stop);
        assert!(stop.requested());
    }

    #[test]
    fn advice_asks_for_a_checkpoint_and_the_run_goes_on() {
        let (service, asked) = service(&[TOKEN, ADVICE]);
        let stop = Stop::default();
        let other = stop.clone();
        let watching = thread::spawn(move || follow(&service, &other));
        while !stop.takes_checkpoint_request() {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!stop.requested());
        // The watch ends with the run.
        stop.request();
        watching.join().unwrap();
        assert_eq!(asked.lock().unwrap().len(), 3, "a token, two questions");
    }

    #[test]
    fn where_nobody_answers_like_ec2_nothing_is_asked_again() {
        let (other_cloud, asked) = service(&[("PUT /latest/api/token", 405, "no")]);
        let stop = Stop::default();
        follow(&other_cloud, &stop);
        assert_eq!(*asked.lock().unwrap(), ["PUT /latest/api/token"]);
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        follow(&Metadata::at(format!("http://{free}")), &stop);
        assert!(!stop.requested());
    }

    #[test]
    fn what_the_notice_says_is_told_and_what_it_should_not_say_is_no_end() {
        assert_eq!(describe(GOES.2), "EC2 will terminate this spot instance at 2026-11-01T08:22:00Z");
        assert_eq!(describe("<html>"), "EC2 takes this spot instance back");
        let now = humantime::parse_rfc3339("2026-11-01T08:20:00Z").unwrap();
        assert_eq!(time_left(GOES.2, now), Some(Duration::from_secs(115)));
        assert_eq!(time_left(GOES.2, now + Duration::from_secs(500)), Some(Duration::ZERO));
        assert_eq!(time_left("<html>", now), None);
    }
}
