//! Work by several threads, its results in order.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::Result;

struct Queue<T> {
    /// Next job to be handed out.
    next: usize,
    /// Job at the front of `done`.
    front: usize,
    done: VecDeque<Option<T>>,
    stop: bool,
}

/// Calls `make` for jobs 0 to `count` on `workers` threads, each with a state of its own, and `take` on this thread with
/// each result in order. A few results a worker are held back at most. The first error of `take` ends it.
pub(super) fn in_order<S: Default, T: Send>(
    count: usize,
    workers: usize,
    make: impl Fn(&mut S, usize) -> T + Sync,
    mut take: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let workers = workers.max(1);
    let window = 8 * workers;
    let queue = Mutex::new(Queue { next: 0, front: 0, done: VecDeque::new(), stop: false });
    let (room, ready) = (Condvar::new(), Condvar::new());
    let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let next_job = || {
        let mut queue = lock();
        loop {
            if queue.stop || queue.next >= count {
                return None;
            }
            if queue.next < queue.front + window {
                queue.done.push_back(None);
                queue.next += 1;
                return Some(queue.next - 1);
            }
            queue = room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    };
    let work = || {
        let mut state = S::default();
        // A panic in `make` is the caller's to catch; this ends the wait for its result.
        let _end = OnDrop(|| {
            if std::thread::panicking() {
                lock().stop = true;
            }
            ready.notify_all();
        });
        while let Some(job) = next_job() {
            let made = make(&mut state, job);
            let mut queue = lock();
            let place = job - queue.front;
            queue.done[place] = Some(made);
            if place == 0 {
                ready.notify_all();
            }
        }
    };
    let collect = || {
        // Also where `take` panics: workers must not wait for it.
        let _end = OnDrop(|| {
            lock().stop = true;
            room.notify_all();
        });
        for job in 0..count {
            let mut queue = lock();
            let made = loop {
                if queue.stop {
                    return Ok(());
                }
                if let Some(made) = queue.done.front_mut().and_then(Option::take) {
                    break made;
                }
                queue = ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            queue.done.pop_front();
            queue.front += 1;
            drop(queue);
            room.notify_all();
            take(job, made)?;
        }
        Ok(())
    };
    let mut collect = collect;
    // The scope passes a worker's panic on.
    std::thread::scope(|scope| {
        (0..workers).for_each(|_| drop(scope.spawn(work)));
        collect()
    })
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
