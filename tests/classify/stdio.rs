//! The protocol of `--stdio`.

use crate::common::{Done, finish, path, temporary};
use crate::{classes, classify, flat_png, model, objects, picture};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

/// All requests at once, and everything that is answered.
pub fn serve(args: &[&str], requests: &[u8]) -> Done {
    let folder = temporary();
    let file = folder.path().join("requests");
    fs::write(&file, requests).unwrap();
    let stdin = Stdio::from(fs::File::open(&file).unwrap());
    finish(classify(args).arg("--stdio").stdin(stdin))
}

pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |group: &[u8]| {
        let bits =
            group.iter().chain(&[0; 2]).take(3).fold(0usize, |bits, &byte| bits << 8 | usize::from(byte));
        let digit = |i: usize| {
            if i <= group.len() { char::from(DIGITS[bits >> (18 - 6 * i) & 63]) } else { '=' }
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}

#[test]
fn every_request_is_answered_in_order_and_errors_do_not_end_it() {
    let good = picture(&classes()[0]);
    let image = base64(&fs::read(&good).unwrap());
    let folder = temporary();
    let small = folder.path().join("1.png");
    fs::write(&small, flat_png(1, 1)).unwrap();
    let requests = [
        json!({"id": 1, "file": good}).to_string(),
        "not json".to_owned(),
        json!({"id": "two", "file": "absent.jpg"}).to_string(),
        String::new(),
        json!({"id": [3], "image": image, "top": 2, "precision": "fp32"}).to_string(),
        json!({"id": 4, "image": "####"}).to_string(),
        json!({"id": 5}).to_string(),
        json!({"id": 6, "file": good, "image": image}).to_string(),
        json!({"id": 7, "file": good, "precision": "fp8"}).to_string(),
        json!({"id": 8, "file": good, "top": 0}).to_string(),
        json!({"id": 9, "file": good, "tops": 1}).to_string(),
        json!({"id": 10, "file": good, "top": -1}).to_string(),
        json!({"id": 11, "file": "-"}).to_string(),
        json!({"id": 12, "image": base64(b"GIF89a...")}).to_string(),
        "[]".to_owned(),
        json!({"file": path(&small)}).to_string(),
        // The last line ends with the input.
        json!({"id": 14, "file": good}).to_string(),
    ];
    let done = serve(&["--model", model()], requests.join("\n").as_bytes()).expect(0);
    let answers = objects(&done);
    let words: [(Value, &str); 16] = [
        (json!(1), ""),
        (Value::Null, "no JSON"),
        (json!("two"), "absent.jpg: cannot read it"),
        (json!([3]), ""),
        (json!(4), "no base64: character 0"),
        (json!(5), "either file, a path, or image"),
        (json!(6), "either file, a path, or image"),
        (json!(7), "expected auto, fp32, bf16 or int8, got fp8"),
        (json!(8), "top is 0"),
        (json!(9), "unknown field `tops`"),
        (json!(10), "not understood"),
        (json!(11), "standard input holds the requests"),
        (json!(12), "image: a GIF image"),
        (Value::Null, "not understood"),
        (Value::Null, ""),
        (json!(14), ""),
    ];
    assert_eq!(answers.len(), words.len(), "{}", done.out);
    for (answer, (id, words)) in answers.iter().zip(&words) {
        assert_eq!(answer["id"], *id, "{answer}");
        let error = answer["error"].as_str().unwrap_or("");
        assert!(error.contains(words) && error.is_empty() == words.is_empty(), "{words}: {answer}");
    }
    assert_eq!(answers[0]["predictions"], answers[15]["predictions"]);
    assert_eq!(answers[3]["predictions"].as_array().unwrap().len(), 2);
}

#[test]
fn an_answer_has_these_keys() {
    let good = picture(&classes()[0]);
    let requests = format!(
        "{}\n{}\n",
        json!({"id": 1, "file": good}),
        json!({"image": base64(&fs::read(&good).unwrap())})
    );
    let answers = objects(&serve(&["--model", model(), "--top", "1"], requests.as_bytes()).expect(0));
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&answers[0]), ["file", "id", "milliseconds", "path", "predictions"]);
    assert_eq!(keys(&answers[1]), ["id", "milliseconds", "path", "predictions"]);
    assert_eq!(keys(&answers[0]["milliseconds"]), ["decode", "run"]);
    assert!(answers[0]["milliseconds"]["run"].as_f64().unwrap() > 0.0);
    assert_eq!(answers[0]["predictions"], answers[1]["predictions"]);
    assert_eq!(answers[0]["predictions"].as_array().unwrap().len(), 1);
}

/// A caller waits for each answer before it asks again: nothing is held back in a buffer.
#[test]
fn answers_come_at_once_and_the_end_of_input_ends_it() {
    let mut child = classify(&["--model", model(), "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut requests, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut answers = BufReader::new(answers);
    for id in 0..3 {
        writeln!(requests, "{}", json!({"id": id, "file": picture(&classes()[id])})).unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["id"], id);
    }
    drop(requests);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let mut child = classify(&["--model", model(), "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut requests = child.stdin.take().unwrap();
    let request = json!({"file": picture(&classes()[0])});
    // The pipe may be closed on the other side before the last of them is written.
    while writeln!(requests, "{request}").is_ok() {}
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}
