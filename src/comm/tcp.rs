//! A star over TCP: rank 0 listens until all others have called, and hands on what each of them says.
//!
//! It is for small things between hosts: an id for NCCL, flags, counts, digests; and for a training on CPUs without MPI. A
//! message is (number of the call, digest of its occasion, length, bytes), so that ranks that are at different places find
//! out. A rank that dies closes its connection, and everybody knows at once.

use super::meeting::{call, gather_callers};
use super::world::World;
use super::{Communicator, Occasion, SLOW, digest, patience, silent};
use crate::error::{Error, Result};
use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

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
pub(super) enum Broken {
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
                "it is somewhere else (call {call}, this rank {}): it has failed, and its own last line says why; or the ranks are \
                 of different programs",
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

pub(super) fn is_late(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

pub(super) fn read_exact(
    from: &mut TcpStream,
    mut bytes: &mut [u8],
    deadline: Instant,
) -> Result<(), Broken> {
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

pub(super) fn write_all(to: &mut TcpStream, mut bytes: &[u8], deadline: Instant) -> Result<(), Broken> {
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

#[cfg(test)]
mod tests {
    use super::super::Element;
    use super::super::meeting::{GREETING, Greeting, PAUSE, STRANGER, call_once};
    use super::super::world::Master;
    use super::*;
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::thread::{self, sleep};

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
        let limit = Duration::from_secs(2);
        let errors = on_ranks(3, |star| {
            if star.rank() == 1 {
                // It lives, and says nothing.
                thread::sleep(limit * 2);
                return String::new();
            }
            star.all_gather(Occasion { name: "words", limit }, &[]).unwrap_err().message
        });
        assert_eq!(errors[0], "rank 1 has not answered for 2 s, at \"words\"");
        assert!(errors[2].contains("rank 1 has not answered"), "{errors:?}");
    }

    #[test]
    fn ranks_at_different_places_find_out() {
        let errors = on_ranks(2, |star| {
            let name = ["here", "there"][star.rank()];
            star.all_gather(soon(name), &[]).unwrap_err()
        });
        assert!(
            errors[0].message.contains("rank 1, at \"here\": it is somewhere else (call 1, this rank 1)"),
            "{}",
            errors[0]
        );
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
