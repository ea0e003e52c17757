//! How ranks that talk over TCP find each other: rank 0 listens, the others call until it answers.

use super::tcp::{is_late, read_exact, write_all};
use super::world::{Master, World};
use crate::error::{Error, Result};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a caller says first, with the version of what follows.
const MAGIC: [u8; 8] = *b"engine 1";

/// Ports from the given one on that rank 0 tries, and that the others call.
const CANDIDATES: u16 = 8;

/// For a stranger that connects and says nothing.
pub(super) const GREETING: Duration = Duration::from_secs(2);

/// Between two attempts to connect.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// What a caller says first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Greeting {
    pub job: u64,
    pub rank: u64,
    pub size: u64,
}

impl Greeting {
    const BYTES: usize = 32;

    fn bytes(self) -> [u8; Self::BYTES] {
        let words = [u64::from_le_bytes(MAGIC), self.job, self.rank, self.size];
        bytemuck::cast(words.map(u64::to_le))
    }

    fn read(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let [magic, job, rank, size] = bytemuck::cast::<_, [u64; 4]>(bytes).map(u64::from_le);
        (magic == u64::from_le_bytes(MAGIC)).then_some(Self { job, rank, size })
    }
}

/// Rank 0's answers to a greeting.
const WELCOME: u8 = 0;
/// Another job's.
pub(super) const STRANGER: u8 = 1;
/// That rank is here.
const TWICE: u8 = 2;

fn listen(master: &Master) -> Result<TcpListener> {
    let mut last = None;
    for port in (master.port..).take(usize::from(CANDIDATES)) {
        let addresses = [
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        ];
        match TcpListener::bind(&addresses[..]) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    let (first, error) = (master.port, last.map_or(String::new(), |error| error.to_string()));
    Err(Error::device(format!(
        "rank 0 cannot listen on port {first} nor on the {} behind it ({error}): set MASTER_PORT to a free one",
        CANDIDATES - 1
    )))
}

/// The connections of ranks 1, 2, ...
pub(super) fn gather_callers(world: &World, master: &Master, limit: Duration) -> Result<Vec<TcpStream>> {
    let listener = listen(master)?;
    let broken = |error: std::io::Error| Error::device(format!("rank 0 cannot listen: {error}"));
    listener.set_nonblocking(true).map_err(broken)?;
    let deadline = Instant::now() + limit;
    let mut callers: Vec<Option<TcpStream>> = (1..world.size).map(|_| None).collect();
    while callers.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => greet(world, master, stream, &mut callers),
            Err(error) if is_late(error.kind()) => sleep(PAUSE / 5),
            Err(error) => return Err(broken(error)),
        }
        if Instant::now() > deadline {
            let missing: Vec<String> = (1..world.size)
                .filter(|rank| callers[rank - 1].is_none())
                .map(|rank| rank.to_string())
                .collect();
            return Err(Error::device(format!(
                "rank {} of {} did not call within {:.0} s: is it started, does it know MASTER_ADDR={}, and is port {} open?",
                missing.join(", "),
                world.size,
                limit.as_secs_f64(),
                master.host,
                master.port
            )));
        }
    }
    Ok(callers.into_iter().flatten().collect())
}

/// What tells a job from its neighbours, whose ports may be candidates here.
fn job(world: &World, master: &Master) -> u64 {
    world.job ^ u64::from(master.port)
}

/// Keeps a caller that belongs here. Who does not is told, and is no reason to fail.
fn greet(world: &World, master: &Master, mut stream: TcpStream, callers: &mut [Option<TcpStream>]) {
    let deadline = Instant::now() + GREETING;
    let mut bytes = [0; Greeting::BYTES];
    if stream.set_nonblocking(false).is_err() || read_exact(&mut stream, &mut bytes, deadline).is_err() {
        return;
    }
    let answer = match Greeting::read(bytes) {
        Some(Greeting { job, rank, size })
            if (job, size) == (self::job(world, master), world.size as u64) && rank > 0 =>
        {
            match callers.get(rank as usize - 1) {
                Some(None) => WELCOME,
                Some(Some(_)) => TWICE,
                None => STRANGER,
            }
        }
        _ => STRANGER,
    };
    if write_all(&mut stream, &[answer], deadline).is_ok()
        && answer == WELCOME
        && let Some(greeting) = Greeting::read(bytes)
    {
        callers[greeting.rank as usize - 1] = Some(stream);
    }
}

/// Calls rank 0 until it answers.
pub(super) fn call(world: &World, master: &Master, limit: Duration) -> Result<TcpStream> {
    let deadline = Instant::now() + limit;
    let greeting = Greeting { job: job(world, master), rank: world.rank as u64, size: world.size as u64 };
    let mut reason = "nobody listens there".to_owned();
    while Instant::now() < deadline {
        for port in (master.port..).take(usize::from(CANDIDATES)) {
            match call_once((master.host.as_str(), port), greeting, deadline) {
                Ok((stream, WELCOME)) => return Ok(stream),
                Ok((_, TWICE)) => {
                    let rank = world.rank;
                    return Err(Error::usage(format!(
                        "two processes are rank {rank}: every one needs a rank of its own (RANK, LOCAL_RANK)"
                    )));
                }
                Ok(_) => reason = "somebody listens there who belongs to another job".to_owned(),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => reason = error.to_string(),
            }
        }
        sleep(PAUSE);
    }
    Err(Error::device(format!(
        "rank 0 did not answer at {}:{} within {:.0} s: {reason}",
        master.host,
        master.port,
        limit.as_secs_f64()
    )))
}

pub(super) fn call_once(
    at: (&str, u16),
    greeting: Greeting,
    deadline: Instant,
) -> std::io::Result<(TcpStream, u8)> {
    let address = at.to_socket_addrs()?.next();
    let address =
        address.ok_or_else(|| std::io::Error::new(ErrorKind::NotFound, "the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, GREETING)?;
    let mut answer = [STRANGER];
    let said = write_all(&mut stream, &greeting.bytes(), deadline)
        .and_then(|()| read_exact(&mut stream, &mut answer, Instant::now() + GREETING * 2));
    match said {
        Ok(()) => Ok((stream, answer[0])),
        Err(_) => Err(std::io::Error::new(ErrorKind::TimedOut, "whoever listens there does not greet back")),
    }
}
