//! `classify --stdio`: one JSON request a line, one JSON answer a line, until the end of the input.

use super::args::precision;
use super::classifier::{Answer, Classifier, Question};
use super::describe::describe;
use crate::base64;
use crate::data::picture::read_picture;
use crate::error::{Error, Result};
use crate::infer::Precision;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, BufRead, ErrorKind, Write};
use std::path::PathBuf;

/// The longest request: a picture of a gigabyte in base64 would not be one.
const MAX_LINE: usize = 256 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    file: Option<String>,
    image: Option<String>,
    top: Option<usize>,
    precision: Option<String>,
    #[serde(default)]
    explain: bool,
    /// Instead of a picture: what is there to answer.
    #[serde(default)]
    describe: bool,
}

#[derive(Serialize)]
struct Success<'a, T> {
    id: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(flatten)]
    answer: T,
}

#[derive(Serialize)]
struct Failure<'a> {
    id: &'a Value,
    error: &'a str,
}

/// What a request is answered with where it leaves something out.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    pub top: usize,
    pub precision: Precision,
}

/// Answers until `input` ends, or nobody reads `output` any more.
pub fn serve(
    classifier: &mut Classifier,
    defaults: Defaults,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> Result<()> {
    let mut line = vec![];
    loop {
        let read = read_line(input, &mut line)
            .map_err(|error| Error::failed(format!("cannot read standard input: {error}")))?;
        let written = match read {
            Line::End => return Ok(()),
            Line::TooLong => {
                let error = format!("the request has more than {MAX_LINE} bytes");
                write_line(output, &Failure { id: &Value::Null, error: &error })
            }
            Line::Whole if line.trim_ascii().is_empty() => continue,
            Line::Whole => respond(classifier, defaults, &line, output),
        };
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Error::failed(format!("cannot write to standard output: {error}"))),
            Ok(()) => {}
        }
    }
}

fn respond(
    classifier: &mut Classifier,
    defaults: Defaults,
    line: &[u8],
    output: &mut impl Write,
) -> io::Result<()> {
    // Read as any JSON first, so that a request that cannot be understood is still answered under its id.
    let parsed: Result<Value, String> =
        serde_json::from_slice(line).map_err(|error| format!("the request is no JSON: {error}"));
    let (id, request) = match parsed {
        Err(error) => (Value::Null, Err(error)),
        Ok(mut value) => {
            let id = value.as_object_mut().and_then(|object| object.remove("id"));
            let request = Request::deserialize(value);
            let request = request.map_err(|error| format!("the request is not understood: {error}"));
            (id.unwrap_or(Value::Null), request)
        }
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return write_line(output, &Failure { id: &id, error: &error }),
    };
    if request.describe {
        let done = match request {
            Request {
                describe: true,
                file: None,
                image: None,
                top: None,
                precision: None,
                explain: false,
            } => describe(classifier, defaults.precision).map_err(|error| error.message),
            _ => Err("a request with describe has nothing else but an id".to_owned()),
        };
        return match done {
            Ok(answer) => write_line(output, &Success { id: &id, file: None, answer }),
            Err(error) => write_line(output, &Failure { id: &id, error: &error }),
        };
    }
    match answer(classifier, defaults, &request) {
        Ok(answer) => write_line(output, &Success { id: &id, file: request.file.as_deref(), answer }),
        Err(error) => write_line(output, &Failure { id: &id, error: &error.message }),
    }
}

fn answer<'c>(classifier: &'c mut Classifier, defaults: Defaults, request: &Request) -> Result<Answer<'c>> {
    let (name, mut bytes) = match (&request.file, &request.image) {
        (Some(file), None) => (file.as_str(), read_file(file)?),
        (None, Some(image)) => {
            ("image", base64::decode(image).map_err(|why| Error::input(format!("image {why}")))?)
        }
        _ => return Err(Error::input("a request has either file, a path, or image, bytes in base64")),
    };
    let top = request.top.unwrap_or(defaults.top);
    if top == 0 {
        return Err(Error::input("top is 0, a number of classes from 1 is expected"));
    }
    let wanted = request.precision.as_deref().map(precision).transpose();
    let wanted = wanted.map_err(|error| Error::input(format!("precision: {error}")))?;
    // Absent: as the command line says; "auto": the fastest.
    let precision = match wanted {
        None => defaults.precision,
        Some(None) => classifier.fastest(),
        Some(Some(precision)) => precision,
    };
    // An error of the program names what it is about; of a picture, it begins with the reason.
    classifier.program(precision)?;
    let question = Question { precision, top, explain: request.explain };
    classifier.classify(&mut bytes, question).map_err(|error| error.within(name))
}

fn read_file(file: &str) -> Result<Vec<u8>> {
    if file == "-" {
        return Err(Error::input("file is -, but standard input holds the requests; give a path, or image"));
    }
    read_picture(&PathBuf::from(file))
}

enum Line {
    Whole,
    TooLong,
    End,
}

/// The next line into `line`, without its end; of one that is too long, nothing is kept.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    let mut is_too_long = false;
    loop {
        let part = match input.fill_buf() {
            Ok(part) => part,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if part.is_empty() && line.is_empty() && !is_too_long {
            return Ok(Line::End);
        }
        let end = part.iter().position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(part.len());
        is_too_long |= line.len() + taken > MAX_LINE;
        if is_too_long {
            *line = vec![];
        } else {
            line.extend_from_slice(&part[..taken]);
        }
        let is_last = part.is_empty() || end.is_some();
        input.consume(taken + usize::from(end.is_some()));
        if is_last {
            return Ok(if is_too_long { Line::TooLong } else { Line::Whole });
        }
    }
}

fn write_line(output: &mut impl Write, answer: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    output.write_all(&text)?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufReader, Read};

    #[test]
    fn lines_end_in_a_newline_or_with_the_input() {
        let mut input = BufReader::with_capacity(3, &b"first\n\nlast"[..]);
        let mut line = vec![];
        for want in [&b"first"[..], b"", b"last"] {
            assert!(matches!(read_line(&mut input, &mut line).unwrap(), Line::Whole));
            assert_eq!(line, want);
        }
        assert!(matches!(read_line(&mut input, &mut line).unwrap(), Line::End));
    }

    #[test]
    fn a_line_without_end_is_dropped_and_the_next_is_read() {
        let long = io::repeat(b'x').take(MAX_LINE as u64 + 1);
        let mut input = BufReader::new(long.chain(&b"\nnext\n"[..]));
        let mut line = vec![];
        assert!(matches!(read_line(&mut input, &mut line).unwrap(), Line::TooLong));
        assert!(matches!(read_line(&mut input, &mut line).unwrap(), Line::Whole));
        assert_eq!(line, b"next");
    }
}
