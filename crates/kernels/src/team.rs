//! A fixed set of threads that share out the parts of a job.
//!
//! A forward pass is hundreds of short parallel loops, microseconds apart: workers spin for a moment between them,
//! and sleep where no next one comes, since other processes want the cores too. Where they do have the cores, a
//! worker may be milliseconds late: parts go to whoever takes them, and a job does not wait for workers that have
//! not begun.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread spins for what it waits for before it sleeps: several times the gap between two loops of a
/// forward pass (a few microseconds), and about what a wake-up costs. Longer burns cores that others need.
const SPIN: Duration = Duration::from_micros(50);

/// Set in [`Shared::state`] while no worker may join the job.
const CLOSED: u64 = 1 << 31;
/// What a new job adds to [`Shared::state`].
const NEXT: u64 = 1 << 32;

/// Threads that work on jobs together: the caller is worker 0, the others wait in between.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<()>,
}

/// A job: `(worker, part)`.
type Job = *const (dyn Fn(usize, Range<usize>) + Sync);

/// What workers read of a job once they have joined it.
#[derive(Clone, Copy)]
struct Posted {
    job: Job,
    parts: *const Parts,
}

struct Shared {
    /// From the top: 32 bits that count jobs, one that says whether the job is closed, 31 that count the workers
    /// (other than the caller) inside it. Whoever joins an open job keeps the caller from returning.
    state: AtomicU64,
    /// Written while the job is closed and nobody is inside, read by those who have joined.
    posted: UnsafeCell<Option<Posted>>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held to fall asleep and to wake: see `wait_for_job` and `wait_for_workers`.
    sleep: Mutex<()>,
    workers_wake: Condvar,
    workers_asleep: AtomicUsize,
    caller_wake: Condvar,
    caller_asleep: AtomicBool,
}

// SAFETY: `posted` is written by the caller while the state lets nobody in, and read by workers that the state has
// counted in; what it points to is `Sync` and outlives them, because the caller waits until all are out.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Hands out the parts `0..count` of a job, `step` at a time, each once. Whoever is faster takes more.
struct Parts {
    next: AtomicUsize,
    count: usize,
    step: usize,
}

impl Parts {
    fn take(&self) -> Option<Range<usize>> {
        let from = self.next.fetch_add(self.step, Ordering::Relaxed);
        (from < self.count).then(|| from..self.count.min(from + self.step))
    }
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Team {
    /// A team of `threads` (at least one), the caller of [`Team::share`] included: `threads - 1` are started.
    pub fn new(threads: usize) -> Self {
        let workers = threads.max(1);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(CLOSED),
            posted: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleep: Mutex::new(()),
            workers_wake: Condvar::new(),
            workers_asleep: AtomicUsize::new(0),
            caller_wake: Condvar::new(),
            caller_asleep: AtomicBool::new(false),
        });
        let threads = (1..workers)
            .map(|worker| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("team-{worker}"))
                    .spawn(move || shared.serve(worker))
                    .expect("a process that cannot start its compute threads cannot serve")
            })
            .collect();
        Self { shared, threads, turn: Mutex::new(()) }
    }

    /// How many work together.
    pub fn workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `job(worker, part)` until the parts of `0..count`, `step` at a time, have each been run once, by
    /// whichever workers are there in time (`worker` is below [`Team::workers`], and no two run as the same one at
    /// a time). With one worker, or one part, that is a plain call.
    ///
    /// A panic in any of them comes out here, after all have finished; other parts may then not have run. Jobs of
    /// several callers run one after the other; a job must not call `share` of a team with threads.
    pub fn share(&self, count: usize, step: usize, job: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let step = step.max(1);
        if self.threads.is_empty() || count <= step {
            let mut from = 0;
            while from < count {
                job(0, from..count.min(from + step));
                from += step;
            }
            return;
        }
        assert!(!INSIDE.get(), "a team's job must not share out another");
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        let parts = Parts { next: AtomicUsize::new(0), count, step };
        // SAFETY: only the lifetime is erased; this function does not return before no worker uses it.
        let job_erased: Job =
            unsafe { std::mem::transmute::<&(dyn Fn(usize, Range<usize>) + Sync), Job>(job) };
        // SAFETY: the last job is closed and nobody is inside, so nobody reads it.
        unsafe { *shared.posted.get() = Some(Posted { job: job_erased, parts: &raw const parts }) };
        shared.open();
        INSIDE.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| {
            while let Some(part) = parts.take() {
                job(0, part);
            }
        }));
        INSIDE.set(false);
        shared.close();
        let theirs = lock(&shared.panic).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.state.fetch_add(NEXT, Ordering::SeqCst);
        self.shared.wake_workers();
        for thread in self.threads.drain(..) {
            // A worker catches its job's panics, so it ends in order; and a destructor has nobody to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn serve(&self, worker: usize) {
        INSIDE.set(true);
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if !self.join(seen) {
                continue;
            }
            // SAFETY: joined, so the caller has posted the job and waits until this worker is out.
            let posted = unsafe { (*self.posted.get()).expect("a job is posted before it opens") };
            // SAFETY: as above: what the caller lent is still there.
            let (job, parts) = unsafe { (&*posted.job, &*posted.parts) };
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                while let Some(part) = parts.take() {
                    job(worker, part);
                }
            }));
            if let Err(panic) = outcome {
                *lock(&self.panic) = Some(panic);
            }
            let before = self.state.fetch_sub(1, Ordering::SeqCst);
            let last = before & CLOSED != 0 && before & (CLOSED - 1) == 1;
            if last && self.caller_asleep.load(Ordering::SeqCst) {
                drop(lock(&self.sleep));
                self.caller_wake.notify_one();
            }
        }
    }

    /// Counts a worker into job `number`, if that is still open.
    fn join(&self, number: u64) -> bool {
        let mut state = self.state.load(Ordering::SeqCst);
        while state >> 32 == number && state & CLOSED == 0 {
            match self.state.compare_exchange_weak(state, state + 1, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Opens the posted job.
    fn open(&self) {
        // The state is closed and empty: this clears the one bit and counts the job. The count wraps; workers
        // compare for equality only.
        self.state.fetch_add(NEXT - CLOSED, Ordering::SeqCst);
        self.wake_workers();
    }

    /// Lets nobody else in, and waits for those inside.
    fn close(&self) {
        let empty = |state: u64| state & (CLOSED - 1) == 0;
        if empty(self.state.fetch_or(CLOSED, Ordering::SeqCst)) {
            return;
        }
        if spin_until(|| empty(self.state.load(Ordering::SeqCst))) {
            return;
        }
        let mut asleep = lock(&self.sleep);
        self.caller_asleep.store(true, Ordering::SeqCst);
        // No deadline: the job borrows from the caller, who must not go on before it ends.
        while !empty(self.state.load(Ordering::SeqCst)) {
            asleep = self.caller_wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_asleep.store(false, Ordering::SeqCst);
    }

    fn wake_workers(&self) {
        if self.workers_asleep.load(Ordering::SeqCst) > 0 {
            // A worker that counted itself asleep holds the lock until it really waits: past this it hears us.
            drop(lock(&self.sleep));
            self.workers_wake.notify_all();
        }
    }

    /// Waits for a job that is not number `seen`, and gives its number.
    fn wait_for_job(&self, seen: u64) -> u64 {
        let number = || self.state.load(Ordering::SeqCst) >> 32;
        if spin_until(|| number() != seen) {
            return number();
        }
        let mut asleep = lock(&self.sleep);
        self.workers_asleep.fetch_add(1, Ordering::SeqCst);
        // No deadline: between jobs there is nothing else to do, and dropping the team ends the wait.
        while number() == seen {
            asleep = self.workers_wake.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.workers_asleep.fetch_sub(1, Ordering::SeqCst);
        number()
    }
}

fn spin_until(done: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        for _ in 0..64 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begun.elapsed() > SPIN {
            return false;
        }
    }
}

/// No state behind these locks can be left half-changed, so a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_whoever_runs_it() {
        for threads in [0, 1, 2, 3, 5] {
            let team = Team::new(threads);
            assert_eq!(team.workers(), threads.max(1));
            for (count, step) in [(0, 1), (1, 1), (7, 3), (64, 1), (64, 0)] {
                for _ in 0..50 {
                    let runs: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    team.share(count, step, &|worker, part| {
                        assert!(worker < team.workers() && part.len() <= step.max(1));
                        for at in part {
                            runs[at].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert!(runs.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn workers_that_are_there_take_part_even_out_of_their_sleep() {
        let team = Team::new(3);
        for _ in 0..20 {
            let begun = Instant::now();
            while team.shared.workers_asleep.load(Ordering::SeqCst) < 2 {
                assert!(begun.elapsed() < Duration::from_secs(30), "idle workers never fall asleep");
                std::thread::yield_now();
            }
            // Each part waits until all three are at one: only workers that have woken can end it.
            let inside = AtomicUsize::new(0);
            team.share(3, 1, &|_, _| {
                inside.fetch_add(1, Ordering::SeqCst);
                let begun = Instant::now();
                while inside.load(Ordering::SeqCst) < 3 {
                    assert!(begun.elapsed() < Duration::from_secs(30), "a worker did not wake");
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn a_panic_of_any_worker_reaches_the_caller_and_the_team_works_on() {
        let team = Team::new(2);
        for guilty in [0, 1] {
            let arrived = AtomicUsize::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.share(2, 1, &|worker, _| {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    while arrived.load(Ordering::SeqCst) < 2 {
                        std::thread::yield_now();
                    }
                    assert_ne!(worker, guilty, "on purpose");
                });
            }));
            assert!(outcome.is_err());
        }
        let runs = AtomicUsize::new(0);
        team.share(10, 1, &|_, _| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn several_callers_take_turns() {
        let team = Team::new(2);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        team.share(8, 1, &|_, _| {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < team.workers());
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }
}
