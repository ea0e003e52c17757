//! Ranks that are threads of one process, for tests.

use super::{Communicator, Occasion, silent};
use crate::error::{Error, Result};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// One rank of a group; each moves into a thread of its own.
pub struct Loopback {
    rank: usize,
    meeting: Arc<Meeting>,
}

struct Meeting {
    size: usize,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    /// What the ranks have brought to the call under way.
    brought: Vec<Option<(String, Vec<u8>)>>,
    /// What those of the call before brought; kept until all have taken it.
    result: Vec<(String, Vec<u8>)>,
    to_take: usize,
    calls: u64,
    /// A rank that is no longer there.
    gone: Option<usize>,
}

impl Loopback {
    /// A group of `size` ranks.
    pub fn group(size: usize) -> Vec<Self> {
        let table = Table { brought: vec![None; size], ..Table::default() };
        let meeting = Arc::new(Meeting { size, table: Mutex::new(table), changed: Condvar::new() });
        (0..size).map(|rank| Self { rank, meeting: Arc::clone(&meeting) }).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A rank that panicked holds no half-done table: every change below is one assignment.
        self.meeting.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(table: &Table) -> String {
        let missing = table.brought.iter().position(Option::is_none).unwrap_or(0);
        format!("rank {missing}")
    }

    /// Waits until `is_so`.
    fn wait<'t>(
        &self,
        mut table: MutexGuard<'t, Table>,
        occasion: Occasion,
        is_so: impl Fn(&Table) -> bool,
    ) -> Result<MutexGuard<'t, Table>> {
        let deadline = Instant::now() + occasion.limit;
        while !is_so(&table) {
            if let Some(gone) = table.gone {
                return Err(Error::device(format!("rank {gone} has left, at \"{}\"", occasion.name)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(silent(&Self::missing(&table), occasion));
            }
            (table, _) =
                self.meeting.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(table)
    }
}

impl Communicator for Loopback {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.meeting.size
    }

    fn all_gather(&self, occasion: Occasion, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut table = self.wait(self.table(), occasion, |table| table.to_take == 0)?;
        let call = table.calls;
        table.brought[self.rank] = Some((occasion.name.to_owned(), bytes.to_vec()));
        if table.brought.iter().all(Option::is_some) {
            table.result = table.brought.iter_mut().map(|slot| slot.take().expect("all are there")).collect();
            table.to_take = self.size();
            table.calls += 1;
        }
        self.meeting.changed.notify_all();
        let mut table = self.wait(table, occasion, |table| table.calls > call)?;
        table.to_take -= 1;
        let result = table.result.clone();
        self.meeting.changed.notify_all();
        drop(table);
        if let Some((name, _)) = result.iter().find(|(name, _)| name != occasion.name) {
            return Err(Error::device(format!("a rank is at \"{name}\", this one at \"{}\"", occasion.name)));
        }
        Ok(result.into_iter().map(|(_, bytes)| bytes).collect())
    }

    fn broadcast(&self, occasion: Occasion, bytes: &mut [u8]) -> Result<()> {
        let all = self.all_gather(occasion, bytes)?;
        bytes.copy_from_slice(&all[0]);
        Ok(())
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.table().gone.get_or_insert(self.rank);
        self.meeting.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Element;
    use super::*;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn threads_are_ranks() {
        let sums = thread::scope(|scope| {
            let ranks: Vec<_> = Loopback::group(4)
                .into_iter()
                .map(|rank| {
                    scope.spawn(move || {
                        let mut sum = vec![];
                        for round in 0..50u32 {
                            let mut bytes = (rank.rank() as f32 + round as f32).to_le_bytes();
                            let occasion = Occasion { name: "sum", limit: Duration::from_secs(10) };
                            rank.all_reduce(occasion, Element::F32, &mut bytes).unwrap();
                            sum.push(f32::from_le_bytes(bytes));
                        }
                        rank.barrier(Occasion { name: "end", limit: Duration::from_secs(10) }).unwrap();
                        sum
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        let want: Vec<f32> = (0..50u8).map(|round| 6.0 + 4.0 * f32::from(round)).collect();
        assert_eq!(sums, vec![want; 4]);
    }

    #[test]
    fn one_that_leaves_or_is_silent_ends_the_wait() {
        let occasion = Occasion { name: "sum", limit: Duration::from_millis(100) };
        let mut group = Loopback::group(2);
        let second = group.pop().unwrap();
        assert_eq!(
            group[0].barrier(occasion).unwrap_err().message,
            "rank 1 has not answered for 0 s, at \"sum\""
        );
        drop(second);
        assert_eq!(group[0].barrier(occasion).unwrap_err().message, "rank 1 has left, at \"sum\"");
    }
}
