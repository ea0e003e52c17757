//! A fixed set of threads that run numbered tasks. Which thread runs a task is left to chance, so a task writes only
//! what is its own, and the number of tasks never depends on the number of threads: then neither does any result.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// `threads - 1` workers and the calling thread. A worker that the system holds up joins late or not at all: the caller
/// waits only for those that have begun a task. Both sides spin for some microseconds before they sleep, which is longer
/// than the steps between two layers take.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    /// The current job's number in the upper half, then [`OPEN`], then how many workers are inside.
    gate: AtomicU64,
    /// Written by the caller while the gate is shut and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// A caller is in `run`.
    is_busy: AtomicBool,
    panicked: AtomicBool,
    closed: AtomicBool,
    /// Workers that sleep or are about to, and whether the caller does.
    sleepers: AtomicUsize,
    is_waiting: AtomicBool,
    lock: Mutex<()>,
    start: Condvar,
    done: Condvar,
}

// SAFETY: `job` is written only while no worker may read it: see `gate`.
unsafe impl Sync for Shared {}

/// Workers may still enter.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;

/// Pauses before a thread sleeps: 30 to 80 microseconds.
const SPINS: usize = 2000;

/// A borrowed closure with its lifetime erased; `run` outlives every use of it.
#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
    next: *const AtomicUsize,
    tasks: usize,
}

// SAFETY: both pointers refer to values on the stack of `Pool::run`, which returns only after every worker that entered
// has left; the closure is Sync and the counter atomic.
unsafe impl Send for Job {}

impl Job {
    fn work(&self) {
        // SAFETY: see `Send`: the pointees live until `run` returns, and `run` waits for this call.
        let (body, next) = unsafe { (&*self.body, &*self.next) };
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                return;
            }
            body(task);
        }
    }
}

/// Spins until `is_done`, or for a while; whether it was done.
fn spin(is_done: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if is_done() {
            return true;
        }
        std::hint::spin_loop();
    }
    is_done()
}

impl Shared {
    fn guard(&self) -> std::sync::MutexGuard<'_, ()> {
        self.lock.lock().expect("no pool thread panics with the lock held")
    }

    /// Waits for a job later than `seen`, and enters; `None` when the pool closes.
    fn enter(&self, seen: &mut u64) -> Option<Job> {
        let is_new = |gate: u64, seen: u64| gate & OPEN != 0 && gate >> 32 != seen;
        loop {
            let last = *seen;
            let is_due =
                || is_new(self.gate.load(Ordering::SeqCst), last) || self.closed.load(Ordering::SeqCst);
            if !spin(is_due) {
                let mut guard = self.guard();
                // The caller opens the gate and then looks for sleepers; one of both sees the other.
                self.sleepers.fetch_add(1, Ordering::SeqCst);
                while !is_due() {
                    guard = self.start.wait(guard).expect("no pool thread panics with the lock held");
                }
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
            }
            if self.closed.load(Ordering::SeqCst) {
                return None;
            }
            let gate = self.gate.load(Ordering::SeqCst);
            let enter = |gate| self.gate.compare_exchange(gate, gate + 1, Ordering::SeqCst, Ordering::SeqCst);
            if is_new(gate, last) && enter(gate).is_ok() {
                *seen = gate >> 32;
                // SAFETY: the gate was open: the caller wrote the job before that, and writes none before this
                // worker leaves.
                return unsafe { *self.job.get() };
            }
        }
    }

    fn leave(&self) {
        let before = self.gate.fetch_sub(1, Ordering::SeqCst);
        if before & (INSIDE | OPEN) == 1 && self.is_waiting.load(Ordering::SeqCst) {
            drop(self.guard());
            self.done.notify_one();
        }
    }

    /// Shuts the gate, and waits for those inside.
    fn finish(&self) {
        self.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let is_empty = || self.gate.load(Ordering::SeqCst) & INSIDE == 0;
        if spin(is_empty) {
            return;
        }
        let mut guard = self.guard();
        self.is_waiting.store(true, Ordering::SeqCst);
        while !is_empty() {
            guard = self.done.wait(guard).expect("no pool thread panics with the lock held");
        }
        self.is_waiting.store(false, Ordering::SeqCst);
    }
}

impl Pool {
    /// `threads` of 0 means one a core. Where the system refuses a thread, those before it do the work.
    pub fn new(threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            is_busy: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            is_waiting: AtomicBool::new(false),
            lock: Mutex::new(()),
            start: Condvar::new(),
            done: Condvar::new(),
        });
        let spawn = |i| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("engine-pool-{i}"));
            builder.spawn(move || worker(&shared)).ok()
        };
        let workers = (1..threads).map_while(spawn).collect();
        Self { shared, workers }
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body(0)` .. `body(tasks - 1)`, each once, in no order, and returns when all have returned.
    pub fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(body);
            return;
        }
        let next = AtomicUsize::new(0);
        // SAFETY: only the lifetime changes; the pointer is not used after this function returns (see `Job`).
        let body: *const (dyn Fn(usize) + Sync + 'static) =
            unsafe { std::mem::transmute(std::ptr::from_ref(body)) };
        let job = Job { body, next: &raw const next, tasks };
        assert!(!self.shared.is_busy.swap(true, Ordering::SeqCst), "Pool::run is not reentrant");
        // SAFETY: this is the only caller, the gate is shut and nobody is inside: the last caller saw to that.
        unsafe { *self.shared.job.get() = Some(job) };
        let number = (self.shared.gate.load(Ordering::SeqCst) >> 32) + 1;
        self.shared.gate.store(number << 32 | OPEN, Ordering::SeqCst);
        if self.shared.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.shared.guard());
            self.shared.start.notify_all();
        }
        let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.work()));
        self.shared.finish();
        let panicked = self.shared.panicked.swap(false, Ordering::SeqCst);
        self.shared.is_busy.store(false, Ordering::SeqCst);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!panicked, "a task of the pool panicked");
    }

    /// Hands each item to `body` once, in no order. Items are usually disjoint chunks of slices.
    pub fn for_each<T: Send>(&self, items: Vec<T>, body: impl Fn(T) + Sync) {
        self.map(items, body);
    }

    /// As `for_each`; the results come in the order of the items.
    pub fn map<T: Send, R: Send>(&self, items: Vec<T>, body: impl Fn(T) -> R + Sync) -> Vec<R> {
        let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        let results: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
        self.run(items.len(), &|task| {
            let item = items[task].lock().expect("a task locks its own item alone").take();
            let result = body(item.expect("each task runs once"));
            *results[task].lock().expect("a task locks its own result alone") = Some(result);
        });
        let take = |slot: Mutex<Option<R>>| slot.into_inner().ok().flatten().expect("every task has run");
        results.into_iter().map(take).collect()
    }
}

fn worker(shared: &Shared) {
    let mut seen = 0;
    while let Some(job) = shared.enter(&mut seen) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.work()));
        if outcome.is_err() {
            shared.panicked.store(true, Ordering::SeqCst);
        }
        shared.leave();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        drop(self.shared.guard());
        self.shared.start.notify_all();
        for worker in self.workers.drain(..) {
            // A worker that panicked outside a task has already printed why.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} x {tasks}");
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(64, &|task| assert_ne!(task, 40, "planted"));
        }));
        assert!(outcome.is_err());
        pool.run(4, &|_| {});
    }
}
