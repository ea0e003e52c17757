//! A proxy between program and server that does to requests and answers what networks and busy servers do.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Nobody takes the connection.
    Refused,
    Slow(Duration),
    /// The server gets half of the request.
    CutRequest,
    /// It gets all of it, and half of its answer comes back.
    CutAnswer,
    Status(u16),
    /// A byte of the body is another one, where an object goes up or comes down. (Lists and other XML have no digest: what protects
    /// them is TLS.)
    ChangedRequest,
    ChangedAnswer,
}

/// One request, for who decides what happens to it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub path: String,
}

type Plan = dyn FnMut(&Seen) -> Fault + Send;

/// Listens until the process ends; answers its `HOST:PORT`.
pub fn start(server: &str, plan: impl FnMut(&Seen) -> Fault + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = server.to_owned();
    let plan: Arc<Mutex<Box<Plan>>> = Arc::new(Mutex::new(Box::new(plan)));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (server, plan) = (server.clone(), Arc::clone(&plan));
            // Broken connections are what this is for.
            thread::spawn(move || drop(stream.and_then(|stream| pass(stream, &server, &plan))));
        }
    });
    host
}

/// One request a connection: the answer says that it closes.
fn pass(mut client: TcpStream, server: &str, plan: &Mutex<Box<Plan>>) -> std::io::Result<()> {
    let (head, mut body) = request(&mut client)?;
    let mut words = head.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let fault = {
        let mut plan = plan.lock().unwrap();
        let seen = Seen { method, path };
        let is_object = !seen.path.contains("list-type=");
        match plan(&seen) {
            Fault::ChangedRequest if seen.method != "PUT" => Fault::None,
            Fault::ChangedAnswer if seen.method != "GET" || !is_object => Fault::None,
            fault => fault,
        }
    };
    match fault {
        Fault::Refused => return client.shutdown(Shutdown::Both),
        Fault::Slow(time) => thread::sleep(time),
        Fault::Status(status) => {
            let text =
                "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
            let length = text.len();
            return write!(
                client,
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
            );
        }
        Fault::ChangedRequest => change(&mut body, 0),
        _ => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    let (first, rest) = head.split_once("\r\n").unwrap_or((&head, ""));
    upstream.write_all(format!("{first}\r\nConnection: close\r\n{rest}").as_bytes())?;
    if fault == Fault::CutRequest {
        upstream.write_all(&body[..body.len() / 2])?;
        return upstream.shutdown(Shutdown::Both);
    }
    upstream.write_all(&body)?;
    let mut answer = vec![];
    upstream.read_to_end(&mut answer)?;
    match fault {
        Fault::CutAnswer => answer.truncate(answer.len() / 2),
        Fault::ChangedAnswer => {
            let end_of_head =
                answer.windows(4).position(|four| four == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
            change(&mut answer, end_of_head);
        }
        _ => {}
    }
    client.write_all(&answer)
}

/// Another byte in the middle of what follows `from`.
fn change(bytes: &mut [u8], from: usize) {
    let middle = from + (bytes.len() - from) / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 1;
    }
}

/// Head, with its empty line, and body. A client that waits for a word before it sends the body gets it.
fn request(client: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let (mut head, mut byte) = (vec![], [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let field = |name: &str| {
        let line = head.lines().find(|line| line.to_lowercase().starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let length = field("content-length:").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body)?;
    Ok((head, body))
}

/// Faults by chance, the same in every run of the tests: the share `one_in` of requests has one.
pub fn now_and_then(one_in: u64, faults: &'static [Fault]) -> impl FnMut(&Seen) -> Fault + Send {
    let mut state = 1u64;
    move |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let drawn = state >> 33;
        match drawn.is_multiple_of(one_in) {
            true => faults[(drawn / one_in) as usize % faults.len()],
            false => Fault::None,
        }
    }
}
