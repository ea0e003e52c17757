//! A star over TCP: rank 0 listens until all others have called, and hands on what each of them says.
//!
//! It is for small things between hosts: an id for NCCL, flags, counts, digests; and for a training on CPUs without MPI. A
//! message is (number of the call, digest of its occasion, length, bytes), so that ranks that are at different places find
//! out. A rank that dies closes its connection, and everybody knows at once.

use super::world::{Master, World};
use super::{Communicator, Occasion, SLOW, patience, silent};
use crate::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a caller says first, with the version of what follows.
const MAGIC: [u8; 8] = *b"engine 1";

/// Ports from the given one on that rank 0 tries, and that the others call.
const CANDIDATES: u16 = 8;

/// For a stranger that connects and says nothing.
const GREETING: Duration = Duration::from_secs(2);

/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(50);

/// In place of a call's number: a sentence follows that says why it is all over.
const FAILURE: u64 = u64::MAX;

/// Longest message that is believed: more than a parameter of any network here.
const LONGEST: u64 = 1 << 34;

/// One rank's end of the star.
pub struct Star {
    rank: usize,
    size: usize,
    /// Rank 0: those of ranks 1, 2, ...; the others: that of rank 0.
    peers: RefCell<Vec<TcpStream>>,
    calls: Cell<u64>,
}

/// Why bytes did not come or go.
enum Broken {
    Left,
    Silent,
    Odd(String),
}

impl Broken {
    fn error(self, who: &str, occasion: Occasion) -> Error {
        let name = occasion.name;
        match self {
            Self::Left => Error::device(format!("{who} has left, at \"{name}\": its own last line says why")),
            Self::Silent => silent(who, occasion),
            Self::Odd(what) => Error::device(format!("{who}, at \"{name}\": {what}")),
        }
    }
}

impl Star {
    /// Waits until all ranks are there.
    pub fn open(world: &World) -> Result<Self> {
        let master = world.master.as_ref().ok_or_else(|| {
            Error::usage("the launcher does not say where rank 0 is: set MASTER_ADDR, and MASTER_PORT if 29500 is taken")
        })?;
        let limit = patience() * SLOW;
        let peers = match world.rank {
            0 => gather_callers(world, master, limit)?,
            _ => vec![call(world, master, limit)?],
        };
        for peer in &peers {
            peer.set_nodelay(true)
                .map_err(|error| Error::device(format!("a connection to a rank: {error}")))?;
        }
        Ok(Self { rank: world.rank, size: world.size, peers: RefCell::new(peers), calls: Cell::new(0) })
    }

    /// Every rank's bytes at rank 0, in their order; nothing elsewhere.
    fn collect(&self, occasion: Occasion, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut peers = self.peers.borrow_mut();
        let deadline = Instant::now() + occasion.limit;
        if self.rank > 0 {
            self.send(&mut peers[0], occasion, bytes, deadline)
                .map_err(|broken| broken.error("rank 0", occasion))?;
            return Ok(vec![]);
        }
        let mut all = vec![bytes.to_vec()];
        for index in 0..peers.len() {
            match self.receive(&mut peers[index], occasion, deadline) {
                Ok(bytes) => all.push(bytes),
                Err(broken) => {
                    let error = broken.error(&format!("rank {}", index + 1), occasion);
                    tell(&mut peers, &error.message);
                    return Err(error);
                }
            }
        }
        Ok(all)
    }

    /// Rank 0's bytes, everywhere.
    fn distribute(&self, occasion: Occasion, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut peers = self.peers.borrow_mut();
        let deadline = Instant::now() + occasion.limit;
        if self.rank > 0 {
            // Rank 0 gives up first, and says on whom.
            let deadline = deadline + occasion.limit / 4;
            return self
                .receive(&mut peers[0], occasion, deadline)
                .map_err(|broken| broken.error("rank 0", occasion));
        }
        for index in 0..peers.len() {
            if let Err(broken) = self.send(&mut peers[index], occasion, bytes, deadline) {
                let error = broken.error(&format!("rank {}", index + 1), occasion);
                tell(&mut peers, &error.message);
                return Err(error);
            }
        }
        Ok(bytes.to_vec())
    }

    fn send(
        &self,
        to: &mut TcpStream,
        occasion: Occasion,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<(), Broken> {
        let header = [self.calls.get(), digest(occasion.name), bytes.len() as u64];
        write_all(to, bytemuck::cast_slice(&header), deadline)?;
        write_all(to, bytes, deadline)
    }

    fn receive(
        &self,
        from: &mut TcpStream,
        occasion: Occasion,
        deadline: Instant,
    ) -> Result<Vec<u8>, Broken> {
        let mut header = [0u64; 3];
        read_exact(from, bytemuck::cast_slice_mut(&mut header), deadline)?;
        let [call, name, len] = header;
        if len > LONGEST {
            return Err(Broken::Odd(format!("it announces {len} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        read_exact(from, &mut bytes, deadline)?;
        if call == FAILURE {
            return Err(Broken::Odd(format!("it says that {}", String::from_utf8_lossy(&bytes))));
        }
        if (call, name) != (self.calls.get(), digest(occasion.name)) {
            return Err(Broken::Odd(format!(
                "it is at call {call} and this rank at {}: ranks of different programs, or a bug in engine",
                self.calls.get()
            )));
        }
        Ok(bytes)
    }
}

impl Communicator for Star {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, occasion: Occasion, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.calls.set(self.calls.get() + 1);
        let all = self.collect(occasion, bytes)?;
        let mut joined = vec![];
        for one in &all {
            joined.extend((one.len() as u64).to_le_bytes());
            joined.extend(one);
        }
        let joined = self.distribute(occasion, &joined)?;
        split(&joined, self.size)
            .ok_or_else(|| Broken::Odd("it hands on too little".into()).error("rank 0", occasion))
    }

    fn broadcast(&self, occasion: Occasion, bytes: &mut [u8]) -> Result<()> {
        self.calls.set(self.calls.get() + 1);
        let got = self.distribute(occasion, bytes)?;
        if got.len() != bytes.len() {
            let (got, wanted) = (got.len(), bytes.len());
            return Err(
                Broken::Odd(format!("it sends {got} bytes, {wanted} are expected")).error("rank 0", occasion)
            );
        }
        bytes.copy_from_slice(&got);
        Ok(())
    }

    /// The sum is made at rank 0, and handed on.
    fn all_reduce(&self, occasion: Occasion, element: super::Element, bytes: &mut [u8]) -> Result<()> {
        self.calls.set(self.calls.get() + 1);
        let all = self.collect(occasion, bytes)?;
        for (rank, term) in all.iter().enumerate().skip(1) {
            if term.len() != bytes.len() {
                let got = term.len();
                let broken = Broken::Odd(format!("it adds {got} bytes, this rank {}", bytes.len()));
                return Err(broken.error(&format!("rank {rank}"), occasion));
            }
            element.add(bytes, term);
        }
        bytes.copy_from_slice(&self.distribute(occasion, bytes)?);
        Ok(())
    }
}

fn split(joined: &[u8], size: usize) -> Option<Vec<Vec<u8>>> {
    let (mut all, mut rest) = (Vec::with_capacity(size), joined);
    for _ in 0..size {
        let (len, behind) = rest.split_first_chunk::<8>()?;
        let (one, behind) = behind.split_at_checked(u64::from_le_bytes(*len) as usize)?;
        all.push(one.to_vec());
        rest = behind;
    }
    Some(all)
}

fn digest(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    u64::from_le_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

/// Says to all why rank 0 ends. Who does not listen any more will find out.
fn tell(peers: &mut [TcpStream], why: &str) {
    let deadline = Instant::now() + Duration::from_secs(1);
    let header = [FAILURE, 0, why.len() as u64];
    for peer in peers {
        let _ = write_all(peer, bytemuck::cast_slice(&header), deadline)
            .and_then(|()| write_all(peer, why.as_bytes(), deadline));
    }
}

fn left(deadline: Instant) -> Result<Duration, Broken> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Broken::Silent) } else { Ok(left) }
}

fn is_late(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn read_exact(from: &mut TcpStream, mut bytes: &mut [u8], deadline: Instant) -> Result<(), Broken> {
    while !bytes.is_empty() {
        let _ = from.set_read_timeout(Some(left(deadline)?));
        match from.read(bytes) {
            Ok(0) => return Err(Broken::Left),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if is_late(error.kind()) => {}
            Err(_) => return Err(Broken::Left),
        }
    }
    Ok(())
}

fn write_all(to: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> Result<(), Broken> {
    while !bytes.is_empty() {
        let _ = to.set_write_timeout(Some(left(deadline)?));
        match to.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_late(error.kind()) => {}
            Err(_) => return Err(Broken::Left),
        }
    }
    Ok(())
}

// ---- meeting ----------------------------------------------------------------------------------------------------------

/// What a caller says first.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Greeting {
    job: u64,
    rank: u64,
    size: u64,
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
const STRANGER: u8 = 1;
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
fn gather_callers(world: &World, master: &Master, limit: Duration) -> Result<Vec<TcpStream>> {
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
fn call(world: &World, master: &Master, limit: Duration) -> Result<TcpStream> {
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

fn call_once(at: (&str, u16), greeting: Greeting, deadline: Instant) -> std::io::Result<(TcpStream, u8)> {
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

#[cfg(test)]
mod tests {
    use super::super::Element;
    use super::*;
    use std::thread;

    /// A port that was free a moment ago.
    fn port() -> u16 {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    fn world(rank: usize, size: usize, port: u16) -> World {
        let master = Some(Master { host: "127.0.0.1".into(), port });
        World { rank, size, local_rank: rank, local_size: size, master, job: 7 }
    }

    fn on_ranks<R: Send>(size: usize, body: impl Fn(Star) -> R + Sync) -> Vec<R> {
        let port = port();
        thread::scope(|scope| {
            let body = &body;
            let ranks: Vec<_> = (0..size)
                .map(|rank| scope.spawn(move || body(Star::open(&world(rank, size, port)).unwrap())))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    fn soon(name: &str) -> Occasion<'_> {
        Occasion { name, limit: Duration::from_secs(10) }
    }

    #[test]
    fn everybody_hears_everybody() {
        let heard = on_ranks(3, |star| {
            let own = vec![star.rank() as u8; star.rank()];
            let all = star.all_gather(soon("words"), &own).unwrap();
            let mut sum = [1.0f32, star.rank() as f32].map(f32::to_le_bytes).concat();
            star.all_reduce(soon("sums"), Element::F32, &mut sum).unwrap();
            let mut first = [star.rank() as u8 + 5];
            star.broadcast(soon("first"), &mut first).unwrap();
            star.barrier(soon("end")).unwrap();
            (all, sum, first)
        });
        let want = (vec![vec![], vec![1], vec![2, 2]], [3.0f32, 3.0].map(f32::to_le_bytes).concat(), [5]);
        assert_eq!(heard, vec![want; 3]);
    }

    #[test]
    fn a_rank_that_leaves_is_known_at_once_and_named_everywhere() {
        let began = Instant::now();
        let errors = on_ranks(3, |star| match star.rank() {
            2 => String::new(),
            _ => star.all_gather(soon("words"), &[]).unwrap_err().message,
        });
        assert!(errors[0].starts_with("rank 2 has left, at \"words\""), "{errors:?}");
        assert!(errors[1].contains("it says that rank 2 has left"), "{errors:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    fn a_silent_rank_is_waited_for_so_long() {
        let limit = Duration::from_millis(300);
        let errors = on_ranks(3, |star| {
            if star.rank() == 1 {
                // It lives, and says nothing.
                thread::sleep(limit * 4);
                return String::new();
            }
            star.all_gather(Occasion { name: "words", limit }, &[]).unwrap_err().message
        });
        assert_eq!(errors[0], "rank 1 has not answered for 0 s, at \"words\"");
        assert!(errors[2].contains("rank 1 has not answered"), "{errors:?}");
    }

    #[test]
    fn ranks_at_different_places_find_out() {
        let errors = on_ranks(2, |star| {
            let name = ["here", "there"][star.rank()];
            star.all_gather(soon(name), &[]).unwrap_err()
        });
        assert!(errors[0].message.contains("rank 1, at \"here\": it is at call 1"), "{}", errors[0]);
        assert!(errors.iter().all(|error| error.exit_code() == 70));
    }

    #[test]
    fn strangers_do_not_count() {
        let port = port();
        let star = thread::scope(|scope| {
            let first = scope.spawn(move || Star::open(&world(0, 2, port)));
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let mut stranger = loop {
                if let Ok(stream) = TcpStream::connect(address) {
                    break stream;
                }
                sleep(PAUSE);
            };
            stranger.write_all(b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n").unwrap();
            let other = Greeting { job: 8, rank: 1, size: 2 };
            let (_, answer) = call_once(("127.0.0.1", port), other, Instant::now() + GREETING).unwrap();
            assert_eq!(answer, STRANGER);
            let second = scope.spawn(move || Star::open(&world(1, 2, port)).map(drop));
            let star = first.join().unwrap();
            second.join().unwrap().unwrap();
            star
        });
        assert_eq!(star.unwrap().size(), 2);
    }
}
