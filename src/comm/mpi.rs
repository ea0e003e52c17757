//! Ranks that `mpirun` started. MPI's calls are begun and then asked for, so that a rank which is gone or silent ends the
//! wait; sums are made here, in the order of ranks, so that their bits do not depend on how an MPI adds.

use super::{Communicator, Element, Occasion, World, digest, silent};
use crate::error::{Error, Result};
use ::mpi::Threading;
use ::mpi::environment::Universe;
use ::mpi::ffi;
use std::ffi::{c_int, c_void};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

/// Questions that follow each other at once; then there is a pause between two.
const EAGER: u32 = 200;
const PAUSE: Duration = Duration::from_micros(100);

/// All ranks of `mpirun`. Where a call has failed the process has to end without dropping this: `MPI_Finalize` waits for
/// the others.
pub struct Mpi {
    rank: usize,
    size: usize,
    _universe: Universe,
}

/// Bytes that MPI reads and writes while a call is under way: given up, and not freed, where the call does not end.
type Lent = Vec<u8>;

impl Mpi {
    /// `world` is what the environment says; MPI has to agree.
    pub fn open(world: &World) -> Result<Self> {
        // This thread alone calls MPI.
        let (universe, threading) = ::mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| Error::failed("MPI was opened twice; this is a bug in engine"))?;
        if threading < Threading::Funneled {
            return Err(Error::device(
                "this MPI does not allow a process with threads: build OpenMPI with thread support",
            ));
        }
        let (mut rank, mut size) = (0, 0);
        // SAFETY: MPI is initialised, and both pointers are to integers of this frame.
        let codes = unsafe {
            [
                ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN),
                ffi::MPI_Comm_rank(ffi::RSMPI_COMM_WORLD, &raw mut rank),
                ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &raw mut size),
            ]
        };
        codes.into_iter().try_for_each(|code| check(code, "opening"))?;
        let (rank, size) = (rank as usize, size as usize);
        if (rank, size) != (world.rank, world.size) {
            return Err(Error::usage(format!(
                "MPI says rank {rank} of {size}, the environment rank {} of {}: mpirun and the library that engine was built \
                 with are of different MPIs",
                world.rank, world.size
            )));
        }
        Ok(Self { rank, size, _universe: universe })
    }

    /// Begins a call and asks for its end until it has come. `begin` is given the addresses of `from` and `to`.
    fn run(
        &self,
        occasion: Occasion,
        from: Lent,
        mut to: Lent,
        begin: impl FnOnce(*const c_void, *mut c_void, *mut ffi::MPI_Request) -> c_int,
    ) -> Result<Lent> {
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        check(begin(from.as_ptr().cast(), to.as_mut_ptr().cast(), &raw mut request), occasion.name)?;
        let deadline = Instant::now() + occasion.limit;
        for asked in 0u32.. {
            let mut done = 0;
            // SAFETY: the request is under way, and its status is not asked for.
            let code = unsafe { ffi::MPI_Test(&raw mut request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) };
            let outcome = match check(code, occasion.name) {
                Ok(()) if done != 0 => return Ok(to),
                Ok(()) if Instant::now() > deadline => Err(silent("another rank", occasion)),
                outcome => outcome,
            };
            if outcome.is_err() {
                // The call may still write.
                std::mem::forget((from, to));
                outcome?;
                unreachable!("it is an error");
            }
            if asked < EAGER { yield_now() } else { sleep(PAUSE) }
        }
        unreachable!("the deadline comes first")
    }

    /// What every call begins with, whatever it goes on with: each rank says where it is, and how many bytes it has. So a rank
    /// that has failed, and tells that it is over, is known at once to those that wait for something else.
    fn meet(&self, occasion: Occasion, bytes: usize) -> Result<Vec<c_int>> {
        let own = [digest(occasion.name), bytes as u64];
        let headers = self.gather_equal(occasion, bytemuck::cast_slice(&own).to_vec())?;
        let headers: Vec<[u64; 2]> = headers.chunks_exact(16).map(bytemuck::pod_read_unaligned).collect();
        if let Some(rank) = headers.iter().position(|[name, _]| *name != own[0]) {
            return Err(Error::device(format!(
                "rank {rank} is somewhere else than rank {} at \"{}\": it has failed, and its own last line says why; or the ranks \
                 are of different programs",
                self.rank, occasion.name
            )));
        }
        headers.iter().map(|[_, len]| length(*len as usize)).collect()
    }

    /// Pieces of the same length of every rank, in order.
    fn gather_equal(&self, occasion: Occasion, bytes: Lent) -> Result<Lent> {
        let count = length(bytes.len())?;
        let to = vec![0; bytes.len() * self.size];
        // SAFETY: `from` has `count` bytes and `to` as many for each rank, and both stay until the call has ended.
        self.run(occasion, bytes, to, |from, to, request| unsafe {
            let (kind, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Iallgather(from, count, kind, to, count, kind, world, request)
        })
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, occasion: Occasion, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let counts = self.meet(occasion, bytes.len())?;
        let total: usize = counts.iter().map(|&count| count as usize).sum();
        if total == 0 {
            return Ok(vec![vec![]; self.size]);
        }
        length(total)?;
        let starts = counts.iter().scan(0, |next, count| Some(std::mem::replace(next, *next + count)));
        let starts: Vec<c_int> = starts.collect();
        let count = counts[self.rank];
        // SAFETY: `from` has `count` bytes, `to` the sum of `counts` at `starts`; all four stay until the call has ended,
        // since `run` returns before that only where the process ends.
        let all = self.run(occasion, bytes.to_vec(), vec![0; total], |from, to, request| unsafe {
            let (kind, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Iallgatherv(
                from,
                count,
                kind,
                to,
                counts.as_ptr(),
                starts.as_ptr(),
                kind,
                world,
                request,
            )
        });
        let all = match all {
            Ok(all) => all,
            Err(error) => {
                // The call may still read them.
                std::mem::forget((counts, starts));
                return Err(error);
            }
        };
        let piece =
            |(&start, &count): (&c_int, &c_int)| all[start as usize..(start + count) as usize].to_vec();
        Ok(starts.iter().zip(&counts).map(piece).collect())
    }

    fn broadcast(&self, occasion: Occasion, bytes: &mut [u8]) -> Result<()> {
        self.meet(occasion, bytes.len())?;
        let count = length(bytes.len())?;
        // SAFETY: `to` has `count` bytes and stays until the call has ended.
        let all = self.run(occasion, vec![], bytes.to_vec(), |_, to, request| unsafe {
            ffi::MPI_Ibcast(to, count, ffi::RSMPI_UINT8_T, 0, ffi::RSMPI_COMM_WORLD, request)
        })?;
        bytes.copy_from_slice(&all);
        Ok(())
    }

    /// Each rank adds up its share of the elements, which all send to it; then the shares are handed round: as many bytes as
    /// a ring moves.
    fn all_reduce(&self, occasion: Occasion, element: Element, bytes: &mut [u8]) -> Result<()> {
        self.meet(occasion, bytes.len())?;
        let size = element.bytes();
        let share = (bytes.len() / size).div_ceil(self.size) * size;
        if share == 0 {
            return Ok(());
        }
        let count = length(share)?;
        let mut padded = bytes.to_vec();
        padded.resize(share * self.size, 0);
        let to = vec![0; padded.len()];
        // SAFETY: both have `count` bytes for each rank, and stay until the call has ended.
        let terms = self.run(occasion, padded, to, |from, to, request| unsafe {
            let (kind, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Ialltoall(from, count, kind, to, count, kind, world, request)
        })?;
        let (first, rest) = terms.split_at(share);
        let mut sum = first.to_vec();
        rest.chunks_exact(share).for_each(|term| element.add(&mut sum, term));
        let all = self.gather_equal(occasion, sum)?;
        let len = bytes.len();
        bytes.copy_from_slice(&all[..len]);
        Ok(())
    }
}

/// MPI counts in 31 bits.
fn length(bytes: usize) -> Result<c_int> {
    c_int::try_from(bytes)
        .map_err(|_| Error::failed(format!("{bytes} bytes in one call of MPI; it takes 2147483647 at most")))
}

fn check(code: c_int, what: &str) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let (mut text, mut len) = (vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1], 0);
    // SAFETY: the buffer has the room that MPI asks for.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut len) };
    text.truncate(usize::try_from(len).unwrap_or(0));
    Err(Error::device(format!("MPI failed at \"{what}\": {}", String::from_utf8_lossy(&text))))
}
