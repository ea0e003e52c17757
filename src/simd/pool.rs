//! A fixed set of threads that run numbered tasks. Which thread runs a task is left to chance, so a task writes only
//! what is its own, and the number of tasks never depends on the number of threads: then neither does any result.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// `threads - 1` workers and the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    start: Condvar,
    done: Condvar,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Counts jobs, so that a worker takes each one once.
    generation: u64,
    /// Workers that have not yet finished the current job.
    running: usize,
    panicked: bool,
    closed: bool,
}

/// A borrowed closure with its lifetime erased; `run` outlives every use of it.
#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
    next: *const AtomicUsize,
    tasks: usize,
}

// SAFETY: both pointers refer to values on the stack of `Pool::run`, which returns only after every worker has
// reported that it no longer uses them; the closure is Sync and the counter atomic.
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

impl Pool {
    /// `threads` of 0 means one a core. Where the system refuses a thread, those before it do the work.
    pub fn new(threads: usize) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores() } else { threads };
        let shared =
            Arc::new(Shared { state: Mutex::default(), start: Condvar::new(), done: Condvar::new() });
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
        {
            let mut state = self.shared.state.lock().expect("no pool thread panics with the lock held");
            assert!(state.job.is_none(), "Pool::run is not reentrant");
            state.job = Some(job);
            state.generation += 1;
            state.running = self.workers.len();
            self.shared.start.notify_all();
        }
        let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.work()));
        let mut state = self.shared.state.lock().expect("no pool thread panics with the lock held");
        while state.running > 0 {
            state = self.shared.done.wait(state).expect("no pool thread panics with the lock held");
        }
        state.job = None;
        let panicked = std::mem::take(&mut state.panicked);
        drop(state);
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
    loop {
        let job = {
            let mut state = shared.state.lock().expect("no pool thread panics with the lock held");
            loop {
                if state.closed {
                    return;
                }
                match state.job {
                    Some(job) if state.generation != seen => {
                        seen = state.generation;
                        break job;
                    }
                    _ => state = shared.start.wait(state).expect("no pool thread panics with the lock held"),
                }
            }
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job.work()));
        let mut state = shared.state.lock().expect("no pool thread panics with the lock held");
        state.panicked |= outcome.is_err();
        state.running -= 1;
        if state.running == 0 {
            shared.done.notify_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Ok(mut state) = self.shared.state.lock() {
            state.closed = true;
        }
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
