//! Objects in several parts.

use crate::proxy::{Fault, now_and_then, start};
use crate::server::{Server, client, objects, patience};
use engine::remote::object::{Content, PART, download, upload};
use engine::remote::{Failure, Patience};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::time::Duration;

/// Three parts, the last one short.
fn large() -> (File, Content) {
    let mut state = 7u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    })
    .take((2 * PART + 12_345) as usize)
    .collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (file, Content::of(&bytes))
}

fn there_and_back(faults: &'static [Fault]) {
    let Some(server) = Server::start() else { return };
    let proxy = start(&server.host, now_and_then(3, faults));
    let client = client(&proxy, "large");
    let (mut file, content) = large();
    assert_eq!(Content::of_file(&file).unwrap(), content);
    let key = client.address.key("state");
    let long = Patience::new(Duration::from_secs(100), &|| false);
    upload(&client, &key, &file, &content, &long).unwrap();
    let mut back = tempfile::tempfile().unwrap();
    download(&client, &key, &content, &mut back, &long).unwrap();
    let (mut sent, mut came) = (vec![], vec![]);
    file.rewind().unwrap();
    back.rewind().unwrap();
    file.read_to_end(&mut sent).unwrap();
    back.read_to_end(&mut came).unwrap();
    assert!(sent == came);
    assert_eq!(objects(&server.host, "large"), ["state"]);
}

#[test]
fn in_parts() {
    there_and_back(&[Fault::None]);
}

#[test]
fn in_parts_through_faults() {
    there_and_back(&[
        Fault::Refused,
        Fault::CutRequest,
        Fault::CutAnswer,
        Fault::Status(503),
        Fault::ChangedRequest,
        Fault::ChangedAnswer,
    ]);
}

/// The server takes what it is told; a digest that is wrong is found here.
#[test]
fn a_part_that_always_changes_on_the_way_is_never_called_done() {
    let Some(server) = Server::start() else { return };
    let proxy = start(&server.host, |seen| match seen.method.as_str() {
        "PUT" => Fault::ChangedRequest,
        _ => Fault::None,
    });
    let client = client(&proxy, "wrong");
    let (file, content) = large();
    let short = Patience::new(Duration::from_secs(3), &|| false);
    let outcome = upload(&client, &client.address.key("state"), &file, &content, &short);
    assert!(matches!(&outcome, Err(Failure::Passing(reason)) if reason.contains("igest")), "{outcome:?}");
    assert!(objects(&server.host, "wrong").is_empty(), "nothing of it is an object");
    let _ = patience();
}
