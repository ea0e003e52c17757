//! What the host asks of the driver, with the time of each call: how to see that nothing inside a step waits for the card.
//!
//! Off until [`begin`]; then every call of [`super::driver`] on this thread (a card is used by the thread that opened it)
//! leaves an [`Entry`]. `engine bench train --trace FILE` writes them in Chrome's trace format, one event a line:
//! `ui.perfetto.dev` and `chrome://tracing` draw it, `grep` reads it.
//!
//! How to read it. A `submit` spans what a training pass asks for: `upload` (a copy that is queued, not waited for),
//! `record`, `wait` (one stream for another, on the card), `launch graph`, `download`, `record`. A `query` asks whether a
//! pass has ended and does not wait; queries in a row are one event with their number. A long one means that the host is
//! ahead: it asks after the pass before the last while the card has the next one queued. Calls of the category `blocks`
//! hold the host until the card has caught up: between the first `submit` and the last there must be none.

use super::watchdog::watched;
use std::cell::RefCell;
use std::time::Instant;

/// What a call does to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Returns at once; the card works on.
    Queues,
    /// Returns when the card has done what was asked, or everything.
    Blocks,
    /// Spans other calls.
    Spans,
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    pub name: &'static str,
    pub class: Class,
    /// Microseconds since [`begin`].
    pub start: f64,
    /// Microseconds.
    pub duration: f64,
    /// Bytes that it moves.
    pub bytes: u64,
    /// 1, or how many queries in a row.
    pub calls: u32,
}

/// The calls of one thread, in the order in which they ended.
#[derive(Debug, Clone)]
pub struct Trace {
    began: Instant,
    pub entries: Vec<Entry>,
}

thread_local! {
    static TRACE: RefCell<Option<Trace>> = const { RefCell::new(None) };
}

/// From now on calls of this thread are kept.
pub fn begin() {
    TRACE.set(Some(Trace { began: Instant::now(), entries: Vec::with_capacity(1 << 16) }));
}

/// Ends the trace that [`begin`] began.
pub fn end() -> Option<Trace> {
    TRACE.take()
}

/// Runs a call under the watchdog's eyes, and keeps it where a trace is asked for.
pub(super) fn traced<T>(name: &'static str, class: Class, bytes: u64, call: impl FnOnce() -> T) -> T {
    let now = |trace: &Trace| trace.began.elapsed().as_secs_f64() * 1e6;
    // A span is watched call by call: what the host does between them is its own affair.
    let call = || if class == Class::Spans { call() } else { watched(name, call) };
    let Some(start) = TRACE.with_borrow(|trace| trace.as_ref().map(now)) else { return call() };
    let answer = call();
    TRACE.with_borrow_mut(|trace| {
        if let Some(trace) = trace {
            let end = now(trace);
            match trace.entries.last_mut().filter(|last| name == QUERY && last.name == QUERY) {
                Some(last) => (last.duration, last.calls) = (end - last.start, last.calls + 1),
                None => {
                    let entry = Entry { name, class, start, duration: end - start, bytes, calls: 1 };
                    trace.entries.push(entry);
                }
            }
        }
    });
    answer
}

impl Trace {
    /// Chrome's trace format ("JSON Array Format" of the Trace Event Format): complete events, microseconds.
    pub fn to_json(&self) -> String {
        let event = |entry: &Entry| {
            let category = match entry.class {
                Class::Queues => "queues",
                Class::Blocks => "blocks",
                Class::Spans => "spans",
            };
            serde_json::json!({
                "name": entry.name, "cat": category, "ph": "X", "ts": entry.start, "dur": entry.duration,
                "pid": 1, "tid": 1, "args": {"bytes": entry.bytes, "calls": entry.calls},
            })
            .to_string()
        };
        let lines: Vec<String> = self.entries.iter().map(event).collect();
        format!("[\n{}\n]\n", lines.join(",\n"))
    }

    /// Passes submitted, and the calls between the first of them and the last that held the host.
    pub fn summary(&self) -> (usize, Vec<&'static str>) {
        let submits = || self.entries.iter().filter(|entry| entry.name == SUBMIT);
        let first = submits().map(|entry| entry.start).fold(f64::INFINITY, f64::min);
        let last = submits().map(|entry| entry.start + entry.duration).fold(0.0, f64::max);
        let inside = |entry: &&Entry| entry.start >= first && entry.start + entry.duration <= last;
        let blocks = self.entries.iter().filter(|entry| entry.class == Class::Blocks).filter(inside);
        (submits().count(), blocks.map(|entry| entry.name).collect())
    }
}

/// Name of the span of a training pass's submission.
pub(super) const SUBMIT: &str = "submit";
/// Name of the question whether an event has passed.
pub(super) const QUERY: &str = "query";

#[cfg(test)]
mod tests {
    use super::*;

    fn submit() {
        traced(SUBMIT, Class::Spans, 0, || {
            traced("upload", Class::Queues, 77, || ());
            traced("launch graph", Class::Queues, 0, || ());
        });
    }

    #[test]
    fn nothing_is_kept_unless_asked_for() {
        submit();
        assert!(end().is_none());
    }

    #[test]
    fn every_line_is_an_event_of_chromes_format() {
        begin();
        for answer in [5, 6] {
            assert_eq!(traced(QUERY, Class::Queues, 0, || answer), answer);
        }
        submit();
        let text = end().unwrap().to_json();
        let events: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let names: Vec<&str> = events.iter().map(|event| event["name"].as_str().unwrap()).collect();
        assert_eq!(names, [QUERY, "upload", "launch graph", SUBMIT]);
        assert_eq!(events[0]["args"]["calls"], 2);
        assert_eq!(text.lines().count(), names.len() + 2, "{text}");
        for event in &events {
            assert!(
                event["ph"] == "X" && event["ts"].is_f64() && event["dur"].as_f64() >= Some(0.0),
                "{event}"
            );
        }
        assert_eq!(events[1]["args"]["bytes"], 77);
        let (inner, outer) = (&events[1], &events[3]);
        assert!(outer["ts"].as_f64() <= inner["ts"].as_f64(), "a span begins before what it spans");
    }

    #[test]
    fn a_wait_between_two_passes_is_named_and_one_outside_is_not() {
        begin();
        let wait = || traced("synchronise stream", Class::Blocks, 0, || ());
        wait();
        submit();
        submit();
        wait();
        assert_eq!(end().unwrap().summary(), (2, vec![]));
        begin();
        submit();
        wait();
        submit();
        assert_eq!(end().unwrap().summary(), (2, vec!["synchronise stream"]));
    }
}
